"""What a run tells a logger, and the logger that does nothing: the record is complete without one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol


class Logger(Protocol):
    """Gets a copy of what the record gets. No method raises: a mirror that breaks must not end a run."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures of one step; steps only grow."""

    def summarise(self, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        """The run's final metrics, and a few generations as rows; a value with `load()` is an image."""


class Silent:
    def log(self, step: int, figures: Mapping[str, float]) -> None:
        pass

    def summarise(self, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        pass


@contextmanager
def silent(about: Mapping[str, Any]) -> Iterator[Logger]:
    """`logger=none`."""
    yield Silent()

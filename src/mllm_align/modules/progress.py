"""A bar with the figures that matter, on a terminal; silence where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# In this order, where a step has them. Ties and agreement belong to online runs.
SHOWN = ("loss", "margin", "accuracy", "ties", "agreement")


@contextmanager
def bar(title: str | None, total: int, done: int = 0) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function (step, figures) that moves the bar; without a title there is none."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(
        *columns,
        TextColumn("{task.fields[figures]}"),
        console=console,
        disable=title is None or not console.is_terminal,
    )
    with progress:
        task = progress.add_task(title or "", total=total, completed=done, figures="")
        yield lambda step, values: progress.update(task, completed=step, figures=line(values))


def line(values: dict[str, float]) -> str:
    """The figures of a step as they stand beside the bar."""
    return "  ".join(f"{name} {values[name]:.3f}" for name in SHOWN if name in values)

"""Hydra's sweeper of this program (`hydra/sweeper: cells`), for every launcher."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from hydra_plugins.mllm_align_cells.launcher import CellsLauncher


class CellsSweeper(BasicSweeper):
    """The basic sweeper less its copy of the whole config, and for the cells launcher less its check.

    The copy (multirun.yaml) has secrets and all; the records hold what is needed. The check composes every cell once
    more and names only the first bad one; the cells launcher checks each one itself, and names all that cannot run.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Called between the writing of that copy and the launch."""
        assert self.config is not None
        folder = Path(str(self.config.hydra.sweep.dir))
        (folder / "multirun.yaml").unlink(missing_ok=True)
        with suppress(OSError):  # left where it is in use
            folder.rmdir()
            folder.parent.rmdir()
        if not isinstance(self.launcher, CellsLauncher):
            super().validate_batch_is_legal(batch)

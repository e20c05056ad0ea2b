"""Hydra's sweeper for the cells launcher (`hydra/sweeper: cells`)."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class CellsSweeper(BasicSweeper):
    """The basic sweeper less its check, which composes every cell once more and names only the first bad one."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """The launcher composes and checks each cell, and names all that cannot run."""

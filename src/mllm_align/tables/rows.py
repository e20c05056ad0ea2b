"""A comparison as plain data: what `compare` finds and what every renderer shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mllm_align.benchmarks.base import Metric
from mllm_align.benchmarks.stats import Interval
from mllm_align.tables.load import Run


@dataclass(frozen=True)
class Column:
    """A metric of a benchmark."""

    benchmark: str
    metric: Metric

    @property
    def key(self) -> str:
        return f"{self.benchmark}/{self.metric.name}"

    @property
    def main(self) -> bool:
        return self.metric.main

    @property
    def tested(self) -> bool:
        """Whether its differences are tested: a main metric of which one knows what is better."""
        return self.metric.main and self.metric.better != 0

    @property
    def scale(self) -> float:
        """What a value is multiplied by where it is shown."""
        return 100.0 if self.metric.percent else 1.0

    @property
    def arrow(self) -> str:
        return {1: "↑", -1: "↓"}.get(self.metric.better, "")


@dataclass(frozen=True)
class Cell:
    """A metric of a row: its value, and its difference to the baseline (None in the baseline's own row).

    `value` and `difference` are unscaled. `p_adjusted` is Holm's over all tested cells of the comparison,
    None for the others; a value without predictions to resample has an interval that is a point.
    """

    value: Interval
    difference: Interval | None = None
    p_adjusted: float | None = None

    def significant(self, alpha: float = 0.05) -> bool:
        return self.p_adjusted is not None and self.p_adjusted < alpha


@dataclass(frozen=True)
class Row:
    """The runs of one label (its seeds); `notes` says what is missing and why."""

    method: str
    dataset: str
    name: str
    runs: tuple[Run, ...]
    baseline: bool = False
    cells: Mapping[str, Cell] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.done)

    @property
    def status(self) -> str:
        """`finished`, or the states of the seeds that are not."""
        states = dict.fromkeys(run.status for run in self.runs if run.status != "finished")
        return ", ".join(states) or "finished"


@dataclass(frozen=True)
class Comparison:
    """Rows of runs and columns of metrics, differences taken to `baseline`."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    baseline: str
    level: float
    draws: int
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.main)

    @property
    def comparisons(self) -> int:
        """How many differences the correction counts."""
        return sum(cell.p_adjusted is not None for row in self.rows for cell in row.cells.values())

    @property
    def images(self) -> int:
        """Images behind a value (the most of any cell)."""
        return max((cell.value.n for row in self.rows for cell in row.cells.values()), default=0)

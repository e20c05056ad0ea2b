"""A table of the study: its rows as the records have them, each compared with the row it names, beside the paper.

The statistics are those of `compare`: intervals over images for one seed, over seeds and images for several; paired
differences; Holm's correction over every comparison of the table. A row of which a seed collapsed has no figures,
as in the paper's Table 8: the mean of the seeds that survived would flatter it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mllm_align.benchmarks import stats
from mllm_align.benchmarks.base import Benchmark
from mllm_align.tables import paper
from mllm_align.tables.compare import fill
from mllm_align.tables.load import Run
from mllm_align.tables.paper import NOT_STABLE, PaperTable, Reported
from mllm_align.tables.rows import Cell, Column, Comparison, Row
from mllm_align.tables.spec import ColumnSpec, RowSpec, TableSpec

AGREES, DISAGREES, UNSURE = "agrees", "disagrees", "not significant"
NOT_EVALUATED = "not evaluated"


@dataclass(frozen=True)
class StudyTable:
    """`comparison` has the rows of `spec` in their order, and `reported` the paper's figure by (row, column key)."""

    spec: TableSpec
    comparison: Comparison
    reported: Mapping[tuple[str, str], Reported]
    source: str = ""

    def paper(self, row: Row, column: Column) -> Reported | None:
        return self.reported.get((row.name, column.key))

    def against(self, row: Row) -> str | None:
        """Name of the row that it is compared with."""
        return next(spec.against for spec in self.spec.rows if spec.name == row.name)

    def agreement(self, row: Row, column: Column) -> str:
        """Whether our difference has the direction of the paper's; empty where one of them is not there.

        Where the paper calls a run unstable: whether ours is (any seed of it).
        """
        cell, told = row.cells.get(column.key), self.paper(row, column)
        if told is not None and told.text == NOT_STABLE and row.done:
            return AGREES if collapsed(row) else DISAGREES
        if cell is None or cell.difference is None or cell.p_adjusted is None or told is None:
            return ""
        return direction(cell, told)


def direction(cell: Cell, told: Reported) -> str:
    """`agrees`, `disagrees` or `not significant`; empty where the paper sees no difference."""
    if cell.difference is None or not told.change:
        return ""
    if not cell.significant():
        return UNSURE
    return AGREES if cell.difference.value * told.change > 0 else DISAGREES


def make_table(
    spec: TableSpec,
    runs: Mapping[str, Sequence[Run]],
    scorers: Mapping[str, Benchmark],
    *,
    draws: int = stats.DRAWS,
    level: float = stats.LEVEL,
) -> StudyTable:
    """`runs` by the name of their row, `scorers` by the benchmark's name.

    Raises ValueError for a metric that its benchmark has not, and for a row or column that the paper has not.
    """
    figures = paper.read(spec.paper) if spec.paper else None
    columns = tuple(_column(column, scorers) for column in spec.columns)
    told = _reported(spec, figures) if figures else {}
    rows = [_row(row, runs[row.name]) for row in spec.rows]
    stable = {row.name: row for row in rows if not collapsed(row)}
    filled, notes = fill(
        list(stable.values()), lambda row: _against(spec, row, stable), columns, scorers, draws, level
    )
    by_name = {row.name: row for row in rows} | {row.name: row for row in filled}
    notes += [*_uncompared(spec, by_name), *spec.notes]
    comparison = Comparison(
        tuple(by_name[row.name] for row in spec.rows), columns, "", level, draws, tuple(dict.fromkeys(notes))
    )
    return StudyTable(spec, comparison, told, figures.source if figures else "")


def collapsed(row: Row) -> int:
    """How many of its seeds ended as collapsed."""
    return sum(run.status == "collapsed" for run in row.runs)


def state(row: Row) -> str:
    """What stands in place of figures, in words; empty where the row has some."""
    broken = collapsed(row)
    if broken:
        return NOT_STABLE if broken == len(row.runs) else f"{NOT_STABLE} ({broken} of {len(row.runs)} seeds)"
    if row.done:
        return ""
    counts = Counter(run.status for run in row.runs)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{status} ({number})" for status, number in counts.items())


# --- parts -------------------------------------------------------------------------------------------------


def _column(spec: ColumnSpec, scorers: Mapping[str, Benchmark]) -> Column:
    """The benchmark knows which way is better and whether it is a share; the table gives the name."""
    if spec.benchmark not in scorers:
        known = ", ".join(sorted(scorers)) or "none"
        raise ValueError(
            f"column {spec.name!r}: there is no benchmark {spec.benchmark!r} among those that the rows are evaluated "
            f"with ({known}); choose another benchmark=... or another column"
        )
    metrics = {f"{spec.benchmark}/{metric.name}": metric for metric in scorers[spec.benchmark].shown}
    if spec.metric not in metrics:
        raise ValueError(
            f"column {spec.name!r}: no metric {spec.metric!r}; choose one of {', '.join(metrics)}"
        )
    return Column(spec.benchmark, replace(metrics[spec.metric], title=spec.name, main=True))


def _row(spec: RowSpec, runs: Sequence[Run]) -> Row:
    notes = tuple(
        f"seed {run.seed} {NOT_STABLE if run.status == 'collapsed' else run.status}"
        + (f": {run.problem}" if run.problem else "")
        for run in runs
        if run.status != "finished" or run.problem
    )
    return Row(spec.experiment, "", spec.name, tuple(runs), spec.against is None, notes=notes)


def _against(spec: TableSpec, row: Row, rows: Mapping[str, Row]) -> Row | None:
    name = next(entry.against for entry in spec.rows if entry.name == row.name)
    return rows.get(name) if name is not None else None


def _uncompared(spec: TableSpec, rows: Mapping[str, Row]) -> list[str]:
    """Why rows with figures have no differences."""
    return [
        f"{row.name}: not compared with {row.against}, which has no figures ({state(rows[row.against])})"
        for row in spec.rows
        if row.against is not None and not state(rows[row.name]) and state(rows[row.against])
    ]


def _reported(spec: TableSpec, figures: PaperTable) -> dict[tuple[str, str], Reported]:
    if unknown := [c.paper for c in spec.columns if c.paper is not None and c.paper not in figures.columns]:
        raise ValueError(
            f"{figures.name} of the paper has no column {unknown[0]!r}; it has {', '.join(figures.columns)}"
        )
    found = {row.name: figures.row(row.paper) for row in spec.rows if row.paper is not None}
    told: dict[tuple[str, str], Reported] = {}
    for row in spec.rows:
        for column in spec.columns:
            if row.name in found and column.paper is not None:
                against = found.get(row.against) if row.against is not None else None
                entry = paper.reported(found[row.name], against, column.paper)
                if entry is not None:
                    told[row.name, column.metric] = entry
    return told

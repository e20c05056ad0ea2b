"""What a table of the study is made of, as conf/table/<name>.yaml says it: rows of experiments, columns of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ColumnSpec:
    """`metric` is `<benchmark>/<metric>`; `paper` the column of the paper's figures that it stands for."""

    metric: str
    name: str
    paper: str | None = None

    @property
    def benchmark(self) -> str:
        return self.metric.partition("/")[0]


@dataclass(frozen=True)
class RowSpec:
    """`against` names the row that it is compared with; `paper` says which row of the paper's figures it is."""

    experiment: str
    name: str
    against: str | None = None
    paper: Mapping[str, str] | None = None
    settings: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        """What composes its cell."""
        return (f"experiment={self.experiment}", *self.settings)


@dataclass(frozen=True)
class TableSpec:
    """`paper` names the file of the paper's figures (`paper.read`), None for a table that the paper has not."""

    name: str
    title: str
    rows: tuple[RowSpec, ...]
    columns: tuple[ColumnSpec, ...]
    paper: str | None = None
    notes: tuple[str, ...] = field(default=())


def read_spec(config: Mapping[str, Any]) -> TableSpec:
    """The config of a table, checked. Raises ValueError naming the row or column that is wrong."""
    keys = {"name", "title", "paper", "notes", "rows", "columns"}
    _only(config, keys, "the table")
    name = _text(config, "name", "the table")
    spec = TableSpec(
        name=name,
        title=_text(config, "title", name),
        rows=tuple(_row(row, f"{name}: row {i}") for i, row in enumerate(_list(config, "rows", name), 1)),
        columns=tuple(
            _column(column, f"{name}: column {i}")
            for i, column in enumerate(_list(config, "columns", name), 1)
        ),
        paper=config.get("paper"),
        notes=tuple(config.get("notes") or ()),
    )
    _check_names(spec)
    return spec


def _row(config: Any, where: str) -> RowSpec:
    _only(config, {"experiment", "name", "against", "paper", "overrides"}, where)
    paper = config.get("paper")
    if paper is not None and not isinstance(paper, Mapping):
        raise ValueError(f"{where}: paper is {paper!r}; it must say column: value, as in {{alignment: DPO}}")
    return RowSpec(
        experiment=_text(config, "experiment", where),
        name=_text(config, "name", where),
        against=config.get("against"),
        paper=None if paper is None else {str(key): str(value) for key, value in paper.items()},
        settings=tuple(config.get("overrides") or ()),
    )


def _column(config: Any, where: str) -> ColumnSpec:
    _only(config, {"metric", "name", "paper"}, where)
    metric = _text(config, "metric", where)
    if metric.count("/") != 1:
        raise ValueError(f"{where}: metric is {metric!r}; it must be <benchmark>/<metric>, such as pope/f1")
    return ColumnSpec(metric, _text(config, "name", where), config.get("paper"))


def _check_names(spec: TableSpec) -> None:
    names = [row.name for row in spec.rows]
    metrics = [column.metric for column in spec.columns]
    for values, what in ((names, "rows have the name"), (metrics, "columns have the metric")):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"{spec.name}: several {what} {', '.join(twice)}; each must have its own")
    for row in spec.rows:
        if row.against is not None and (row.against not in names or row.against == row.name):
            raise ValueError(
                f"{spec.name}: row {row.name!r} is compared with {row.against!r}, which is no other row; "
                f"the rows are {', '.join(names)}"
            )


def _only(config: Any, known: set[str], where: str) -> None:
    if not isinstance(config, Mapping):
        raise ValueError(f"{where} is {config!r}; it must have the keys {', '.join(sorted(known))}")
    if unknown := sorted(set(map(str, config)) - known):
        raise ValueError(f"{where} has the key {unknown[0]!r}; it may have {', '.join(sorted(known))}")


def _text(config: Mapping[str, Any], key: str, where: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: {key} is {value!r}; it must be a text")
    return value


def _list(config: Mapping[str, Any], key: str, where: str) -> Sequence[Any]:
    value = config.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{where}: {key} is {value!r}; it must be a list with at least one entry")
    return value

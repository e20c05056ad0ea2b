"""Runs compared with a baseline: each metric, its difference, and how sure one can be of it.

- One seed: BCa bootstrap intervals over images; the difference resamples the same images on both sides.
- Several seeds: the mean over seeds. Its interval covers another seed *and* other images: the two variances
  are added and Student's t takes Satterthwaite's degrees of freedom (`stats.over_seeds_and_images`). A seed
  is compared with the baseline's run of the same seed, or with its first where it has not that seed.
- A star means p < 0.05 after Holm's correction over every main metric of every row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm_align.benchmarks import stats
from mllm_align.benchmarks.base import Benchmark, Metric, Prediction
from mllm_align.benchmarks.stats import Counts, Interval
from mllm_align.tables.load import Run, benchmarks_of, load_runs
from mllm_align.tables.names import row_names
from mllm_align.tables.render import render_csv, render_latex, render_markdown, render_terminal
from mllm_align.tables.rows import Cell, Column, Comparison, Row

__all__ = ["compare", "compare_runs", "render_csv", "render_latex", "render_markdown", "render_terminal"]

# What `baseline` may name.
KINDS = ("the rows", "the labels", "the alignments", "the samplers")
# Agreement asked of metrics.json and the metrics computed here from the predictions.
AGREE = 1e-6


def compare(
    run_dirs: Iterable[str | Path],
    baseline: str = "none",
    *,
    draws: int = stats.DRAWS,
    level: float = stats.LEVEL,
) -> Comparison:
    """Compares the runs in these folders with those that `baseline` names (see `_baselines`)."""
    return compare_runs(load_runs(run_dirs), baseline, draws=draws, level=level)


def compare_runs(
    runs: Sequence[Run],
    baseline: str = "none",
    *,
    benchmarks: Mapping[str, Benchmark] | None = None,
    draws: int = stats.DRAWS,
    level: float = stats.LEVEL,
) -> Comparison:
    """The same for loaded runs. `benchmarks` adds scorers that are not the package's own."""
    rows = _rows(runs, baseline)
    scorers = {name: scorer for run in reversed(runs) for name, scorer in benchmarks_of(run).items()}
    scorers |= benchmarks or {}
    columns = _columns(rows, scorers)
    filled, notes = fill(rows, lambda row: _baseline_for(row, rows), columns, scorers, draws, level)
    notes += _without_baseline(rows, baseline)
    return Comparison(filled, columns, baseline, level, draws, tuple(dict.fromkeys(notes)))


def fill(
    rows: Sequence[Row],
    against: Callable[[Row], Row | None],
    columns: Sequence[Column],
    scorers: Mapping[str, Benchmark],
    draws: int = stats.DRAWS,
    level: float = stats.LEVEL,
) -> tuple[tuple[Row, ...], list[str]]:
    """The rows with their cells, each compared with the row that `against` gives; and what was wrong.

    Holm's correction is over every tested cell of all the rows.
    """
    counts, notes = _all_counts(rows, scorers)
    filled = []
    for row in rows:
        cells, missing = _cells(row, against(row), columns, scorers, counts, draws, level)
        filled.append(replace(row, cells=cells, notes=(*row.notes, *missing)))
    return _corrected(filled, columns), notes


# --- rows and columns --------------------------------------------------------------------------------------


def _rows(runs: Sequence[Run], baseline: str) -> list[Row]:
    labels: dict[str, list[Run]] = {}
    for run in runs:
        labels.setdefault(run.label, []).append(run)
    names = row_names({label: group[0] for label, group in labels.items()})
    baselines = _baselines({label: group[0] for label, group in labels.items()}, names, baseline)
    rows = [_row(names[label], group, label in baselines) for label, group in labels.items()]
    return sorted(rows, key=lambda row: (not row.baseline, row.dataset, row.name))


def _baselines(runs: Mapping[str, Run], names: Mapping[str, str], wanted: str) -> set[str]:
    """The labels that `wanted` means: a row's name, a label, an alignment or a sampler, the first that there is.

    None where nobody ran without training (`none`). Raises ValueError for another name that nothing has.
    """
    kinds = [
        dict(names),
        {label: label for label in runs},
        *(
            {label: run.axes.get(axis, "") for label, run in runs.items()}
            for axis in ("alignment", "sampler")
        ),
    ]
    for kind in kinds:
        if found := {label for label, name in kind.items() if name == wanted}:
            return found
    if wanted == "none":
        return set()
    known = [
        f"{what} {', '.join(sorted({*kind.values()} - {''}))}"
        for what, kind in zip(KINDS, kinds, strict=True)
    ]
    raise ValueError(f"baseline={wanted} is no row: there are {'; '.join(known)}")


def _row(name: str, runs: Sequence[Run], baseline: bool) -> Row:
    axes = runs[0].axes
    method = axes.get("alignment", runs[0].label)
    failures = tuple(
        f"seed {run.seed} {run.status}" + (f": {run.problem}" if run.problem else "")
        for run in runs
        if run.status != "finished"
    )
    return Row(
        method=method,
        dataset=axes.get("dataset", "none"),
        name=name,
        runs=tuple(runs),
        baseline=baseline,
        notes=failures,
    )


def _baseline_for(row: Row, rows: Sequence[Row]) -> Row | None:
    """The finished baseline of the same base model: that of the same dataset, else the first."""
    if row.baseline or not row.done:
        return None
    fitting = [b for b in rows if b.baseline and b.done and _model(b) == _model(row)]
    return next((b for b in fitting if b.dataset == row.dataset), fitting[0] if fitting else None)


def _model(row: Row) -> tuple[object, ...]:
    """The base model of a row's runs: `base_model=local` is any folder, and its precision changes the answers."""
    run = row.done[0]
    base = run.config.get("base_model") or {}
    return run.axes.get("base_model"), base.get("path"), base.get("dtype"), bool(base.get("four_bit"))


def _without_baseline(rows: Sequence[Row], baseline: str) -> list[str]:
    if not any(row.baseline and row.done for row in rows):
        return [f"no finished run is {baseline}, so there are no differences to it"]
    return [
        f"{row.name}: no finished run of {baseline} has its base model (folder, dtype and four_bit), so "
        "there are no differences to it"
        for row in rows
        if row.done and not row.baseline and _baseline_for(row, rows) is None
    ]


def _columns(rows: Sequence[Row], scorers: Mapping[str, Benchmark]) -> tuple[Column, ...]:
    """The metrics that each benchmark shows; of a benchmark without a scorer every metric in metrics.json."""
    names = dict.fromkeys(name for row in rows for run in row.done for name in run.metrics)
    main: list[tuple[int, Column]] = []
    others: list[tuple[int, Column]] = []
    for name in names:
        found = dict.fromkeys(m for row in rows for run in row.done for m in run.metrics.get(name, {}))
        unknown = [Metric(metric, f"{name} {metric}", percent=False) for metric in found]
        for place, metric in enumerate(scorers[name].shown if name in scorers else unknown):
            (main if metric.main else others).append((place, Column(name, metric)))
    # The headline of every benchmark, then what each shows second: a narrow table loses the least telling.
    return tuple(column for _, column in [*sorted(main, key=lambda entry: entry[0]), *others])


# --- cells -------------------------------------------------------------------------------------------------

AllCounts = Mapping[tuple[Path, str], Counts]


def _all_counts(rows: Sequence[Row], scorers: Mapping[str, Benchmark]) -> tuple[AllCounts, list[str]]:
    """Counts of each run and benchmark that has predictions, and what was wrong with the others."""
    counts, problems = {}, []
    for run in (run for row in rows for run in row.done):
        for name in run.metrics:
            if name not in scorers:
                problems.append(f"benchmark {name} is not known here: its figures have no intervals")
                continue
            try:
                predictions = run.predictions(name)
                found = replace(scorers[name].counts(predictions), asked=_asked(predictions))
            except (OSError, ValueError, KeyError) as error:
                problems.append(f"{run.label} seed {run.seed}: no intervals for {name} ({error})")
                continue
            counts[run.folder, name] = found
            problems += _disagreement(run, name, scorers[name], found)
    return counts, problems


def _asked(predictions: Sequence[Prediction]) -> str:
    """A digest of the questions, whatever their order."""
    questions = sorted(json.dumps([row.get("id"), row.get("prompt")]) for row in predictions)
    return hashlib.sha256("\n".join(questions).encode()).hexdigest()


def _disagreement(run: Run, name: str, scorer: Benchmark, counts: Counts) -> list[str]:
    for metric, value in scorer.metrics(counts.totals()).items():
        recorded = run.metrics[name].get(metric)
        if recorded is not None and abs(recorded - float(value)) > AGREE:
            return [
                f"{run.label} seed {run.seed}: metrics.json has {name}/{metric} = {recorded:.6g}, its "
                f"predictions give {float(value):.6g}; the latter is shown"
            ]
    return []


def _cells(
    row: Row,
    baseline: Row | None,
    columns: Sequence[Column],
    scorers: Mapping[str, Benchmark],
    counts: AllCounts,
    draws: int,
    level: float,
) -> tuple[dict[str, Cell], list[str]]:
    cells: dict[str, Cell] = {}
    notes: list[str] = []
    for name in dict.fromkeys(column.benchmark for column in columns):
        wanted = [column for column in columns if column.benchmark == name]
        runs = [run for run in row.done if name in run.metrics]
        if not runs:
            continue
        if lacking := [str(run.seed) for run in row.done if run not in runs]:
            notes.append(
                f"{name}: not answered by seed {', '.join(lacking)}, so its figures are of the others"
            )
        if any((run.folder, name) not in counts for run in runs):
            cells |= _bare_cells(runs, wanted)
            continue
        ours = [counts[run.folder, name] for run in runs]
        try:
            values = _values(ours, scorers[name], draws, level)
        except ValueError as error:
            notes.append(f"{name}: no intervals: {error}")
            cells |= _bare_cells(runs, wanted)
            continue
        differences: Mapping[str, Interval] = {}
        theirs = _paired(runs, baseline, name, counts)
        if theirs:
            try:
                differences = _differences(list(zip(ours, theirs, strict=True)), scorers[name], draws, level)
            except ValueError as error:
                notes.append(f"{name}: not compared with the baseline: {error}")
        for column in wanted:
            metric = column.metric.name
            cells[column.key] = Cell(values[metric], differences.get(metric))
    return cells, notes


def _bare_cells(runs: Sequence[Run], columns: Sequence[Column]) -> dict[str, Cell]:
    """Values of metrics.json without predictions behind them, averaged over seeds."""
    cells = {}
    for column in columns:
        found = [run.metrics[column.benchmark].get(column.metric.name) for run in runs]
        values = [float(value) for value in found if value is not None]
        if len(values) > 1:
            cells[column.key] = Cell(stats.over_seeds(values))
        elif values:
            cells[column.key] = Cell(Interval(values[0], values[0], values[0], 0, 1.0, "no predictions"))
    return cells


def _paired(runs: Sequence[Run], baseline: Row | None, name: str, counts: AllCounts) -> list[Counts]:
    """The baseline's counts for each run: those of the same seed, else of its first seed."""
    if baseline is None:
        return []
    by_seed = {b.seed: counts[b.folder, name] for b in baseline.done if (b.folder, name) in counts}
    if not by_seed:
        return []
    first = by_seed[min(by_seed)]
    return [by_seed.get(run.seed, first) for run in runs]


def _values(ours: Sequence[Counts], scorer: Benchmark, draws: int, level: float) -> dict[str, Interval]:
    if len(ours) == 1:
        return stats.intervals(ours[0], scorer.metrics, draws=draws, level=level)
    seeds = [scorer.metrics(part.totals()) for part in ours]
    images = stats.mean_intervals(ours, scorer.metrics, draws=draws, level=level)
    return _over_both(images, lambda name: [float(seed[name]) for seed in seeds], level)


def _differences(
    pairs: Sequence[tuple[Counts, Counts]], scorer: Benchmark, draws: int, level: float
) -> dict[str, Interval]:
    images = stats.mean_paired_difference(pairs, scorer.metrics, draws=draws, level=level)
    if len(pairs) == 1:
        return images
    scores = [[scorer.metrics(part.totals()) for part in pair] for pair in pairs]
    return _over_both(images, lambda name: [float(a[name]) - float(b[name]) for a, b in scores], level)


def _over_both(
    images: Mapping[str, Interval], values: Callable[[str], list[float]], level: float
) -> dict[str, Interval]:
    return {name: stats.over_seeds_and_images(values(name), images[name], level) for name in images}


def _corrected(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[Row, ...]:
    """Holm's correction over every tested cell that has a difference."""
    tested = [column.key for column in columns if column.tested]
    places: list[tuple[int, str, float]] = [
        (i, key, cell.difference.p)
        for i, row in enumerate(rows)
        for key in tested
        if (cell := row.cells.get(key)) is not None and cell.difference is not None
    ]
    changed: list[dict[str, Any]] = [dict(row.cells) for row in rows]
    for (i, key, _), p in zip(places, stats.holm([p for _, _, p in places]), strict=True):
        changed[i][key] = replace(changed[i][key], p_adjusted=p)
    return tuple(replace(row, cells=cells) for row, cells in zip(rows, changed, strict=True))

"""`mllm-align table`: compare finished runs, or render a table of the study; terminal, Markdown, CSV, LaTeX, a page."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mllm_align.entry import command, plain
from mllm_align.record import RECORD
from mllm_align.tables.load import Run

if TYPE_CHECKING:
    from mllm_align.benchmarks.base import Benchmark
    from mllm_align.pipeline import Cell
    from mllm_align.tables.spec import RowSpec, TableSpec

    # Runs by row, scorers by benchmark, and where the outputs are.
    Found = tuple[dict[str, list[Run]], dict[str, Benchmark], Path]

# What only a comparison of runs has.
OF_COMPARISONS = ("report", "markdown", "csv", "latex")


def _rendered(config: dict[str, Any]) -> None:
    """A comparison of runs, or a table of the study."""
    (_run if config.get("table") is None else _study)(config)


def _run(config: dict[str, Any]) -> None:
    from mllm_align.store import write_text
    from mllm_align.tables.compare import compare, render_csv, render_latex, render_markdown, render_terminal
    from mllm_align.terminal import console

    comparison = compare(run_folders(config), config["baseline"])
    out = console()
    out.print(render_terminal(comparison, out.width))
    for name, render in {"markdown": render_markdown, "csv": render_csv, "latex": render_latex}.items():
        if config[name]:
            write_text(Path(config[name]), render(comparison))
            print(f"{name}: {config[name]}")
    if config["report"]:
        from mllm_align.tables.report import write_page

        steps = [(text, command) for text, command in config["next"]]
        page = write_page(comparison, Path(config["report"]), config["title"], steps)
        print(f"page with pictures: {page}")
        for text, command in steps:
            print(f"next, {text}:\n  {command}")


def run_folders(config: Mapping[str, Any]) -> list[Path]:
    """The folders asked for. Raises FileNotFoundError for a sweep that is not there, naming those that are."""
    if config["sweep"] is None:
        return [Path(folder) for folder in config["runs"]]
    cells = sweep_cells(config)
    folders = [Path(config["outputs"]) / cell["run"] for cell in cells]
    for folder in (folder for folder in folders if not (folder / RECORD).is_file()):
        print(f"not started yet, so not in the table: {folder}", file=sys.stderr)
    return [folder for folder in folders if (folder / RECORD).is_file()]


def sweep_cells(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells of the sweep asked for. Raises FileNotFoundError where it is not there, naming those that are."""
    sweeps = Path(config["outputs"]) / "sweeps"
    file = sweeps / config["sweep"] / "summary.json"
    if not file.is_file():
        known = ", ".join(sorted(path.parent.name for path in sweeps.glob("*/summary.json"))) or "none"
        raise FileNotFoundError(f"sweep={config['sweep']}: {file} does not exist; sweeps there: {known}")
    return list(json.loads(file.read_text(encoding="utf-8"))["cells"])


# --- a table of the study ----------------------------------------------------------------------------------


def _study(config: dict[str, Any]) -> None:
    """Render a table of the study from the runs of its rows."""
    from mllm_align.store import write_text
    from mllm_align.tables import render_study
    from mllm_align.tables.spec import read_spec
    from mllm_align.tables.study import make_table
    from mllm_align.terminal import console

    if given := [name for name in OF_COMPARISONS if config[name] is not None]:
        raise ValueError(
            f"{given[0]}=... belongs to a comparison of runs; leave it out, or leave out table=..."
        )
    spec = read_spec(config["table"])
    runs, scorers, outputs = (planned_runs if config["sweep"] is None else sweep_runs)(spec, config)
    table = make_table(spec, runs, scorers)
    out = console()
    out.print(render_study.render_terminal(table, out.width))
    ended_badly = [
        run for found in runs.values() for run in found if run.status not in ("missing", "finished")
    ]
    if not ended_badly and not any(row.cells for row in table.comparison.rows):
        raise FileNotFoundError(nothing_ran(spec.name, config))
    renderers = {
        "md": render_study.render_markdown,
        "tex": render_study.render_latex,
        "csv": render_study.render_csv,
    }
    for suffix, render in renderers.items():
        file = outputs / "tables" / folder_name(spec.name, config["world"]["name"]) / f"table.{suffix}"
        write_text(file, render(table))
        print(file)


def nothing_ran(table: str, config: Mapping[str, Any]) -> str:
    """What to say where no row has a run: nothing is written over an earlier table, and what was run is named."""
    name = folder_name(table, config["world"]["name"])
    told = f"none of the rows of {table} has been run as they are planned now, so no file was written"
    summary = Path(config["outputs"]) / "sweeps" / name / "summary.json"
    if not summary.is_file():
        return f"{told}; run them with: make {table}"
    command = json.loads(summary.read_text(encoding="utf-8"))["command"]
    return (
        f"{told}. The sweep {name} was: {command}\n"
        f"Give what stands there beside the table as overrides=..., or take its runs as they are with sweep={name}"
    )


def folder_name(table: str, world: str) -> str:
    """Where a table is rendered: tables of the scenes world have no suffix."""
    return table if world == "scenes" else f"{table}-{world}"


def sweep_runs(spec: TableSpec, config: Mapping[str, Any]) -> Found:
    """The runs of a sweep, whatever code they were made with, told apart by the overrides of their rows.

    Raises ValueError where the sweep varied more than rows and seeds.
    """
    from mllm_align.tables.load import benchmarks_of, load_run

    outputs = Path(config["outputs"])
    runs: dict[str, list[Run]] = {row.name: [] for row in spec.rows}
    for cell in sweep_cells(config):
        rows = [row for row in spec.rows if {*row.overrides} <= {*cell["overrides"]}]
        folder = outputs / cell["run"]
        if rows:
            run = Run(folder, cell["label"], cell["seed"], "missing", problem="not started yet")
            closest = max(rows, key=lambda row: len(row.overrides))
            runs[closest.name].append(load_run(folder) if (folder / RECORD).is_file() else run)
    for row in spec.rows:
        if len(labels := {run.label for run in runs[row.name]}) > 1:
            raise ValueError(
                f"row {row.name!r} has runs of several configs in sweep {config['sweep']} "
                f"({', '.join(sorted(labels))}): leave out sweep=..., and say in overrides=... which of them is meant"
            )
        if not labels:
            problem = f"not in sweep {config['sweep']}"
            runs[row.name] = [Run(outputs / "runs", row.experiment, 0, "missing", problem=problem)]
    found = [run for row in runs.values() for run in row]
    return runs, {name: scorer for run in found for name, scorer in benchmarks_of(run).items()}, outputs


def planned_runs(spec: TableSpec, config: Mapping[str, Any]) -> Found:
    """The runs that the rows plan. Raises ValueError where a row cannot be composed, naming it."""
    from mllm_align.tables.load import benchmarks_in, find_run

    cells = {}
    for row in spec.rows:
        try:
            cells[row.name] = row_cells(row, config)
        except (ValueError, FileNotFoundError, HydraException, OmegaConfBaseException) as error:
            raise ValueError(f"row {row.name!r} ({row.experiment}): {error}") from error
    runs = {
        name: [find_run(cell.outputs, cell.label, cell.seed, cell.key, cell.benchmarks) for cell in found]
        for name, found in cells.items()
    }
    first = [found[0] for found in cells.values()]
    scorers = {name: scorer for cell in first for name, scorer in benchmarks_in(cell.config).items()}
    return runs, scorers, first[0].outputs


def row_cells(row: RowSpec, config: Mapping[str, Any]) -> list[Cell]:
    """The row's cells for the seeds asked for; without any, for those that have been started (at least one cell)."""
    world = f"world={config['world']['name']}"
    given = [
        f"outputs={json.dumps(config['outputs'])}",
        world,
        *row.overrides,
        *shlex.split(config["overrides"]),
    ]
    first = _cell(given)
    if config["seeds"] is None:
        started = (first.outputs / "runs" / first.label).glob(f"seed*/{RECORD}")
        seeds = sorted(int(file.parent.name.removeprefix("seed")) for file in started) or [first.seed]
    else:
        seeds = list(config["seeds"])
    cells = [_cell([*given, f"seed={seed}"]) for seed in seeds]
    return list({cell.seed: cell for cell in cells}.values())


def _cell(overrides: Sequence[str]) -> Cell:
    from hydra import compose

    from mllm_align.pipeline import plan_cell

    return plan_cell(plain(compose("train", overrides=list(overrides))))


main = command("table", _rendered, logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())

"""A folder with a page that shows a comparison: table, pictures, curves, and where to look next.

Everything is in the folder and nothing is fetched: no script, no font, no image from elsewhere. Text from
records reaches the page through a template that escapes it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mllm_align.store import write_text
from mllm_align.tables import examples as pictures
from mllm_align.tables import figures, render
from mllm_align.tables.examples import Examples
from mllm_align.tables.load import Run
from mllm_align.tables.page import render_page
from mllm_align.tables.rows import Column, Comparison, Row
from mllm_align.tables.summary import write_summary


@dataclass(frozen=True)
class ShownCell:
    """A table cell as text; `verdict` is better, worse or empty."""

    value: str
    change: str = ""
    interval: str = ""
    verdict: str = ""


def write_page(
    comparison: Comparison,
    out: Path,
    title: str,
    next_steps: Sequence[tuple[str, str]] = (),
    pictures_shown: int = 6,
    seed: int = 0,
) -> Path:
    """Writes the page into the folder `out`. -> its index.html

    `next_steps` are (what it does, command) pairs for the page's end; `seed` draws the pictures.
    """
    chosen = pictures.choose(comparison, pictures_shown, seed)
    write_text(out / "comparison.md", render.render_markdown(comparison))
    write_text(out / "comparison.csv", render.render_csv(comparison))
    write_text(out / "comparison.tex", render.render_latex(comparison))
    write_summary(comparison, chosen, title, out / "summary.png")
    page = render_page(
        "report.html",
        title=title,
        comparison=comparison,
        explanation=render.explanation(comparison),
        problems=render.problems(comparison),
        changes=[(row.name, changes(row, comparison.main)) for row in comparison.rows if not row.baseline],
        main=_table(comparison, comparison.main),
        others=_table(comparison, [column for column in comparison.columns if not column.main]),
        scatter=_name(figures.scatter(comparison, out / "figures" / "faithfulness.svg"), out),
        curves=_name(figures.curves(comparison, out / "figures" / "curves.svg"), out),
        pictures=chosen,
        images=_write_images(chosen, out),
        seed=seed,
        runs=[_run_line(run, out) for row in comparison.rows for run in row.runs],
        versions=_versions(comparison),
        next_steps=next_steps,
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def changes(row: Row, columns: Sequence[Column]) -> dict[str, list[str]]:
    """Tested metrics that became `better`, `worse`, or show no significant change (`same`)."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
    for column in columns:
        cell = row.cells.get(column.key)
        if cell is None or cell.difference is None or cell.p_adjusted is None:
            continue
        change = f"{column.metric.title} {render.number(cell.difference.value, column, True)}"
        found[render.verdict(cell, column) or "same"].append(change)
    return found


def _table(comparison: Comparison, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "titles": [render.title(column) for column in columns],
        "rows": [
            (row, render.seeds_text(row), [_cell(row, column) for column in columns])
            for row in comparison.rows
        ],
    }


def _cell(row: Row, column: Column) -> ShownCell:
    cell = row.cells.get(column.key)
    if cell is None:
        return ShownCell(render.MISSING if row.done else row.status)
    value = render.number(cell.value.value, column)
    if cell.difference is None:
        return ShownCell(value, interval=render.span(cell.value, column))
    return ShownCell(
        value,
        render.number(cell.difference.value, column, True) + render.star(cell),
        render.span(cell.difference, column, True),
        render.verdict(cell, column),
    )


def _write_images(chosen: Examples, out: Path) -> Mapping[str, str]:
    """Image key -> its file's name relative to the page."""
    from PIL import Image

    from mllm_align.scenes.draw import render as draw

    names = {}
    for i, shown in enumerate(chosen.shown):
        names[shown.image] = f"images/example{i}.png"
        file = out / names[shown.image]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(shown.scene)).save(file)
    return names


def _run_line(run: Run, out: Path) -> dict[str, Any]:
    files = ["metrics.json", "scalars.csv", "predictions", "adapter", "config.yaml", "record.json", "log.txt"]
    folder = os.path.relpath(run.folder, out.resolve())
    return {
        "run": run,
        "minutes": f"{sum(run.seconds.values()) / 60:.1f}" if run.seconds else render.MISSING,
        "folder": Path(folder).as_posix(),
        "files": [(name, quote(f"{folder}/{name}")) for name in files if (run.folder / name).exists()],
    }


def _versions(comparison: Comparison) -> list[str]:
    """What the runs were made with; more than one entry where they differ."""
    found: dict[str, None] = {}
    for row in comparison.rows:
        for run in row.runs:
            found |= dict.fromkeys([run.made_with] if run.made_with else [])
    return list(found)


def _name(path: Path | None, out: Path) -> str | None:
    return None if path is None else path.relative_to(out).as_posix()

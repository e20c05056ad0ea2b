"""The comparison in one picture: table, an example with its words marked, and faithfulness against recall."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_align.tables import figures
from mllm_align.tables.examples import FALSE, TRUE, WRONG, Examples, Piece, Shown
from mllm_align.tables.render import MISSING, interval_text, number, span, star, title, verdict
from mllm_align.tables.rows import Column, Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {TRUE: "#18794e", FALSE: "#c92a2a", WRONG: "#b35c00"}
VERDICTS = {"better": "#18794e", "worse": "#c92a2a", "": figures.FAINT}
WIDTH = 12.0  # inches
ROW = 0.46
LOWER = 4.4
FOOT = 190  # characters in a line of the footnote
MOST_ROWS, MOST_COLUMNS, MOST_TOLD = 9, 7, 3


def write_summary(comparison: Comparison, examples: Examples, heading: str, path: Path) -> Path:
    """A picture of about 1,800 pixels width for a README or a slide."""
    from matplotlib.figure import Figure

    rows = comparison.rows[:MOST_ROWS]
    upper = 1.25 + ROW * len(rows) + 0.42
    example = _example(examples)
    height = upper + LOWER
    with figures.style():
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        table = figure.add_axes((0.03, LOWER / height, 0.94, upper / height))
        _draw_table(table, comparison, rows, heading, upper)
        left = figure.add_axes((0.03, 0.3 / height, 0.56, (LOWER - 0.45) / height))
        _draw_example(figure, left, example)
        ncols = 1 if max(len(row.name) for row in rows) > 24 else 2
        below = 0.75 + 0.14 * -(-len(rows) // ncols)
        right = figure.add_axes((0.67, below / height, 0.3, (LOWER - 0.5 - below) / height))
        _draw_scatter(right, replace(comparison, rows=tuple(rows)), ncols)
        return figures.save(figure, path, dpi=150)


def _example(examples: Examples) -> Shown | None:
    """The first of the drawn images that has most to tell: the models of the picture differ, one makes an object up."""
    order = sorted(examples.shown, key=lambda shown: (differ(shown), made_up(shown)), reverse=True)
    return next(iter(order), None)


def differ(shown: Shown) -> bool:
    """Do the models that the picture has room for say different things?"""
    return len({told.pieces for told in shown.told[:MOST_TOLD]}) > 1


def made_up(shown: Shown) -> bool:
    return any(told.made_up for told in shown.told)


# --- table -------------------------------------------------------------------------------------------------


def _draw_table(axes: Axes, comparison: Comparison, rows: Sequence[Row], heading: str, height: float) -> None:
    columns = comparison.main[:MOST_COLUMNS]
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, height)
    axes.text(0, height - 0.5, heading, fontsize=17, weight="bold")
    first = 0.2
    step = (1 - first) / max(1, len(columns))
    top = height - 1.0
    for i, column in enumerate(columns):
        axes.text(
            first + step * (i + 1),
            top,
            title(column),
            ha="right",
            fontsize=9,
            weight="bold",
            color=figures.FAINT,
        )
    axes.axhline(top - 0.12, color="#9aa5b1", linewidth=0.9)
    for j, row in enumerate(rows):
        y = top - 0.12 - ROW * (j + 0.5)
        size = min(10.5, 10.5 * 26 / max(1, len(row.name)))
        axes.text(0, y, row.name, fontsize=size, va="center", weight="bold" if row.baseline else "normal")
        for i, column in enumerate(columns):
            _draw_cell(axes, first + step * (i + 1), y, row, column)
        axes.axhline(top - 0.12 - ROW * (j + 1), color=figures.GRID, linewidth=0.7)
    more = len(comparison.rows) - len(rows)
    foot = (f"{more} more rows are in the report. " if more else "") + _footnote(comparison)
    foot = textwrap.fill(foot, FOOT)
    axes.text(0, top - 0.12 - ROW * len(rows) - 0.3, foot, fontsize=8, color=figures.FAINT)


def _draw_cell(axes: Axes, x: float, y: float, row: Row, column: Column) -> None:
    cell = row.cells.get(column.key)
    if cell is None:
        axes.text(x, y, MISSING if row.done else row.status, ha="right", va="center", color=figures.FAINT)
        return
    axes.text(x, y + 0.09, number(cell.value.value, column), ha="right", va="center", fontsize=10.5)
    if cell.difference is None:
        below = span(cell.value, column)
    else:
        change = number(cell.difference.value, column, True) + star(cell)
        below = f"{change} {span(cell.difference, column, True)}"
    colour = VERDICTS[verdict(cell, column)]
    axes.text(x, y - 0.1, below, ha="right", va="center", fontsize=7, color=colour)


def _footnote(comparison: Comparison) -> str:
    return (
        f"Below each value its difference to {comparison.baseline} with a {interval_text(comparison)}, "
        f"{comparison.images:,} images; * p < 0.05 after Holm's correction for "
        f"{comparison.comparisons} comparisons."
    )


# --- example -----------------------------------------------------------------------------------------------


def _draw_example(figure: Figure, axes: Axes, example: Shown | None) -> None:
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    if example is None:
        axes.text(0.5, 0.5, "no descriptions in these records", ha="center", color=figures.FAINT)
        return
    from mllm_align.scenes.draw import render

    box = axes.get_position()
    side = 0.34 * box.width
    tall = side * figure.get_figwidth() / figure.get_figheight()
    picture = figure.add_axes((box.x0, box.y1 - tall, side, tall))
    picture.imshow(render(example.scene), interpolation="nearest")
    picture.axis("off")
    y = 1.0
    for told in example.told[:MOST_TOLD]:
        if y < 0.2:
            break  # no room for another one; the report has them all
        axes.text(0.37, y, told.name, fontsize=10, weight="bold", va="top", color=figures.INK)
        y = _flow(figure, axes, told.pieces, 0.37, y - 0.065) - 0.045
    y = 1 - tall / box.height - 0.035
    for piece in (Piece("object there", TRUE), Piece("made up", FALSE), Piece("wrong detail", WRONG)):
        y = _flow(figure, axes, [piece], 0.0, y, size=8) + 0.004
    chance = "Of a few images drawn at random, the first where descriptions differ and an object is made up."
    if not (differ(example) and made_up(example)):
        chance = "An image drawn at random."
    axes.text(0, 0.0, chance, fontsize=7.5, color=figures.FAINT)


def _flow(
    figure: Figure, axes: Axes, pieces: Sequence[Piece], left: float, y: float, size: float = 9.3
) -> float:
    """Words wrapped between `left` and the right edge, in the colours of their marks. -> y below them"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    to_axes = axes.transData.inverted()
    space, line = 0.0075, 0.058 * size / 9.3
    x = left
    for word, mark in [(word, piece.mark) for piece in pieces for word in piece.text.split()]:
        weight = "bold" if mark else "normal"
        text = axes.text(
            x, y, word, fontsize=size, va="top", color=COLOURS.get(mark, figures.INK), weight=weight
        )
        width = to_axes.transform_bbox(text.get_window_extent(renderer)).width
        if x + width > 1 and x > left:
            x, y = left, y - line
            text.set_position((x, y))
        if word[:1] in ".,;:!?" and x > left:
            text.set_position((x - space, y))
            x -= space
        x += width + space
    return y - line


def _draw_scatter(axes: Axes, comparison: Comparison, ncols: int) -> None:
    panels = [panel for panel in figures.FAITHFUL if any(panel[0] in row.cells for row in comparison.rows)]
    if not panels:
        axes.axis("off")
        return
    figures.draw_scatter(axes, comparison, panels[0])
    axes.set_title("Faithfulness against recall")
    axes.legend(
        fontsize=7,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=ncols,
        labelspacing=0.3,
        markerscale=0.8,
    )

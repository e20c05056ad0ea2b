"""A Comparison as text: for the terminal, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mllm_align.benchmarks.stats import Interval
from mllm_align.tables.rows import Cell, Column, Comparison, Row

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

MISSING = "–"


def number(value: float, column: Column, signed: bool = False) -> str:
    """As it is shown: a share times 100, one decimal, a true minus sign."""
    text = f"{value * column.scale:{'+' if signed else ''}.1f}"
    if float(text) == 0:
        text = "0.0"
    return text.replace("-", "−")


def span(interval: Interval, column: Column, signed: bool = False) -> str:
    """`[low, high]`, empty where nothing was resampled."""
    if interval.method == "no predictions":
        return ""
    return f"[{number(interval.low, column, signed)}, {number(interval.high, column, signed)}]"


def star(cell: Cell) -> str:
    return "*" if cell.significant() else ""


def verdict(cell: Cell, column: Column) -> str:
    """`better` or `worse` where the difference is significant, else empty."""
    if cell.difference is None or not cell.significant():
        return ""
    return "better" if cell.difference.value * column.metric.better > 0 else "worse"


def seeds_text(row: Row) -> str:
    """Seeds done of those asked for."""
    return str(len(row.done)) if len(row.done) == len(row.runs) else f"{len(row.done)} of {len(row.runs)}"


def title(column: Column) -> str:
    return f"{column.metric.title} {column.arrow}".strip()


def interval_text(comparison: Comparison) -> str:
    """What the intervals of the differences are: a bootstrap, Student's t, or the one or the other."""
    found = [cell.difference for row in comparison.rows for cell in row.cells.values() if cell.difference]
    several = [interval.method.startswith("t over") for interval in found]
    level = f"{comparison.level:.0%}"
    if not any(several):
        return f"{level} bootstrap interval over images"
    student = f"{level} Student's t interval over seeds and images"
    return student if all(several) else f"{student} (one seed: bootstrap over images)"


def explanation(comparison: Comparison) -> str:
    """How to read the table, in two sentences."""
    percent = "Shares in percent. " if any(column.metric.percent for column in comparison.columns) else ""
    return (
        f"{percent}Difference to {comparison.baseline} with a {interval_text(comparison)} (up to "
        f"{comparison.images:,} images, the same on both sides). "
        f"* p < 0.05 after Holm's correction for {comparison.comparisons} comparisons."
    )


# --- terminal ----------------------------------------------------------------------------------------------

STYLES = {"better": "bold green", "worse": "bold red", "": ""}


def render_terminal(comparison: Comparison, width: int = 100) -> RenderableType:
    """A rich renderable for `Console.print`: the main metrics, in as many blocks as the width asks for, and what went
    wrong.
    """
    from rich.console import Group
    from rich.text import Text

    names = max([len(row.name) for row in comparison.rows], default=3)
    blocks = fitting(
        comparison.main, width - min(names, 34) - 12, lambda column: 3 + _width(comparison, column)
    )
    tables = [_terminal_block(comparison, columns) for columns in blocks]
    return Group(*tables, Text(explanation(comparison), style="dim"), *terminal_problems(comparison))


def _terminal_block(comparison: Comparison, columns: Sequence[Column]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("run", max_width=34)
    table.add_column("seeds", justify="right")
    for column in columns:
        table.add_column(Text(title(column)), justify="right")
    for row in comparison.rows:
        cells = [_terminal_cell(row, column) for column in columns]
        style = "bold" if row.baseline else ("" if row.done else "red")
        table.add_row(Text(row.name, style=style), seeds_text(row), *cells)
    return table


def fitting(columns: Sequence[Column], room: int, width: Callable[[Column], int]) -> list[list[Column]]:
    """The columns in blocks that each fit in `room` characters, or are of one column; at least one block."""
    blocks: list[list[Column]] = [[]]
    left = room
    for column in columns:
        left -= width(column)
        if left < 0 and blocks[-1]:
            blocks.append([])
            left = room - width(column)
        blocks[-1].append(column)
    return blocks


def terminal_problems(comparison: Comparison) -> list[Text]:
    from rich.text import Text

    return [Text(f"! {text}", style="red") for text in problems(comparison)]


def _width(comparison: Comparison, column: Column) -> int:
    lines = [line for row in comparison.rows for line in _terminal_cell(row, column).plain.split("\n")]
    return max(map(len, [title(column), *lines]))


def _terminal_cell(row: Row, column: Column) -> Text:
    from rich.text import Text

    cell = row.cells.get(column.key)
    if cell is None:
        return Text(MISSING if row.done else row.status, style="dim" if row.done else "red")
    text = Text(number(cell.value.value, column))
    if cell.difference is None:
        text.append(f"\n{span(cell.value, column)}", style="dim")
        return text
    text.append(f"\n{number(cell.difference.value, column, True)}{star(cell)}", STYLES[verdict(cell, column)])
    text.append(f"\n{span(cell.difference, column, True)}", style="dim")
    return text


def problems(comparison: Comparison) -> list[str]:
    """Everything that is missing or doubtful, one line each."""
    return [f"{row.name}: {note}" for row in comparison.rows for note in row.notes] + list(comparison.notes)


# --- Markdown ----------------------------------------------------------------------------------------------


def render_markdown(comparison: Comparison, columns: Sequence[Column] | None = None) -> str:
    """A pipe table of the main metrics (or `columns`) with its explanation and notes."""
    shown = comparison.main if columns is None else columns
    lines = [
        "| run | seeds | " + " | ".join(markdown_text(title(column)) for column in shown) + " |",
        "|---|---:|" + "---:|" * len(shown),
    ]
    for row in comparison.rows:
        cells = [_plain_cell(row, column) for column in shown]
        lines.append(
            f"| {markdown_text(row.name)} | {seeds_text(row)} | "
            + " | ".join(map(markdown_text, cells))
            + " |"
        )
    lines += ["", markdown_text(explanation(comparison))]
    if found := problems(comparison):
        lines += ["", *(f"- {markdown_text(text)}" for text in found)]
    return "\n".join(lines) + "\n"


def _plain_cell(row: Row, column: Column) -> str:
    cell = row.cells.get(column.key)
    if cell is None:
        return MISSING if row.done else row.status
    value = number(cell.value.value, column)
    if cell.difference is None:
        return f"{value} {span(cell.value, column)}".strip()
    change = (
        f"{number(cell.difference.value, column, True)}{star(cell)} {span(cell.difference, column, True)}"
    )
    return f"{value} ({change})"


def markdown_text(text: str) -> str:
    """Nothing in a cell can break the table or become markup."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"([\\`*_|~])", r"\\\1", text)
    return re.sub(r"\](?=[(\[:])", r"\\]", text)  # of a link or an image; an interval stays as it is


# --- CSV ---------------------------------------------------------------------------------------------------

CSV_HEADER = (
    *("run", "method", "dataset", "status", "seeds", "benchmark", "metric", "images"),
    *(
        "value",
        "low",
        "high",
        "difference",
        "difference_low",
        "difference_high",
        "p",
        "p_holm",
        "method_of_interval",
    ),
)


def render_csv(comparison: Comparison) -> str:
    """One line a row and metric, unscaled; a row without results has one line with its status."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in comparison.rows:
        seeds = " ".join(str(run.seed) for run in row.done)
        head = [row.name, row.method, row.dataset, row.status, seeds]
        if not row.cells:
            writer.writerow([*map(csv_text, head), *[""] * (len(CSV_HEADER) - len(head))])
        for column in comparison.columns:
            if (cell := row.cells.get(column.key)) is not None:
                writer.writerow(
                    [*map(csv_text, head), column.benchmark, column.metric.name, *csv_figures(cell)]
                )
    return text.getvalue()


def csv_figures(cell: Cell | None) -> list[object]:
    """From `images` to `method_of_interval`; empty where there are no figures."""
    if cell is None:
        return [""] * 10
    value, change = cell.value, cell.difference
    changes = ["", "", "", ""] if change is None else [change.value, change.low, change.high, change.p]
    adjusted = "" if cell.p_adjusted is None else cell.p_adjusted
    return [value.n, value.value, value.low, value.high, *changes, adjusted, value.method]


def csv_text(text: str) -> str:
    """A spreadsheet runs what starts with these."""
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


# --- LaTeX -------------------------------------------------------------------------------------------------

_TEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "·": r"$\cdot$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def render_latex(comparison: Comparison) -> str:
    """A booktabs `tabular`: value, difference with its interval below; bold where it is significant."""
    shown = comparison.main
    lines = [
        "% " + " ".join(explanation(comparison).split()),
        r"\begin{tabular}{l" + "r" * len(shown) + "}",
        r"\toprule",
        " & ".join(["run", *(latex_text(title(column)) for column in shown)]) + r" \\",
        r"\midrule",
    ]
    for row in comparison.rows:
        values, changes = [], []
        for column in shown:
            value, change = _tex_cell(row, column)
            values.append(value)
            changes.append(change)
        lines.append(" & ".join([latex_text(row.name), *values]) + r" \\")
        if any(changes):
            lines.append(" & ".join(["", *changes]) + r" \\[2pt]")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex_cell(row: Row, column: Column) -> tuple[str, str]:
    cell = row.cells.get(column.key)
    if cell is None:
        return (latex_text(MISSING if row.done else row.status), "")
    value = latex_text(number(cell.value.value, column))
    if cell.significant():
        value = rf"\textbf{{{value}}}"
    if cell.difference is None:
        return value, ""
    change = f"{number(cell.difference.value, column, True)} {span(cell.difference, column, True)}"
    return value, rf"{{\scriptsize {latex_text(change)}}}"


def latex_text(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in " ".join(text.split()))

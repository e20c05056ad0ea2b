"""A table of the study as text. Up to three lines a cell: our value, our difference, and the paper's figure.

85.1 [83.0, 87.0]      the value, with its interval
+5.1* [+3.0, +7.0]     the difference to the row named in `against`, with its interval
88.1 ↑ agrees          the paper's value, the direction of its difference, and whether ours has it
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mllm_align.tables.render import (
    MISSING,
    STYLES,
    csv_figures,
    csv_text,
    fitting,
    latex_text,
    markdown_text,
    number,
    problems,
    seeds_text,
    span,
    star,
    terminal_problems,
    title,
    verdict,
)
from mllm_align.tables.rows import Column, Row
from mllm_align.tables.study import NOT_EVALUATED, StudyTable, state

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text


def value_text(row: Row, column: Column) -> str:
    """The value with its interval, or in words why there is none."""
    cell = row.cells.get(column.key)
    if cell is None:
        return state(row) or NOT_EVALUATED
    return f"{number(cell.value.value, column)} {span(cell.value, column)}".strip()


def difference_text(row: Row, column: Column) -> str:
    """The difference with star and interval; empty where there is none."""
    cell = row.cells.get(column.key)
    if cell is None or cell.difference is None:
        return ""
    change = cell.difference
    return f"{number(change.value, column, True)}{star(cell)} {span(change, column, True)}".strip()


def paper_text(table: StudyTable, row: Row, column: Column) -> str:
    """The paper's figure, direction and agreement; empty where the paper has none."""
    told = table.paper(row, column)
    if told is None:
        return ""
    return " ".join(part for part in (told.text, told.arrow, table.agreement(row, column)) if part)


def explanation(table: StudyTable) -> list[str]:
    """How to read the table, a sentence or two each."""
    found = table.comparison
    percent = "Shares in percent. " if any(column.metric.percent for column in found.columns) else ""
    lines = [
        f"{percent}Value with its {found.level:.0%} interval, over seeds and images (over images alone where there is "
        f"one seed; up to {found.images:,} images). Below it the paired difference to the row it is compared with; "
        f"* p < 0.05 after Holm's correction for {found.comparisons} comparisons."
    ]
    if table.spec.paper:
        stands = [f"{column.name} for {column.paper}" for column in table.spec.columns if column.paper]
        lines.append(
            "Last the paper's figure (a single run, without error bars), the direction of its difference to the same "
            "row, and whether ours agrees with that direction. Columns stand for the paper's: "
            f"{', '.join(stands)}. Other models, data and benchmarks: only directions can be compared."
        )
    return lines


# --- terminal ----------------------------------------------------------------------------------------------


def render_terminal(table: StudyTable, width: int = 100) -> RenderableType:
    """A rich renderable for `Console.print`: the columns, in as many blocks as it takes, and what went wrong."""
    from rich.console import Group
    from rich.text import Text

    rows = table.comparison.rows
    names = [len(line) for row in rows for line in _terminal_head(table, row).plain.split("\n")]
    room = width - min(max(names, default=3), 30) - 11
    blocks = fitting(table.comparison.columns, room, lambda column: 2 + _width(table, column))
    notes = [Text(line, style="dim") for line in explanation(table)]
    tables = [_terminal_block(table, columns) for columns in blocks]
    return Group(*tables, *notes, *terminal_problems(table.comparison))


def _terminal_block(table: StudyTable, columns: Sequence[Column]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        header_style="bold",
        title=Text(table.spec.title),
        show_lines=True,
    )
    shown.add_column("row", max_width=30, no_wrap=True)
    shown.add_column("seeds", justify="right")
    for column in columns:
        shown.add_column(Text(title(column)), justify="right")
    for row in table.comparison.rows:
        cells = [_terminal_cell(table, row, column) for column in columns]
        shown.add_row(_terminal_head(table, row), seeds_text(row), *cells)
    return shown


def _terminal_head(table: StudyTable, row: Row) -> Text:
    """The name, and what the lines below a value are."""
    from rich.text import Text

    head = Text(row.name, style="red" if state(row) else "bold")
    if (against := table.against(row)) is not None:
        head.append(f"\nagainst {against}", style="not bold dim")
    if any(table.paper(row, column) for column in table.comparison.columns):
        head.append("\npaper", style="not bold dim")
    return head


def _terminal_cell(table: StudyTable, row: Row, column: Column) -> Text:
    from rich.text import Text

    cell = row.cells.get(column.key)
    text = Text(value_text(row, column), style="" if cell is not None else "red")
    if table.against(row) is not None:
        text.append(
            f"\n{difference_text(row, column)}", style="" if cell is None else STYLES[verdict(cell, column)]
        )
    text.append(f"\n{paper_text(table, row, column)}", style="dim")
    text.rstrip()
    return text


def _width(table: StudyTable, column: Column) -> int:
    rows = table.comparison.rows
    lines = [line for row in rows for line in _terminal_cell(table, row, column).plain.split("\n")]
    return max(map(len, [title(column), *lines]))


# --- Markdown ----------------------------------------------------------------------------------------------


def render_markdown(table: StudyTable) -> str:
    """A pipe table with its heading, explanation and notes; the lines of a cell are told apart by <br>."""
    columns = table.comparison.columns
    lines = [
        f"# {markdown_text(table.spec.title)}",
        "",
        "| row | against | seeds | " + " | ".join(markdown_text(title(column)) for column in columns) + " |",
        "|---|---|---:|" + "---:|" * len(columns),
    ]
    for row in table.comparison.rows:
        cells = [_markdown_cell(table, row, column) for column in columns]
        head = [markdown_text(row.name), markdown_text(table.against(row) or MISSING), seeds_text(row)]
        lines.append(f"| {' | '.join([*head, *cells])} |")
    for line in [*explanation(table), table.source]:
        lines += ["", markdown_text(line)] if line else []
    if found := problems(table.comparison):
        lines += ["", *(f"- {markdown_text(text)}" for text in found)]
    return "\n".join(lines) + "\n"


def _markdown_cell(table: StudyTable, row: Row, column: Column) -> str:
    told = paper_text(table, row, column)
    parts = [value_text(row, column), difference_text(row, column), f"paper {told}" if told else ""]
    return "<br>".join(markdown_text(part) for part in parts if part)


# --- CSV ---------------------------------------------------------------------------------------------------

CSV_HEADER = (
    *("table", "row", "experiment", "against", "status", "seeds", "benchmark", "metric", "name", "images"),
    *("value", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm"),
    *("method_of_interval", "paper_column", "paper_value", "paper_difference", "agreement"),
)


def render_csv(table: StudyTable) -> str:
    """One line a row and column, unscaled, whatever state the row is in."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in table.comparison.rows:
        for column, spec in zip(table.comparison.columns, table.spec.columns, strict=True):
            seeds = " ".join(str(run.seed) for run in row.done)
            head = [table.spec.name, row.name, row.method, table.against(row) or "", state(row) or row.status]
            names = [seeds, column.benchmark, column.metric.name, spec.name]
            told = table.paper(row, column)
            change = "" if told is None or told.change is None else told.change
            writer.writerow(
                [
                    *map(csv_text, [*head, *names]),
                    *csv_figures(row.cells.get(column.key)),
                    csv_text(spec.paper or ""),
                    "" if told is None else told.text,
                    change,
                    table.agreement(row, column),
                ]
            )
    return text.getvalue()


# --- LaTeX -------------------------------------------------------------------------------------------------


def render_latex(table: StudyTable) -> str:
    """A booktabs `tabular`: a line of values, one of differences and one of the paper's figures, a row."""
    columns = table.comparison.columns
    comments = [*explanation(table), table.source, *problems(table.comparison)]
    lines = [
        *("% " + " ".join(line.split()) for line in comments if line),
        r"\begin{tabular}{l" + "r" * len(columns) + "}",
        r"\toprule",
        _latex_line([latex_text(""), *(latex_text(title(column)) for column in columns)]),
        r"\midrule",
    ]
    for row in table.comparison.rows:
        lines += _latex_row(table, row, columns)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_row(table: StudyTable, row: Row, columns: Sequence[Column]) -> list[str]:
    values = [latex_text(value_text(row, column)) for column in columns]
    bold = [(cell := row.cells.get(column.key)) is not None and cell.significant() for column in columns]
    values = [rf"\textbf{{{text}}}" if strong else text for text, strong in zip(values, bold, strict=True)]
    lines = [_latex_line([latex_text(row.name), *values])]
    against = table.against(row)
    changes = [difference_text(row, column) for column in columns]
    if against is not None and any(changes):
        lines.append(_latex_line([_small(f"against {against}"), *map(_small, changes)]))
    told = [paper_text(table, row, column) for column in columns]
    if any(told):
        lines.append(_latex_line([_small("paper"), *map(_small, told)]))
    return [*lines[:-1], lines[-1] + "[2pt]"]


def _latex_line(cells: Sequence[str]) -> str:
    """A first cell that starts with a bracket would be read as the option of the line before."""
    first = "{}" + cells[0] if cells[0].startswith("[") else cells[0]
    return " & ".join([first, *cells[1:]]) + r" \\"


def _small(text: str) -> str:
    return rf"{{\scriptsize {latex_text(text)}}}" if text else ""

"""What is wrong with a person's data, said so that they can mend it: file, row, field and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """One thing wrong in one place. `row` counts from 1 (JSONL: the line); None: the file as a whole."""

    file: str
    row: int | None
    field: str | None
    fault: str
    remedy: str

    def __str__(self) -> str:
        row = f", row {self.row}" if self.row is not None else ""
        field = f", field '{self.field}'" if self.field else ""
        return f"{self.file}{row}{field}: {self.fault}. {self.remedy}."


class Fault(ValueError):
    """A fault in one field of one row; the reader adds the file and the row."""

    def __init__(self, field: str | None, fault: str, remedy: str) -> None:
        super().__init__(f"{field or 'row'}: {fault}. {remedy}.")
        self.field, self.fault, self.remedy = field, fault, remedy

    def at(self, file: str, row: int | None) -> Problem:
        return Problem(file, row, self.field, self.fault, self.remedy)


class BadDataError(ValueError):
    """Data that can't be used. `str()` is what a person sees: short, with a remedy, without a traceback."""

    def __init__(self, headline: str, problems: Sequence[Problem] = (), advice: str = "") -> None:
        self.problems = tuple(problems)
        lines = [headline, *(f"  {problem}" for problem in self.problems[:SHOWN])]
        if len(self.problems) > SHOWN:
            lines.append(f"  ... and {len(self.problems) - SHOWN:,} more.")
        super().__init__("\n".join([*lines, advice] if advice else lines))

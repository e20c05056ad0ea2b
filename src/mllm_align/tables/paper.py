"""The figures of arXiv 2407.02477 (Amirloo et al. 2024), one file a table in assets/paper: facts, with their source."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mllm_align.paths import PACKAGE

FOLDER = PACKAGE / "assets" / "paper"
NOT_STABLE = "not stable"


@dataclass(frozen=True)
class PaperTable:
    """`rows` as text, by column; `source` is the file's first line."""

    name: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]

    def row(self, where: Mapping[str, str]) -> Mapping[str, str]:
        """The one row with these values. Raises ValueError where none or several have them."""
        if unknown := [column for column in where if column not in self.columns]:
            raise ValueError(
                f"{self.name} of the paper has no column {unknown[0]!r}; it has {', '.join(self.columns)}"
            )
        found = [row for row in self.rows if all(row[key] == value for key, value in where.items())]
        if len(found) != 1:
            told = ", ".join(f"{key}: {value}" for key, value in where.items())
            raise ValueError(f"{self.name} of the paper has {len(found)} rows with {told}; name exactly one")
        return found[0]


@dataclass(frozen=True)
class Reported:
    """A figure of the paper as printed there, and its difference to the row that ours is compared with."""

    text: str
    change: float | None = None

    @property
    def arrow(self) -> str:
        """The direction of the difference, empty where there is none to tell."""
        if self.change is None:
            return ""
        return "↑" if self.change > 0 else "↓" if self.change < 0 else "="


def read(name: str, folder: Path = FOLDER) -> PaperTable:
    """The file of a table, such as `table09`. Raises ValueError naming those that are there."""
    file = folder / f"{name}.csv"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.csv")))
        raise ValueError(f"there are no figures of the paper's {name}; there are {known}")
    lines = file.read_text(encoding="utf-8").splitlines()
    reader = csv.DictReader(line for line in lines if line and not line.startswith("#"))
    rows = tuple({str(key): str(value) for key, value in row.items()} for row in reader)
    return PaperTable(name, lines[0].lstrip("# "), tuple(reader.fieldnames or ()), rows)


def reported(row: Mapping[str, str], against: Mapping[str, str] | None, column: str) -> Reported | None:
    """The figure in a column; None where the paper has none. A run that it calls unstable has no figures."""
    if row.get("stable") == "no":
        return Reported(NOT_STABLE)
    if not row[column]:
        return None
    if against is None or not against[column]:
        return Reported(row[column])
    return Reported(row[column], round(float(row[column]) - float(against[column]), 6))

"""`logger=csv`: the record's scalars once more, as a sheet with a row a step and a column a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mllm_align.loggers.silent import Logger, Silent
from mllm_align.record import read_scalars
from mllm_align.store import write_text

SHEET = "scalars_wide.csv"


@contextmanager
def sheet(about: Mapping[str, Any]) -> Iterator[Logger]:
    """Writes `scalars_wide.csv` into the run's folder when the run ends, however it ends."""
    try:
        yield Silent()
    finally:
        folder = Path(about["folder"])
        if series := read_scalars(folder):
            write_text(folder / SHEET, _wide(series))


def _wide(series: Mapping[str, list[tuple[int, float]]]) -> str:
    """Rows in the order of steps; empty where a figure was not logged at that step."""
    steps: dict[int, dict[str, float]] = {}
    for name, points in series.items():
        for step, value in points:
            steps.setdefault(step, {})[name] = value
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", *series], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"step": step, **figures} for step, figures in sorted(steps.items()))
    return text.getvalue()

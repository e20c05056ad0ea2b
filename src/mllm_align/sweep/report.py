"""A sweep's own record, outputs/sweeps/<id>/summary.json, kept up to date; and the words at its end.

A name may be used again, as the command for the failed cells does: the record is of all cells that were asked for under
it, those of an earlier command as that one left them.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from mllm_align.fingerprints import digest
from mllm_align.record import check_folder_name
from mllm_align.redact import redact_overrides
from mllm_align.store import Store, write_json, write_text
from mllm_align.sweep.cells import Planned, drives


@dataclass(frozen=True)
class Outcome:
    """`status`: waiting, running, found (finished before), finished, collapsed, failed or interrupted."""

    status: str
    seconds: float | None = None
    attempts: int = 0
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


class Report:
    """What has become of each cell of this command; every change is written to summary.json."""

    def __init__(
        self, name: str, cells: Sequence[Planned], outputs: Path, store: Store, about: dict[str, Any]
    ) -> None:
        self.name = name
        self.cells = tuple(cells)
        self.outputs = outputs
        self.store = store
        self.about = about
        self.began = _now()
        self.outcomes = {planned.name: Outcome("waiting") for planned in cells}

    @property
    def folder(self) -> Path:
        return self.outputs / "sweeps" / self.name

    def found(self, cells: Sequence[Planned]) -> None:
        self.outcomes.update({planned.name: Outcome("found") for planned in cells})
        self.write()

    def started(self, planned: Planned) -> None:
        self.outcomes[planned.name] = Outcome("running")
        self.write()

    def ended(self, planned: Planned, outcome: Outcome) -> None:
        self.outcomes[planned.name] = outcome
        self.write()

    def with_status(self, *statuses: str) -> list[Planned]:
        return [planned for planned in self.cells if self.outcomes[planned.name].status in statuses]

    def count_ended(self) -> int:
        return len(self.cells) - len(self.with_status("waiting", "running"))

    def write(self) -> None:
        file = self.folder / "summary.json"
        rows = [*_read_cells(file), *(self._row(planned) for planned in self.cells)]
        cells = list({(row["label"], row["seed"]): row for row in rows}.values())
        done = sum(row["status"] in ("found", "finished", "collapsed") for row in cells)
        times = {"began": self.began, "updated": _now()}
        write_json(file, {"id": self.name, **self.about, **times, "finished": done, "cells": cells})

    def _row(self, planned: Planned) -> dict[str, Any]:
        return {
            "label": planned.cell.label,
            "seed": planned.cell.seed,
            "key": planned.cell.key,
            "run": planned.folder(self.outputs).relative_to(self.outputs).as_posix(),
            "overrides": redact_overrides(planned.overrides),
            **asdict(self.outcomes[planned.name]),
        }


def _read_cells(summary: Path) -> list[dict[str, Any]]:
    """The cells of a summary; none where it is not there or damaged."""
    try:
        cells = json.loads(summary.read_text(encoding="utf-8"))["cells"]
        return [cell for cell in cells if {"label", "seed", "status"} <= cell.keys()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def sweep_name(wanted: str | None, cells: Sequence[Planned]) -> str:
    """The name given, else a hash of the cells' keys: the same sweep asked for again has the same folder.

    Raises ValueError for a name that cannot name a folder.
    """
    if wanted:
        check_folder_name("sweep.name", wanted)
    return wanted or digest(sorted(planned.cell.key for planned in cells))[:10]


def tell_end(report: Report, console: Console, command: str, driver: Sequence[str]) -> int:
    """Print how the sweep went and how to run what is left; the exit code."""
    parts = [f"{len(report.with_status(status))} {status}" for status in _in_order(report)]
    console.print(
        f"[bold]Sweep {report.name}[/]: {', '.join(parts)}. Summary: {report.folder / 'summary.json'}"
    )
    failed = report.with_status("failed")
    left = report.with_status("failed", "interrupted", "waiting", "running")
    if not left:
        return 0
    for planned in failed:
        outcome = report.outcomes[planned.name]
        log = planned.folder(report.outputs) / "log.txt"
        console.print(Text(f"  failed: {planned.name}: {outcome.reason}\n          {log}"), soft_wrap=True)
    what = "just the failed ones" if len(left) == len(failed) else "what is left"
    again = rerun_command(report, left, command, driver)
    console.print(Text(f"To run {what}:\n  {again}"), soft_wrap=True)
    return 1


def rerun_command(report: Report, cells: Sequence[Planned], command: str, driver: Sequence[str]) -> str:
    """A command that runs these cells and no others; the cells stand in a file beside the summary."""
    rows = [[item for item in planned.overrides if not drives(item)] for planned in cells]
    hidden = {item for row in rows for item in row if redact_overrides([item]) != [item]}
    secret = sorted({item.partition("=")[0] for item in hidden})
    file = report.folder / "again.yaml"
    kept = [[item for item in row if item.partition("=")[0] not in secret] for row in rows]
    text = yaml.safe_dump(kept, default_flow_style=None, width=1000, allow_unicode=True)
    write_text(file, f"# The cells of sweep {report.name} that have not finished.\n{text}")
    others = [item for item in driver if not item.startswith(("sweep.cells=", "sweep.table="))]
    return shlex.join(
        [*shlex.split(command), "-m", f"sweep.cells={file}", *others, *(f"{name}=..." for name in secret)]
    )


def driver_overrides(overrides: Sequence[str]) -> list[str]:
    """Of a command line, the overrides that say how and where to run: workers, retries, outputs and the like."""
    return [item for item in overrides if drives(item) and not item.startswith(("plan=", "hydra.mode="))]


def _in_order(report: Report) -> list[str]:
    order = ["found", "finished", "collapsed", "failed", "interrupted", "running", "waiting"]
    present = {outcome.status for outcome in report.outcomes.values()}
    return [status for status in order if status in present]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

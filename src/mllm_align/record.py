"""What a run leaves behind, and the only thing that tables, figures and dashboards read.

    <root>/runs/<label>/seed<k>/
        record.json     status, key, axes, overrides, versions, commit, host, threads, seconds a stage, error,
                        headline figures
        config.yaml     the resolved config
        scalars.csv     step,name,value: one row a figure, flushed at every step
        manifest.json   SHA-256 and size of every file, written when the run has finished
        log.txt         what the run printed (in a sweep)
        ...             adapter/, predictions/, metrics.json, samples.jsonl: written by the stages
    <root>/locks/runs/  one lock a run: a second process waits and then finds the run finished
    <root>/aside/       run folders that were damaged, or belonged to another config of the same label

Environment values are never written; values whose name says key, token, password or secret are blanked.
"""

import csv
import io
import json
import logging
import os
import platform
import re
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from filelock import FileLock, Timeout

from mllm_align.host import package_versions, source_commit, threads, usable_cores
from mllm_align.redact import redact, redact_overrides
from mllm_align.store import MANIFEST, file_entry, find_damage, waiting_lock, write_json, write_text

log = logging.getLogger(__name__)

RECORD = "record.json"
SCALARS = "scalars.csv"
DONE = ("finished", "collapsed")  # a collapsed policy is a result, not an accident: it is not trained again
UNCHECKED = {"wandb", "checkpoint", "checkpoints", "log.txt", RECORD, MANIFEST}
# What an attempt that goes on from another one does not take over.
OF_AN_END = ("status", "ended", "error", "stage")
HEADER = "step,name,value\n"


class RunRecord:
    """One run's folder. Made by `RunRecord.open` (to write) or `RunRecord.find` (finished and intact)."""

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.folder = folder
        self.data = data

    @classmethod
    def find(cls, root: str | Path, label: str, seed: int, key: str) -> "RunRecord | None":
        """The finished run of this key, checked against its checksums; None where there is none."""
        folder = run_folder(root, label, seed)
        data = _read(folder)
        if data.get("key") != key or data.get("status") not in DONE:
            return None
        if (damage := find_damage(folder)) is not None:
            log.warning("record: %s; this run will be repeated", damage)
            return None
        return cls(folder, data)

    @classmethod
    @contextmanager
    def open(
        cls,
        root: str | Path,
        *,
        label: str,
        seed: int,
        key: str,
        config: Mapping[str, Any],
        overrides: Sequence[str] = (),
        axes: Mapping[str, Any] | None = None,
    ) -> "Iterator[RunRecord]":
        """Hold the run's folder while the body runs it; `done` is true where it is finished already.

        Leaving the body ends the record as finished (with checksums); an exception ends it as failed, Ctrl-C
        as interrupted, both with the traceback's tail. An unfinished folder of the same key is continued; a
        damaged one, or one of another key, is moved aside.
        """
        folder = run_folder(root, label, seed)
        with waiting_lock(_lock_file(root, label, seed), f"another process runs {label} seed{seed}"):
            record = cls.find(root, label, seed, key)
            if record is None:
                _clear_way(Path(root), folder, key)
                record = cls(folder, _begin(folder, label, seed, key, overrides, axes or {}))
                text = yaml.safe_dump(redact(config), sort_keys=False, allow_unicode=True)
                write_text(folder / "config.yaml", text)
            try:
                yield record
            except BaseException as error:
                if not record.done:
                    record._fail(error)
                raise
            if not record.done:
                record._finish()

    @property
    def done(self) -> bool:
        return self.data["status"] in DONE

    @property
    def headline(self) -> dict[str, float]:
        """The few figures that a sweep shows when the run ends."""
        return dict(self.data.get("headline", {}))

    def note(self, **fields: Any) -> None:
        """Add fields to record.json at once, for example `headline={"pope_f1": 84.1}` or `device="cuda"`."""
        self.data.update(fields)
        write_json(self.folder / RECORD, self.data)

    def reopen(self) -> None:
        """Take a finished run up again to add to it, say another benchmark; the end finishes it anew, and a failure
        leaves it as it was, with the error beside it.
        """
        if self.done:
            self.data.pop("error", None)
            self.note(ends_as=self.data["status"], reopened=True, **_attempt(self.data))

    def collapsed(self, reason: str) -> None:
        """Let the run end as `collapsed` in place of `finished`: its policy broke down."""
        self.note(ends_as="collapsed", reason=reason)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; what earlier, interrupted attempts spent on it is added."""
        started = time.perf_counter()
        self.note(stage=name)
        try:
            yield
        finally:
            seconds = dict(self.data.get("seconds", {}))
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 3)
            self.note(seconds=seconds)

    def scalars(self, resume_step: int | None = None) -> "Scalars":
        """The run's scalars.csv, open for appending.

        `resume_step` is the step of the checkpoint that is continued: later rows are dropped, since they will
        be written again. None starts the file anew.
        """
        return Scalars(self.folder / SCALARS, resume_step)

    def _finish(self, **fields: Any) -> None:
        write_json(self.folder / MANIFEST, {"files": _checksums(self.folder)})
        for name in ("stage", "reopened"):
            self.data.pop(name, None)
        self.note(status=self.data.pop("ends_as", "finished"), ended=_now(), threads=threads(), **fields)

    def _fail(self, error: BaseException) -> None:
        if self.data.get("reopened"):
            self._finish(error=describe_error(error))
            return
        status = "interrupted" if _by_ctrl_c(error) else "failed"
        self.note(status=status, ended=_now(), error=describe_error(error))


class Scalars:
    """A run's scalars.csv: rows `step,name,value`, so that the figures may differ from step to step."""

    def __init__(self, file: Path, resume_step: int | None) -> None:
        rows = [] if resume_step is None else [row for row in _rows(file) if row[0] <= resume_step]
        write_text(file, HEADER + _lines(rows))
        self._file = file.open("a", encoding="utf-8", newline="")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Append and flush one row a figure."""
        self._file.write(_lines((step, name, float(value)) for name, value in figures.items()))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Scalars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- reading -----------------------------------------------------------------------------------------------


def run_folder(root: str | Path, label: str, seed: int) -> Path:
    """`<root>/runs/<label>/seed<k>`. Raises ValueError where the label cannot name a folder."""
    check_folder_name("run label", label)
    return Path(root) / "runs" / label / f"seed{seed}"


def check_folder_name(what: str, name: str) -> None:
    """Raises ValueError where `name` cannot be a folder inside another one."""
    if not re.fullmatch(r"[A-Za-z0-9][-\w.,=+@]*", name, re.ASCII) or len(name) > 200:
        raise ValueError(f"{what} {name!r} cannot name a folder: use up to 200 letters, digits and -_.,=+@")


def read_record(folder: Path) -> dict[str, Any]:
    """record.json, {} where none is; a run that says `running` but that no process holds is `interrupted`."""
    data = _read(folder)
    if data.get("status") == "running":
        lock = FileLock(_lock_file(folder.parents[2], data["label"], data["seed"]))
        try:
            with lock.acquire(timeout=0):
                data = {**data, "status": "interrupted"}
        except Timeout:
            pass
    return data


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Figure -> its (step, value) in the order of writing."""
    series: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in _rows(folder / SCALARS):
        series.setdefault(name, []).append((step, value))
    return series


def typical_seconds(root: str | Path, label: str, without: Iterable[str] = ()) -> float | None:
    """Mean time of this label's finished runs (other seeds) less the stages named; None without any."""
    times = []
    skipped = set(without)
    for file in sorted((Path(root) / "runs" / label).glob(f"seed*/{RECORD}")):
        data = _read(file.parent)
        if data.get("status") in DONE:
            times.append(sum(s for name, s in data.get("seconds", {}).items() if name not in skipped))
    return sum(times) / len(times) if times else None


def mark_killed(folder: Path, pid: int, reason: str, status: str = "failed") -> None:
    """End the record of a process that could not do it itself; that of any other process is left alone."""
    data = _read(folder)
    if data.get("status") == "running" and data.get("pid") == pid:
        error = {"type": "Killed", "message": reason, "traceback": ""}
        data.update(status=status, ended=_now(), error=error)
        write_json(folder / RECORD, data)


def describe_error(error: BaseException) -> dict[str, str]:
    """Type, message with its notes, and the last 30 lines of the traceback."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return {
        "type": type(error).__name__,
        "message": "; ".join([str(error), *getattr(error, "__notes__", ())]).strip("; "),
        "traceback": "\n".join(lines[-30:]),
    }


def _by_ctrl_c(error: BaseException | None) -> bool:
    """Lightning turns Ctrl-C into `sys.exit(1)`, so the exceptions behind this one count too."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _read(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _rows(file: Path) -> list[tuple[int, str, float]]:
    """Whole rows only: a power cut may leave half a line at the end."""
    if not file.exists():
        return []
    rows = []
    text = file.read_text(encoding="utf-8", errors="replace")
    for line in csv.reader(text[: text.rfind("\n") + 1].splitlines()[1:]):
        try:
            step, name, value = line
            rows.append((int(step), name, float(value)))
        except ValueError:
            log.warning("record: %s: the row %s is not step,name,value and was left out", file, line)
    return rows


def _lines(rows: Iterable[tuple[int, str, float]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((step, name, repr(value)) for step, name, value in rows)
    return text.getvalue()


# --- writing -----------------------------------------------------------------------------------------------


def _begin(
    folder: Path, label: str, seed: int, key: str, overrides: Sequence[str], axes: Mapping[str, Any]
) -> dict[str, Any]:
    before = _read(folder)  # of the same key, where there is one
    data = {
        **{name: value for name, value in before.items() if name not in OF_AN_END},
        "label": label,
        "seed": seed,
        "key": key,
        "axes": dict(axes),
        "overrides": redact_overrides(overrides),
        "started": before.get("started", _now()),
        **_attempt(before),
    }
    write_json(folder / RECORD, data)
    return data


def _attempt(before: Mapping[str, Any]) -> dict[str, Any]:
    """Who runs it now, and on what."""
    return {
        "status": "running",
        "attempt": before.get("attempt", 0) + 1,
        "attempt_started": _now(),
        "versions": package_versions(),
        "commit": source_commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "threads": threads(),
        "pid": os.getpid(),
    }


def _clear_way(root: Path, folder: Path, key: str) -> None:
    data = _read(folder)
    if not data:
        return
    if data.get("key") == key and data.get("status") not in DONE:
        return
    aside = root / "aside" / folder.parent.name / f"{folder.name}-{data.get('key')}-{time.time_ns()}"
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, aside)
    if (aside / "log.txt").is_file():  # a sweep has opened it already for this attempt's output
        folder.mkdir(parents=True)
        shutil.move(aside / "log.txt", folder / "log.txt")
    why = "its files were damaged" if data.get("key") == key else "it belongs to another config of this label"
    log.warning("record: %s was moved to %s: %s", folder, aside, why)


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Of every file whose first folder below `folder` is not one that changes after the run."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder): path for path in files}
    return {
        name.as_posix(): file_entry(path)
        for name, path in names.items()
        if name.parts[0] not in UNCHECKED and not name.name.startswith(".")
    }


def _lock_file(root: str | Path, label: str, seed: int) -> Path:
    return Path(root) / "locks" / "runs" / f"{label}-seed{seed}.lock"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

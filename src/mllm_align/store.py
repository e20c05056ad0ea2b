"""Stages and the store that shares them.

A stage is a pure function of its config, its inputs and its code, and lies in the store under the hash of
those, so that any number of runs, in any number of processes, build it once:

    <root>/<name>/<key>/    the stage's files and manifest.json (SHA-256 and size of each, seconds, versions)
    <root>/locks            one lock a stage
    <root>/building         half-built stages
    <root>/damaged          entries that failed their checksums
"""

import importlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mllm_align import fingerprints
from mllm_align.host import package_versions
from mllm_align.redact import redact

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SAY_AFTER = 3.0  # seconds of waiting before it is said


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a run.

    Attributes
    ----------
    name : folder in the store, such as "preferences" or "reference_logprobs".
    build : dotted name of `build(config: dict, inputs: dict[str, Path], out: Path) -> None`, imported only
        when it must run; it writes its files into the empty folder `out`.
    config : plain JSON-able data, resolved.
    inputs : the stages whose folders `build` reads.
    version : raised by whoever changes the meaning of this package's code elsewhere than in `build` itself and in the
        `_target_`s of `config`, whose source counts by itself.
    free : dotted names of settings of `config` that change how fast `build` is and nothing else: no part of the key.
    """

    name: str
    build: str
    config: Mapping[str, Any]
    inputs: Mapping[str, "Stage"] = field(default_factory=dict)
    version: int = 1
    free: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """24 hex digits over name, config, inputs, version and source."""
        config = fingerprints.deciding(without(self.config, self.free))
        called = {self.build, *fingerprints.targets(config)}
        return fingerprints.digest(
            {
                "name": self.name,
                "version": self.version,
                "config": fingerprints.keyed(config),
                "inputs": {name: stage.key for name, stage in self.inputs.items()},
                "source": {name: fingerprints.source(name) for name in called},
            }
        )[:24]

    def with_inputs(self) -> Iterator["Stage"]:
        """Inputs first, then this stage; a stage shared by several appears each time."""
        for stage in self.inputs.values():
            yield from stage.with_inputs()
        yield self


def without(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """`config` less the settings at these dotted names, where it has them."""
    left = dict(config)
    for first, _, rest in (name.partition(".") for name in names):
        if not rest:
            left.pop(first, None)
        elif isinstance(left.get(first), Mapping):
            left[first] = without(left[first], [rest])
    return left


class Store:
    """Content-addressed stages under `root`. Safe to use from many processes at once."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._verified: set[Path] = set()

    def path(self, stage: Stage) -> Path:
        """Where the stage lies, or would lie."""
        return self.root / stage.name / stage.key

    def has(self, stage: Stage) -> bool:
        """Whether the stage is stored and whole; a damaged one is reported and counts as missing."""
        return self._intact(self.path(stage))

    def get(self, stage: Stage) -> Path:
        """The stage's folder, built first where it is missing or damaged, its missing inputs before it.

        One process builds, the others wait for it.
        """
        entry = self.path(stage)
        if self._intact(entry, quiet=True):
            return entry
        inputs = {name: self.get(source) for name, source in stage.inputs.items()}
        with self._locked(stage):
            if not self._intact(entry):
                self._set_aside(entry)
                self._build(stage, inputs)
        return entry

    def seconds(self, stage: Stage) -> float | None:
        """How long the stored stage took to build; None where it is not stored."""
        return _seconds(self.path(stage) / MANIFEST)

    def typical_seconds(self, name: str) -> float | None:
        """Mean build time of the stored stages of this name; None where there is none."""
        known = [_seconds(file) for file in sorted(self.root.glob(f"{name}/*/{MANIFEST}"))]
        times = [seconds for seconds in known if seconds is not None]
        return sum(times) / len(times) if times else None

    def _intact(self, entry: Path, quiet: bool = False) -> bool:
        """Checksums compared once a process; after that the manifest's presence is enough."""
        if not entry.exists():
            return False
        if entry in self._verified and (entry / MANIFEST).exists():
            return True
        damage = find_damage(entry)
        if damage is None:
            self._verified.add(entry)
        elif not quiet:
            log.warning("store: %s; this stage will be built again", damage)
        return damage is None

    @contextmanager
    def _locked(self, stage: Stage) -> Iterator[None]:
        file = self.root / "locks" / f"{stage.name}-{stage.key}.lock"
        with waiting_lock(file, f"another process builds stage {stage.name} ({stage.key})"):
            yield

    def _set_aside(self, entry: Path) -> None:
        if entry.exists():
            aside = self.root / "damaged" / f"{entry.parent.name}-{entry.name}-{time.time_ns()}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            entry.rename(aside)
            log.warning("store: the damaged stage was moved to %s", aside)

    def _build(self, stage: Stage, inputs: Mapping[str, Path]) -> None:
        """Called under the stage's lock, so what an earlier process left in `out` has no owner any more."""
        out = self.root / "building" / f"{stage.name}-{stage.key}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        log.info("store: building stage %s (%s)", stage.name, stage.key)
        started = time.perf_counter()
        try:
            load(stage.build)(dict(stage.config), dict(inputs), out)
            write_json(out / MANIFEST, self._manifest(stage, out, time.perf_counter() - started))
        except BaseException as error:
            error.add_note(f"while building stage {stage.name} ({stage.key}) by {stage.build}")
            shutil.rmtree(out, ignore_errors=True)
            raise
        publish(out, self.path(stage))
        self._verified.add(self.path(stage))

    def _manifest(self, stage: Stage, out: Path, seconds: float) -> dict[str, Any]:
        files = list_files(out)
        if not files:
            raise ValueError(f"{stage.build} wrote no file into its folder")
        return {
            "name": stage.name,
            "key": stage.key,
            "build": stage.build,
            "version": stage.version,
            "config": redact(fingerprints.plain(stage.config)),
            "inputs": {name: source.key for name, source in stage.inputs.items()},
            "seconds": round(seconds, 3),
            "versions": package_versions(),
            "files": files,
        }


# --- files -------------------------------------------------------------------------------------------------


@contextmanager
def waiting_lock(file: Path, reason: str) -> Iterator[None]:
    """Hold `file` as a lock between processes; waiting longer is said. A killed owner frees it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    started = time.monotonic()
    try:
        lock.acquire(timeout=SAY_AFTER)
    except Timeout:
        log.warning("waiting: %s (lock %s)", reason, file)
        lock.acquire()
        log.warning("waited %.0f s: %s", time.monotonic() - started, reason)
    try:
        yield
    finally:
        lock.release()


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative name -> {"sha256", "size"} of every file below `folder`, fsynced; links are refused."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path}: a link cannot be stored; write the file itself")
        if path.is_file():
            _fsync(path)
            found[path.relative_to(folder).as_posix()] = file_entry(path)
    return found


def file_entry(path: Path) -> dict[str, Any]:
    """A manifest's line."""
    return {"sha256": fingerprints.file_sha256(path), "size": path.stat().st_size}


def find_damage(folder: Path) -> str | None:
    """What is wrong with a folder that has a manifest, in words that name the file; None where nothing is."""
    manifest = folder / MANIFEST
    try:
        files = json.loads(manifest.read_text())["files"]
        for name, known in files.items():
            file = folder / name
            if not file.is_file():
                return f"{file} is missing"
            if file.stat().st_size != known["size"]:
                return f"{file} has {file.stat().st_size} bytes instead of {known['size']}"
            if fingerprints.file_sha256(file) != known["sha256"]:
                return f"{file} has changed since it was written (its SHA-256 differs)"
    except FileNotFoundError:
        return f"{manifest} is missing (half-written)"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{manifest} is damaged"
    return None


def publish(built: Path, entry: Path) -> None:
    """Rename a finished folder into its place: it appears whole or not at all, also after a power cut."""
    for folder in [built, *(path for path in built.rglob("*") if path.is_dir())]:
        _fsync(folder)
    entry.parent.mkdir(parents=True, exist_ok=True)
    built.rename(entry)
    _fsync(entry.parent)


def write_json(file: Path, value: Any) -> None:
    """Atomic and durable: readers see the old file or the new one."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Atomic and durable: readers see the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    _fsync(temporary)
    os.replace(temporary, file)
    _fsync(file.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _seconds(manifest: Path) -> float | None:
    try:
        return float(json.loads(manifest.read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- code --------------------------------------------------------------------------------------------------


def load(dotted: str) -> Callable[..., Any]:
    """The function or class of this dotted name, imported now."""
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ValueError(f"{dotted}: module {module} has no {name!r}") from error

"""Run folders to Runs. Nothing but the record is read, and no run that was named is left out.

A folder that cannot be read becomes a Run with status `unreadable` and the reason.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml

from mllm_align.benchmarks.base import Benchmark, read_jsonl
from mllm_align.record import DONE, RECORD, read_record, read_scalars, run_folder
from mllm_align.store import load

log = logging.getLogger(__name__)

OWN_BENCHMARKS = "mllm_align.benchmarks."


@dataclass(frozen=True)
class Run:
    """One run's record.

    `metrics` is {benchmark: {metric: value}}, `benchmarks` the specs of those answered after the config was
    written, and `problem` says why a run has no result.
    """

    folder: Path
    label: str
    seed: int
    status: str
    axes: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    benchmarks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    made_with: str = ""

    @property
    def done(self) -> bool:
        """Whether it has a result (a collapsed policy is one)."""
        return self.status in DONE

    def predictions(self, benchmark: str) -> list[dict[str, Any]]:
        """The benchmark's prediction lines. ValueError or OSError where damaged or missing."""
        return read_jsonl(self.folder / "predictions" / f"{benchmark}.jsonl")

    def scalars(self) -> dict[str, list[tuple[int, float]]]:
        """Figure -> (step, value), empty for a run that was not trained."""
        return read_scalars(self.folder)

    def samples(self) -> list[dict[str, Any]]:
        """The run's sample generations, if it kept some."""
        file = self.folder / "samples.jsonl"
        return read_jsonl(file) if file.exists() else []


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """The runs in these folders: run folders, or any folder above them. Each once, by label and seed.

    Raises FileNotFoundError for a path that does not exist or holds no run.
    """
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        found = [
            file.parent for file in ([path / RECORD] if (path / RECORD).exists() else path.rglob(RECORD))
        ]
        if not found:
            raise FileNotFoundError(
                f"{path}: no run there (a run's folder has a {RECORD}); name outputs/runs or folders below it"
            )
        folders |= dict.fromkeys(folder.resolve() for folder in found)
    return sorted((load_run(folder) for folder in folders), key=lambda run: (run.label, run.seed))


def load_run(folder: Path) -> Run:
    """One run's record, whatever state it is in."""
    data = read_record(folder)
    if type(data.get("seed")) is not int:  # no record, or not one that a run of one seed leaves
        return Run(folder, folder.parent.name, -1, "unreadable", problem=f"{RECORD} is missing or damaged")
    run = Run(
        folder=folder,
        label=str(data.get("label", folder.parent.name)),
        seed=data["seed"],
        status=str(data.get("status", "unreadable")),
        axes={name: _axis(value) for name, value in data.get("axes", {}).items()},
        benchmarks={name: entry.get("spec", {}) for name, entry in data.get("benchmarks", {}).items()},
        seconds=data.get("seconds", {}),
        problem=_problem(data),
        made_with=_made_with(data),
    )
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
        file = folder / "metrics.json"
        metrics = _metrics(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        return replace(run, status="unreadable", problem=f"{type(error).__name__}: {error}")
    if run.done and not metrics and (run.benchmarks or _tasks(config)):
        return replace(run, config=config, status="unreadable", problem="metrics.json is missing or empty")
    return replace(run, config=config, metrics=metrics)


def find_run(
    outputs: str | Path, label: str, seed: int, key: str, benchmarks: Mapping[str, str] | None = None
) -> Run:
    """The run of a planned cell, whatever state it is in; `missing` where it has not been started.

    What it answered with other settings than `benchmarks` (name -> key) asks for is left out, and said.
    """
    folder = run_folder(outputs, label, seed)
    data = read_record(folder)
    if not (folder / RECORD).exists() or (data and data.get("key") != key):
        return Run(folder, label, seed, "missing", problem="not run with these settings and this code")
    run = load_run(folder)
    answered = {name: entry.get("key") for name, entry in data.get("benchmarks", {}).items()}
    old = [name for name in run.metrics if answered.get(name) != (benchmarks or {}).get(name)]
    if not run.done or not old:
        return run
    return replace(
        run,
        metrics={name: found for name, found in run.metrics.items() if name not in old},
        problem=f"{', '.join(old)}: answered with other settings than are asked for",
    )


def benchmarks_of(run: Run) -> dict[str, Benchmark]:
    """The package's own benchmarks of a run, built to score its predictions again.

    One that this version has not, or not with these settings, is left out, and the log says why.
    """
    return _build({**_tasks(run.config), **run.benchmarks}, f"{run.folder}: ")


def benchmarks_in(config: Mapping[str, Any]) -> dict[str, Benchmark]:
    """The package's own benchmarks that a config asks for."""
    return _build(_tasks(config))


def _tasks(config: Mapping[str, Any]) -> dict[str, Any]:
    benchmark = config.get("benchmark") or {}
    tasks = benchmark.get("tasks") or {}
    if isinstance(tasks, Mapping):
        return dict(tasks)
    return {f"lmms_eval_{task}": {**benchmark.get("each", {}), "task": task} for task in tasks}


def _build(specs: Mapping[str, Any], where: str = "") -> dict[str, Benchmark]:
    """A `_target_` outside the package is not imported, since a record may come from anyone."""
    built: dict[str, Benchmark] = {}
    for name, entry in specs.items():
        target = entry.get("_target_", "") if isinstance(entry, Mapping) else ""
        if isinstance(target, str) and target.startswith(OWN_BENCHMARKS):
            try:
                built[name] = _scorer(load(target), {k: v for k, v in entry.items() if not k.startswith("_")})
            except (ImportError, OSError, KeyError, TypeError, ValueError) as error:
                log.warning("%sbenchmark %s cannot be scored again: %s", where, name, error)
    return built


def _scorer(kind: Any, settings: Mapping[str, Any]) -> Benchmark:
    """Raises TypeError for what is no benchmark, before it is called."""
    if not isinstance(kind, type) or not all(hasattr(kind, name) for name in ("counts", "metrics")):
        raise TypeError(f"{kind!r} is no benchmark")
    return cast("Benchmark", kind(**settings))


def _metrics(data: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return {name: {metric: float(value) for metric, value in found.items()} for name, found in data.items()}


def _problem(data: Mapping[str, Any]) -> str:
    error = data.get("error") or {}
    if error and data.get("status") not in DONE:
        return ": ".join(str(error.get(part, "")) for part in ("type", "message") if error.get(part))
    return str(data.get("reason", ""))


def _made_with(data: Mapping[str, Any]) -> str:
    """Commit, package versions and machine in a line."""
    names = ("mllm-align", "python", "torch", "transformers", "peft")
    versions = data.get("versions") or {}
    parts = [f"{name} {versions[name]}" for name in names if name in versions]
    if data.get("commit"):
        parts.append(f"commit {data['commit']}")
    if data.get("platform"):
        parts.append(
            f"{data['platform']}, {data.get('cores', '?')} cores, {data.get('threads', '?')} threads"
        )
    return "; ".join(map(str, parts))


def _axis(value: Any) -> str:
    """An axis as one reads it: `scenes/povid` is `povid`, null is `none`."""
    return "none" if value is None else str(value).rsplit("/", 1)[-1]

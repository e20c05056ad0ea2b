"""One cell of a grid, from its composed config to its record: what would run (`plan_cell`), and doing it (`run_cell`).

    preferences ──► reference log-probs ──► training ──► predictions ──► metrics
    (store)         (store)                 (run folder, with the record)

What a cell shares with others lies in the store; what is its own lies in its run folder. Planning imports no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_align.record import RunRecord, typical_seconds
from mllm_align.store import Stage

log = logging.getLogger(__name__)

Config = Mapping[str, Any]


class ImpossibleCell(ValueError):
    """A combination of options that cannot run; the message says what to choose instead."""


@dataclass(frozen=True)
class Cell:
    """What one config runs. `stages` are shared through the store; `benchmarks` maps names to the keys of predictions.

    `key` is of the training alone: a finished run is not trained again because another benchmark is asked for.
    """

    config: Config
    label: str
    seed: int
    key: str
    stages: tuple[Stage, ...]
    benchmarks: Mapping[str, str]

    @property
    def outputs(self) -> Path:
        return Path(self.config["outputs"])

    def finished(self, outputs: str | Path) -> bool:
        """Whether the run lies finished and intact below `outputs`, with every benchmark that is asked for."""
        found = RunRecord.find(outputs, self.label, self.seed, self.key)
        return found is not None and not self.missing_benchmarks(found)

    def missing_benchmarks(self, record: RunRecord) -> list[str]:
        """The benchmarks that the record lacks, or has from another version of them."""
        done = record.data.get("benchmarks", {})
        return [name for name, key in self.benchmarks.items() if done.get(name, {}).get("key") != key]

    def estimate_seconds(self) -> float | None:
        """Time of the run without its stored stages, by its other seeds; None where nothing is known."""
        return typical_seconds(self.outputs, self.label, without=[stage.name for stage in self.stages])


def plan_cell(config: Config) -> Cell:
    """Check a composed config and say what it would run. Raises ImpossibleCell, or ValueError naming what is wrong."""
    check(config)
    trains = config["alignment"]["module"] is not None
    preferences = preferences_stage(config) if trains else None
    reference = reference_stage(config, preferences) if trains and needs(config, "reference") else None
    stages = tuple(stage for stage in (preferences, reference) if stage is not None)
    training = training_stage(config, stages)
    seed = config["seed"] if trains else 0  # an untrained model has no draws to seed
    benchmarks = {name: benchmark_key(spec, training) for name, spec in benchmark_specs(config).items()}
    return Cell(config, label(config, stages), seed, training.key, stages, benchmarks)


def check(config: Config) -> None:
    """Refuse what cannot work before anything is loaded."""
    method, sampler, annotator = config["alignment"], config["sampler"], config["annotator"]
    if method["module"] is None:
        return
    wanted = method["when"]
    if sampler["when"] != wanted:
        instead = {"online": "sampler=policy", "offline": "sampler=dataset"}[wanted]
        names = f"alignment={method['name']} is {wanted} but sampler={sampler['name']} is {sampler['when']}"
        raise ImpossibleCell(f"{names}; choose {instead}")
    if needs(config, "annotator") and annotator["build"] is None:
        raise ImpossibleCell(
            f"alignment={method['name']} draws its own responses and needs a judge; "
            "choose annotator=oracle (scenes only), annotator=self or annotator=large"
        )


def needs(config: Config, what: str) -> bool:
    """Whether the method uses `reference` (stored log-probabilities), `sampler` or `annotator`."""
    return what in config["alignment"]["needs"]


# --- stages ------------------------------------------------------------------------------------------------


def preferences_stage(config: Config) -> Stage:
    """The preference set: a dataset as it is published, or as it is constructed."""
    return Stage("preferences", "mllm_align.stages.preferences", {"build": config["dataset"]["build"]})


def reference_stage(config: Config, preferences: Stage | None) -> Stage:
    """log pi_ref of every response of a preference set."""
    assert preferences is not None
    spec = {
        "base_model": {"path": config["base_model"]["path"], "dtype": config["base_model"]["dtype"]},
        "accelerator": config["trainer"]["accelerator"],
        "precision": config["trainer"]["precision"],
        "max_length": config["alignment"]["max_length"],
        "batch_size": config["alignment"]["batch_size"],
    }
    return Stage(
        "reference_logprobs", "mllm_align.stages.reference_logprobs", spec, {"preferences": preferences}
    )


def training_stage(config: Config, stages: Sequence[Stage]) -> Stage:
    """Never in the store: its key names the run, and its files are the run's own."""
    model = config["base_model"]
    spec: dict[str, Any] = {"base_model": {"path": model["path"], "dtype": model["dtype"]}}
    if config["alignment"]["module"] is not None:
        spec = {
            "base_model": {name: model[name] for name in ("path", "dtype", "lora")},
            "alignment": config["alignment"],
            "sampler": config["sampler"],
            "annotator": config["annotator"],
            "precision": config["trainer"]["precision"],
            "seed": config["seed"],
        }
    return Stage("training", "mllm_align.stages.train", spec, {stage.name: stage for stage in stages})


def benchmark_specs(config: Config) -> dict[str, Config]:
    """Name -> what builds it, of the chosen benchmarks."""
    return dict(config["benchmark"]["tasks"] or {})


def benchmark_key(spec: Config, training: Stage) -> str:
    return Stage("predictions", "mllm_align.stages.answer", spec, {"training": training}).key


def label(config: Config, stages: Sequence[Stage]) -> str:
    """A readable folder name, the same for all seeds of a config and different for different configs."""
    unseeded = training_stage({**config, "seed": None}, stages).key[:8]
    axes = [config["alignment"]["name"], config["base_model"]["name"]]
    if stages:
        axes[1:1] = [config["dataset"]["name"]]
        axes += [config[axis]["name"] for axis in ("annotator",) if needs(config, axis)]
    return "-".join([*(str(name).replace("/", "_") for name in axes), unseeded])


def axes(config: Config) -> dict[str, str]:
    """The names that tables and dashboards group runs by."""
    names = {
        axis: str(config[axis]["name"])
        for axis in ("dataset", "base_model", "alignment", "sampler", "annotator")
    }
    if config["alignment"]["module"] is None:
        names |= {"dataset": "none", "sampler": "none", "annotator": "none"}
    return names | {"world": str(config["world"]["name"])}


# --- running -----------------------------------------------------------------------------------------------


def run_cell(config: Config, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Run a cell, or find that it has run. -> the headline metrics of its benchmarks"""
    cell = plan_cell(config)
    with RunRecord.open(
        cell.outputs,
        label=cell.label,
        seed=cell.seed,
        key=cell.key,
        config=config,
        overrides=overrides,
        axes=axes(config),
    ) as record:
        todo = cell.missing_benchmarks(record)
        if record.done and not todo:
            log.info("found finished: %s", record.folder)
            return record.headline
        record.reopen()
        from mllm_align import stages

        stages.run(cell, record, todo)
        return record.headline

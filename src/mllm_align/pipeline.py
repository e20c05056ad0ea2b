"""One cell of a grid, from its composed config to its record: what would run (`plan_cell`), and doing it (`run_cell`).

    preferences ──► samples ──► reference log-probs ──► training ──► predictions ──► metrics
    reward model ─────┴─────────────────────────────────────┘
    (store)                                             (run folder, with the record)

What a cell shares with others lies in the store; what is its own lies in its run folder. Planning imports no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from mllm_align.checks import check, check_at_hand
from mllm_align.launch import place
from mllm_align.record import RunRecord, typical_seconds
from mllm_align.store import Stage

log = logging.getLogger(__name__)

Config = Mapping[str, Any]


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
    stages = input_stages(config) if config["alignment"]["module"] is not None else ()
    training = training_stage(config, stages)
    seed = config["seed"] if stages else 0  # an untrained model has no draws to seed
    benchmarks = {name: benchmark_key(spec, training) for name, spec in benchmark_specs(config).items()}
    return Cell(config, label(config, stages), seed, training.key, stages, benchmarks)


def ready_cell(config: Config) -> Cell:
    """`plan_cell` of a cell that is about to run: what it starts from must be there."""
    check_at_hand(config)
    return plan_cell(config)


# What changes the speed of drawing and judging and not the results, wherever a stage has it (`Stage.free`).
FREE = tuple(
    f"{axis}.{inside}batch_size"
    for axis, part in (("sampler", ""), ("sampler", "similarity."), ("annotator", ""))
    for inside in (part, f"build.{part}")
)


def needs(config: Config) -> list[str]:
    """What the method's module is handed, see `runs.build_module`."""
    return list(config["alignment"]["needs"][config["sampler"]["when"]])


# --- stages ------------------------------------------------------------------------------------------------


def input_stages(config: Config) -> tuple[Stage, ...]:
    """What training starts from, in the order of making: the last Groups among them are trained on."""
    preferences = preferences_stage(config["dataset"])
    judge = reward_model_stage(config) if trains_reward_model(config) else None
    stages = [preferences, *([judge] if judge else [])]
    if config["sampler"]["when"] == "offline" and config["sampler"]["gives"] != "pairs":
        stages.append(samples_stage(config, preferences, judge))
    if "reference" in needs(config):
        stages.append(reference_stage(config, stages[-1]))
    if "reward_statistics" in needs(config):
        stages.append(statistics_stage(config, preferences, judge))
    return tuple(stages)


def preferences_stage(dataset: Config) -> Stage:
    """The preference set: a dataset as it is published, or as it is constructed."""
    read = {} if dataset.get("state") is None else {"state": made(dataset["state"])}
    return Stage("preferences", "mllm_align.stages.preferences", {"build": dataset["build"], **read})


def samples_stage(config: Config, preferences: Stage, judge: Stage | None) -> Stage:
    """Groups that the sampler made with the starting policy; every run and seed shares them."""
    spec = {
        "base_model": weights(config),
        "accelerator": config["trainer"]["accelerator"],
        "sampler": config["sampler"]["build"],
        "seed": config["sampler"]["seed"],
        "annotator": config["annotator"]["build"],
        "draw": config["alignment"]["draw"],
    }
    inputs = {"preferences": preferences, **({"reward_model": judge} if judge else {})}
    return Stage("samples", "mllm_align.stages.samples", spec, inputs, free=FREE)


def reference_stage(config: Config, groups: Stage) -> Stage:
    """log pi_ref of every response that is trained on."""
    spec = {
        "base_model": weights(config),
        "accelerator": config["trainer"]["accelerator"],
        "precision": config["trainer"]["precision"],
        "max_length": config["alignment"]["max_length"],
        "batch_size": config["alignment"]["batch_size"],
    }
    if config["alignment"].get("extend") is not None:  # else methods share the stage
        spec["extend"] = config["alignment"]["extend"]
    return Stage("reference_logprobs", "mllm_align.stages.reference_logprobs", spec, {"preferences": groups})


def trains_reward_model(config: Config) -> bool:
    """Whether the annotator is a reward model that is trained for it, and shared."""
    return config["annotator"].get("train") is not None and config["annotator"]["path"] is None


def reward_model_stage(config: Config) -> Stage:
    """The annotator's reward model: trained once for all runs and seeds that ask it."""
    annotator = config["annotator"]
    spec = {
        "base_model": {
            **weights(config),
            "lora": config["base_model"]["lora"],
            **({"checkpointing": True} if config["base_model"].get("checkpointing") else {}),
        },
        "settings": annotator["train"],
        "accelerator": config["trainer"]["accelerator"],
        "precision": config["trainer"]["precision"],
    }
    data = {"preferences": preferences_stage(annotator["data"])}
    return Stage("reward_model", "mllm_align.stages.reward_model", spec, data)


def statistics_stage(config: Config, preferences: Stage, judge: Stage | None) -> Stage:
    """Mean and standard deviation of the reward over the alignment set's own responses."""
    spec = {
        "base_model": weights(config),
        "accelerator": config["trainer"]["accelerator"],
        "annotator": config["annotator"]["build"],
    }
    if config["dataset"]["offers"] != "pairs":  # the sampler draws what is judged
        spec |= {"sampler": config["sampler"]["build"], "seed": config["sampler"]["seed"]}
    inputs = {"preferences": preferences, **({"reward_model": judge} if judge else {})}
    return Stage("reward_statistics", "mllm_align.stages.reward_statistics", spec, inputs, free=FREE)


def weights(config: Config) -> Config:
    """What decides the weights of the starting policy."""
    model = config["base_model"]
    numbers = {"dtype": model["dtype"], **({"four_bit": True} if model.get("four_bit") else {})}
    return {"path": model["path"], **numbers}


def training_stage(config: Config, stages: Sequence[Stage]) -> Stage:
    """Never in the store: its key names the run, and its files are the run's own."""
    model = config["base_model"]
    spec: dict[str, Any] = {"base_model": weights(config)}
    if config["alignment"]["module"] is not None:
        spec = {
            "base_model": {**weights(config), "lora": model["lora"]},
            "alignment": config["alignment"],
            "sampler": config["sampler"],
            "annotator": config["annotator"],
            "precision": config["trainer"]["precision"],
            "seed": config["seed"],
        }
    return Stage(
        "training", "mllm_align.runs.train", spec, {stage.name: stage for stage in stages}, free=FREE
    )


def benchmark_specs(config: Config) -> dict[str, Config]:
    """Name -> what builds it, of the chosen benchmarks; a list of tasks is built by what `each` says (lmms_eval)."""
    tasks = config["benchmark"]["tasks"] or {}
    if isinstance(tasks, Mapping):
        return dict(tasks)
    return {f"lmms_eval_{task}": {**config["benchmark"]["each"], "task": task} for task in tasks}


def benchmark_key(spec: Config, training: Stage) -> str:
    return Stage("predictions", "mllm_align.stages.answer", spec, {"training": training}).key


def label(config: Config, stages: Sequence[Stage]) -> str:
    """A readable folder name, the same for all seeds of a config and different for different configs."""
    unseeded = training_stage({**config, "seed": None}, stages).key[:8]
    axes = [config["alignment"]["name"], config["base_model"]["name"]]
    if stages:
        axes[1:1] = [config["dataset"]["name"]]
        axes += [config["sampler"]["name"]] if config["sampler"]["gives"] == "rejected" else []
        axes += [config["annotator"]["name"]] if config["annotator"]["build"] is not None else []
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


def made(spec: Config) -> Any:
    """What `spec` describes. An error of what is built comes as it is, and not wrapped by Hydra."""
    try:
        return instantiate(spec)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise error.__cause__ from None
        raise


# --- running -----------------------------------------------------------------------------------------------


def run_cell(config: Config, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Run a cell, or find that it has run. -> the headline metrics of its benchmarks

    Of the processes of a run (trainer=ddp) the first does that; the others take part in its training, and have none.
    """
    cell = plan_cell(config)
    if not place(config["trainer"]["devices"], config["trainer"]["nodes"]).leads:
        from mllm_align import runs

        runs.follow(cell)
        return {}
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
        from mllm_align import runs

        runs.check_ready(cell, todo)
        record.reopen()
        runs.run(cell, record, todo)
        return record.headline

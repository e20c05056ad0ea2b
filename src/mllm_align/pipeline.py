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

from mllm_align.launch import place
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
    stages = input_stages(config) if config["alignment"]["module"] is not None else ()
    training = training_stage(config, stages)
    seed = config["seed"] if stages else 0  # an untrained model has no draws to seed
    benchmarks = {name: benchmark_key(spec, training) for name, spec in benchmark_specs(config).items()}
    return Cell(config, label(config, stages), seed, training.key, stages, benchmarks)


# What a dataset offers, each including what stands after it.
OFFERS = ("pairs", "answers", "prompts")


def check(config: Config) -> None:
    """Refuse what cannot work before anything is loaded."""
    check_benchmarks(config)
    method = config["alignment"]
    if method["module"] is None:
        return
    check_sampler(config)
    check_when(config)
    check_dataset(config)
    check_annotator(config)
    check_logprobs(config)
    check_trainer(config)


def check_when(config: Config) -> None:
    method, sampler = config["alignment"], config["sampler"]
    name, when = method["name"], sampler["when"]
    if when not in ("offline", "online"):
        raise ImpossibleCell(f"sampler.when is {when!r}; choose offline or online")
    if when not in method["when"]:
        raise ImpossibleCell(
            f"alignment={name} is {method['when'][0]}, but sampler={sampler['name']} is {when}; "
            f"choose sampler.when={method['when'][0]}"
        )


def check_sampler(config: Config) -> None:
    method, sampler = config["alignment"], config["sampler"]
    if sampler["gives"] in method["takes"]:
        return check_draws(config)
    suits = {
        "pairs": "sampler=dataset",
        "rejected": "sampler=bdhs_attn (or another that makes rejected responses)",
        "responses": "sampler=policy",
    }
    wanted = " or ".join(suits[gives] for gives in method["takes"])
    raise ImpossibleCell(
        f"alignment={method['name']} has no use for what sampler={sampler['name']} gives; choose {wanted}"
    )


def check_draws(config: Config) -> None:
    """One response a prompt has nothing to be compared with."""
    method, sampler = config["alignment"], config["sampler"]
    drawn, least = sampler["build"].get("k"), method.get("least", 1)
    if sampler["gives"] == "responses" and drawn is not None and drawn < least:
        raise ImpossibleCell(
            f"alignment={method['name']} compares the responses to a prompt, and sampler.build.k is {drawn}; "
            f"choose sampler.build.k={least} or more"
        )


def check_dataset(config: Config) -> None:
    dataset = config["dataset"]
    for axis in ("alignment", "sampler"):
        asks = config[axis]["asks"]
        if OFFERS.index(dataset["offers"]) > OFFERS.index(asks):
            what = {"pairs": "chosen and rejected responses", "answers": "reference answers"}[asks]
            raise ImpossibleCell(
                f"{axis}={config[axis]['name']} needs {what}, and dataset={dataset['name']} has only "
                f"{dataset['offers']}; choose a dataset with {asks}, such as dataset=scenes/povid"
            )


def check_annotator(config: Config) -> None:
    method, sampler, annotator = config["alignment"], config["sampler"], config["annotator"]
    asked = sampler["gives"] == "responses"
    if asked and annotator["build"] is None:
        raise ImpossibleCell(
            f"sampler={sampler['name']} draws responses for alignment={method['name']}, and somebody must judge "
            "them; choose annotator=oracle (scenes only), annotator=self, annotator=large or "
            "annotator=reward_model"
        )
    if not asked and annotator["build"] is not None:
        raise ImpossibleCell(
            f"annotator={annotator['name']} would not be asked: sampler={sampler['name']} gives pairs whose better "
            "side is known; choose annotator=none, or sampler=policy to have responses judged"
        )


def check_logprobs(config: Config) -> None:
    """Methods without the option (reinforcement learning, reward models) have no such key."""
    method = config["alignment"]
    if "logprobs" in method and method["logprobs"] not in ("sum", "mean"):
        raise ImpossibleCell(
            f"alignment.logprobs is {method['logprobs']!r}; choose sum (over a response's tokens) or mean"
        )


def check_trainer(config: Config) -> None:
    """Several processes share every forward pass; those that split the model cannot write on their own."""
    trainer, batch = config["trainer"], config["alignment"]["batch_size"]
    processes = trainer["devices"] * trainer["nodes"]
    if processes > batch:
        raise ImpossibleCell(
            f"trainer.devices={trainer['devices']} times trainer.nodes={trainer['nodes']} are {processes} processes, "
            f"which share the alignment.batch_size={batch} prompts of a forward pass; choose "
            f"alignment.batch_size={processes} or more, and a smaller alignment.accumulate for the same step"
        )
    if trainer["strategy"] == "deepspeed_zero3" and trainer["precision"] != "32-true":
        raise ImpossibleCell(
            f"trainer.precision={trainer['precision']} would have DeepSpeed train bfloat16 parameters, where small "
            "steps are lost; choose trainer.precision=32-true (frozen weights keep base_model.dtype)"
        )
    if processes > 1 and trainer["strategy"] != "ddp" and config["sampler"]["when"] == "online":
        raise ImpossibleCell(
            f"trainer.strategy={trainer['strategy']} splits the model over processes, which then cannot draw responses "
            "on their own inside a step; choose trainer=ddp, or sampler.when=offline where the method has that"
        )


def check_benchmarks(config: Config) -> None:
    """A reward model does not write, and a policy gives no rewards."""
    benchmark, makes = config["benchmark"], config["alignment"]["makes"]
    if benchmark["tasks"] and benchmark["of"] != makes:
        instead = {"policy": "benchmark=scenes", "reward_model": "benchmark=scenes/reward"}[makes]
        raise ImpossibleCell(
            f"alignment={config['alignment']['name']} makes a {makes.replace('_', ' ')}, and the chosen benchmark is "
            f"for a {benchmark['of'].replace('_', ' ')}; choose {instead}"
        )


def needs(config: Config) -> list[str]:
    """What the method's module is handed, see `runs.build_module`."""
    return list(config["alignment"]["needs"][config["sampler"]["when"]])


# --- stages ------------------------------------------------------------------------------------------------


def input_stages(config: Config) -> tuple[Stage, ...]:
    """What training starts from, in the order of making: the last Groups among them are trained on."""
    preferences = preferences_stage(config["dataset"])
    stages = [preferences]
    judge = reward_model_stage(config) if trains_reward_model(config) else None
    stages += [judge] if judge else []
    if config["sampler"]["when"] == "offline" and config["sampler"]["gives"] != "pairs":
        stages.append(samples_stage(config, preferences, judge))
    if "reference" in needs(config):
        stages.append(reference_stage(config, stages[-1]))
    if "reward_statistics" in needs(config):
        stages.append(statistics_stage(config, preferences, judge))
    return tuple(stages)


def preferences_stage(dataset: Config) -> Stage:
    """The preference set: a dataset as it is published, or as it is constructed."""
    return Stage("preferences", "mllm_align.stages.preferences", {"build": dataset["build"]})


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
    return Stage(
        "samples", "mllm_align.stages.samples", spec, with_judge({"preferences": preferences}, judge)
    )


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
        "sampler": config["sampler"]["build"],
        "seed": config["sampler"]["seed"],
    }
    inputs = with_judge({"preferences": preferences}, judge)
    return Stage("reward_statistics", "mllm_align.stages.reward_statistics", spec, inputs)


def with_judge(inputs: dict[str, Stage], judge: Stage | None) -> dict[str, Stage]:
    return inputs if judge is None else {**inputs, "reward_model": judge}


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
    return Stage("training", "mllm_align.runs.train", spec, {stage.name: stage for stage in stages})


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
        record.reopen()
        from mllm_align import runs

        runs.run(cell, record, todo)
        return record.headline

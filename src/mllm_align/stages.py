"""What cells share: the stages of the store, loading, benchmarks and judging; loads torch."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_align.benchmarks import base as benchmarks
from mllm_align.datasets.parquet import read_groups, write_groups
from mllm_align.models.heads import REWARD_HEAD, has_head, load_head
from mllm_align.models.load import Policy, add_lora, load_policy
from mllm_align.pipeline import made, preferences_stage, reward_model_stage, trains_reward_model
from mllm_align.records import Group
from mllm_align.store import Store, write_json

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

Config = Mapping[str, Any]
PAIRS = "preferences.parquet"
TABLE = "reference.safetensors"
STATISTICS = "reward.json"
SERVED_SAMPLER = "mllm_align.samplers.served.ServedSampler"
# What `fit` is told by a method's config.
FITTED = ("epochs", "batch_size", "accumulate", "gradient_clip")


# --- stages of the store -----------------------------------------------------------------------------------


def preferences(config: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """A preference set as Parquet, with what its construction reports (rows skipped, say) beside it."""
    quiet_libraries()
    groups, report = build_dataset(config["build"])
    write_groups(out / PAIRS, groups, refer=True)
    write_json(out / "report.json", {"groups": len(groups), **report})


def build_dataset(spec: Config) -> tuple[Sequence[Group], dict[str, Any]]:
    """The Groups of a dataset config, and what its builder reports of them."""
    built = made(spec)
    return built if isinstance(built, tuple) else (built, {})


def sampled(config: Config) -> tuple[Sequence[Group], dict[str, Any]]:
    """What `mllm-align sample` writes: the dataset's own Groups, or what the sampler makes of them."""
    from mllm_align.modules.draws import sampled as draw
    from mllm_align.samplers.served import cut

    sampler, annotator = config["sampler"], config["annotator"]
    server = config["generation"]["build"]
    spec = sampler["build"] if server is None else served_sampler(config)
    groups, report = build_dataset(config["dataset"]["build"])
    if sampler["gives"] == "pairs":
        return groups, report
    if sampler["gives"] == "responses" and annotator["build"] is None:
        raise ValueError(
            f"sampler={sampler['name']} draws responses, and somebody must compare them; "
            "choose annotator=oracle (scenes only), annotator=self or annotator=large"
        )
    judge = made(annotator["build"]) if sampler["gives"] == "responses" else None
    policy: Any = None
    if server is None or asks_policy(judge):
        policy = load(config["base_model"], config["trainer"]["accelerator"])
    drawn, found = draw_groups(policy, groups, config["seed"], spec, judge and judge(policy), draw)
    unfinished = {} if server is None else {"cut at max_new_tokens": cut(drawn)}
    return drawn, {**report, **found, **unfinished}


def draw_groups(
    policy: Policy, groups: Sequence[Group], seed: int, sampler: Config, annotator: Any, draw: Any
) -> tuple[list[Group], dict[str, Any]]:
    """The decided Groups of a draw, and what there is to report of it."""
    from mllm_align.samplers.statistics import statistics

    drawn = draw(policy, groups, seed, made(sampler), annotator)
    decided = [group for group in drawn.groups if group.preferences]
    if not decided:
        raise ValueError(
            f"none of the {len(drawn.groups)} drawn groups has a preference: the annotator sees no difference, or "
            "the sampler came back with the answers themselves; choose another annotator or a lower threshold of "
            "its ties, or sampler settings that change more"
        )
    about = statistics([group for group in drawn.made if group is not None])
    return decided, {"ties left out": len(drawn.groups) - len(decided), **about}


def samples(config: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """The Groups that the sampler makes of a preference set with the starting policy."""
    policy = load(config["base_model"], config["accelerator"])
    judge = judge_of(config["annotator"], policy, inputs)
    groups = read_groups(inputs["preferences"] / PAIRS)
    drawn, report = draw_groups(
        policy, groups, config["seed"], config["sampler"], judge, made(config["draw"])
    )
    write_groups(out / PAIRS, drawn, refer=True)
    write_json(out / "report.json", {"groups": len(drawn), **report})


def extended(groups: Sequence[Group], extend: Config | None) -> Sequence[Group]:
    """The Groups with what a method adds to each (`alignment.extend`); the store keeps them without."""
    if extend is None:
        return groups
    added = made(extend)
    return [added(group) for group in groups]


def judge_of(build: Config | None, policy: Policy, folders: Mapping[str, Path]) -> Any:
    """The annotator; a reward model that was trained for it comes from the store."""
    if build is None:
        return None
    trained = {"path": str(folders["reward_model"])} if "reward_model" in folders else {}
    return made(build)(policy, **trained)


def reward_model(config: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """The adapter and head of a reward model that is trained for an annotator."""
    from mllm_align.modules.fit import TrainerOptions, fit
    from mllm_align.modules.reward import RewardModule

    settings = config["settings"]
    policy = load(config["base_model"], config["accelerator"])
    policy = add_lora(policy, **config["base_model"]["lora"], seed=settings["seed"])
    module = RewardModule(
        policy,
        seed=settings["seed"],
        optimise=made(settings["optimise"]),
        max_length=settings["max_length"],
    )
    fitted = fit(
        module,
        read_groups(inputs["preferences"] / PAIRS),
        out,
        **{name: settings[name] for name in FITTED},
        seed=settings["seed"],
        trainer=TrainerOptions(accelerator=config["accelerator"], precision=config["precision"]),
        title="reward model",
    )
    log.info("reward model: %d steps", fitted.steps)


def reward_statistics(config: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Mean and standard deviation of the reward over the alignment set."""
    from mllm_align.modules.policy_gradient import reward_statistics as compute

    policy = load(config["base_model"], config["accelerator"])
    judge = judge_of(config["annotator"], policy, inputs)
    groups = read_groups(inputs["preferences"] / PAIRS)
    if "sampler" in config and not any(group.responses for group in groups):
        groups = made(config["sampler"]).sample(policy, groups, config["seed"])
    write_json(out / STATISTICS, compute(judge, groups))


def reference_logprobs(config: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """log pi_ref of every response's tokens: one tensor (k, R) per example id, float32, in nats."""
    from safetensors.torch import save_file

    from mllm_align.modules.reference import reference_logprobs as compute

    policy = load(config["base_model"], config["accelerator"])
    table = compute(
        policy,
        extended(read_groups(inputs["preferences"] / PAIRS), config.get("extend")),
        config["batch_size"],
        precision=config["precision"],
        max_length=config["max_length"],
    )
    save_file(table, out / TABLE)


# --- benchmarks --------------------------------------------------------------------------------------------


def answer(policy: Policy, spec: Config, out: Path, batch_size: int, store: Store) -> dict[str, float]:
    """Answer one benchmark, write its predictions to `out`, and score them."""
    benchmark = benchmark_of(spec, store)
    rows = benchmarks.run(policy, benchmark, out, batch_size)
    return benchmarks.score(benchmark, rows)


def benchmark_of(spec: Config, store: Store) -> Any:
    """The benchmark; one that names a dataset as its `data` is given the folder where the store has it."""
    if "data" not in spec:
        return made(spec)
    return made({**spec, "folder": str(store.get(preferences_stage(spec["data"])))})


def ready(spec: Config, store: Store) -> None:
    """Raises what a benchmark finds missing (questions, images, packages); a dataset that it asks about is built."""
    if check := getattr(benchmark_of(spec, store), "ready", None):
        check()


# --- a server in place of our own decoder ------------------------------------------------------------------


def answering(config: Config, specs: Mapping[str, Config]) -> Any:
    """What answers benchmarks: the base model, with its adapter if there is one, or the server of `generation`.

    Raises ValueError for what a server cannot do.
    """
    server, adapter = config["generation"]["build"], config["adapter"]
    if server is None:
        set_threads(config["trainer"]["threads"])
        return load(config["base_model"], config["trainer"]["accelerator"], adapter=adapter)
    name = config["generation"]["name"]
    if adapter:
        raise ValueError(
            f"generation={name} answers with the weights that the server has, and adapter={adapter} is not among "
            "them; serve what `mllm-align export` makes of it and leave adapter out, or choose generation=local"
        )
    for task, spec in specs.items():
        if hasattr(made(spec), "answer"):
            raise ValueError(
                f"benchmark {task} asks the model itself and not for its answers to questions, which "
                f"generation={name} cannot do; choose generation=local"
            )
    return made(server)


def served_sampler(config: Config) -> dict[str, Any]:
    """What builds the sampler that asks the server of `generation`. Raises ValueError for what it cannot draw."""
    from mllm_align.samplers.policy import PolicySampler

    sampler, name = config["sampler"], config["generation"]["name"]
    if sampler["gives"] == "pairs":
        raise ValueError(
            f"sampler={sampler['name']} draws nothing, so generation={name} has nothing to do; choose "
            "sampler=policy, or generation=local"
        )
    if sampler["gives"] != "responses" or not isinstance(made(sampler["build"]), PolicySampler):
        raise ValueError(
            f"sampler={sampler['name']} hides or changes the image inside the model, or goes on from half an answer, "
            f"which generation={name} cannot do; choose generation=local, or sampler=policy"
        )
    settings = {key: sampler["build"][key] for key in ("k", "temperature", "top_p", "max_new_tokens")}
    return {"_target_": SERVED_SAMPLER, "server": config["generation"]["build"], **settings}


def asks_policy(builder: Any) -> bool:
    """Whether an annotator's builder needs the policy: the oracle's and the endpoint's have none by default."""
    first = next(iter(inspect.signature(builder).parameters.values()))
    return first.default is first.empty


# --- annotators --------------------------------------------------------------------------------------------


def judged(config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What `mllm-align judge` writes: a row a pair, and figures; nan is None there."""
    from mllm_align.annotators.agreement import accuracy_interval, compare, judged_rows

    store = Store(Path(config["outputs"]) / "store")
    groups = read_groups(store.get(preferences_stage(config["dataset"])) / PAIRS)
    if not any(group.preferences for group in groups):
        raise ValueError(f"dataset={config['dataset']['name']} has no pairs to judge; choose one with pairs")
    trains = trains_reward_model(config)
    folders = {"reward_model": store.get(reward_model_stage(config))} if trains else {}
    policy = load(config["base_model"], config["trainer"]["accelerator"])
    judgements = judge_of(config["annotator"]["build"], policy, folders).judge(groups)
    rows, found = judged_rows(groups, judgements), compare(groups, judgements)
    interval = accuracy_interval(rows)
    figures = {
        "annotator": config["annotator"]["name"],
        "dataset": config["dataset"]["name"],
        **{name: None if value != value else value for name, value in asdict(found).items()},
        "interval": [interval.low, interval.high] if interval else None,
    }
    return rows, figures


# --- small things ------------------------------------------------------------------------------------------


def load(spec: Config, accelerator: str, adapter: Path | str | None = None) -> Policy:
    """A base model of conf/base_model, on the device that the trainer would use.

    With an adapter also the reward head, where its folder has one.
    """
    quiet_libraries()
    policy = load_policy(
        spec["path"],
        dtype=spec["dtype"],
        device=device(accelerator),
        adapter=adapter,
        four_bit=spec.get("four_bit", False),
        checkpointing=spec.get("checkpointing", False),
    )
    folder = Path(adapter) if adapter else None
    return load_head(policy, REWARD_HEAD, folder) if folder and has_head(folder, REWARD_HEAD) else policy


def quiet_libraries() -> None:
    """Without the bars of files that load in a moment, and a warning about a name that PEFT has yet to change."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)


def device(accelerator: str) -> str:
    """torch's name for Lightning's accelerator. Raises ValueError for a GPU that is not there."""
    import torch

    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "trainer.accelerator=gpu, and torch finds no GPU here: choose trainer=cpu, or see that the driver and a "
            "CUDA build of torch are installed"
        )
    return {"gpu": "cuda"}.get(accelerator, accelerator)


def set_threads(threads: int | None) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)

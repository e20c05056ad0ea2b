"""What the stages of a cell do. `pipeline` decides which of them run; this module is the one that loads torch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from mllm_align.benchmarks import base as benchmarks
from mllm_align.datasets.parquet import read_groups, write_groups
from mllm_align.models.load import Policy, add_lora, load_policy
from mllm_align.record import RunRecord
from mllm_align.records import Group
from mllm_align.store import Store, write_json

if TYPE_CHECKING:
    from mllm_align.pipeline import Cell

log = logging.getLogger(__name__)

Config = Mapping[str, Any]
PAIRS = "preferences.parquet"
TABLE = "reference.safetensors"


def made(spec: Config) -> Any:
    """What `spec` describes. An error of what is built comes as it is, and not wrapped by Hydra."""
    try:
        return instantiate(spec)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise error.__cause__ from None
        raise


# --- stages of the store -----------------------------------------------------------------------------------


def preferences(config: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """A preference set as Parquet, with what its construction reports (rows skipped, say) beside it."""
    groups, report = build_dataset(config["build"])
    write_groups(out / PAIRS, groups)
    write_json(out / "report.json", {"groups": len(groups), **report})


def build_dataset(spec: Config) -> tuple[Sequence[Group], dict[str, Any]]:
    """The Groups of a dataset config, and what its builder reports of them."""
    built = made(spec)
    return built if isinstance(built, tuple) else (built, {})


def sampled(config: Config) -> tuple[Sequence[Group], dict[str, Any]]:
    """What `mllm-align sample` writes: the dataset's own Groups, or new responses to its prompts, annotated."""
    groups, report = build_dataset(config["dataset"]["build"])
    if config["sampler"]["when"] == "offline":
        return groups, report
    if config["annotator"]["build"] is None:
        raise ValueError(
            f"sampler={config['sampler']['name']} draws responses, and somebody must compare them; "
            "choose annotator=oracle (scenes only), annotator=self or annotator=large"
        )
    policy = load(config["base_model"], config["trainer"]["accelerator"])
    examples = [group.example for group in groups]
    drawn = made(config["sampler"]["build"]).sample(policy, examples, config["seed"])
    annotated = made(config["annotator"]["build"])(policy).annotate(drawn)
    decided = [group for group in annotated if group.preferences]
    return decided, {**report, "ties left out": len(annotated) - len(decided)}


def reference_logprobs(config: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """log pi_ref(y|x) of every response: one tensor (k,) per example id, float32, in nats."""
    from safetensors.torch import save_file

    from mllm_align.modules.reference import reference_logprobs as compute

    policy = load(config["base_model"], config["accelerator"])
    table = compute(
        policy,
        read_groups(inputs["preferences"] / PAIRS),
        config["batch_size"],
        precision=config["precision"],
        max_length=config["max_length"],
    )
    save_file(table, out / TABLE)


# --- the run itself ----------------------------------------------------------------------------------------


def run(cell: Cell, record: RunRecord, todo: Sequence[str]) -> None:
    """Train (unless that is done), answer the benchmarks `todo`, write metrics; the logger mirrors the record."""
    set_threads(cell.config["trainer"]["threads"])
    with made(cell.config["logger"]["build"])(about(cell, record)) as logger:
        policy = trained_policy(cell, record, logger)
        for name in todo:
            with record.stage(f"benchmark {name}"):
                answer_benchmark(cell, record, policy, name)
        logger.summarise(flat_metrics(record), sample_rows(cell, record))
    record.note(headline=headline(cell, record))


def trained_policy(cell: Cell, record: RunRecord, logger: Any) -> Policy:
    """The policy to evaluate: the base model alone, or with this run's adapter, trained first where it is missing."""
    spec, accelerator = cell.config["base_model"], cell.config["trainer"]["accelerator"]
    if cell.config["alignment"]["module"] is None:
        return load(spec, accelerator)
    adapter = record.folder / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        train(cell, record, logger)
    return load(spec, accelerator, adapter=adapter)


def train(cell: Cell, record: RunRecord, logger: Any) -> None:
    """Stages from the store, then the run's own training, from its checkpoint where there is one."""
    from mllm_align.modules.fit import fit

    config, method = cell.config, cell.config["alignment"]
    store = Store(cell.outputs / "store")
    folders = {}
    for stage in cell.stages:
        with record.stage(stage.name):
            folders[stage.name] = store.get(stage)
    note_report(record, folders["preferences"])
    policy = load(config["base_model"], config["trainer"]["accelerator"])
    policy = add_lora(policy, **config["base_model"]["lora"], seed=config["seed"])
    module = build_module(config, policy, folders)
    scalars = Mirror(record, logger)
    with record.stage("training"):
        fit(
            module,
            read_groups(folders["preferences"] / PAIRS),
            record.folder,
            epochs=method["epochs"],
            batch_size=method["batch_size"],
            accumulate=method["accumulate"],
            gradient_clip=method["gradient_clip"],
            seed=config["seed"],
            trainer=made(config["trainer"]),
            scalars=scalars.log,
            on_resume=scalars.open,
            title=f"{cell.label} seed{cell.seed}",
        )
    scalars.close()


def build_module(config: Config, policy: Policy, folders: Mapping[str, Path]) -> Any:
    """The method's Lightning module with what its config says it needs, and nothing else."""
    from safetensors.torch import load_file

    makers = {
        "reference": lambda: load_file(folders["reference_logprobs"] / TABLE),
        "sampler": lambda: made(config["sampler"]["build"]),
        "annotator": lambda: made(config["annotator"]["build"])(policy),
        "seed": lambda: config["seed"],
    }
    parts = {name: makers[name]() for name in config["alignment"]["needs"]}
    return made(config["alignment"]["module"])(policy, **parts)


class Mirror:
    """Scalars go into the record line by line; the logger gets a copy."""

    def __init__(self, record: RunRecord, logger: Any) -> None:
        self.record, self.logger = record, logger
        self.scalars: Any = None

    def open(self, resumed_step: int) -> None:
        self.scalars = self.record.scalars(resumed_step or None)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.scalars.log(step, values)
        self.logger.log(step, values)

    def close(self) -> None:
        self.scalars.close()


# --- benchmarks --------------------------------------------------------------------------------------------


def answer(policy: Policy, spec: Config, out: Path, batch_size: int) -> dict[str, float]:
    """Answer one benchmark, write its predictions to `out`, and score them."""
    benchmark = made(spec)
    rows = benchmarks.run(policy, benchmark, out, batch_size)
    return benchmarks.score(benchmark, rows)


def answer_benchmark(cell: Cell, record: RunRecord, policy: Policy, name: str) -> None:
    spec = cell.config["benchmark"]["tasks"][name]
    out = record.folder / "predictions" / f"{name}.jsonl"
    metrics = answer(policy, spec, out, cell.config["base_model"]["batch_size"])
    write_json(record.folder / "metrics.json", {**read_metrics(record), name: metrics})
    done = {**record.data.get("benchmarks", {}), name: {"key": cell.benchmarks[name], "spec": dict(spec)}}
    record.note(benchmarks=done)


def read_metrics(record: RunRecord) -> dict[str, dict[str, float]]:
    file = record.folder / "metrics.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def flat_metrics(record: RunRecord) -> dict[str, float]:
    return {f"{b}/{m}": v for b, metrics in read_metrics(record).items() for m, v in metrics.items()}


def headline(cell: Cell, record: RunRecord) -> dict[str, float]:
    """The first metric that each benchmark shows."""
    metrics = read_metrics(record)
    shown = {name: made(cell.config["benchmark"]["tasks"][name]).shown[0].name for name in cell.benchmarks}
    return {f"{name}/{metric}": metrics[name][metric] for name, metric in shown.items()}


def sample_rows(cell: Cell, record: RunRecord, number: int = 8) -> list[dict[str, Any]]:
    """A few generations to look at, with their images: the first ones of the benchmark with the longest answers."""
    first = {
        name: benchmarks.read_jsonl(record.folder / "predictions" / f"{name}.jsonl")[:number]
        for name in cell.benchmarks
    }
    if not first:
        return []
    name = max(first, key=lambda name: sum(len(row["prediction"]) for row in first[name]))
    images = {e.id: e.image for e in made(cell.config["benchmark"]["tasks"][name]).examples()}
    return [
        {"image": images[row["id"]], "prompt": row["prompt"], "response": row["prediction"]}
        for row in first[name]
    ]


# --- small things ------------------------------------------------------------------------------------------


def load(spec: Config, accelerator: str, adapter: Path | str | None = None) -> Policy:
    """A base model of conf/base_model, on the device that the trainer would use."""
    quiet_libraries()
    return load_policy(spec["path"], dtype=spec["dtype"], device=device(accelerator), adapter=adapter)


def quiet_libraries() -> None:
    """Without the bars of files that load in a moment, and a warning about a name that PEFT has yet to change."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)


def device(accelerator: str) -> str:
    """torch's name for Lightning's accelerator."""
    return {"gpu": "cuda"}.get(accelerator, accelerator)


def set_threads(threads: int | None) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


def about(cell: Cell, record: RunRecord) -> dict[str, Any]:
    """What a logger is told of a run."""
    data = record.data
    return {
        "folder": record.folder,
        "id": cell.key,
        "name": f"{cell.label} seed{cell.seed}",
        "group": (cell.config.get("sweep") or {}).get("name"),
        "tags": [value for value in data["axes"].values() if value != "none"],
        "config": dict(cell.config),
    }


def note_report(record: RunRecord, folder: Path) -> None:
    """What the dataset's construction reported, skipped rows for one, belongs to the record."""
    record.note(dataset=json.loads((folder / "report.json").read_text(encoding="utf-8")))

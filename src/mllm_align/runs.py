"""One run, from its cell to its record: training, benchmarks, and what the logger is told.

`pipeline` decides what runs; `stages` makes what runs share.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_align import launch
from mllm_align.benchmarks import base as benchmarks
from mllm_align.datasets.parquet import read_groups
from mllm_align.models.load import Policy, add_lora
from mllm_align.modules.parallel import SPLITTING
from mllm_align.pipeline import benchmark_specs
from mllm_align.record import RunRecord, read_record, read_scalars, run_folder
from mllm_align.records import Group
from mllm_align.stages import (
    FITTED,
    PAIRS,
    STATISTICS,
    TABLE,
    answer,
    benchmark_of,
    device,
    extended,
    judge_of,
    load,
    made,
    ready,
    set_threads,
)
from mllm_align.store import Store, write_json

if TYPE_CHECKING:
    from mllm_align.pipeline import Cell

Config = Mapping[str, Any]


def run(cell: Cell, record: RunRecord, todo: Sequence[str]) -> None:
    """Train (unless that is done), answer the benchmarks `todo`, write metrics; the logger mirrors the record."""
    set_threads(cell.config["trainer"]["threads"])
    with made(cell.config["logger"]["build"])(about(cell, record)) as logger:
        train_where_missing(cell, record, logger)
        if todo:
            policy = policy_of(cell, record)
        for name in todo:
            with record.stage(f"benchmark {name}"):
                answer_benchmark(cell, record, policy, name)
        logger.summarise(flat_metrics(record), sample_rows(cell, record))
    record.note(headline=headline(cell, record))


def check_ready(cell: Cell, todo: Sequence[str]) -> None:
    """Raises what the machine (a GPU) or the benchmarks `todo` lack (questions, images), before anything is trained."""
    device(cell.config["trainer"]["accelerator"])
    store = Store(cell.outputs / "store")
    for name in todo:
        ready(benchmark_specs(cell.config)[name], store)


def train_where_missing(cell: Cell, record: RunRecord, logger: Any) -> None:
    """Train the run's adapter, where it has one and lacks it; what training held is let go of."""
    adapter = record.folder / "adapter" / "adapter_config.json"
    if cell.config["alignment"]["module"] is None or adapter.is_file():
        return
    train(cell, record, logger)
    import torch

    gc.collect()  # Lightning and the module point at each other: the models would stay until the collector comes
    torch.cuda.empty_cache()


def policy_of(cell: Cell, record: RunRecord) -> Policy:
    """The policy to evaluate: the base model alone, or with this run's adapter."""
    trained = cell.config["alignment"]["module"] is not None
    adapter = record.folder / "adapter" if trained else None
    return load(cell.config["base_model"], cell.config["trainer"]["accelerator"], adapter=adapter)


def train(cell: Cell, record: RunRecord, logger: Any) -> None:
    """Stages from the store, then the run's own training, from its checkpoint where there is one."""
    trainer, store = cell.config["trainer"], Store(cell.outputs / "store")
    folders = {}
    for stage in cell.stages:
        with record.stage(stage.name):
            folders[stage.name] = store.get(stage)
    note_reports(record, folders)
    scalars = Mirror(record, logger)
    here = launch.place(trainer["devices"], trainer["nodes"])
    with record.stage("training"), launch.followers(here, trainer["devices"], cell.config):
        module = fitted(cell, folders, record.folder, scalars=scalars.log, on_resume=scalars.open)
    scalars.close()
    if verdict := module.verdict(read_scalars(record.folder)) if hasattr(module, "verdict") else None:
        record.collapsed(verdict)


def follow(cell: Cell) -> None:
    """Take part in the training of a run that another process leads, if there is one to come."""
    trainer = cell.config["trainer"]
    here = launch.place(trainer["devices"], trainer["nodes"])
    folder = run_folder(cell.outputs, cell.label, cell.seed)
    done = (
        read_record(folder).get("key") == cell.key and (folder / "adapter" / "adapter_config.json").is_file()
    )
    if cell.config["alignment"]["module"] is None or done:
        return
    set_threads(trainer["threads"])
    if trainer["accelerator"] == "gpu":
        import torch

        torch.cuda.set_device(here.local_rank)
    store = Store(cell.outputs / "store")
    folders = {stage.name: store.get(stage) for stage in cell.stages}
    with launch.followers(here, trainer["devices"], cell.config):
        fitted(cell, folders, folder)


def fitted(cell: Cell, folders: Mapping[str, Path], out: Path, **heard: Any) -> Any:
    """The method's module, trained on what the stages made; `heard` are further arguments of `fit`."""
    from mllm_align.modules.fit import fit

    config = cell.config
    # What is split over the processes afterwards need not fit one device before.
    split = config["trainer"]["strategy"] in SPLITTING and config["trainer"]["devices"] > 1
    policy = load(config["base_model"], "cpu" if split else config["trainer"]["accelerator"])
    policy = add_lora(policy, **config["base_model"]["lora"], seed=config["seed"])
    module = build_module(config, policy, folders)
    fit(
        module,
        training_groups(config, folders.get("samples", folders["preferences"])),
        out,
        **{name: config["alignment"][name] for name in FITTED},
        seed=config["seed"],
        trainer=made(config["trainer"]),
        title=f"{cell.label} seed{cell.seed}",
        **heard,
    )
    return module


def training_groups(config: Config, data: Path) -> Sequence[Group]:
    """What is trained on. Online the method adds to what it draws, not to what it draws from."""
    groups, offline = read_groups(data / PAIRS), config["sampler"]["when"] == "offline"
    return extended(groups, config["alignment"].get("extend") if offline else None)


def build_module(config: Config, policy: Policy, folders: Mapping[str, Path]) -> Any:
    """The method's Lightning module with what its config says it needs, and nothing else."""
    from safetensors.torch import load_file

    makers = {
        "reference": lambda: load_file(folders["reference_logprobs"] / TABLE),
        "reward_statistics": lambda: json.loads(
            (folders["reward_statistics"] / STATISTICS).read_text("utf-8")
        ),
        "sampler": lambda: made(config["sampler"]["build"]),
        "annotator": lambda: judge_of(config["annotator"]["build"], policy, folders),
        "seed": lambda: config["seed"],
    }
    when = config["sampler"]["when"]
    parts = {name: makers[name]() for name in config["alignment"]["needs"][when]}
    return made(config["alignment"]["module"][when])(policy, **parts)


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


def answer_benchmark(cell: Cell, record: RunRecord, policy: Policy, name: str) -> None:
    spec = benchmark_specs(cell.config)[name]
    out = record.folder / "predictions" / f"{name}.jsonl"
    metrics = answer(
        policy, spec, out, cell.config["base_model"]["batch_size"], Store(cell.outputs / "store")
    )
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
    shown = {name: made(benchmark_specs(cell.config)[name]).shown[0].name for name in cell.benchmarks}
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
    benchmark = benchmark_of(benchmark_specs(cell.config)[name], Store(cell.outputs / "store"))
    images = {e.id: e.image for e in benchmark.examples()}
    return [
        {"image": images[row["id"]], "prompt": row["prompt"], "response": row["prediction"]}
        for row in first[name]
        if row["id"] in images
    ]


# --- small things ------------------------------------------------------------------------------------------


def about(cell: Cell, record: RunRecord) -> dict[str, Any]:
    """What a logger is told of a run."""
    data = record.data
    return {
        "folder": record.folder,
        "id": cell.key,
        "name": f"{cell.label} seed{cell.seed}",
        "group": (cell.config.get("sweep") or {}).get("id"),
        "tags": [value for value in data["axes"].values() if value != "none"],
        "config": dict(cell.config),
    }


def note_reports(record: RunRecord, folders: Mapping[str, Path]) -> None:
    """What dataset and sampler reported (rows skipped, shares below the similarity bound) belongs to the record."""
    for stage, name in {"preferences": "dataset", "samples": "sampling"}.items():
        if stage in folders:
            record.note(**{name: json.loads((folders[stage] / "report.json").read_text(encoding="utf-8"))})

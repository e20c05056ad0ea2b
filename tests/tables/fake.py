"""Records of runs that never ran: real benchmarks' questions, answered by a coin of a given skill."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mllm_align.benchmarks.base import Benchmark, score, write_jsonl
from mllm_align.benchmarks.pope import Pope
from mllm_align.benchmarks.recall import Recall
from mllm_align.benchmarks.vqa import Vqa
from mllm_align.record import RunRecord
from mllm_align.records import Example
from mllm_align.scenes.text import describe
from mllm_align.scenes.world import Scene, rng_for
from mllm_align.store import write_json

Answer = Callable[[Example], str]


def answers(skill: float, keep: float, noise: float, seed: int = 0) -> Answer:
    """A model that is right with probability `skill`, mentions with `keep`, makes up with `noise`.

    An item has the same luck for every model, so that a better model differs from a worse one as real ones
    do: in the items between their skills.
    """

    def answer(example: Example) -> str:
        if "scene" in example.meta:
            scene = Scene.from_json(example.meta["scene"])
            return describe(scene, rng_for("fake", example.id, seed), noise=noise, keep=keep)
        luck = rng_for("luck", example.id).random() + 0.02 * rng_for("jitter", seed, example.id).random()
        truth = example.meta["truth"]
        if luck < skill:
            return f"{truth.capitalize()}."
        return {"yes": "No", "no": "Yes, there is."}.get(truth, "nothing")

    return answer


def benchmarks(n: int = 40) -> dict[str, Benchmark]:
    return {"pope": Pope(n=n), "recall": Recall(n=n), "vqa": Vqa(n=n)}


def config_of(n: int, **more: Any) -> dict[str, Any]:
    tasks = {
        name: {"_target_": f"{type(b).__module__}.{type(b).__qualname__}", "n": n}
        for name, b in benchmarks(n).items()
    }
    return {"benchmark": {"n": n, "tasks": tasks}, **more}


def write_run(
    root: Path,
    alignment: str,
    dataset: str = "povid",
    seed: int = 0,
    *,
    answer: Answer | None = None,
    n: int = 40,
    axes: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    curves: bool = True,
) -> Path:
    """A finished run's folder below `root`/runs."""
    answer = answer or answers(0.8, 0.8, 0.3)
    axes = {"alignment": alignment, "dataset": dataset, "base_model": "base", **(axes or {})}
    label = f"{alignment}-{dataset}"
    if config is None:
        config = config_of(n, seed=seed)
    with RunRecord.open(root, label=label, seed=seed, key=label, config=config, axes=axes) as record:
        write_predictions(record.folder, answer, n)
        if curves and alignment != "none":
            write_curves(record, seed)
    return record.folder


def write_predictions(folder: Path, answer: Answer, n: int) -> None:
    metrics = {}
    for name, benchmark in benchmarks(n).items():
        rows = [
            {"id": e.id, "image": e.image.key, "prompt": e.prompt, "prediction": answer(e), **e.meta}
            for e in benchmark.examples()
        ]
        write_jsonl(rows, folder / "predictions" / f"{name}.jsonl")
        metrics[name] = score(benchmark, rows)
    write_json(folder / "metrics.json", metrics)


def write_curves(record: RunRecord, seed: int) -> None:
    rng = rng_for("curves", record.folder.parent.name, seed)
    with record.scalars() as scalars:
        for step in range(1, 41):
            gone = 1 - math.exp(-step / 12)
            scalars.log(
                step,
                {
                    "loss": 0.693 - 0.35 * gone + 0.05 * rng.standard_normal(),
                    "margin": 1.5 * gone + 0.2 * rng.standard_normal(),
                    "accuracy": min(1.0, 0.5 + 0.4 * gone + 0.05 * rng.standard_normal()),
                    "kl": 3 * gone + 0.3 * rng.random(),
                },
            )


def write_failed(root: Path, alignment: str, dataset: str = "povid", message: str = "out of memory") -> Path:
    """A run that raised."""
    label = f"{alignment}-{dataset}"
    axes = {"alignment": alignment, "dataset": dataset, "base_model": "base"}
    try:
        with RunRecord.open(root, label=label, seed=0, key=label, config={}, axes=axes) as record:
            raise RuntimeError(message)
    except RuntimeError:
        return record.folder

"""What a benchmark is, and how one is run.

A benchmark writes one line for each item first (`run`); every metric is a pure function of those lines. It
reduces each image to additive counts and computes its metrics from their sums, so that the same two functions
give the scores and, over resampled images, their intervals (`stats`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mllm_align.benchmarks.stats import Array, Counts
from mllm_align.records import Example
from mllm_align.store import write_json, write_text

if TYPE_CHECKING:
    from mllm_align.api.generation import Server
    from mllm_align.models.load import Policy

Prediction = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """How a metric reads.

    `better` is +1 or -1 where higher or lower is better, 0 where neither. `main` ones stand in the small
    tables and are tested. `percent` says that it is a share, shown times 100.
    """

    name: str
    title: str
    better: int = 0
    main: bool = False
    percent: bool = True


class Benchmark(Protocol):
    """Questions with their truth, and the rule that scores answers. Answers are decoded greedily, unless the
    benchmark has an `answer(policy, batch_size)` of its own that gives the prediction rows.
    """

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def shown(self) -> tuple[Metric, ...]:
        """The metrics that a comparison shows, the most telling first."""

    def examples(self) -> list[Example]:
        """Every question; `meta["truth"]` and the rest of `meta` go into the prediction file."""

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        """Additive counts of each image."""

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """Metrics from summed counts (any shape, the same for all)."""


def score(benchmark: Benchmark, predictions: Sequence[Prediction]) -> dict[str, float]:
    """The metrics of one prediction file as plain numbers, with `n` (items) and `images`.

    Raises ValueError without predictions.
    """
    counts = benchmark.counts(predictions)
    values = {name: float(value) for name, value in benchmark.metrics(counts.totals()).items()}
    return {**values, "n": float(len(predictions)), "images": float(len(counts.images))}


def run(policy: Policy, benchmark: Benchmark, out: Path, batch_size: int = 32) -> list[dict[str, Any]]:
    """Answers every question and writes the predictions to `out` (JSON lines), all or nothing.

    A line holds id, image (its key), prompt, prediction and the example's meta, which has the truth.
    """
    answer = getattr(benchmark, "answer", None)
    rows = answer(policy, batch_size) if answer else written(policy, benchmark, batch_size)
    return finish(benchmark, rows, out)


def finish(
    benchmark: Benchmark, rows: list[dict[str, Any]], out: Path, told: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Writes the answers, and again with what the benchmark's own `finish` adds to them (judgements, say).

    A benchmark with a `result` tells of rule, official figures and judge; that is written beside them as .json, with
    `told` in it.
    """
    write_jsonl(rows, out)
    if add := getattr(benchmark, "finish", None):
        rows = add(rows)
        write_jsonl(rows, out)
    if tell := getattr(benchmark, "result", None):
        write_json(out.with_suffix(".json"), {**tell(rows), **(told or {})})
    return rows


def written(policy: Policy | Server, benchmark: Benchmark, batch_size: int) -> list[dict[str, Any]]:
    """The prediction rows of greedy answers; our own decoder shares an image's prefill among its questions."""
    examples, longest = benchmark.examples(), benchmark.max_new_tokens
    if hasattr(policy, "answers"):  # a server, which decodes by itself
        responses = policy.answers(examples, longest)
    else:
        from mllm_align.compute.shared import answers

        responses = answers(policy, examples, max_new_tokens=longest, batch_size=batch_size)
    return [
        {
            "id": example.id,
            "image": example.image.key,
            "prompt": example.prompt,
            "prediction": response.text.strip(),
            **example.meta,
        }
        for example, response in zip(examples, responses, strict=True)
    ]


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """One JSON object a line; a reader sees the old file or the whole new one."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Reads prediction lines. Raises ValueError that names the file and line of a damaged one."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); evaluate this run again") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object; evaluate this run again")
        rows.append(row)
    return rows


def ratio(part: Array, whole: Array) -> Array:
    """`part / whole`, and 0 where `whole` is 0 (nothing was predicted, or nothing asked)."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.zeros_like(part + whole), where=whole > 0)

"""Answers that lie in a file: read for a benchmark, and their result said in a terminal; no model, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mllm_align.benchmarks.base import Benchmark, read_jsonl
from mllm_align.benchmarks.published.answers import answer_files
from mllm_align.benchmarks.published.result import lines as figures
from mllm_align.benchmarks.published.result import shown
from mllm_align.fingerprints import file_sha256


def read_predictions(
    benchmark: Benchmark, predictions: str | Sequence[str], partial: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Prediction rows of answer files, and for the result which files they are and how they were joined.

    A benchmark without a `from_files` of its own reads the files that `mllm-align` writes, whose rows hold the truth.
    """
    files = answer_files(predictions)
    read = getattr(benchmark, "from_files", None)
    if read is None:
        rows, joined = [row for file in files for row in read_jsonl(file)], {}
    else:
        rows, joined = read(files, partial)
    named = [{"file": file.name, "sha256": file_sha256(file)} for file in files]
    return rows, {"answers": {"files": named, **joined}, "decoding": "of the answer file, not known"}


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a person sees of a result: the benchmark, its rule, the official figures, n, the valid share, the judge."""
    yield f"{result['benchmark']}: {result['rule']}"
    yield from figures(result["official"])
    facts = [f"n {result['n']}", f"valid {100 * result['valid']:.2f}%"]
    facts += [
        f"{name} {shown(result[name])}" for name in ("questions", "ground truth", "tokens") if name in result
    ]
    yield "  " + ", ".join(facts)
    if judge := result.get("judge"):
        yield f"  judge {shown(judge)}"
    for name, value in (result.get("answers") or {}).items():
        if name != "files":
            yield f"  {name}: {shown(value)}"

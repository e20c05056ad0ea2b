"""What every published benchmark says of a set of predictions, beside the metrics that tables read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mllm_align.benchmarks.base import Benchmark, Prediction, score
from mllm_align.benchmarks.published.joining import Joined
from mllm_align.records import Example


def rows(questions: Sequence[Example], joined: Joined) -> list[dict[str, Any]]:
    """Prediction rows, in the order of the questions, of those that have an answer."""
    return [row_of(questions[number], joined.answers[number].text) for number in sorted(joined.answers)]


def row_of(question: Example, answer: str) -> dict[str, Any]:
    """One prediction row, as `benchmarks.base.run` writes it."""
    return {
        "id": question.id,
        "image": question.image.key,
        "prompt": question.prompt,
        "prediction": answer,
        **question.meta,
    }


def told(
    scorer: Benchmark, predictions: Sequence[Prediction], official: Mapping[str, Any], /, **more: Any
) -> dict[str, Any]:
    """The result: `official` as the official script prints it, the metrics, n, the valid share, and `more`."""
    metrics = score(scorer, predictions)
    return {
        **more,
        "n": len(predictions),
        "valid": metrics["valid"],
        "decoding": {"method": "greedy", "max_new_tokens": scorer.max_new_tokens},
        "official": dict(official),
        "metrics": metrics,
    }


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The official figures for a terminal: a line for each group of them, and one for those that stand alone."""
    single = {name: value for name, value in told.items() if not isinstance(value, Mapping)}
    for name, value in told.items():
        if isinstance(value, Mapping):
            yield f"  {name}: " + "  ".join(f"{inner} {shown(one)}" for inner, one in value.items())
    if single:
        yield "  " + "  ".join(f"{name} {shown(value)}" for name, value in single.items())


def shown(value: Any) -> str:
    """A figure as it is, a list in brackets; numbers keep every digit that the official script gives."""
    if isinstance(value, float):
        return f"{value:.1f}" if value == round(value, 1) else f"{value:.6g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} {shown(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value)

"""How good an annotator is: its accuracy on pairs whose better side is known, and its position bias.

Table 10 of arXiv 2407.02477 holds these accuracies for the paper's annotators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_align.annotators.base import Annotator, Comparison, Judgement, check_finite
from mllm_align.benchmarks.base import ratio
from mllm_align.benchmarks.stats import Array, Interval, intervals, sum_by_image
from mllm_align.records import Group


@dataclass(frozen=True)
class Agreement:
    """`accuracy` is over the pairs the annotator decided (nan if none); a tie (equal scores) is not decided.

    `comparisons` are those that were decided in both orders, `undecided` the others. `conflicting` is the share of
    comparisons whose two orders name different winners, `lean` what place A is given whatever stands there, on average,
    in `unit` ("log-odds" in nats, or "votes"). Both are nan for an annotator that compares nothing, and `lean` is where
    units are mixed.
    """

    pairs: int
    ties: int
    accuracy: float
    comparisons: int
    undecided: int
    conflicting: float
    lean: float
    unit: str


def agreement(annotator: Annotator, groups: Sequence[Group]) -> Agreement:
    """The annotator's scores against the preferences that the Groups already have."""
    return compare(groups, annotator.judge(groups))


def compare(groups: Sequence[Group], judgements: Sequence[Judgement]) -> Agreement:
    """The same from judgements made before. Raises ValueError for a score that is no finite number."""
    check_finite(groups, judgements)
    gaps = [
        judgement.scores[p.chosen] - judgement.scores[p.rejected]
        for group, judgement in zip(groups, judgements, strict=True)
        for p in group.preferences
    ]
    compared = [c for judgement in judgements for c in judgement.comparisons]
    comparisons = [c for c in compared if c.unit != "undecided"]
    units = sorted({c.unit for c in comparisons})
    decided = [gap > 0 for gap in gaps if gap != 0]
    return Agreement(
        pairs=len(gaps),
        ties=len(gaps) - len(decided),
        accuracy=_mean(decided),
        comparisons=len(comparisons),
        undecided=len(compared) - len(comparisons),
        conflicting=_mean([c.conflicting for c in comparisons]),
        lean=_mean([c.lean for c in comparisons]) if len(units) == 1 else float("nan"),
        unit=" and ".join(units),
    )


def judged_rows(groups: Sequence[Group], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """One JSON-able row a pair: both texts, their scores, and where they were compared what place A was given in both
    orders: with the chosen response there, and with the rejected one.
    """
    rows = []
    for group, judgement in zip(groups, judgements, strict=True):
        for pair in group.preferences:
            sides = {pair.chosen, pair.rejected}
            compared = [c for c in judgement.comparisons if {c.first, c.second} == sides]
            rows.append(
                {
                    "id": group.example.id,
                    "image": group.example.image.key,
                    "prompt": group.example.prompt,
                    "chosen": group.responses[pair.chosen].text,
                    "rejected": group.responses[pair.rejected].text,
                    "scores": [judgement.scores[pair.chosen], judgement.scores[pair.rejected]],
                    "orders": [_orders(c, pair.chosen) for c in compared],
                }
            )
    return rows


def _orders(comparison: Comparison, chosen: int) -> list[float]:
    orders = [comparison.forward, comparison.backward]
    return orders if comparison.first == chosen else orders[::-1]


def accuracy_interval(rows: Sequence[Mapping[str, Any]]) -> Interval | None:
    """Accuracy over decided pairs with its 95% bootstrap interval over images; None where all tie."""
    gaps = [(row["image"], row["scores"][0] - row["scores"][1]) for row in rows]
    decided = [(image, {"right": float(gap > 0), "decided": 1.0}) for image, gap in gaps if gap != 0]
    if not decided:
        return None
    return intervals(sum_by_image(decided, ["right", "decided"]), _accuracy)["accuracy"]


def _accuracy(totals: Mapping[str, Array]) -> dict[str, Array]:
    return {"accuracy": ratio(totals["right"], totals["decided"])}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")

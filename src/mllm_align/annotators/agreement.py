"""How good an annotator is: its accuracy on pairs whose better side is known, and its position bias.

Table 10 of arXiv 2407.02477 holds these accuracies for the paper's annotators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mllm_align.annotators.base import Annotator, Judgement
from mllm_align.records import Group


@dataclass(frozen=True)
class Agreement:
    """`accuracy` is over the pairs the annotator decided (nan if none); a tie (equal scores) is not decided.

    `conflicting` is the share of comparisons whose two orders name different winners, `lean` the mean
    log-odds (nats) given to place A whatever stands there; both are nan for an annotator that compares
    nothing.
    """

    pairs: int
    ties: int
    accuracy: float
    comparisons: int
    conflicting: float
    lean: float


def agreement(annotator: Annotator, groups: Sequence[Group]) -> Agreement:
    """The annotator's scores against the preferences that the Groups already have."""
    return compare(groups, annotator.judge(groups))


def compare(groups: Sequence[Group], judgements: Sequence[Judgement]) -> Agreement:
    """The same from judgements made before."""
    gaps = [
        judgement.scores[p.chosen] - judgement.scores[p.rejected]
        for group, judgement in zip(groups, judgements, strict=True)
        for p in group.preferences
    ]
    comparisons = [c for judgement in judgements for c in judgement.comparisons]
    decided = [gap > 0 for gap in gaps if gap != 0]
    return Agreement(
        pairs=len(gaps),
        ties=len(gaps) - len(decided),
        accuracy=_mean(decided),
        comparisons=len(comparisons),
        conflicting=_mean([c.conflicting for c in comparisons]),
        lean=_mean([c.lean for c in comparisons]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")

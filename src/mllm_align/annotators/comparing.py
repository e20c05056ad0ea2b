"""From pairwise comparisons to scores, for every annotator that compares.

With k responses every pair is asked, k (k - 1) questions. A response's score is the mean over all k of the
preference (log-odds) for it over the other, which is the least-squares estimate of its Bradley-Terry strength;
with two responses the difference of the scores is the mean log-odds of the two orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from mllm_align.annotators.base import Comparison, Judgement
from mllm_align.records import Group


def different(group: Group) -> list[tuple[int, int]]:
    """The pairs of responses whose texts differ; equal texts tie and are not asked about."""
    texts = [r.text for r in group.responses]
    return [(i, j) for i, j in combinations(range(len(texts)), 2) if texts[i] != texts[j]]


def judgement(k: int, comparisons: Sequence[Comparison]) -> Judgement:
    """The scores of k responses that follow from their comparisons."""
    scores = [0.0] * k
    for c in comparisons:
        scores[c.first] += c.preference / k
        scores[c.second] -= c.preference / k
    return Judgement(tuple(scores), tuple(comparisons))

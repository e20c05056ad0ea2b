"""From the scores of one Group's responses to its preferences. A difference of at most `threshold` is a tie.

The weights of a Group's preferences sum to 1, so that a prompt counts once in the loss however many pairs
it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from mllm_align.records import Preference


def best_worst(scores: Sequence[float], *, threshold: float = 0.0) -> tuple[Preference, ...]:
    """The best response over the worst (the first of equals); none if they tie."""
    best = max(range(len(scores)), key=lambda i: scores[i])
    worst = min(range(len(scores)), key=lambda i: scores[i])
    return (Preference(best, worst),) if scores[best] - scores[worst] > threshold else ()


def all_pairs(scores: Sequence[float], *, threshold: float = 0.0) -> tuple[Preference, ...]:
    """Every pair that does not tie, each with weight 1 / (number of pairs)."""
    found = [(i, j) for i, j in permutations(range(len(scores)), 2) if scores[i] - scores[j] > threshold]
    return tuple(Preference(i, j, 1 / len(found)) for i, j in found)

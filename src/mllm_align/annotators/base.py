"""What an annotator is: something that scores the responses of a Group.

An annotator only judges: `judge` gives one score a response, and the comparisons it made to get them.
Which pairs follow from the scores is decided by a function of `pairs.py`, the same for every annotator (`fill`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mllm_align.records import Group, Preference

# Scores of one Group's responses -> its preferences; see pairs.py.
Pairs = Callable[[Sequence[float]], tuple[Preference, ...]]


@dataclass(frozen=True)
class Comparison:
    """Two responses shown to a judge in both orders.

    `forward` is the log-odds (nats) that the answer named A wins when response `first` is A and `second` is
    B; `backward` is the log-odds that A wins when `second` is A and `first` is B. Where `unit` is "votes" they are 1
    for A and -1 for B instead, and 0 where it is "undecided".
    """

    first: int
    second: int
    forward: float
    backward: float
    unit: str = "log-odds"

    @property
    def preference(self) -> float:
        """That `first` is better, the mean of both orders."""
        return (self.forward - self.backward) / 2

    @property
    def lean(self) -> float:
        """What is given to the place A whatever stands there: 0 for a judge without position bias."""
        return (self.forward + self.backward) / 2

    @property
    def conflicting(self) -> bool:
        """Whether the two orders name different winners (the same place won twice)."""
        return self.forward * self.backward > 0


@dataclass(frozen=True)
class Judgement:
    """Scores of one Group's responses (higher is better), and the comparisons behind them, if any."""

    scores: tuple[float, ...]
    comparisons: tuple[Comparison, ...] = ()


class Annotator(Protocol):
    """Anything with these two; conf/annotator/ says how each is built."""

    @property
    def pairs(self) -> Pairs: ...

    def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """One Judgement a Group, in order."""


def fill(groups: Sequence[Group], judgements: Sequence[Judgement], pairs: Pairs) -> list[Group]:
    """The Groups with each response's score and the preferences that `pairs` reads from the scores; a tie has none.

    Raises ValueError for a score that is no number: it would look like a tie.
    """
    check_finite(groups, judgements)
    return [
        replace(
            group,
            responses=tuple(
                replace(r, score=s) for r, s in zip(group.responses, judgement.scores, strict=True)
            ),
            preferences=pairs(judgement.scores),
        )
        for group, judgement in zip(groups, judgements, strict=True)
    ]


def check_finite(groups: Sequence[Group], judgements: Sequence[Judgement]) -> None:
    """Raises ValueError naming the first example with a score that is no finite number."""
    for group, judgement in zip(groups, judgements, strict=True):
        if not all(math.isfinite(score) for score in judgement.scores):
            raise ValueError(
                f"example {group.example.id!r}: the annotator scores {list(judgement.scores)}; scores must be finite "
                "numbers: look at the judge's weights and precision"
            )

"""Which Groups a step trains on: drawn ones, a mixture, or both in one Group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from mllm_align.annotators.base import Judgement, fill
from mllm_align.annotators.pairs import best_worst
from mllm_align.modules.draws import averaged, mixed, sampled
from mllm_align.records import Group, Preference, Response
from tiny import make_groups


@dataclass(frozen=True)
class Rejecting:
    """Makes a rejected response to the chosen one, but for the examples named in `same`."""

    same: tuple[str, ...] = ()

    def sample(self, policy, groups: Sequence[Group], seed: int) -> list[Group]:
        return [
            Group(g.example, (g.responses[0], Response(f"drawn {seed}", "own")), self._pair(g))
            for g in groups
        ]

    def _pair(self, group: Group) -> tuple[Preference, ...]:
        return () if group.example.id in self.same else (Preference(0, 1),)


@dataclass(frozen=True)
class Longest:
    """Prefers the longest response."""

    def judge(self, groups):
        return [Judgement(tuple(float(len(r.text)) for r in g.responses)) for g in groups]

    def prefer(self, groups, judgements):
        return fill(groups, judgements, best_worst)


def test_what_a_sampler_prefers_needs_no_judge() -> None:
    drawn = sampled(None, make_groups(3), 5, Rejecting(), None)
    assert [g.responses[1].text for g in drawn.groups] == ["drawn 5"] * 3
    assert drawn.judgements == [None] * 3
    assert all(g.preferences == (Preference(0, 1),) for g in drawn.groups)


def test_an_annotator_decides_where_there_is_one() -> None:
    drawn = sampled(None, make_groups(1), 5, Rejecting(), Longest())
    assert drawn.groups[0].responses[drawn.groups[0].preferences[0].chosen].text == "There is a red cup."
    assert drawn.judgements[0].scores == (19.0, 7.0)


def test_a_mixture_draws_each_example_by_itself() -> None:
    groups = make_groups(5)
    many = [Group(g.example.__class__(f"{g.example.id}-{i}", g.example.image, g.example.prompt), g.responses,
                  g.preferences) for i in range(100) for g in groups]  # fmt: skip
    drawn = mixed(None, many, 3, Rejecting(), None, p=0.3)
    kept = [not fresh for fresh in drawn.fresh]
    assert 0.24 < sum(kept) / len(kept) < 0.36  # 500 draws: 0.3 and three standard deviations of 0.02
    for given, got, keep in zip(many, drawn.groups, kept, strict=True):
        assert got.example == given.example
        assert (got == given) is keep
    alone = [mixed(None, [g], 3, Rejecting(), None, p=0.3).fresh[0] for g in many[:20]]
    assert alone == drawn.fresh[:20]
    assert mixed(None, many, 4, Rejecting(), None, p=0.3).fresh != drawn.fresh


def test_the_ends_of_a_mixture() -> None:
    groups = make_groups(3)
    assert mixed(None, groups, 0, Rejecting(), None, p=1.0).groups == groups
    assert all(mixed(None, groups, 0, Rejecting(), None, p=0.0).fresh)
    with pytest.raises(ValueError, match="probability"):
        mixed(None, groups, 0, Rejecting(), None, p=1.5)


def test_two_rejected_responses_share_the_weight() -> None:
    groups = make_groups(2)
    first, second = averaged(None, groups, 1, Rejecting(same=("e1",)), None, gamma=0.25).groups
    assert [r.text for r in first.responses] == [*(r.text for r in groups[0].responses), "drawn 1"]
    assert first.preferences == (Preference(0, 1, 0.25), Preference(0, 2, 0.75))
    assert second == groups[1]  # nothing could be drawn: the dataset's pair has the whole weight
    with pytest.raises(ValueError, match="share"):
        averaged(None, groups, 1, Rejecting(), None, gamma=-0.1)

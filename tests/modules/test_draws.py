"""Which Groups a step trains on: drawn ones, a mixture, or both in one Group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from mllm_align.annotators.base import Judgement, Pairs
from mllm_align.annotators.pairs import best_worst
from mllm_align.modules.draws import averaged, mixed, sampled, used_only
from mllm_align.modules.figures import means
from mllm_align.modules.online import drawing_figures
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

    pairs: Pairs = best_worst

    def judge(self, groups):
        return [Judgement(tuple(float(len(r.text)) for r in g.responses)) for g in groups]


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
    kept = [made is None for made in drawn.made]
    assert 0.24 < sum(kept) / len(kept) < 0.36  # 500 draws: 0.3 and three standard deviations of 0.02
    for given, got, keep in zip(many, drawn.groups, kept, strict=True):
        assert got.example == given.example
        assert (got == given) is keep
    assert [got for got, keep in zip(drawn.groups, kept, strict=True) if not keep] == [
        g for g in drawn.made if g
    ]
    alone = [mixed(None, [g], 3, Rejecting(), None, p=0.3).made[0] for g in many[:20]]
    assert alone == drawn.made[:20]
    other = mixed(None, many, 4, Rejecting(), None, p=0.3).made
    assert [made is None for made in other] != kept


def test_the_ends_of_a_mixture() -> None:
    groups = make_groups(3)
    assert mixed(None, groups, 0, Rejecting(), None, p=1.0).groups == groups
    assert all(mixed(None, groups, 0, Rejecting(), None, p=0.0).made)
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


def test_all_pairs_of_the_dataset_share_their_part_by_their_weights() -> None:
    (group,) = make_groups(1, 4)
    given = replace(group, preferences=(Preference(0, 1, 3.0), Preference(2, 1, 1.0)))
    (joined,) = averaged(None, [given], 1, Rejecting(), None, gamma=0.4).groups
    assert [r.text for r in joined.responses] == [*(r.text for r in group.responses[:3]), "drawn 1"]
    weights = {(p.chosen, p.rejected): p.weight for p in joined.preferences}
    assert weights == pytest.approx({(0, 1): 0.3, (2, 1): 0.1, (0, 3): 0.6})
    (alone,) = averaged(None, [given], 1, Rejecting(same=("e0",)), None, gamma=0.4).groups
    assert alone == replace(
        group, responses=group.responses[:3], preferences=(Preference(0, 1, 0.75), Preference(2, 1, 0.25))
    )


def test_what_is_told_of_a_sampler_is_of_its_own_responses() -> None:
    """Joined with the dataset's pair a response that is y+ itself could not be seen any more."""
    groups = make_groups(4)
    drawn = averaged(None, groups, 1, Rejecting(same=("e1", "e2")), None, gamma=0.5)
    assert [made.responses[1].text for made in drawn.made] == ["drawn 1"] * 4
    assert [bool(made.preferences) for made in drawn.made] == [True, False, False, True]
    assert all(group.preferences for group in drawn.groups)
    assert means(drawing_figures(drawn))["ties"] == 0.5


def test_only_responses_in_a_pair_are_kept() -> None:
    group = replace(make_groups(1, 3)[0], preferences=(Preference(2, 0, 0.5),))
    used = used_only(group)
    assert used.responses == (group.responses[0], group.responses[2])
    assert used.preferences == (Preference(1, 0, 0.5),)

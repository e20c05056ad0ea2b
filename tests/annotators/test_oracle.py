"""The oracle annotator prefers what is true; its noise is seeded and of the size that is asked for."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, stdev

import pytest

from annotating import annotated
from mllm_align.annotators.agreement import agreement
from mllm_align.annotators.oracle import OracleAnnotator, knows, oracle
from mllm_align.annotators.pairs import all_pairs
from mllm_align.records import Preference, Response
from scene_groups import scene_groups
from tiny import make_groups


def test_more_truth_wins_over_less_and_less_over_falsehood() -> None:
    for group in annotated(OracleAnnotator(pairs=all_pairs), scene_groups(20)):
        assert {(p.chosen, p.rejected) for p in group.preferences} == {(2, 0), (2, 1), (0, 1)}


def test_scores_are_those_of_the_scene_s_oracle() -> None:
    (group,) = scene_groups(1)
    (judgement,) = OracleAnnotator().judge([group])
    known = len(set(t["kind"] for t in group.example.meta["scene"]["things"]))
    known += group.example.meta["scene"]["sign"] is not None
    # Recall of one and of two things; a thing that is absent costs 0.3.
    assert judgement.scores == pytest.approx((1 / known, -0.3, 2 / known))
    assert judgement.comparisons == ()


def test_the_same_text_ties() -> None:
    (group,) = scene_groups(1)
    same = replace(group, responses=(Response("There is a dog."),) * 2)
    assert annotated(OracleAnnotator(), [same])[0].preferences == ()


def test_noise_is_seeded_by_example_and_response() -> None:
    groups = scene_groups(3)
    one = OracleAnnotator(noise=0.5, seed=1).judge(groups)
    assert OracleAnnotator(noise=0.5, seed=1).judge(groups[::-1])[::-1] == one
    assert OracleAnnotator(noise=0.5, seed=2).judge(groups) != one


def test_noise_has_the_size_that_was_asked_for() -> None:
    groups = scene_groups(300)
    exact, noisy = OracleAnnotator().judge(groups), OracleAnnotator(noise=0.5).judge(groups)
    differences = [
        n - e for a, b in zip(exact, noisy, strict=True) for e, n in zip(a.scores, b.scores, strict=True)
    ]
    assert mean(differences) == pytest.approx(0, abs=4 * 0.5 / 30)
    assert stdev(differences) == pytest.approx(0.5, rel=0.1)


def test_noise_costs_agreement_with_the_truth() -> None:
    groups = [replace(g, preferences=(Preference(0, 1),)) for g in scene_groups(200)]
    assert agreement(oracle(), groups).accuracy == 1.0
    assert 0.5 < agreement(oracle(noise=1.0), groups).accuracy < 0.9


def test_an_image_that_is_no_scene_is_named_with_what_to_do() -> None:
    groups = make_groups(1)
    assert not knows(groups[0].example)
    with pytest.raises(ValueError, match=r"'e0'.*annotator=self"):
        OracleAnnotator().judge(groups)

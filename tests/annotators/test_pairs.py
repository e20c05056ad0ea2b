"""Preferences from scores, by hand."""

from __future__ import annotations

import math

import pytest

from mllm_align.annotators.agreement import compare
from mllm_align.annotators.base import Judgement, fill
from mllm_align.annotators.pairs import all_pairs, best_worst
from mllm_align.records import Preference
from tiny import make_groups


def test_best_worst() -> None:
    assert best_worst([1.0, 3.0, -2.0, 2.0]) == (Preference(1, 2),)


def test_equal_scores_tie() -> None:
    assert best_worst([0.5, 0.5]) == ()
    assert all_pairs([0.5, 0.5]) == ()


def test_a_difference_of_the_threshold_ties_and_more_does_not() -> None:
    assert best_worst([0.0, 0.25], threshold=0.25) == ()
    assert best_worst([0.0, 0.375], threshold=0.25) == (Preference(1, 0),)


def test_all_pairs_share_a_weight_of_one() -> None:
    assert all_pairs([1.0, 3.0, 3.0, 2.0]) == tuple(
        Preference(i, j, 0.2) for i, j in [(1, 0), (1, 3), (2, 0), (2, 3), (3, 0)]
    )


def test_all_pairs_leaves_out_the_close_ones() -> None:
    # 2 over 0 by 2 and over 1 by 1.5; 1 over 0 by 0.5 ties.
    assert all_pairs([0.0, 0.5, 2.0], threshold=0.5) == (Preference(2, 0, 0.5), Preference(2, 1, 0.5))


def test_one_response_has_no_preference() -> None:
    assert best_worst([1.0]) == ()
    assert all_pairs([1.0]) == ()


@pytest.mark.parametrize("pairs", [best_worst, all_pairs])
@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_no_tie(pairs, score) -> None:
    groups = make_groups(2)
    judgements = [Judgement((1.0, 0.0)), Judgement((score, 0.0))]
    with pytest.raises(ValueError, match=r"example 'e1': the annotator scores \[(nan|inf), 0.0\]"):
        fill(groups, judgements, pairs)
    with pytest.raises(ValueError, match="example 'e1'"):
        compare(groups, judgements)

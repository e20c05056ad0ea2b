"""Collapse is recognised in hand-made histories, and healthy ones are left alone."""

from __future__ import annotations

import math

import pytest

from mllm_align.modules.collapse import Limits, collapsed

LIMITS = Limits(
    window=2, kl_per_token=1.5, shorter=0.2, longer=4.0, distinct=0.2, reward_gain=0.5, oracle_drop=0.2
)


def history(**changes: list[float]) -> dict[str, list[float]]:
    """A run that learns: reward and truth rise together, the KL grows, answers get a little shorter."""
    healthy = {
        "loss": [0.1, -0.2, 0.3, 0.0, -0.1],
        "grad_norm": [1.0, 2.0, 30.0, 1.5, 1.0],
        "kl_policy": [0.0, 0.5, 2.0, 5.0, 8.0],
        "response_tokens": [40.0, 42.0, 35.0, 30.0, 26.0],
        "distinct_2": [0.20, 0.21, 0.18, 0.15, 0.12],
        "reward": [0.2, 0.3, 0.5, 0.7, 0.9],
        "reward_std": [0.5, 0.5, 0.4, 0.4, 0.3],
        "oracle_score": [0.2, 0.3, 0.4, 0.5, 0.4],
    }
    return healthy | changes


def test_a_healthy_run_is_left_alone() -> None:
    assert collapsed(history(), LIMITS) is None


def test_an_empty_or_short_history_says_nothing() -> None:
    assert collapsed({}, LIMITS) is None
    assert collapsed(history(response_tokens=[40.0, 40.0, 1.0]), LIMITS) is None  # less than two windows


def test_a_kl_out_of_proportion() -> None:
    # The last two: 90 nats over a mean of 28 tokens = 3.21 nats a token.
    found = collapsed(history(kl_policy=[0.0, 1.0, 30.0, 80.0, 100.0]), LIMITS)
    assert found == "KL to the reference is 3.21 nats a token at last (limit 1.5)"


@pytest.mark.parametrize(("last", "said"), [(4.0, "from 41.0 to 4.0 tokens"), (200.0, "from 41.0 to 200.0")])
def test_responses_that_shrink_or_grow_without_measure(last, said) -> None:
    assert said in collapsed(history(response_tokens=[40.0, 42.0, 20.0, last, last]), LIMITS)


def test_responses_that_repeat_themselves() -> None:
    found = collapsed(history(distinct_2=[0.2, 0.2, 0.1, 0.02, 0.01]), LIMITS)
    assert found == "distinct-2 went from 0.200 to 0.015 (limit 0.2 times the first)"


def test_a_reward_that_rises_while_the_truth_falls() -> None:
    found = collapsed(history(oracle_score=[0.5, 0.5, 0.3, 0.2, 0.0]), LIMITS)
    assert found == "the reward rose from 0.25 to 0.80 while the oracle's score fell from 0.50 to 0.10"


def test_a_truth_that_falls_without_the_reward_is_bad_luck_and_no_collapse() -> None:
    falling = history(oracle_score=[0.5, 0.5, 0.3, 0.2, 0.0], reward=[0.5, 0.5, 0.3, 0.2, 0.0])
    assert collapsed(falling, LIMITS) is None


def test_without_the_truth_a_rising_reward_is_no_evidence() -> None:
    known = history()
    del known["oracle_score"]
    assert collapsed(known, LIMITS) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_figures_that_are_no_numbers_are_the_whole_verdict(bad) -> None:
    found = collapsed(history(loss=[0.1, 0.2, bad], distinct_2=[1.0, 1.0, 0.0, 0.0]), LIMITS)
    assert found == f"loss became {bad} at its entry 3 of 3"


def test_all_evidence_is_told() -> None:
    found = collapsed(
        history(kl_policy=[0.0, 1.0, 80.0, 100.0], response_tokens=[40.0, 40.0, 3.0, 3.0]), LIMITS
    ).split("; ")
    assert len(found) == 2


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"collapse\.window is 0"):
        Limits(window=0)

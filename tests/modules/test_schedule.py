"""Hand-worked values of the learning-rate schedules."""

from __future__ import annotations

import pytest

from mllm_align.modules.schedule import constant, cosine, linear


def test_constant_without_warmup_is_one_everywhere() -> None:
    assert [constant(s, 4) for s in range(4)] == [1.0] * 4


def test_warmup_rises_to_one_and_never_wastes_the_first_step() -> None:
    # A quarter of 8 steps is 2 steps: 1/2, 2/2, then 1.
    assert [constant(s, 8, warmup=0.25) for s in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_warmup_is_rounded_up_to_whole_steps() -> None:
    assert [constant(s, 10, warmup=0.11) for s in range(3)] == [0.5, 1.0, 1.0]


def test_linear_falls_to_zero_after_the_last_step() -> None:
    assert [linear(s, 4) for s in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_linear_with_warmup_and_floor() -> None:
    # 6 steps, 2 of warm-up, then from 1 to 0.2 over 4 steps.
    values = [linear(s, 6, warmup=1 / 3, floor=0.2) for s in range(7)]
    assert values == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    # (1 + cos(pi / 4)) / 2 = 0.8535534
    assert [cosine(s, 4) for s in (0, 1, 2, 4)] == pytest.approx([1.0, 0.8535533906, 0.5, 0.0])
    assert cosine(100, 4, floor=0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", [constant, linear, cosine])
def test_a_run_of_one_step_trains_with_the_full_rate(schedule) -> None:
    assert schedule(0, 1) == 1.0
    assert schedule(0, 1, warmup=0.1) == 1.0

"""The order of a run: complete, seeded, and the same however it is cut or resumed."""

from __future__ import annotations

import pytest

from mllm_align.modules.order import Plan, stable_seed


def plan(**changes: int) -> Plan:
    return Plan(**({"size": 10, "batch_size": 2, "accumulate": 2, "epochs": 3, "seed": 7} | changes))


def test_steps_are_counted_with_the_last_smaller_one() -> None:
    assert plan().steps_per_epoch == 3  # 4 + 4 + 2
    assert plan().total_steps == 9


def test_every_epoch_has_everything_once_in_another_order() -> None:
    orders = [[i for m in plan().micro_batches(e) for i in m.indices] for e in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1]
    assert orders[0] == [i for m in plan().micro_batches(0) for i in m.indices]
    assert orders[0] != [i for m in plan(seed=8).micro_batches(0) for i in m.indices]


def test_steps_parts_and_scales() -> None:
    micro = plan().micro_batches(1)
    assert [(m.step, m.part, len(m.indices)) for m in micro] == [
        (4, 0, 2), (4, 1, 2), (5, 0, 2), (5, 1, 2), (6, 0, 2),
    ]  # fmt: skip
    # Lightning divides by accumulate = 2: 2/4/2 = 1/4 a Group in a full step, 2/2/2 = 1/2 in the last one
    # of 2.
    assert [m.scale for m in micro] == [0.5, 0.5, 0.5, 0.5, 1.0]


def test_an_epoch_resumed_in_the_middle_is_its_own_tail() -> None:
    assert plan().micro_batches(1, first_step=1) == plan().micro_batches(1)[2:]
    assert plan().micro_batches(1, first_step=3) == []


def test_accumulation_takes_the_same_examples_a_step() -> None:
    def steps(p: Plan) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for m in p.micro_batches(0):
            found.setdefault(m.step, []).extend(m.indices)
        return found

    assert steps(plan(batch_size=4, accumulate=1)) == steps(plan(batch_size=1, accumulate=4))


def test_repeats_take_the_same_groups_in_steps_in_a_row() -> None:
    repeated = plan(repeats=3)
    assert (repeated.steps_per_epoch, repeated.total_steps) == (9, 27)
    micro = repeated.micro_batches(1)
    assert [(m.step, m.repeat, m.part, len(m.indices)) for m in micro if m.step >= 15] == [
        (15, 2, 0, 2), (15, 2, 1, 2),
        (16, 0, 0, 2), (16, 0, 1, 0), (17, 1, 0, 2), (17, 1, 1, 0), (18, 2, 0, 2), (18, 2, 1, 0),
    ]  # fmt: skip
    once = plan().micro_batches(1)
    for again in range(3):
        found = [(m.indices, m.scale) for m in micro if m.repeat == again and m.indices]
        assert found == [(m.indices, m.scale) for m in once]


def test_every_step_of_repeats_has_as_many_micro_batches() -> None:
    """Lightning counts micro-batches through the epoch: an odd one would shift all steps after it."""
    parts = [m.part for m in plan(repeats=2, accumulate=3).micro_batches(0)]
    assert parts == [0, 1, 2] * 4


def test_repeats_resumed_after_a_whole_draw_are_the_tail() -> None:
    repeated = plan(repeats=3)
    tail = repeated.micro_batches(0, first_step=3)
    assert tail == repeated.micro_batches(0)[6:]
    assert tail[0].repeat == 0
    assert [step for step in range(1, 10) if repeated.whole(step)] == [3, 6, 9]


def test_without_repeats_nothing_is_filled_up_and_every_step_is_whole() -> None:
    assert all(m.indices for m in plan().micro_batches(0))
    assert all(plan().whole(step) for step in range(1, 10))


@pytest.mark.parametrize(
    ("every", "repeats", "steps"),
    [(0, 1, []), (4, 1, [4, 8, 12]), (1, 3, [3, 6, 9, 12]), (4, 3, [6, 9, 12]), (5, 3, [6, 12]), (3, 3, [3, 6, 9, 12])],
)  # fmt: skip
def test_checkpoints_wait_for_the_end_of_a_draw(every, repeats, steps) -> None:
    from mllm_align.modules.callbacks import due

    assert [step for step in range(1, 14) if due(step, every, plan(repeats=repeats))] == steps


@pytest.mark.parametrize("name", ["size", "batch_size", "accumulate", "epochs", "repeats"])
def test_nothing_to_do_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        plan(**{name: 0})


def test_stable_seed_is_stable_and_tells_its_parts_apart() -> None:
    assert stable_seed(0, "a", 1) == stable_seed(0, "a", 1)
    assert 0 <= stable_seed(0, "a", 1) < 2**63
    assert len({stable_seed(0, "a", 1), stable_seed(0, "a1"), stable_seed(1, "a", 1)}) == 3

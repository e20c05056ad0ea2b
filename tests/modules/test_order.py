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


@pytest.mark.parametrize("name", ["size", "batch_size", "accumulate", "epochs"])
def test_nothing_to_do_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        plan(**{name: 0})


def test_stable_seed_is_stable_and_tells_its_parts_apart() -> None:
    assert stable_seed(0, "a", 1) == stable_seed(0, "a", 1)
    assert 0 <= stable_seed(0, "a", 1) < 2**63
    assert len({stable_seed(0, "a", 1), stable_seed(0, "a1"), stable_seed(1, "a", 1)}) == 3

"""Hand-worked values and gradients of the alignment losses.

One pair throughout: log pi(y+) = -10, log pi(y-) = -14, under the reference -12 and -13, so that
h = (-10 + 12) - (-14 + 13) = 2 - (-1) = 3.
"""

from __future__ import annotations

import math

import pytest
import torch

from mllm_align.losses import anchored_dpo, dpo, ipo, margin, simpo, slic

CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED = -10.0, -14.0, -12.0, -13.0


def pair(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in values]


def worked(loss, beta: float) -> tuple[float, list[float]]:
    inputs = pair(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)
    value = loss(*inputs, beta=beta)
    value.sum().backward()
    return value.item(), [x.grad.item() for x in inputs]


def test_margin_is_the_difference_of_the_log_ratios() -> None:
    assert margin(*pair(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)).item() == 3.0


def test_dpo() -> None:
    value, (chosen, rejected, ref_chosen, ref_rejected) = worked(dpo, beta=0.1)
    # -log sigmoid(0.3) = log(1 + e^-0.3) = log(1.7408182) = 0.5543552
    assert value == pytest.approx(0.5543552444685272, abs=1e-12)
    # d/dh = -beta * sigmoid(-beta h) = -0.1 * 0.4255575 = -0.04255575
    slope = -0.1 / (1 + math.exp(0.3))
    assert (chosen, rejected, ref_chosen, ref_rejected) == pytest.approx((slope, -slope, -slope, slope))


def test_dpo_starts_at_log_two_with_half_beta_slope() -> None:
    inputs = pair(-5.0, -5.0, -5.0, -5.0)
    value = dpo(*inputs, beta=0.5)
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(2))
    assert inputs[0].grad.item() == pytest.approx(-0.25)


def test_dpo_is_finite_far_out() -> None:
    values = dpo(*pair(-5000.0, 0.0, 0.0, -5000.0), beta=0.5)  # h = -10000: log(1 + e^5000) = 5000
    assert values.item() == pytest.approx(5000.0)


def test_ipo() -> None:
    value, (chosen, rejected, *_) = worked(ipo, beta=0.25)
    # 1 / (2 * 0.25) = 2; (3 - 2)^2 = 1; d/dh = 2 * (3 - 2) = 2
    assert value == pytest.approx(1.0)
    assert (chosen, rejected) == pytest.approx((2.0, -2.0))


def test_ipo_rests_at_its_target_and_pulls_back_beyond_it() -> None:
    at_target = pair(1.0, -1.0, 0.0, 0.0)  # h = 2 = 1 / (2 * 0.25)
    ipo(*at_target, beta=0.25).sum().backward()
    assert at_target[0].grad.item() == 0.0
    beyond = pair(2.0, -1.0, 0.0, 0.0)  # h = 3
    ipo(*beyond, beta=0.25).sum().backward()
    assert beyond[0].grad.item() > 0


def test_slic() -> None:
    value, (chosen, rejected, *_) = worked(slic, beta=0.1)
    # 1 - 0.1 * 3 = 0.7, d/dh = -0.1
    assert value == pytest.approx(0.7)
    assert (chosen, rejected) == pytest.approx((-0.1, 0.1))


def test_slic_has_no_pull_beyond_the_hinge() -> None:
    value, gradients = worked(slic, beta=0.5)  # 1 - 1.5 < 0
    assert value == 0.0
    assert gradients == [0.0] * 4


def test_simpo() -> None:
    inputs = pair(-1.0, -1.75, 0.0, 0.0)
    value = simpo(*inputs, beta=2.0, gamma=0.5)
    value.sum().backward()
    # 2 * 0.75 - 0.5 = 1: log(1 + e^-1) = 0.3132617; slope -2 sigmoid(-1) = -2 * 0.2689414
    assert value.item() == pytest.approx(0.3132617, abs=1e-7)
    assert inputs[0].grad.item() == pytest.approx(-0.5378828, abs=1e-7)
    assert inputs[1].grad.item() == pytest.approx(0.5378828, abs=1e-7)
    assert inputs[2].grad is None  # the reference is not looked at,
    assert torch.equal(simpo(*inputs[:2], None, None, beta=2.0, gamma=0.5), value)  # nor needed


def test_anchored_dpo() -> None:
    inputs = pair(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)
    value = anchored_dpo(*inputs, beta=0.1, delta=0.5, anchor=0.5)
    value.sum().backward()
    # log-ratio of y+ is 2: -log sigmoid(0.2 - 0.5) = log(1 + e^0.3) = 0.8543552; 0.5543552 + 0.5 * 0.8543552
    assert value.item() == pytest.approx(0.9815328, abs=1e-6)
    # d/d log pi(y+) = -0.1 sigmoid(-0.3) - 0.5 * 0.1 * sigmoid(0.3) = -0.1 * 0.4255575 - 0.05 * 0.5744425
    assert inputs[0].grad.item() == pytest.approx(-0.0712779, abs=1e-6)
    assert inputs[1].grad.item() == pytest.approx(0.0425557, abs=1e-6)  # the anchor does not touch y-


@pytest.mark.parametrize("loss", [dpo, ipo, slic])
def test_one_value_a_pair(loss) -> None:
    inputs = [torch.randn(5, dtype=torch.float64) for _ in range(4)]
    together = loss(*inputs, beta=0.2)
    alone = torch.stack([loss(*(x[i] for x in inputs), beta=0.2) for i in range(5)])
    assert together.shape == (5,)
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("loss", [dpo, ipo, slic])
def test_gradients_agree_with_finite_differences(loss) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda *x: loss(*x, beta=0.3), inputs)


@pytest.mark.parametrize("loss", [dpo, ipo, slic])
def test_beta_has_to_be_named(loss) -> None:
    with pytest.raises(TypeError, match="beta"):
        loss(*pair(0.0, 0.0, 0.0, 0.0))

"""Hand-worked sums, weights, reductions and figures of the objective."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mllm_align.losses import dpo, ipo
from mllm_align.modules.figures import means
from mllm_align.modules.objective import log_ratio, objective

# Row 0: three responses; row 1: two and a missing one.
POLICY = torch.tensor([[-4.0, -6.0, -9.0], [-2.0, -3.0, 0.0]])
REFERENCE = torch.tensor([[-5.0, -6.0, -7.0], [-2.0, -2.0, 0.0]])
LENGTHS = torch.tensor([[2, 3, 1], [2, 4, 0]])
PAIRS = torch.tensor([[0, 0, 2], [1, 1, 0]])


def gap(chosen, rejected, ref_chosen, ref_rejected):
    """h itself as a loss, so that sums can be read off."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def run(loss=gap, weights=(1.0, 1.0), logprobs="sum", pairs=PAIRS, policy=POLICY):
    return objective(policy, REFERENCE, LENGTHS, pairs, torch.tensor(weights), loss, logprobs)


def test_pairs_are_read_by_row_chosen_rejected() -> None:
    # Row 0: (-4 + 5) - (-9 + 7) = 3; row 1: (-3 + 2) - (-2 + 2) = -1.
    assert run()[0].item() == 2.0


def test_weights_multiply_the_losses() -> None:
    assert run(weights=(0.5, 2.0))[0].item() == 0.5 * 3 + 2 * -1


def test_mean_divides_by_each_response_s_own_length() -> None:
    # Row 0: (-4 + 5) / 2 - (-9 + 7) / 1 = 2.5; row 1: (-3 + 2) / 4 - 0 = -0.25.
    assert run(logprobs="mean")[0].item() == 2.25


def test_figures() -> None:
    _, figures = run(partial(dpo, beta=1.0))
    found = means(figures)
    assert found["margin"] == 1.0  # (3 - 1) / 2
    assert found["accuracy"] == 0.5
    assert found["logp_chosen"] == -3.5  # (-4 - 3) / 2
    assert found["logp_rejected"] == -5.5  # (-9 - 2) / 2
    # Half the squared log-ratios of the four responses in a pair: (1 + 4 + 0 + 1) / 2 / 4.
    assert found["kl"] == 0.75


def test_log_probabilities_in_figures_are_summed_even_where_the_loss_averages() -> None:
    assert means(run(partial(ipo, beta=1.0), logprobs="mean")[1])["logp_chosen"] == -3.5


def test_log_ratio_has_the_responses_in_a_pair_once() -> None:
    both = torch.tensor([[0, 0, 2], [0, 0, 1]])  # averaged DPO: one chosen, two rejected
    assert log_ratio(POLICY, REFERENCE, both).tolist() == [1.0, 0.0, -2.0]


def test_gradient_of_a_weighted_pair() -> None:
    policy = POLICY.clone().requires_grad_()
    run(weights=(0.5, 2.0), policy=policy)[0].backward()
    assert policy.grad.tolist() == [[0.5, 0.0, -0.5], [-2.0, 2.0, 0.0]]


def test_no_pairs_give_zero_with_a_gradient_of_zero() -> None:
    policy = POLICY.clone().requires_grad_()
    total, figures = run(weights=(), pairs=PAIRS[:0], policy=policy)
    total.backward()
    assert total.item() == 0.0
    assert policy.grad.abs().max() == 0.0
    assert means(figures) == {}


def test_averaged_dpo_is_two_weighted_pairs_of_a_group() -> None:
    """Eq. 5: gamma L(y+, y-) + (1 - gamma) L(y+, y~-), with gamma = 0.5."""
    loss = partial(dpo, beta=0.3)
    both, _ = run(loss, weights=(0.5, 0.5), pairs=torch.tensor([[0, 0, 1], [0, 0, 2]]))
    one, _ = run(loss, weights=(1.0,), pairs=torch.tensor([[0, 0, 1]]))
    other, _ = run(loss, weights=(1.0,), pairs=torch.tensor([[0, 0, 2]]))
    assert both.item() == pytest.approx(0.5 * one.item() + 0.5 * other.item())

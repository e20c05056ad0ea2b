"""Hand-worked sums, weights, reductions and figures of the objective."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mllm_align.losses import dpo, ipo, simpo
from mllm_align.modules.figures import means
from mllm_align.modules.objective import log_ratio, objective

# Group 0: three responses of 2, 3 and 1 tokens; group 1: two of 2 and 4 tokens, and a missing one.
# Sums under the policy [[-4, -6, -9], [-2, -3, 0]], under the reference [[-5, -6, -7], [-2, -2, 0]].
POLICY = torch.tensor(
    [
        [[-1.0, -3.0, 0.0, 0.0], [-1.0, -2.0, -3.0, 0.0], [-9.0, 0.0, 0.0, 0.0]],
        [[-0.5, -1.5, 0.0, 0.0], [-1.0, -0.5, -0.5, -1.0], [0.0, 0.0, 0.0, 0.0]],
    ]
)
REFERENCE = torch.tensor(
    [
        [[-2.0, -3.0, 0.0, 0.0], [-2.0, -2.0, -2.0, 0.0], [-7.0, 0.0, 0.0, 0.0]],
        [[-1.0, -1.0, 0.0, 0.0], [-0.5, -0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]],
    ]
)
MASK = torch.arange(4) < torch.tensor([[2, 3, 1], [2, 4, 0]])[..., None]
PAIRS = torch.tensor([[0, 0, 2], [1, 1, 0]])


def gap(chosen, rejected, ref_chosen, ref_rejected):
    """h itself as a loss, so that sums can be read off."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def run(
    loss=gap, weights=(1.0, 1.0), logprobs="sum", pairs=PAIRS, policy=POLICY, reference=REFERENCE, tokens=None
):
    return objective(policy, reference, MASK, pairs, torch.tensor(weights), loss, logprobs, tokens)


def test_pairs_are_read_by_group_chosen_rejected() -> None:
    # Group 0: (-4 + 5) - (-9 + 7) = 3; group 1: (-3 + 2) - (-2 + 2) = -1.
    assert run()[0].item() == 2.0


def test_weights_multiply_the_losses() -> None:
    assert run(weights=(0.5, 2.0))[0].item() == 0.5 * 3 + 2 * -1


def test_mean_divides_by_each_response_s_own_length() -> None:
    # Group 0: (-4 + 5) / 2 - (-9 + 7) / 1 = 2.5; group 1: (-3 + 2) / 4 - 0 = -0.25.
    assert run(logprobs="mean")[0].item() == 2.25


# Group 0: the chosen's second token counts 5 times; group 1: the chosen's first and last count 3 times, and the
# rejected's second not at all. Weights at padding (7) must not count.
TOKENS = torch.tensor(
    [[[1.0, 5.0, 7.0, 7.0], [1.0, 7.0, 7.0, 7.0]], [[3.0, 1.0, 1.0, 3.0], [1.0, 0.0, 7.0, 7.0]]]
)


def test_token_weights_in_a_sum() -> None:
    # Group 0: (-1 - 15) - (-2 - 15) = 1 and -9 + 7 = -2: 3.
    # Group 1: (-3 - 0.5 - 0.5 - 3) - (-1.5 - 0.5 - 0.5 - 1.5) = -3 and -0.5 + 1 = 0.5: -3.5.
    assert run(tokens=TOKENS)[0].item() == -0.5


def test_token_weights_in_a_mean_divide_by_their_sum() -> None:
    # RLHF-V: 1/N [sum of the unchanged + gamma sum of the changed], N the sum of the weights.
    # Group 0: 1 / 6 - (-2) / 1; group 1: -3 / 8 - 0.5 / 1.
    assert run(logprobs="mean", tokens=TOKENS)[0].item() == pytest.approx(1 / 6 + 2 - 3 / 8 - 0.5)


def test_weights_are_a_pair_s_so_that_a_response_may_have_two() -> None:
    both = torch.tensor([[0, 0, 1], [0, 0, 2]])
    tokens = torch.ones(2, 2, 4)
    tokens[1, 0, 0] = 3.0  # the chosen's first token, log-ratio 1, in the second pair only
    # Chosen 1 and then 3; rejected 0 and -2.
    assert run(pairs=both, tokens=tokens)[0].item() == 1 + 5


def test_weights_of_zero_have_a_mean_of_zero() -> None:
    policy = POLICY.clone().requires_grad_()
    total, _ = run(logprobs="mean", tokens=torch.zeros(2, 2, 4), policy=policy)
    total.backward()
    assert total.item() == 0.0
    assert policy.grad.abs().max() == 0.0


def test_gradient_of_weighted_tokens() -> None:
    policy = POLICY.clone().requires_grad_()
    run(weights=(0.5, 2.0), logprobs="mean", tokens=TOKENS, policy=policy)[0].backward()
    assert policy.grad[0, 0].tolist() == pytest.approx([0.5 / 6, 0.5 * 5 / 6, 0, 0])
    assert policy.grad[1, 1].tolist() == pytest.approx([6 / 8, 2 / 8, 2 / 8, 6 / 8])
    assert policy.grad[1, 0].tolist() == [-2.0, 0.0, 0.0, 0.0]


def test_figures() -> None:
    _, figures = run(partial(dpo, beta=1.0))
    found = means(figures)
    assert found["margin"] == 1.0  # (3 - 1) / 2
    assert found["accuracy"] == 0.5
    assert found["logp_chosen"] == -3.5  # (-4 - 3) / 2
    assert found["logp_rejected"] == -5.5  # (-9 - 2) / 2
    # Half the squared log-ratios of the four responses in a pair: (1 + 4 + 0 + 1) / 2 / 4.
    assert found["kl"] == 0.75


def test_log_probabilities_in_figures_are_summed_even_where_the_loss_averages_and_weighs() -> None:
    _, figures = run(partial(ipo, beta=1.0), logprobs="mean", tokens=TOKENS)
    assert means(figures)["logp_chosen"] == -3.5


def test_without_a_reference_the_loss_is_of_the_policy_alone() -> None:
    total, figures = run(partial(simpo, beta=2.0, gamma=0.5), logprobs="mean", reference=None)
    # Group 0: -4 / 2 + 9 = 7, 2 * 7 - 0.5 = 13.5; group 1: -3 / 4 + 1 = 0.25, 2 * 0.25 - 0.5 = 0.
    assert total.item() == pytest.approx(torch.tensor(-13.5).exp().item() + 0.6931472, abs=1e-6)
    found = means(figures)
    assert found["margin"] == pytest.approx((7 + 0.25) / 2)
    assert found["accuracy"] == 1.0
    assert found["logp_chosen"] == -3.5
    assert "kl" not in found


def test_a_loss_that_compares_with_a_reference_does_not_run_without() -> None:
    with pytest.raises(TypeError):
        run(partial(dpo, beta=1.0), reference=None)


def test_log_ratio_has_the_responses_in_a_pair_once() -> None:
    both = torch.tensor([[0, 0, 2], [0, 0, 1]])  # averaged DPO: one chosen, two rejected
    assert log_ratio(POLICY, REFERENCE, both).tolist() == [1.0, 0.0, -2.0]


def test_gradient_of_a_weighted_pair() -> None:
    policy = POLICY.clone().requires_grad_()
    run(weights=(0.5, 2.0), policy=policy)[0].backward()
    slopes = torch.tensor([[0.5, 0.0, -0.5], [-2.0, 2.0, 0.0]])
    assert torch.equal(policy.grad, slopes[..., None] * MASK)


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

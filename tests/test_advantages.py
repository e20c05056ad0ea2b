"""Hand-worked values of the pieces of RLOO and PPO, and their gradients beside TRL's."""

from __future__ import annotations

import math

import pytest
import torch

from mllm_align.advantages import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    k1,
    k3,
    leave_one_out,
    masked_mean,
    normalise,
    penalised_rewards,
    reinforce_loss,
    whiten,
)
from mllm_align.modules.estimators import Drawing, Ppo, Rloo


def tensor(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(found: torch.Tensor, rows, tolerance: float = 1e-6) -> bool:
    return torch.allclose(found.double(), tensor(rows), atol=tolerance)


# --- rewards


def test_rewards_are_normalised_by_the_given_statistics() -> None:
    assert close(normalise(tensor([[3.0, 5.0]]), mean=4.0, std=0.5), [[-2.0, 2.0]])


def test_the_score_stands_at_the_last_token_and_every_token_pays_for_its_kl() -> None:
    mask = torch.tensor([[[True, True, True], [True, False, False], [False, False, False]]])
    kl = tensor([[[0.1, -0.2, 0.3], [0.5, 9.0, 9.0], [9.0, 9.0, 9.0]]])
    found = penalised_rewards(tensor([[2.0, -1.0, 5.0]]), kl, mask, beta=0.5)
    assert close(found, [[[-0.05, 0.1, 1.85], [-1.25, 0, 0], [0, 0, 0]]])


# --- KL estimators


def test_kl_estimators_of_one_token() -> None:
    # pi = 1/2, pi_ref = 1/4: log ratio log 2; k3 = 1/2 - 1 + log 2.
    logprobs, reference = torch.tensor(0.5).log(), torch.tensor(0.25).log()
    assert k1(logprobs, reference).item() == pytest.approx(math.log(2))
    assert k3(logprobs, reference).item() == pytest.approx(math.log(2) - 0.5, rel=1e-6)


def test_k1_and_k3_are_unbiased() -> None:
    pi, ref = tensor([0.7, 0.2, 0.1]), tensor([0.4, 0.4, 0.2])
    exact = (pi * (pi / ref).log()).sum().item()
    means = [(pi * estimate(pi.log(), ref.log())).sum().item() for estimate in (k1, k3)]
    assert means[0] == pytest.approx(exact)
    assert means[1] == pytest.approx(exact)
    assert (k3(pi.log(), ref.log()) >= 0).all()


# --- advantages


def test_the_baseline_is_the_mean_of_the_others() -> None:
    # 1 - (2 + 6) / 2 = -3, 2 - (1 + 6) / 2 = -1.5, 6 - (1 + 2) / 2 = 4.5
    assert close(leave_one_out(tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])), [[-3, -1.5, 4.5], [0, 0, 0]])


def test_one_response_has_no_others() -> None:
    with pytest.raises(ValueError, match=r"2 responses a prompt or more, not 1"):
        leave_one_out(torch.ones(4, 1))


def test_gae_by_hand() -> None:
    # gamma 0.5, lam 0.5. d2 = 4 - 1 = 3; d1 = 0 + 0.5 * 1 - 2 = -1.5; d0 = 1 + 0.5 * 2 - 3 = -1.
    # A2 = 3; A1 = -1.5 + 0.25 * 3 = -0.75; A0 = -1 + 0.25 * -0.75 = -1.1875. A padded token changes nothing.
    rewards, values = tensor([[[1.0, 0.0, 4.0, 7.0]]]), tensor([[[3.0, 2.0, 1.0, 9.0]]])
    mask = torch.tensor([[[True, True, True, False]]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert close(advantages, [[[-1.1875, -0.75, 3.0, 0.0]]])
    assert close(returns, [[[1.8125, 1.25, 4.0, 0.0]]])


def test_gae_with_lam_1_is_the_return_less_the_value_and_with_lam_0_one_step() -> None:
    rewards, values = tensor([[[1.0, 2.0, 3.0]]]), tensor([[[0.5, 1.0, 2.0]]])
    mask = torch.ones(1, 1, 3, dtype=torch.bool)
    whole, _ = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert close(whole, [[[6 - 0.5, 5 - 1.0, 3 - 2.0]]])
    one, _ = gae(rewards, values, mask, gamma=1.0, lam=0.0)
    assert close(one, [[[1 + 1.0 - 0.5, 2 + 2.0 - 1.0, 3 - 2.0]]])


def test_whitening_leaves_padding_out() -> None:
    # 1, 2, 3 have mean 2 and unbiased variance 1.
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert close(whiten(tensor([[1.0, 2.0, 99.0], [3.0, 99.0, 99.0]]), mask), [[-1, 0, 0], [1, 0, 0]])


def test_a_lone_token_whitens_to_nothing() -> None:
    assert close(whiten(tensor([[5.0, 1.0]]), torch.tensor([[True, False]])), [[0, 0]])


# --- losses


def test_reinforce_has_the_policy_gradient() -> None:
    logprobs = tensor([[-3.0, -5.0]]).requires_grad_()
    loss = reinforce_loss(logprobs, tensor([[2.0, -1.0]]))
    assert close(loss, [[6.0, -5.0]])
    loss.sum().backward()
    assert close(logprobs.grad, [[-2.0, 1.0]])


def test_the_policy_s_ratio_counts_up_to_the_clip() -> None:
    # Ratios 1.5, 0.5, 1.5, 0.5, 1 with clip 0.2. Advantage 1: -min(1.5, 1.2), -min(0.5, 0.8); -1: max(1.5,
    # 1.2), max(0.5, 0.8).
    old = torch.zeros(5, dtype=torch.float64)
    new = tensor([1.5, 0.5, 1.5, 0.5, 1.0]).log().requires_grad_()
    loss, clipped = clipped_policy_loss(new, old, tensor([1.0, 1.0, -1.0, -1.0, 1.0]), clip=0.2)
    assert close(loss, [-1.2, -0.5, 1.5, 0.8, -1.0])
    assert clipped.tolist() == [True, False, False, True, False]
    loss.sum().backward()
    assert close(new.grad, [0.0, -0.5, 1.5, 0.0, -1.0])


def test_a_value_counts_up_to_the_clip_from_the_old_one() -> None:
    # Old 0, clip 0.2. New 0.5 towards a return of 1: held at 0.2, error 0.8; away from -1: its own error 1.5.
    new = tensor([0.5, 0.5, 0.1]).requires_grad_()
    loss, clipped = clipped_value_loss(
        new, torch.zeros(3, dtype=torch.float64), tensor([1.0, -1.0, 1.0]), clip=0.2
    )
    assert close(loss, [0.32, 1.125, 0.405])
    assert clipped.tolist() == [True, False, False]
    loss.sum().backward()
    assert close(new.grad, [0.0, 1.5, -0.9])


def test_masked_mean_and_explained_variance() -> None:
    mask = torch.tensor([True, True, False])
    assert masked_mean(tensor([1.0, 3.0, 100.0]), mask).item() == 2.0
    assert masked_mean(tensor([1.0, 3.0, 100.0]), mask & False).item() == 0.0
    returns = tensor([1.0, 3.0, 100.0])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(tensor([7.0, 7.0, 0.0]), returns, mask) == 0.0
    assert explained_variance(returns, tensor([2.0, 2.0, 5.0]), mask) is None


# --- the whole of it beside TRL

MASK = [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
OLD = [[-1.0, -0.5, -2.0, -0.1], [-0.7, -1.2, 0, 0], [-0.3, -0.9, -1.5, 0]]
REFERENCE = [[-1.2, -0.9, -1.5, -0.2], [-0.7, -1.0, 0, 0], [-0.8, -1.1, -1.4, 0]]
MOVED = [[0.3, -0.4, 0.1, 0.05], [-0.1, 0.25, 0, 0], [0.5, -0.6, 0.0, 0]]
SCORES = [1.0, -0.5, 0.25]


def drawing(rows: int, values: torch.Tensor | None = None) -> Drawing:
    """The three responses above, one a prompt or all of one prompt."""
    shape = (rows, 3 // rows, 4)
    return Drawing(
        scores=tensor(SCORES).view(shape[:2]),
        mask=tensor(MASK).bool().view(shape),
        logprobs=tensor(OLD).view(shape),
        reference=tensor(REFERENCE).view(shape),
        values=None if values is None else values.view(shape),
    )


def test_ppo_has_the_gradient_of_trl_s_own_loss() -> None:
    """Figures of TRL 0.11.4's PPOTrainer (compute_rewards, compute_advantages, loss) on the same batch."""
    values = tensor([[0.2, 0.5, 0.1, 0.9], [-0.3, 0.4, 0, 0], [0.0, 0.6, -0.2, 0]])
    drawn = drawing(3, values)
    ppo = Ppo(beta=0.5, passes=4, gamma=0.9, lam=0.8, clip=0.2, value_clip=0.3, value_coef=0.1)
    targets = ppo.targets(drawn)
    assert close(targets.advantages[:, 0], [
        [0.3146834, 0.0857012, 1.7817579, -0.0232884], [0.0415864, -1.6451589, 0, 0],
        [-0.2797348, -1.1108957, 0.8353488, 0],
    ])  # fmt: skip
    assert close(targets.returns[:, 0], [
        [0.4271264, 0.60712, 1.096, 0.95], [-0.216, -0.4, 0, 0], [-0.0844, 0.08, 0.3, 0],
    ])  # fmt: skip
    logprobs = (drawn.logprobs + tensor(MOVED)[:, None]).requires_grad_()
    moved = [[0.5, -0.1, 0.6, -0.7], [0.2, -0.5, 0, 0], [0.4, 0.1, -0.05, 0]]
    predicted = (drawn.values + tensor(moved)[:, None]).requires_grad_()
    total, figures = ppo.total(logprobs, predicted, drawn, targets)
    assert total.item() / 3 == pytest.approx(0.0363446, abs=1e-6)
    (total / 3).backward()
    assert close(logprobs.grad[:, 0], [
        [0, -0.006383, -0.2187941, 0.0027203], [-0.004181, 0.234714, 0, 0], [0.051245, 0, -0.0928165, 0],
    ])  # fmt: skip
    assert close(predicted.grad[:, 0], [
        [0.0030319, -0.0023013, 0, -0.0083333], [0.0012889, 0, 0, 0], [0.0053822, 0.0068889, -0.0061111, 0],
    ])  # fmt: skip
    assert (figures["clip_fraction"][0] / figures["clip_fraction"][1]).item() == pytest.approx(2 / 9)


class Accelerator:
    """One process: what TRL gathers is what it has."""

    def reduce(self, values, reduction):
        return values

    def gather(self, values):
        return values


def trl_loss(trainer: type, logprobs: torch.Tensor, inputs: dict[str, torch.Tensor], **settings) -> None:
    """Backward of the trainer's own `_compute_loss`, its model's log-probabilities being `logprobs`."""
    from collections import defaultdict
    from types import SimpleNamespace

    batch, width = logprobs.shape
    ids = torch.zeros(batch, width, dtype=torch.long)
    this = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        _metrics=defaultdict(lambda: defaultdict(list)),
        aux_loss_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(batch, width), None),
        **settings,
    )
    prompt = {"prompt_ids": ids, "prompt_mask": ids + 1, "completion_ids": ids}
    trainer._compute_loss(this, None, prompt | inputs).backward()


@pytest.mark.slow
def test_rloo_has_the_gradient_of_trl_s_trainer() -> None:
    trl = pytest.importorskip("trl")
    drawn = drawing(1)
    rloo = Rloo(beta=0.4)
    mine = drawn.logprobs.clone().requires_grad_()
    total, _ = rloo.total(mine, None, drawn, rloo.targets(drawn))
    total.backward()

    theirs = tensor(OLD).requires_grad_()
    # As RLOOTrainer._generate_and_score_completions has it: the sum of all rewards less one's own, over k - 1.
    kl = ((tensor(OLD) - tensor(REFERENCE)) * tensor(MASK)).sum(-1)
    rewards = tensor(SCORES) - 0.4 * kl
    advantages = rewards - (rewards.sum() - rewards) / 2
    inputs = {
        "completion_mask": tensor(MASK),
        "old_logps": (tensor(OLD) * tensor(MASK)).sum(-1),
        "advantages": advantages,
    }
    trl_loss(trl.RLOOTrainer, theirs, inputs, epsilon_low=0.2, epsilon_high=0.2)
    assert torch.allclose(mine.grad[0] * drawn.mask[0], theirs.grad, atol=1e-12)
    assert mine.grad.abs().sum() > 0.1


@pytest.mark.slow
def test_ppo_s_policy_loss_has_the_gradient_of_trl_s_trainer() -> None:
    """TRL 1.16 has no PPO any more; GRPO's loss over tokens is PPO's, with one advantage a token."""
    from types import SimpleNamespace

    trl = pytest.importorskip("trl")
    drawn = drawing(3, torch.zeros(3, 4, dtype=torch.float64))
    ppo = Ppo(beta=0.5, passes=4, gamma=0.9, lam=0.8, clip=0.2, value_clip=0.3, value_coef=0.0)
    targets = ppo.targets(drawn)
    mine = (drawn.logprobs + tensor(MOVED)[:, None]).requires_grad_()
    total, _ = ppo.total(mine, drawn.values, drawn, targets)
    (total / 3).backward()

    theirs = (tensor(OLD) + tensor(MOVED)).requires_grad_()
    inputs = {
        "completion_mask": tensor(MASK),
        "old_per_token_logps": tensor(OLD),
        "advantages": targets.advantages[:, 0],
    }
    trl_loss(
        trl.GRPOTrainer, theirs, inputs, epsilon_low=0.2, epsilon_high=0.2, beta=0.0, loss_type="bnpo",
        importance_sampling_level="token", top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        use_vllm=False, _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1,
        args=SimpleNamespace(delta=None),
    )  # fmt: skip
    assert torch.allclose(mine.grad[:, 0], theirs.grad, atol=1e-12)
    assert mine.grad.abs().sum() > 0.1

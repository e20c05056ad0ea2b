"""From rewards of sampled responses to advantages and losses: pure functions of tensors.

Shapes: B prompts, k responses a prompt, R response tokens (right-padded). `mask` (B, k, R) is true on real
tokens, the end token included. A token's log-probability is that of the action taken in the state before it,
and its value is the value of that state. Everything is in nats and in units of the (normalised) reward.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Added to variances before a division.
EPSILON = 1e-8


# --- rewards -----------------------------------------------------------------------------------------------


def normalise(scores: Tensor, mean: float, std: float) -> Tensor:
    """(score - mean) / std with statistics of the alignment set (arXiv 2407.02477, 5.5). (B, k) -> (B, k)"""
    return (scores - mean) / std


def penalised_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Reward of every token: -beta * KL of the token, and the response's score on top of its last token.

    scores (B, k), kl (B, k, R) -> (B, k, R), 0 at padding. Ziegler et al. 2019 (arXiv 1909.08593);
    Ouyang et al. 2022 (arXiv 2203.02155). A response without tokens gets nothing.
    """
    rewards = -beta * kl * mask
    last = (mask.sum(-1) - 1).clamp(min=0)[..., None]  # (B, k, 1)
    return rewards.scatter_add(-1, last, (scores * mask.any(-1))[..., None])


# --- KL estimators of a token or of a response, from samples of pi ------------------------------------------


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log pi - log pi_ref: unbiased, may be negative. Schulman 2020, "Approximating KL Divergence". Any shape."""
    return logprobs - reference


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """pi_ref / pi - 1 - log(pi_ref / pi): unbiased, never negative. Schulman 2020. Any shape."""
    log_ratio = reference - logprobs
    return torch.expm1(log_ratio) - log_ratio


# --- advantages --------------------------------------------------------------------------------------------


def leave_one_out(rewards: Tensor) -> Tensor:
    """A response's reward less the mean of its prompt's other responses. (B, k) -> (B, k), rows sum to 0.

    RLOO: Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740. Raises ValueError for k < 2: there
    is nothing to leave in.
    """
    k = rewards.shape[-1]
    if k < 2:
        raise ValueError(f"the leave-one-out baseline needs 2 responses a prompt or more, not {k}")
    return (rewards - rewards.mean(-1, keepdim=True)) * (k / (k - 1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation. (B, k, R) each -> advantages, returns (B, k, R), 0 at padding.

    A_t = d_t + gamma lam A_{t+1} with d_t = r_t + gamma V_{t+1} - V_t; after the last token V and A are 0.
    returns = A + V. Schulman et al. 2016, arXiv 1506.02438, Eq. 16.
    """
    rewards, values = rewards * mask, values * mask
    ahead = torch.zeros_like(values[..., 0])
    next_value = torch.zeros_like(ahead)
    found = []
    for t in reversed(range(values.shape[-1])):
        delta = rewards[..., t] + gamma * next_value - values[..., t]
        ahead = delta + gamma * lam * ahead
        next_value = values[..., t]
        found.append(ahead)
    advantages = torch.stack(found[::-1], dim=-1) * mask
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and (unbiased) variance 1 over the masked entries, 0 elsewhere. Any shape; a lone entry becomes 0."""
    kept = values[mask]
    if len(kept) < 2:
        return torch.zeros_like(values)
    return (values - kept.mean()) * torch.rsqrt(kept.var() + EPSILON) * mask


# --- losses ------------------------------------------------------------------------------------------------


def reinforce_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A log pi(y|x), a value a response: its gradient is the policy gradient's. (B, k), (B, k) -> (B, k)

    `logprobs` are summed over the response's tokens. Williams 1992; Ahmadian et al. 2024, arXiv 2402.14740.
    """
    return -advantages * logprobs


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip: float
) -> tuple[Tensor, Tensor]:
    """max(-A ratio, -A clamp(ratio, 1 - clip, 1 + clip)) of every token, and where the clamp decided.

    ratio = pi / pi_old. (B, k, R) each -> loss (B, k, R), clipped (B, k, R) bool. PPO: Schulman et al. 2017,
    arXiv 1707.06347, Eq. 7.
    """
    ratio = (logprobs - old_logprobs).exp()
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, bounded), bounded > free


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float
) -> tuple[Tensor, Tensor]:
    """Half the larger squared error of the value and of the value held within `clip` of the old one.

    (B, k, R) each -> loss (B, k, R), clipped (B, k, R) bool. As in OpenAI's PPO and in TRL's.
    """
    held = old_values + (values - old_values).clamp(-clip, clip)
    free, bounded = (values - returns).square(), (held - returns).square()
    return torch.maximum(free, bounded) / 2, bounded > free


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked entries; 0 where there are none. Any shape -> ()"""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float | None:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect value function, 0 for a constant one.

    None where the returns do not vary. Any shape.
    """
    kept = returns[mask]
    if len(kept) < 2 or not (spread := kept.var().item()):
        return None
    return 1 - (kept - values[mask]).var().item() / spread

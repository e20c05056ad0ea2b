"""From log-probabilities of responses to the sum of a batch's losses and the figures worth watching.

Figures, each a mean over what the name says (docs/methods.md has the table):
loss, margin, accuracy, logp_chosen, logp_rejected over pairs; kl over the responses that are in a pair.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mllm_align.losses import margin
from mllm_align.modules.figures import Figures, figure

# loss(chosen, rejected, ref_chosen, ref_rejected) -> (n,), e.g. partial(losses.dpo, beta=0.1).
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def summed(sums: Tensor, lengths: Tensor) -> Tensor:
    """log pi(y|x), the sum over the response's tokens: the paper's notation. (B, k) -> (B, k)"""
    return sums


def averaged(sums: Tensor, lengths: Tensor) -> Tensor:
    """log pi(y|x) / |y|, the mean over the response's tokens: TRL's IPO. (B, k) -> (B, k)"""
    return sums / lengths.clamp(min=1)


# The values of the option `logprobs` of the modules.
LOGPROBS = {"sum": summed, "mean": averaged}


def objective(
    policy: Tensor,
    reference: Tensor,
    lengths: Tensor,
    pairs: Tensor,
    weights: Tensor,
    loss: Loss,
    logprobs: str,
) -> tuple[Tensor, Figures]:
    """The weighted sum of the losses of all pairs (a scalar with gradient), and figures.

    policy, reference (B, k) summed log-probabilities in nats; lengths (B, k) response tokens; pairs (n, 3)
    rows of [row, chosen, rejected]; weights (n,). With no pairs the sum is 0 and its gradient 0.
    """
    reduce = LOGPROBS[logprobs]
    sides = [_pick(reduce(x, lengths), pairs) for x in (policy, reference)]
    (chosen, rejected), (ref_chosen, ref_rejected) = sides
    values = loss(chosen, rejected, ref_chosen, ref_rejected)  # (n,)
    total = (weights * values).sum() if len(pairs) else policy.sum() * 0
    return total, _figures(
        policy, reference, pairs, values, margin(chosen, rejected, ref_chosen, ref_rejected)
    )


def _figures(policy: Tensor, reference: Tensor, pairs: Tensor, values: Tensor, h: Tensor) -> Figures:
    chosen, rejected = _pick(policy, pairs)
    drift = (policy - reference)[_used(policy, pairs)]  # log pi / pi_ref of each response in a pair
    return {
        "loss": figure(values),
        "margin": figure(h),
        "accuracy": figure(h > 0),
        "logp_chosen": figure(chosen),
        "logp_rejected": figure(rejected),
        # Schulman's k2 estimator, half the squared log-ratio: never negative, and to second order the KL
        # divergence whichever of the two policies wrote the responses.
        "kl": figure(drift.square() / 2),
    }


def log_ratio(policy: Tensor, reference: Tensor, pairs: Tensor) -> Tensor:
    """log pi(y|x) - log pi_ref(y|x) of the responses in a pair: (B, k), (B, k) -> (responses in a pair,).

    Its mean is Schulman's k1 estimator of KL(pi || pi_ref), without bias where pi wrote the responses
    (online).
    """
    return (policy - reference)[_used(policy, pairs)]


def _pick(values: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """(B, k), (n, 3) -> the chosen (n,) and the rejected (n,)."""
    row, chosen, rejected = pairs.unbind(-1)
    return values[row, chosen], values[row, rejected]


def _used(values: Tensor, pairs: Tensor) -> Tensor:
    """(B, k) bool: the responses that are in a pair."""
    used = torch.zeros_like(values, dtype=torch.bool)
    used[pairs[:, 0], pairs[:, 1]] = True
    used[pairs[:, 0], pairs[:, 2]] = True
    return used

"""From log-probabilities of tokens to the sum of a batch's losses and the figures worth watching.

Figures, each a mean over what the name says (docs/methods.md has the table):
loss, margin, accuracy, logp_chosen, logp_rejected over pairs; kl over the responses that are in a pair.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mllm_align.losses import margin
from mllm_align.modules.figures import Figures, figure

# loss(chosen, rejected, ref_chosen, ref_rejected) -> (n,), e.g. partial(losses.dpo, beta=0.1). The last two are
# None where nothing of the reference is computed.
Loss = Callable[..., Tensor]


def summed(logprobs: Tensor, weights: Tensor) -> Tensor:
    """log pi(y|x), the weighted sum over the response's tokens: the paper's notation. (n, R) x 2 -> (n,)"""
    return (logprobs * weights).sum(-1)


def averaged(logprobs: Tensor, weights: Tensor) -> Tensor:
    """log pi(y|x) / |y|, the weighted mean over the response's tokens. (n, R) x 2 -> (n,)"""
    return summed(logprobs, weights) / weights.sum(-1).clamp(min=torch.finfo(weights.dtype).tiny)


# The values of the option `logprobs` of the modules.
LOGPROBS = {"sum": summed, "mean": averaged}


def objective(
    policy: Tensor,
    reference: Tensor | None,
    mask: Tensor,
    pairs: Tensor,
    weights: Tensor,
    loss: Loss,
    logprobs: str,
    token_weights: Tensor | None = None,
) -> tuple[Tensor, Figures]:
    """The weighted sum of the losses of all pairs (a scalar with gradient), and figures.

    policy, reference (B, k, R) log-probabilities of tokens in nats; mask (B, k, R) true on response tokens;
    pairs (n, 3) rows of [group, chosen, rejected]; weights (n,); token_weights (n, 2, R) of the chosen and the
    rejected response of each pair, None for 1 each. With no pairs the sum is 0 and its gradient 0. Without a
    reference, margin and accuracy are those of the policy alone, and there is no kl.
    """
    ones = torch.stack(_pick(mask, pairs), dim=1).to(policy.dtype)  # (n, 2, R)
    token_weights = ones if token_weights is None else token_weights * ones
    chosen, rejected = _reduced(policy, pairs, token_weights, logprobs)
    if reference is None:
        values = loss(chosen, rejected, None, None)  # (n,)
        h = chosen - rejected
    else:
        ref_chosen, ref_rejected = _reduced(reference, pairs, token_weights, logprobs)
        values = loss(chosen, rejected, ref_chosen, ref_rejected)  # (n,)
        h = margin(chosen, rejected, ref_chosen, ref_rejected)
    total = (weights * values).sum() if len(pairs) else policy.sum() * 0
    return total, _figures(policy, reference, pairs, values, h)


def _reduced(tokens: Tensor, pairs: Tensor, weights: Tensor, logprobs: str) -> tuple[Tensor, Tensor]:
    """(B, k, R), (n, 3), (n, 2, R) -> one value a chosen (n,) and a rejected (n,) response."""
    chosen, rejected = _pick(tokens, pairs)
    reduce = LOGPROBS[logprobs]
    return reduce(chosen, weights[:, 0]), reduce(rejected, weights[:, 1])


def _figures(policy: Tensor, reference: Tensor | None, pairs: Tensor, values: Tensor, h: Tensor) -> Figures:
    chosen, rejected = _pick(policy.sum(-1), pairs)
    figures = {
        "loss": figure(values),
        "margin": figure(h),
        "accuracy": figure(h > 0),
        "logp_chosen": figure(chosen),
        "logp_rejected": figure(rejected),
    }
    if reference is not None:
        # Schulman's k2 estimator, half the squared log-ratio: never negative, and to second order the KL
        # divergence whichever of the two policies wrote the responses.
        figures["kl"] = figure(log_ratio(policy, reference, pairs).square() / 2)
    return figures


def log_ratio(policy: Tensor, reference: Tensor, pairs: Tensor) -> Tensor:
    """log pi(y|x) - log pi_ref(y|x) of the responses in a pair: (B, k, R) twice -> (responses in a pair,).

    Its mean is Schulman's k1 estimator of KL(pi || pi_ref), without bias where pi wrote the responses
    (online).
    """
    drift = (policy - reference).sum(-1)  # (B, k)
    return drift[_used(drift, pairs)]


def _pick(values: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """(B, k, ...), (n, 3) -> the chosen (n, ...) and the rejected (n, ...)."""
    group, chosen, rejected = pairs.unbind(-1)
    return values[group, chosen], values[group, rejected]


def _used(values: Tensor, pairs: Tensor) -> Tensor:
    """(B, k) bool: the responses that are in a pair."""
    used = torch.zeros_like(values, dtype=torch.bool)
    used[pairs[:, 0], pairs[:, 1]] = True
    used[pairs[:, 0], pairs[:, 2]] = True
    return used

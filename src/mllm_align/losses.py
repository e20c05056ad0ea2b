"""Alignment losses: pure functions of log-probabilities, one value a pair, unreduced.

All four arguments have shape (n,), one entry a pair: log pi(y+|x), log pi(y-|x) under the policy and the same
two under the frozen reference (None for a method without one), in nats. Whether they are summed over the
response's tokens or averaged is the caller's choice (`logprobs: sum|mean` of the modules); the equations of the
paper use sums.

Tang et al. 2024 ("Generalized preference optimization", arXiv 2402.05749) write the first three as f(beta * h):
f is logistic in DPO, squared in IPO and a hinge in SLiC, with h the log-ratio margin of `margin` below.

To add one: write a function with these four arguments and its own keywords, and name it in a file under
conf/alignment/ (docs/methods.md shows the whole of it).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """h = [log pi(y+) - log pi_ref(y+)] - [log pi(y-) - log pi_ref(y-)], in nats, without beta; (n,)."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta * h): Eq. 3 of arXiv 2407.02477; Rafailov et al. 2023. (n,) -> (n,)"""
    return -F.logsigmoid(beta * margin(chosen, rejected, ref_chosen, ref_rejected))


def ipo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2: Azar et al. 2023, arXiv 2310.12036, Eq. 17 (their tau is beta). (n,) -> (n,)

    On summed log-probabilities, as Azar et al. define it. TRL averages over the response's tokens instead.
    """
    return (margin(chosen, rejected, ref_chosen, ref_rejected) - 1 / (2 * beta)) ** 2


def slic(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    """max(0, 1 - beta * h): SLiC (Zhao et al. 2023) in the unified form of Tang et al. 2024. (n,) -> (n,)"""
    return torch.relu(1 - beta * margin(chosen, rejected, ref_chosen, ref_rejected))


def simpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor | None,
    ref_rejected: Tensor | None,
    *,
    beta: float,
    gamma: float,
) -> Tensor:
    """-log sigmoid(beta * (log pi(y+) - log pi(y-)) - gamma): SimPO, Meng et al. 2024, arXiv 2405.14734, Eq. 6.

    On log-probabilities averaged over tokens (`logprobs: mean`); the reference is not looked at. (n,) -> (n,)
    """
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def anchored_dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    delta: float,
    anchor: float,
) -> Tensor:
    """-log sigmoid(beta * h) - anchor * log sigmoid(beta * [log pi(y+) - log pi_ref(y+)] - delta). (n,) -> (n,)

    The second term keeps the chosen response at least as likely as under the reference. mDPO (Wang et al. 2024,
    arXiv 2406.11839) is this loss on two pairs an example: y+ against y-, and y+ against itself under a spoilt
    image (`modules.extend`). anchor = 1/2 counts the anchor once an example.
    """
    reward = beta * (chosen - ref_chosen)
    return dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta) - anchor * F.logsigmoid(reward - delta)

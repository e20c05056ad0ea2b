"""How sampled responses and their rewards become a loss: RLOO and PPO, two values of one kind of object.

An estimator is asked twice. `targets` says, once for what was drawn, how much better each action was than
expected; `total` makes a loss of the policy's present log-probabilities (and values), as often as the draw is
used. What it is made of stands in `advantages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from mllm_align import advantages as adv
from mllm_align.modules.figures import Figures, counted, figure


@dataclass(frozen=True)
class Drawing:
    """k responses a prompt, as the policy that drew them saw them. Nothing here has a gradient.

    scores (B, k) normalised rewards; mask (B, k, R) true on response tokens; logprobs, reference (B, k, R)
    log pi and log pi_ref of every token, in nats; values (B, k, R) of the state before every token, None for
    an estimator without a value head.
    """

    scores: Tensor
    mask: Tensor
    logprobs: Tensor
    reference: Tensor
    values: Tensor | None


@dataclass(frozen=True)
class Targets:
    """advantages (B, k) of responses or (B, k, R) of tokens; returns (B, k, R) that values are fitted to."""

    advantages: Tensor
    returns: Tensor | None
    figures: Figures


class Estimator(Protocol):
    """`passes`: optimiser steps that use a draw; `has_values`: whether a value head is wanted."""

    @property
    def passes(self) -> int: ...

    @property
    def has_values(self) -> bool: ...

    def targets(self, drawing: Drawing) -> Targets:
        """What was drawn, judged. Raises ValueError for too few responses a prompt."""

    def total(
        self, logprobs: Tensor, values: Tensor | None, drawing: Drawing, targets: Targets
    ) -> tuple[Tensor, Figures]:
        """Mean loss times the number of prompts, a scalar with gradient; and figures of this pass."""


@dataclass(frozen=True)
class Rloo:
    """REINFORCE on whole responses with the leave-one-out baseline; Ahmadian et al. 2024, arXiv 2402.14740.

    The reward of a response is score - `beta` * (log pi - log pi_ref), the KL estimate having no gradient.
    A draw is used once.
    """

    beta: float
    passes: ClassVar[int] = 1
    has_values: ClassVar[bool] = False

    def targets(self, drawing: Drawing) -> Targets:
        kl = adv.k1(drawing.logprobs, drawing.reference).sum(-1)  # (B, k), 0 at padding
        advantages = adv.leave_one_out(drawing.scores - self.beta * kl)  # (B, k)
        return Targets(advantages, None, {"advantage": figure(advantages.abs())})

    def total(
        self, logprobs: Tensor, values: Tensor | None, drawing: Drawing, targets: Targets
    ) -> tuple[Tensor, Figures]:
        losses = adv.reinforce_loss(logprobs.sum(-1), targets.advantages)  # (B, k)
        return losses.mean(-1).sum(), {"loss": figure(losses)}


@dataclass(frozen=True)
class Ppo:
    """PPO's clipped objective on tokens with a value head and GAE; Schulman et al. 2017, arXiv 1707.06347.

    A token's reward is -`beta` * (log pi - log pi_ref), the response's score being added at its last token
    (Ziegler et al. 2019). Advantages are whitened. Loss: policy loss + `value_coef` * value loss, each a mean
    over the tokens of the forward pass. `passes` optimiser steps use a draw.
    """

    beta: float
    passes: int
    gamma: float
    lam: float
    clip: float
    value_clip: float
    value_coef: float
    has_values: ClassVar[bool] = True

    def targets(self, drawing: Drawing) -> Targets:
        assert drawing.values is not None
        kl = adv.k1(drawing.logprobs, drawing.reference)  # (B, k, R)
        rewards = adv.penalised_rewards(drawing.scores, kl, drawing.mask, self.beta)
        raw, returns = adv.gae(rewards, drawing.values, drawing.mask, gamma=self.gamma, lam=self.lam)
        figures = {"advantage": figure(raw[drawing.mask].abs())}
        explained = adv.explained_variance(drawing.values, returns, drawing.mask)
        if explained is not None:
            figures["explained_variance"] = counted(explained, 1)
        return Targets(adv.whiten(raw, drawing.mask), returns, figures)

    def total(
        self, logprobs: Tensor, values: Tensor | None, drawing: Drawing, targets: Targets
    ) -> tuple[Tensor, Figures]:
        assert values is not None
        assert drawing.values is not None
        assert targets.returns is not None
        mask, prompts = drawing.mask, len(drawing.mask)
        policy, clipped = adv.clipped_policy_loss(
            logprobs, drawing.logprobs, targets.advantages, clip=self.clip
        )
        value, _ = adv.clipped_value_loss(values, drawing.values, targets.returns, clip=self.value_clip)
        value_loss = adv.masked_mean(value, mask)
        loss = adv.masked_mean(policy, mask) + self.value_coef * value_loss
        figures = {
            "loss": counted(loss.item() * prompts, prompts),
            "value_loss": figure(value[mask]),
            "clip_fraction": figure(clipped[mask]),
        }
        return loss * prompts, figures

"""Reinforcement learning from an annotator's scores: draw, judge, compare with the reference, take a step.

The module is glue: what is drawn comes from a sampler, rewards from an annotator, log-probabilities from
`compute`, and the loss from an estimator (`estimators.Rloo`, `estimators.Ppo`). Scoring, the reference and
the values all use one shared-prefix forward each over image, prompt and the k responses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mllm_align.advantages import k1, k3, normalise
from mllm_align.annotators.base import Annotator, check_finite
from mllm_align.annotators.oracle import OracleAnnotator, knows
from mllm_align.compute.logprobs import logprobs_and_states, response_logprobs
from mllm_align.compute.packing import Batch, check_prompts, collate
from mllm_align.models.heads import add_head, read
from mllm_align.models.load import Policy, reference
from mllm_align.modules.batches import MicroBatch
from mllm_align.modules.callbacks import stepped
from mllm_align.modules.collapse import Limits, collapsed
from mllm_align.modules.draws import Sampler
from mllm_align.modules.estimators import Drawing, Estimator, Targets
from mllm_align.modules.figures import Figures, counted, figure
from mllm_align.modules.online import nothing
from mllm_align.modules.optimise import Optimise, configure_optimizers
from mllm_align.modules.order import stable_seed
from mllm_align.modules.preference import batch_figures, finite
from mllm_align.records import Group

VALUE_HEAD = "value_head"


@dataclass(frozen=True)
class Rollout:
    """What a micro-batch drew, ready for the forward passes that use it."""

    batch: Batch
    drawing: Drawing
    targets: Targets


class PolicyGradientModule(pl.LightningModule):
    """Maximises E[r(x, y)] - beta KL(pi || pi_ref) on responses drawn inside the step.

    `reward_statistics` (mean, std) normalise the annotator's scores; None leaves them as they are. A draw is
    used in `repeats` optimiser steps in a row. An estimator with values gets a value head on the policy's
    model; it is trained and checkpointed with the adapter, but it is no part of the adapter's folder, since
    nobody needs it after training.
    """

    # The responses are not known before the step, so the loader has nothing to collate.
    collate = None

    def __init__(
        self,
        policy: Policy,
        *,
        sampler: Sampler,
        annotator: Annotator,
        seed: int,
        reward_statistics: Mapping[str, float] | None,
        estimator: Estimator,
        optimise: Optimise,
        collapse: Limits,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.policy = add_head(policy, VALUE_HEAD, seed) if estimator.has_values else policy
        self.model = self.policy.model
        self.sampler, self.annotator, self.seed = sampler, annotator, seed
        self.statistics = checked(reward_statistics or {"mean": 0.0, "std": 1.0})
        self.estimator, self.optimise, self.collapse = estimator, optimise, collapse
        self.max_length = max_length
        self.rollouts: dict[int, Rollout] = {}  # of the present step, by the micro-batch's place in it
        self.broken = False

    @property
    def repeats(self) -> int:
        """Optimiser steps in a row that take the same Groups; `fit` asks."""
        return self.estimator.passes

    def check(self, groups: Sequence[Group]) -> None:
        """A prompt is all that is needed. Raises ValueError for one that is too long (`check_prompts`)."""
        check_prompts([group.example for group in groups], self.policy.processor, self.max_length)

    def training_step(self, micro: MicroBatch, batch_idx: int) -> dict[str, Any]:
        if micro.groups:
            total, figures = self._learned(micro)
            loss = self._sound(total * micro.plan.scale, micro)
        else:  # fills up a smaller last step
            loss, figures = nothing(self.model), {}
        if self.broken and stepped(self.trainer, batch_idx):
            self.trainer.should_stop = True
        return {"loss": loss, "figures": figures}

    def _learned(self, micro: MicroBatch) -> tuple[Tensor, Figures]:
        """The estimator's loss on what is drawn now, or was drawn for these Groups in a step just before."""
        if micro.plan.repeat:
            figures: Figures = {}
            rollout = self.rollouts[micro.plan.part]
            logprobs, values = self._forward(rollout.batch)
        else:
            batch, rewards, figures = self._drawn(micro)
            logprobs, values = self._forward(batch)
            rollout = self.rollouts[micro.plan.part] = self._rollout(batch, rewards, logprobs, values)
            figures |= rollout.targets.figures | policy_figures(rollout.drawing)
        total, found = self.estimator.total(logprobs, values, rollout.drawing, rollout.targets)
        return total, figures | found | batch_figures(rollout.batch)

    def _sound(self, loss: Tensor, micro: MicroBatch) -> Tensor:
        """The loss itself. One that is no number is an error in the first step, and later a policy that broke
        down: training ends with the step, and `verdict` finds the figure in the run's record.
        """
        if micro.plan.step == 1:
            return finite(loss, micro)
        if torch.isfinite(loss):
            return loss
        self.broken = True
        return nothing(self.model)

    def verdict(self, scalars: Mapping[str, Sequence[tuple[int, float]]]) -> str | None:
        """Why the finished run counts as collapsed, or None. `scalars`: figure -> its (step, value) in order,
        as the run's record has them, so that a resumed run is judged by the whole of its history.
        """
        return collapsed({name: [v for _, v in rows] for name, rows in scalars.items()}, self.collapse)

    configure_optimizers = configure_optimizers

    def _drawn(self, micro: MicroBatch) -> tuple[Batch, Tensor, Figures]:
        """Responses of the policy as it is, their rewards (B, k) as the annotator gives them, and figures."""
        groups = self.sampler.sample(self.policy, micro.groups, stable_seed(self.seed, micro.plan.epoch))
        rewards = rewards_of(self.annotator, groups)  # (B, k)
        batch = collate(groups, self.policy.processor, max_length=self.max_length).to(self.device)
        return batch, rewards.to(self.device), drawn_figures(groups, rewards, batch)

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """log pi (B, k, R) and, with a value head, values (B, k, R), 0 at padding; with gradient."""
        if not self.estimator.has_values:
            return response_logprobs(self.model, batch), None
        logprobs, states = logprobs_and_states(self.model, batch)
        values = read(self.policy, VALUE_HEAD, states)  # (B, k, R)
        return logprobs, values * batch.response_mask

    def _rollout(self, batch: Batch, rewards: Tensor, logprobs: Tensor, values: Tensor | None) -> Rollout:
        with reference(self.policy) as model:
            frozen = response_logprobs(model, batch)
        drawing = Drawing(
            scores=normalise(rewards, self.statistics["mean"], self.statistics["std"]),
            mask=batch.response_mask,
            logprobs=logprobs.detach(),
            reference=frozen,
            values=None if values is None else values.detach(),
        )
        return Rollout(batch, drawing, self.estimator.targets(drawing))


# --- rewards -----------------------------------------------------------------------------------------------


def rewards_of(annotator: Annotator, groups: Sequence[Group]) -> Tensor:
    """The annotator's score of every response: (B, k) float32 on the CPU.

    Raises ValueError for Groups of different size, and for a score that is no number.
    """
    sizes = {len(group.responses) for group in groups}
    if len(sizes) > 1:
        raise ValueError(f"prompts have {sorted(sizes)} responses; the sampler must draw as many for each")
    judgements = annotator.judge(groups)
    check_finite(groups, judgements)
    return torch.tensor([judgement.scores for judgement in judgements], dtype=torch.float32)


def reward_statistics(annotator: Annotator, groups: Sequence[Group]) -> dict[str, float]:
    """Mean and (population) standard deviation of the annotator's score over all responses of the Groups.

    The paper computes them on the alignment set before training (arXiv 2407.02477, 5.5). Raises ValueError
    where all responses score the same: nothing could be learned from such an annotator.
    """
    scores = [score for judgement in annotator.judge(groups) for score in judgement.scores]
    mean = math.fsum(scores) / max(len(scores), 1)
    variance = math.fsum((score - mean) ** 2 for score in scores) / max(len(scores), 1)
    return checked({"mean": mean, "std": math.sqrt(variance)})


def checked(statistics: Mapping[str, float]) -> dict[str, float]:
    """The statistics themselves. Raises ValueError unless rewards can be normalised with them."""
    mean, std = statistics["mean"], statistics["std"]
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(
            f"reward statistics have mean {mean} and standard deviation {std}; the annotator must tell the "
            "responses of the alignment set apart: take another annotator or more examples"
        )
    return {"mean": mean, "std": std}


# --- figures -----------------------------------------------------------------------------------------------


def drawn_figures(groups: Sequence[Group], rewards: Tensor, batch: Batch) -> Figures:
    """What the drawn responses are like, and what the oracle says of those whose scene is known."""
    truth = OracleAnnotator().judge([g for g in groups if knows(g.example)])
    scores = [score for judgement in truth for score in judgement.scores]
    return {
        "reward": figure(rewards),
        "reward_std": counted(torch.std(rewards, correction=0).item(), 1),
        "response_tokens": figure(batch.response_mask.sum(-1)),
        "distinct_2": distinct(batch.response_ids, batch.response_mask),
        "oracle_score": counted(sum(scores), len(scores)),
    }


def distinct(ids: Tensor, mask: Tensor) -> Tensor:
    """Different pairs of neighbouring tokens, and all of them: distinct-2 over all responses (Li et al. 2016,
    arXiv 1510.03055). (B, k, R) -> (2,)
    """
    first, second, here = ids[..., :-1], ids[..., 1:], mask[..., 1:]
    pairs = torch.stack([first[here], second[here]], dim=-1)
    return counted(len(pairs.unique(dim=0)) if len(pairs) else 0, len(pairs))


def policy_figures(drawing: Drawing) -> Figures:
    """KL estimates a response and entropy a token, from the policy's own draws."""
    log_ratio = k1(drawing.logprobs, drawing.reference).sum(-1)  # (B, k)
    return {
        "kl": figure(k3(drawing.logprobs, drawing.reference).sum(-1)),
        "kl_policy": figure(log_ratio),
        "entropy": figure(-drawing.logprobs[drawing.mask]),
    }

"""Online alignment: the Groups of a step are drawn from the current policy and annotated inside the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mllm_align.annotators.agreement import compare
from mllm_align.annotators.base import Annotator
from mllm_align.annotators.oracle import OracleAnnotator, knows
from mllm_align.compute.packing import Batch, TokenWeights, check_prompts, collate
from mllm_align.models.load import Policy
from mllm_align.modules.batches import MicroBatch
from mllm_align.modules.draws import Draw, Drawn, Sampler, sampled, used_only
from mllm_align.modules.figures import Figures, counted, figure
from mllm_align.modules.objective import Loss, log_ratio
from mllm_align.modules.optimise import Optimise, configure_optimizers
from mllm_align.modules.order import stable_seed
from mllm_align.modules.preference import checked_reduction, train_on
from mllm_align.modules.reference import frozen_logprobs
from mllm_align.records import Group


class OnlinePreferenceModule(pl.LightningModule):
    """Any loss of a pair's log-probabilities on Groups drawn inside the step.

    A prompt that comes again in a later epoch is drawn anew: the seed of its draws is (seed, epoch). Ties
    are counted and take no part in the loss; a step of nothing but ties has loss 0 and gradient 0. `extend`
    adds responses and preferences to what was drawn. With `reference_free` the loss gets None in the places
    of the reference's log-probabilities.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        sampler: Sampler,
        annotator: Annotator | None,
        seed: int,
        loss: Loss,
        optimise: Optimise,
        logprobs: str = "sum",
        token_weights: TokenWeights | None = None,
        max_length: int | None = None,
        draw: Draw = sampled,
        extend: Callable[[Group], Group] | None = None,
        reference_free: bool = False,
    ) -> None:
        super().__init__()
        self.model = policy.model
        self.policy, self.sampler, self.annotator, self.draw = policy, sampler, annotator, draw
        self.seed, self.loss, self.optimise = seed, loss, optimise
        self.logprobs, self.token_weights = checked_reduction(logprobs), token_weights
        self.extend, self.reference_free = extend, reference_free
        self.max_length = max_length

    # The responses are not known before the step, so the loader has nothing to collate.
    collate = None

    def check(self, groups: Sequence[Group]) -> None:
        """A prompt is all that is needed. Raises ValueError for one that is too long (`check_prompts`)."""
        check_prompts([group.example for group in groups], self.policy.processor, self.max_length)

    def training_step(self, micro: MicroBatch, batch_idx: int) -> dict[str, Any]:
        seed = stable_seed(self.seed, micro.plan.epoch)
        drawn = self.draw(self.policy, micro.groups, seed, self.sampler, self.annotator)
        figures = drawing_figures(drawn)
        decided = [used_only(g) for g in drawn.groups if g.preferences]
        if not decided:
            return {"loss": nothing(self.model), "figures": figures}
        batch = self._collated(decided)
        reference = None if self.reference_free else frozen_logprobs(self.policy, batch)  # (G, K, R)
        step, policy = train_on(self, micro, batch, reference)
        figures |= step["figures"]
        if reference is not None:
            figures["kl_policy"] = figure(log_ratio(policy, reference, batch.pairs))
        return {"loss": step["loss"], "figures": figures}

    def _collated(self, groups: Sequence[Group]) -> Batch:
        groups = [self.extend(group) for group in groups] if self.extend else groups
        batch = collate(
            groups,
            self.policy.processor,
            max_length=self.max_length,
            token_weights=self.token_weights,
        )
        return batch.to(self.device)

    configure_optimizers = configure_optimizers


def nothing(model: torch.nn.Module) -> Tensor:
    """A loss of 0 whose gradient is 0 for every trained parameter."""
    return torch.stack([p.flatten()[0] for p in model.parameters() if p.requires_grad]).sum() * 0


def drawing_figures(drawn: Drawn) -> Figures:
    """Ties, agreement with the oracle and position bias of what a step drew, where they are known.

    A tie is a Group of the sampler's in which nothing is preferred: an annotator saw no difference, or a sampler of
    rejected responses came back with the reference itself.
    """
    made = [group for group in drawn.made if group is not None]
    compared = [c for j in drawn.judgements if j is not None for c in j.comparisons]
    comparisons = [c for c in compared if c.unit != "undecided"]
    lengths = [len(r.token_ids) for g in made for r in g.responses if r.token_ids is not None]
    return {
        "ties": counted(sum(not g.preferences for g in made), len(made)),
        "conflicting": counted(sum(c.conflicting for c in comparisons), len(comparisons)),
        "response_tokens": counted(sum(lengths), len(lengths)),
        **_oracle_figures([g for g in made if knows(g.example)]),
    }


def _oracle_figures(groups: list[Group]) -> Figures:
    """What the exact oracle says of the drawn responses and of the annotator's preferences among them."""
    truth = OracleAnnotator().judge(groups)
    found = compare(groups, truth)  # the oracle's accuracy on the annotator's pairs = their agreement
    decided = found.pairs - found.ties
    scores = [s for judgement in truth for s in judgement.scores]
    return {
        "agreement": counted(found.accuracy * decided if decided else 0.0, decided),
        "oracle_score": counted(sum(scores), len(scores)),
    }

"""Online alignment: the Groups of a step are drawn from the current policy and annotated inside the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor

from mllm_align.annotators.agreement import compare
from mllm_align.annotators.base import Annotator, Judgement
from mllm_align.annotators.oracle import OracleAnnotator, knows
from mllm_align.compute.packing import collate
from mllm_align.models.load import Policy
from mllm_align.modules.batches import MicroBatch
from mllm_align.modules.figures import Figures, counted, figure
from mllm_align.modules.objective import Loss, log_ratio
from mllm_align.modules.optimise import Optimise
from mllm_align.modules.order import stable_seed
from mllm_align.modules.preference import checked_reduction, train_on
from mllm_align.modules.reference import frozen_sums
from mllm_align.records import Example, Group, Preference


class Sampler(Protocol):
    """Anything that draws responses; see samplers/policy.py."""

    def sample(self, policy: Policy, examples: Sequence[Example], seed: int) -> list[Group]: ...


@dataclass(frozen=True)
class Drawn:
    """The Groups of a step, one a prompt, in order; without preferences where the annotator saw a tie.

    `judgements` has one entry a Group, None for a Group that nobody judged (a pair taken from the dataset).
    """

    groups: list[Group]
    judgements: list[Judgement | None]


# draw(policy, groups of the dataset, seed, sampler, annotator) -> Drawn.
Draw = Callable[[Policy, Sequence[Group], int, Sampler, Annotator], Drawn]


def online(
    policy: Policy, groups: Sequence[Group], seed: int, sampler: Sampler, annotator: Annotator
) -> Drawn:
    """Every prompt anew: Online-DPO (arXiv 2407.02477, 2.3). The dataset's own responses are not looked at.

    A method that mixes (Eq. 4) is another function with these arguments.
    """
    drawn = sampler.sample(policy, [g.example for g in groups], seed)
    judgements = annotator.judge(drawn)
    return Drawn(annotator.prefer(drawn, judgements), list(judgements))


class OnlinePreferenceModule(pl.LightningModule):
    """Any loss of four log-probabilities on Groups drawn inside the step.

    A prompt that comes again in a later epoch is drawn anew: the seed of its draws is (seed, epoch). Ties
    are counted and take no part in the loss; a step of nothing but ties has loss 0 and gradient 0.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        sampler: Sampler,
        annotator: Annotator,
        seed: int,
        loss: Loss,
        optimise: Optimise,
        logprobs: str = "sum",
        max_length: int | None = None,
        draw: Draw = online,
    ) -> None:
        super().__init__()
        self.model = policy.model
        self.policy, self.sampler, self.annotator, self.draw = policy, sampler, annotator, draw
        self.seed, self.loss, self.optimise = seed, loss, optimise
        self.logprobs = checked_reduction(logprobs)
        self.max_length = max_length

    # The responses are not known before the step, so the loader has nothing to collate.
    collate = None

    def check(self, groups: Sequence[Group]) -> None:
        """Any Group has a prompt, and that is all that is needed."""

    def training_step(self, micro: MicroBatch, batch_idx: int) -> dict[str, Any]:
        seed = stable_seed(self.seed, micro.plan.epoch)
        drawn = self.draw(self.policy, micro.groups, seed, self.sampler, self.annotator)
        figures = drawing_figures(drawn)
        decided = [used_only(g) for g in drawn.groups if g.preferences]
        if not decided:
            return {"loss": nothing(self.model), "figures": figures}
        batch = collate(decided, self.policy.processor, max_length=self.max_length).to(self.device)
        ref_sums = frozen_sums(self.policy, batch)  # (B, k)
        step, policy_sums = train_on(self, micro, batch, ref_sums)
        figures |= step["figures"]
        figures["kl_policy"] = figure(log_ratio(policy_sums, ref_sums, batch.pairs))
        return {"loss": step["loss"], "figures": figures}

    def configure_optimizers(self) -> Any:
        trainer: Any = self.trainer
        return self.optimise.configure(self.policy, trainer.datamodule.total_steps)


def nothing(model: torch.nn.Module) -> Tensor:
    """A loss of 0 whose gradient is 0 for every trained parameter."""
    return torch.stack([p.flatten()[0] for p in model.parameters() if p.requires_grad]).sum() * 0


def used_only(group: Group) -> Group:
    """The Group with only the responses that are in a preference: no other needs a forward pass."""
    kept = sorted({i for p in group.preferences for i in (p.chosen, p.rejected)})
    place = {old: new for new, old in enumerate(kept)}
    return replace(
        group,
        responses=tuple(group.responses[i] for i in kept),
        preferences=tuple(
            Preference(place[p.chosen], place[p.rejected], p.weight) for p in group.preferences
        ),
    )


def drawing_figures(drawn: Drawn) -> Figures:
    """Ties, agreement with the oracle and position bias of what a step drew, where they are known."""
    judged = [(g, j) for g, j in zip(drawn.groups, drawn.judgements, strict=True) if j is not None]
    comparisons = [c for _, j in judged for c in j.comparisons]
    lengths = [len(r.token_ids) for g, _ in judged for r in g.responses if r.token_ids is not None]
    return {
        "ties": counted(sum(not g.preferences for g, _ in judged), len(judged)),
        "conflicting": counted(sum(c.conflicting for c in comparisons), len(comparisons)),
        "response_tokens": counted(sum(lengths), len(lengths)),
        **_oracle_figures([g for g, _ in judged if knows(g.example)]),
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

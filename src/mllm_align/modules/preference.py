"""Offline alignment: preference pairs and their reference log-probabilities are given before training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mllm_align.compute.logprobs import response_logprobs
from mllm_align.compute.packing import Batch, TokenWeights, by_group, collate
from mllm_align.models.load import Policy
from mllm_align.modules.batches import Collate, MicroBatch
from mllm_align.modules.figures import Figures, counted, figure
from mllm_align.modules.objective import LOGPROBS, Loss, objective
from mllm_align.modules.optimise import Optimise, configure_optimizers
from mllm_align.modules.reference import Table, check_table, look_up
from mllm_align.records import Group


class PreferenceModule(pl.LightningModule):
    """Any loss of a pair's log-probabilities on Groups with preferences: DPO, IPO, SLiC, SimPO, mDPO, ...

    Without `reference` the loss gets None in the places of the reference's log-probabilities.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        loss: Loss,
        optimise: Optimise,
        reference: Table | None = None,
        logprobs: str = "sum",
        token_weights: TokenWeights | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.model = policy.model
        self.policy, self.reference, self.loss, self.optimise = policy, reference, loss, optimise
        self.logprobs, self.token_weights = checked_reduction(logprobs), token_weights
        self.max_length = max_length

    def check(self, groups: Sequence[Group]) -> None:
        """Raises ValueError, before training, for a Group that could not be trained on."""
        check_preferred(groups)
        if self.reference is not None:
            check_table(self.reference, groups)

    @property
    def collate(self) -> Collate | None:
        """What the loader makes of Groups, in its workers where it has some."""
        return partial(
            collate,
            processor=self.policy.processor,
            max_length=self.max_length,
            token_weights=self.token_weights,
        )

    def training_step(self, micro: MicroBatch, batch_idx: int) -> dict[str, Any]:
        batch = micro.batch
        assert batch is not None
        reference = None if self.reference is None else look_up(self.reference, batch)
        return train_on(self, micro, batch, reference)[0]

    configure_optimizers = configure_optimizers


def check_preferred(groups: Sequence[Group]) -> None:
    """Raises ValueError naming the first Group without a preference."""
    for group in groups:
        if not group.preferences:
            raise ValueError(
                f"example {group.example.id!r} has no preference among its responses; training on given pairs needs "
                "one a group: annotate the set, or leave out its ties"
            )


def train_on(
    module: Any, micro: MicroBatch, batch: Batch, reference: Tensor | None
) -> tuple[dict[str, Any], Tensor]:
    """One forward of the policy. -> (what Lightning wants of `training_step`, the policy's tokens (G, K, R))"""
    policy = by_group(batch, response_logprobs(module.model, batch))  # (G, K, R)
    mask = by_group(batch, batch.response_mask)
    total, figures = objective(
        policy,
        reference,
        mask,
        batch.pairs,
        batch.pair_weights,
        module.loss,
        module.logprobs,
        batch.token_weights,
    )
    figures |= batch_figures(batch)
    return {"loss": finite(total * micro.plan.scale, micro), "figures": figures}, policy


def batch_figures(batch: Batch) -> Figures:
    """Tokens of the packed rows, images included; and the share of cut responses, if there are any."""
    figures = {"tokens": figure(batch.prompt_mask.sum() + batch.response_mask.sum())}
    if batch.truncated:
        figures["truncated"] = counted(batch.truncated, int(batch.response_mask.any(-1).sum()))
    return figures


class NonFiniteLoss(ArithmeticError):
    """The loss of a step is NaN or infinite; nothing that is trained after it would be worth keeping."""


def finite(loss: Tensor, micro: MicroBatch) -> Tensor:
    """The loss itself. Raises NonFiniteLoss, naming the step and its examples."""
    if not torch.isfinite(loss):
        ids = ", ".join(g.example.id for g in micro.groups)
        raise NonFiniteLoss(
            f"the loss is {loss.item()} at step {micro.plan.step}, epoch {micro.plan.epoch}, on examples "
            f"{ids}; lower the learning rate or beta, or look at these examples"
        )
    return loss


def checked_reduction(logprobs: str) -> str:
    """The name itself. Raises ValueError for one that is not in LOGPROBS."""
    if logprobs not in LOGPROBS:
        raise ValueError(f"logprobs is {logprobs!r}; it must be one of {', '.join(LOGPROBS)}")
    return logprobs

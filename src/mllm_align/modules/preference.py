"""Offline alignment: preference pairs and their reference log-probabilities are given before training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mllm_align.compute.logprobs import response_logprobs
from mllm_align.compute.packing import Batch, collate
from mllm_align.models.load import Policy
from mllm_align.modules.batches import Collate, MicroBatch
from mllm_align.modules.figures import Figures, counted, figure
from mllm_align.modules.objective import LOGPROBS, Loss, objective
from mllm_align.modules.optimise import Optimise
from mllm_align.modules.reference import Table, check_table, look_up
from mllm_align.records import Group


class PreferenceModule(pl.LightningModule):
    """Any loss of four log-probabilities on Groups with preferences: DPO, IPO, SLiC, averaged DPO."""

    def __init__(
        self,
        policy: Policy,
        *,
        reference: Table,
        loss: Loss,
        optimise: Optimise,
        logprobs: str = "sum",
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.model = policy.model
        self.policy, self.reference, self.loss, self.optimise = policy, reference, loss, optimise
        self.logprobs = checked_reduction(logprobs)
        self.max_length = max_length

    def check(self, groups: Sequence[Group]) -> None:
        """Raises ValueError, before training, for a Group that could not be trained on."""
        for group in groups:
            if not group.preferences:
                raise ValueError(
                    f"example {group.example.id!r} has no preference among its responses; an offline method "
                    "needs one a group: annotate the set, or leave out its ties"
                )
        check_table(self.reference, groups)

    @property
    def collate(self) -> Collate | None:
        """What the loader makes of Groups, in its workers where it has some."""
        return partial(collate, processor=self.policy.processor, max_length=self.max_length)

    def training_step(self, micro: MicroBatch, batch_idx: int) -> dict[str, Any]:
        batch = micro.batch
        assert batch is not None
        return train_on(self, micro, batch, look_up(self.reference, batch))[0]

    def configure_optimizers(self) -> Any:
        trainer: Any = self.trainer
        return self.optimise.configure(self.policy, trainer.datamodule.total_steps)


def train_on(module: Any, micro: MicroBatch, batch: Batch, ref_sums: Tensor) -> tuple[dict[str, Any], Tensor]:
    """One forward of the policy. -> (what Lightning wants of `training_step`, policy sums (B, k))"""
    policy_sums = response_logprobs(module.model, batch).sum(-1)  # (B, k)
    lengths = batch.response_mask.sum(-1)  # (B, k)
    total, figures = objective(
        policy_sums, ref_sums, lengths, batch.pairs, batch.pair_weights, module.loss, module.logprobs
    )
    figures |= batch_figures(batch)
    return {"loss": finite(total * micro.plan.scale, micro), "figures": figures}, policy_sums


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


__all__ = ["Figures", "NonFiniteLoss", "PreferenceModule"]

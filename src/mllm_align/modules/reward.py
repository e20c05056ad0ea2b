"""Reward models: a scalar head on the policy's backbone, trained on pairs; section 2.1 of arXiv 2407.02477."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from mllm_align.compute.packing import Batch, collate
from mllm_align.models.heads import REWARD_HEAD, add_head, rewards, save_head
from mllm_align.models.load import Policy
from mllm_align.modules.batches import Collate, MicroBatch
from mllm_align.modules.figures import Figures, figure
from mllm_align.modules.optimise import Optimise, configure_optimizers
from mllm_align.modules.preference import batch_figures, check_preferred, finite
from mllm_align.records import Group


class RewardModule(pl.LightningModule):
    """-log sigmoid(r(x, y+) - r(x, y-)) on a linear head over the state at a response's last token.

    The loss of Bradley and Terry's model, as in Ouyang et al. 2022 (arXiv 2203.02155, Eq. 1). Adapter, projector
    and head are trained together; `save_beside` puts the head into the adapter's folder.
    """

    def __init__(
        self, policy: Policy, *, seed: int, optimise: Optimise, max_length: int | None = None
    ) -> None:
        super().__init__()
        self.policy = add_head(policy, REWARD_HEAD, seed)
        self.model = policy.model
        self.optimise, self.max_length = optimise, max_length

    def check(self, groups: Sequence[Group]) -> None:
        """Raises ValueError, before training, for a Group without a preference."""
        check_preferred(groups)

    @property
    def collate(self) -> Collate | None:
        """What the loader makes of Groups, in its workers where it has some."""
        return partial(collate, processor=self.policy.processor, max_length=self.max_length)

    def training_step(self, micro: MicroBatch, batch_idx: int) -> dict[str, Any]:
        batch = micro.batch
        assert batch is not None
        total, figures = pairwise(rewards(self.policy, batch), batch)
        figures |= batch_figures(batch)
        return {"loss": finite(total * micro.plan.scale, micro), "figures": figures}

    configure_optimizers = configure_optimizers

    def save_beside(self, folder: Path) -> None:
        """Write the head into the adapter's folder; `fit` calls it."""
        save_head(self.policy, REWARD_HEAD, folder)


def pairwise(values: Tensor, batch: Batch) -> tuple[Tensor, Figures]:
    """Rewards (G, K) -> the weighted sum over pairs of -log sigmoid(r+ - r-), and figures over pairs."""
    group, chosen, rejected = batch.pairs.unbind(-1)
    better, worse = values[group, chosen], values[group, rejected]  # (n,)
    losses = -F.logsigmoid(better - worse)
    figures = {
        "loss": figure(losses),
        "margin": figure(better - worse),
        "accuracy": figure(better > worse),
        "reward_chosen": figure(better),
        "reward_rejected": figure(worse),
    }
    return torch.sum(batch.pair_weights * losses), figures

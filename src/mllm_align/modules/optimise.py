"""What turns gradients into steps: the same for every module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mllm_align.models.load import Policy, parameter_groups
from mllm_align.modules.schedule import constant


@dataclass(frozen=True)
class Optimise:
    """AdamW: LoRA with `lr`, the projector with `projector_lr` (arXiv 2407.02477, Appendix A).

    `schedule` is called as schedule(step, total) and gives the factor of both learning rates.
    """

    lr: float
    projector_lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Callable[[int, int], float] = constant

    def configure(self, policy: Policy, total_steps: int) -> dict[str, Any]:
        """Optimiser and scheduler in the form that Lightning asks of `configure_optimizers`."""
        groups = parameter_groups(policy, self.lr, self.projector_lr, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=(self.betas[0], self.betas[1]))
        factor = partial(_factor, self.schedule, total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def configure_optimizers(module: Any) -> Any:
    """The `configure_optimizers` of a Lightning module that has a `policy` and an `optimise`."""
    return module.optimise.configure(module.policy, module.trainer.datamodule.total_steps)


def _factor(schedule: Callable[[int, int], float], total: int, step: int) -> float:
    return schedule(step, total)

"""Adapters of models as training leaves them, without the training: LoRA and projector moved by noise."""

from __future__ import annotations

from pathlib import Path

import torch

from mllm_align.models.load import add_lora, load_policy
from mllm_align.modules.fit import save_adapter


def make_adapter(base: str | Path, folder: Path, noise: float = 0.1) -> Path:
    """A PEFT folder whose LoRA and projector both change what the model says."""
    policy = add_lora(load_policy(base), r=4, alpha=8)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += noise * torch.randn(parameter.shape, generator=draws)
    return save_adapter(policy.model, folder)

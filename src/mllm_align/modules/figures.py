"""Figures of a training step: sums and counts, so that micro-batches add up to exact means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# Name -> (2,) float64 tensor [sum, count] on the CPU or the accelerator.
Figures = dict[str, Tensor]


def figure(values: Tensor) -> Tensor:
    """Sum and count of the values. (any shape) -> (2,)"""
    values = values.detach().double()
    return torch.stack([values.sum(), values.new_tensor(float(values.numel()))])


def counted(total: float, count: float) -> Tensor:
    """The same for a sum and a count that are known already. -> (2,)"""
    return torch.tensor([total, count], dtype=torch.float64)


def merge(parts: Iterable[Mapping[str, Tensor]]) -> Figures:
    """The figures of several micro-batches as one; a figure may be missing in some of them."""
    merged: Figures = {}
    for part in parts:
        for name, value in part.items():
            merged[name] = merged[name] + value if name in merged else value
    return merged


def means(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Name -> mean; a figure with nothing counted is left out. One transfer from the accelerator."""
    if not figures:
        return {}
    rows = torch.stack([value.cpu() for value in figures.values()]).tolist()
    return {name: total / count for name, (total, count) in zip(figures, rows, strict=True) if count}

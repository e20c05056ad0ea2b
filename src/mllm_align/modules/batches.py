"""What the loader hands to a module: the Groups of one micro-batch, collated where the module wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mllm_align.compute.packing import Batch
from mllm_align.modules.order import MicroPlan
from mllm_align.records import Group

# Groups -> Batch; None for a module that draws its responses inside the step.
Collate = Callable[[Sequence[Group]], Batch]


class MicroBatch:
    """The Groups of one micro-batch, their tensors if they were collated, and their place in the run.

    Not a dataclass: Lightning walks into dataclasses to convert their tensors, and refuses frozen ones.
    """

    __slots__ = ("batch", "groups", "plan")

    def __init__(self, groups: tuple[Group, ...], plan: MicroPlan, batch: Batch | None) -> None:
        self.groups = groups
        self.plan = plan
        self.batch = batch

    def to(self, device: torch.device) -> MicroBatch:
        return self if self.batch is None else MicroBatch(self.groups, self.plan, self.batch.to(device))


@dataclass(frozen=True)
class MicroBatches(Dataset):
    """The micro-batches of (the rest of) an epoch, by number."""

    data: Sequence[Group]
    plans: Sequence[MicroPlan]
    collate: Collate | None

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, number: int) -> MicroBatch:
        plan = self.plans[number]
        groups = tuple(self.data[i] for i in plan.indices)
        return MicroBatch(groups, plan, self.collate(groups) if self.collate else None)


def loader(
    data: Sequence[Group], plans: Sequence[MicroPlan], collate: Collate | None, workers: int
) -> DataLoader:
    """In the order of `plans`, whatever the number of worker processes."""
    return DataLoader(
        MicroBatches(data, plans, collate), batch_size=None, collate_fn=_as_it_is, num_workers=workers
    )


def _as_it_is(batch: Any) -> Any:
    return batch

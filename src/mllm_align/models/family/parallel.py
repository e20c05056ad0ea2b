"""Data-parallel training on CPU cores: one process with one thread a core, gradients averaged once a step.

Small models lose more to thread barriers than to this, most of all on a busy machine. The gradients meet in shared
memory, which costs milliseconds where a network backend on the loopback device costs a tenth of a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

CAPACITY = 8_000_000  # gradient values a process may bring
PATIENCE = 600.0  # seconds to wait for the others


@dataclass(frozen=True)
class Team:
    """This process's number, how many there are, and where gradients meet: (world, CAPACITY) and a barrier."""

    rank: int = 0
    world: int = 1
    table: torch.Tensor | None = None
    barrier: Any = None

    def average(self, parameters: Sequence[torch.Tensor]) -> None:
        """Replaces each gradient by its mean over the processes."""
        if self.table is None:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        sizes = [g.numel() for g in gradients]
        meeting = self.table[:, : sum(sizes)]
        torch.cat([g.flatten() for g in gradients], out=meeting[self.rank])
        self.barrier.wait(PATIENCE)
        mean = meeting.mean(0)
        self.barrier.wait(PATIENCE)  # nobody writes the next step's before all have read
        for gradient, part in zip(gradients, mean.split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))


def _entry(
    rank: int, world: int, table: torch.Tensor, barrier: Any, job: Callable[..., None], arguments: tuple
) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # some kernels pack busy processes on one core
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    job(Team(rank, world, table, barrier), *arguments)


ALONE = Team()


def run(job: Callable[..., None], world: int, *arguments: Any) -> None:
    """Runs `job(team, *arguments)` in `world` processes (in this one if it is 1) and waits."""
    if world == 1:
        job(Team(), *arguments)
        return
    table = torch.zeros(world, CAPACITY).share_memory_()
    barrier = torch.multiprocessing.get_context("spawn").Barrier(world)
    torch.multiprocessing.spawn(_entry, (world, table, barrier, job, arguments), nprocs=world)

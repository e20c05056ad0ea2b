"""Which examples a step trains on: a pure function of (seed, epoch, step), so a resume needs no loader state.

An optimiser step takes `batch_size * accumulate` Groups, in `accumulate` micro-batches; the last step of an
epoch may be smaller. The loss of a step is its sum divided by the number of its Groups, however they are
cut into micro-batches.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """The order of a whole run over `size` Groups."""

    size: int
    batch_size: int
    accumulate: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("size", "batch_size", "accumulate", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; training needs at least 1")

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.size / (self.batch_size * self.accumulate))

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def micro_batches(self, epoch: int, first_step: int = 0) -> list[MicroPlan]:
        """The micro-batches of an epoch from its step `first_step` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size).tolist()
        width = self.batch_size * self.accumulate
        steps = [order[i : i + width] for i in range(0, self.size, width)]
        return [
            MicroPlan(
                tuple(part), epoch, epoch * self.steps_per_epoch + n + 1, i, self.accumulate / len(step)
            )
            for n, step in enumerate(steps[first_step:], start=first_step)
            for i, part in enumerate(_cut(step, self.batch_size))
        ]


@dataclass(frozen=True)
class MicroPlan:
    """Indices into the data; the epoch (from 0), the optimiser step of the run (from 1) and the place in
    that step.

    `scale` times the sum of the losses is what `training_step` returns: Lightning divides it by
    `accumulate`, and the micro-batches of a step then add up to the sum over the step's Groups divided by
    their number.
    """

    indices: tuple[int, ...]
    epoch: int
    step: int
    part: int
    scale: float


def stable_seed(*parts: object) -> int:
    """A seed below 2^63 that depends on the parts alone, in every process and on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _cut(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]

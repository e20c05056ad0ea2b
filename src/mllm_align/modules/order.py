"""Which examples a step trains on: a pure function of (seed, epoch, step), so a resume needs no loader state.

An optimiser step takes `batch_size * accumulate` Groups, in `accumulate` micro-batches; the last step of an
epoch may be smaller. The loss of a step is its sum divided by the number of its Groups, however they are
cut into micro-batches.

With `repeats` the Groups of a step come again in the steps right after it: a method that draws responses
uses what it drew several times.
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
    repeats: int = 1

    def __post_init__(self) -> None:
        for name in ("size", "batch_size", "accumulate", "epochs", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; training needs at least 1")

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.size / (self.batch_size * self.accumulate)) * self.repeats

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def micro_batches(self, epoch: int, first_step: int = 0) -> list[MicroPlan]:
        """The micro-batches of an epoch from its step `first_step` on.

        With repeats, a smaller last step has `accumulate` micro-batches too, empty ones at its end: Lightning
        counts them through, and the repeats of a step must not run into each other.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size).tolist()
        width = self.batch_size * self.accumulate
        steps = [order[i : i + width] for i in range(0, self.size, width) for _ in range(self.repeats)]
        first = epoch * self.steps_per_epoch + 1
        return [
            MicroPlan(tuple(part), epoch, first + n, i, self.accumulate / len(step), n % self.repeats)
            for n, step in enumerate(steps[first_step:], start=first_step)
            for i, part in enumerate(self._parts(step))
        ]

    def _parts(self, step: Sequence[int]) -> list[Sequence[int]]:
        parts = _cut(step, self.batch_size)
        return parts if self.repeats == 1 else [*parts, *[()] * (self.accumulate - len(parts))]

    def whole(self, step: int) -> bool:
        """Whether what the step draws is used up after it, so that a run can be resumed there."""
        return step % self.repeats == 0


@dataclass(frozen=True)
class MicroPlan:
    """Indices into the data; the epoch (from 0), the optimiser step of the run (from 1), the place in that
    step, and how often its Groups have come before in the steps just before it.

    `scale` times the sum of the losses is what `training_step` returns: Lightning divides it by
    `accumulate`, and the micro-batches of a step then add up to the sum over the step's Groups divided by
    their number. With scale 0 the micro-batch counts for nothing (`parallel.share`).
    """

    indices: tuple[int, ...]
    epoch: int
    step: int
    part: int
    scale: float
    repeat: int = 0


def stable_seed(*parts: object) -> int:
    """A seed below 2^63 that depends on the parts alone, in every process and on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _cut(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]

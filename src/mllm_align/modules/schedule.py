"""Learning-rate schedules: pure functions (step, total) -> factor of the peak learning rate.

`step` counts from 0; `total` is the number of optimiser steps of the run; `warmup` is the share of them
over which the factor rises linearly to 1 (rounded up to whole steps, and never 0 at the first step).
"""

from __future__ import annotations

import math


def constant(step: int, total: int, *, warmup: float = 0.0) -> float:
    """1 after the warm-up."""
    return _rise(step, total, warmup)


def linear(step: int, total: int, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """Falls from 1 after the warm-up to `floor` at the end of the run."""
    return min(_rise(step, total, warmup), 1 - (1 - floor) * _done(step, total, warmup))


def cosine(step: int, total: int, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """Falls along half a cosine from 1 after the warm-up to `floor` at the end of the run."""
    fall = floor + (1 - floor) * (1 + math.cos(math.pi * _done(step, total, warmup))) / 2
    return min(_rise(step, total, warmup), fall)


def _warm_steps(total: int, warmup: float) -> int:
    return math.ceil(warmup * total)


def _rise(step: int, total: int, warmup: float) -> float:
    steps = _warm_steps(total, warmup)
    return min(1.0, (step + 1) / steps) if steps else 1.0


def _done(step: int, total: int, warmup: float) -> float:
    """Share of the steps after the warm-up that are done: 0 to 1."""
    steps = _warm_steps(total, warmup)
    return min(1.0, max(0, step - steps) / max(1, total - steps))

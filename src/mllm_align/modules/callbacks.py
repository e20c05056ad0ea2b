"""What happens around the steps of a run: seeding, scalars, checkpoints."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from mllm_align.modules import checkpoint, parallel
from mllm_align.modules.batches import MicroBatch
from mllm_align.modules.figures import Figures, means, merge
from mllm_align.modules.order import Plan, stable_seed

# scalars(step, {name: value}): step counts optimiser steps of the run from 1.
Scalars = Callable[[int, dict[str, float]], None]
# Parameter groups of models.load.parameter_groups whose rates are told; those without decay have the same.
RATES = {"adapter": "lr", "projector": "projector_lr"}


class SeedEachStep(pl.Callback):
    """Dropout of a micro-batch depends on (seed, step, part) alone, so a resumed run repeats it; every process but the
    first has draws of its own.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: MicroBatch, batch_idx: int) -> None:
        own = [parallel.rank()] if parallel.rank() else []
        torch.manual_seed(stable_seed(self.seed, batch.plan.step, batch.plan.part, *own))


class StepScalars(pl.Callback):
    """Tells of every optimiser step: figures, learning rates, gradient norm before clipping, speed."""

    def __init__(self, plan: Plan, *listeners: Scalars) -> None:
        self.plan, self.listeners = plan, listeners
        self.parts: list[Figures] = []
        self.rates: dict[str, float] = {}
        self.norm: float | None = None
        self.since = 0.0  # when the step before ended, so that waiting for data counts

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.since = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        # Before clipping, and before the scheduler moves on: the rates this step is taken with.
        self.rates = {RATES[g["name"]]: g["lr"] for g in optimizer.param_groups if g["name"] in RATES}
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        self.norm = _norm(gradients) if gradients else None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: MicroBatch, batch_idx: int
    ) -> None:
        self.parts += [outputs["figures"]] if batch.plan.scale else []
        if not stepped(trainer, batch_idx):
            return
        figures = parallel.together(merge(self.parts))
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        processed = figures.pop("tokens", None)
        # DeepSpeed keeps the gradients to itself, and knows their norm after the step.
        norm = float(trainer.model.get_global_grad_norm()) if self.norm is None else self.norm
        values = means(figures) | self.rates | {"grad_norm": norm}
        values["epoch"] = batch.plan.step / self.plan.steps_per_epoch
        values["tokens_per_second"] = 0.0 if processed is None else processed[0].item() / seconds
        for listener in self.listeners:
            listener(batch.plan.step, values)
        self.parts = []


def _norm(gradients: list[torch.Tensor]) -> float:
    norms = [parallel.whole(norm) for norm in torch._foreach_norm(gradients)]
    return torch.linalg.vector_norm(torch.stack(norms)).item()


class StopTogether(pl.Callback):
    """A module that cannot go on in one process ends the training in all of them; the others would wait for it."""

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: MicroBatch, batch_idx: int
    ) -> None:
        if parallel.connected() and stepped(trainer, batch_idx):
            trainer.should_stop = trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False)


class Checkpoints(pl.Callback):
    """Writes a checkpoint every `every` steps (0: never), and takes up the one that is there.

    What a step drew is not in a checkpoint; where steps repeat, it is written after the last of them.
    """

    def __init__(self, folder: Path, every: int, run: str, state: dict[str, Any] | None, plan: Plan) -> None:
        self.folder, self.every, self.run, self.state, self.plan = folder, every, run, state, plan

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.state is not None:
            scheduler = trainer.lr_scheduler_configs[0].scheduler
            checkpoint.restore_optimizer(
                self.folder, pl_module.model, trainer.optimizers[0], scheduler, self.state
            )

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: MicroBatch, batch_idx: int
    ) -> None:
        step = batch.plan.step
        ended = trainer.should_stop  # by a module that cannot go on, and should not be resumed beyond
        if stepped(trainer, batch_idx) and due(step, self.every, self.plan) and not ended:
            scheduler = trainer.lr_scheduler_configs[0].scheduler
            checkpoint.save(self.folder, pl_module.model, trainer.optimizers[0], scheduler, step, self.run)


def due(step: int, every: int, plan: Plan) -> bool:
    """Whether a checkpoint is written after `step`: the first that a run can go on from, every `every` steps."""
    return bool(every) and plan.whole(step) and step // every > (step - plan.repeats) // every


class Signals(pl.Callback):
    """Ends a run as any program ends: Lightning turns Ctrl-C into a `sys.exit` that says nothing, and puts
    off SIGTERM.

    `reason` is what ended the run, if it failed.
    """

    def __init__(self) -> None:
        self.reason: BaseException | None = None
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Put back the handlers that were there before Lightning's."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.before.items():
                if handler is not None:
                    signal.signal(number, handler)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.reason = exception


def stepped(trainer: Any, batch_idx: int) -> bool:
    """Whether the optimiser moved after this micro-batch: its accumulation is full, or the epoch is over."""
    return (
        batch_idx + 1
    ) % trainer.accumulate_grad_batches == 0 or batch_idx + 1 == trainer.num_training_batches

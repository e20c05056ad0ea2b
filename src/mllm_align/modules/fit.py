"""Training: a module and its data in, a PEFT adapter out; the same bits when it was interrupted."""

from __future__ import annotations

import hashlib
import logging
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader

from mllm_align.launch import PRECISIONS, place
from mllm_align.modules import checkpoint, parallel
from mllm_align.modules.batches import MicroBatch, loader
from mllm_align.modules.callbacks import (
    Checkpoints,
    Scalars,
    SeedEachStep,
    Signals,
    StepScalars,
    StopTogether,
)
from mllm_align.modules.order import Plan
from mllm_align.modules.progress import bar
from mllm_align.records import Group

log = logging.getLogger(__name__)

ADAPTER = "adapter"
# Attributes of a module, where it has them, that a checkpoint's run must share.
DECIDING = ("loss", "estimator", "optimise", "logprobs", "token_weights", "max_length", "draw", "extend")


@dataclass(frozen=True)
class TrainerOptions:
    """Where and how it runs; the keys of conf/trainer/."""

    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    strategy: str = "ddp"
    precision: str = "32-true"
    threads: int | None = None
    workers: int = 0
    checkpoint_every_steps: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}"
            )


CPU = TrainerOptions()


@dataclass(frozen=True)
class Fitted:
    """The adapter folder, the steps of the whole run, and the step it was resumed from (0: the start)."""

    adapter: Path
    steps: int
    resumed_step: int


class Stream(pl.LightningDataModule):
    """The epochs of a plan from `first_step` on; Lightning's epoch 0 is the epoch of that step."""

    def __init__(
        self, data: Sequence[Group], plan: Plan, first_step: int, collate: Any, workers: int
    ) -> None:
        super().__init__()
        self.data, self.plan, self.collate, self.workers = data, plan, collate, workers
        self.first_epoch, self.first_place = divmod(first_step, plan.steps_per_epoch)
        self.total_steps = plan.total_steps

    def train_dataloader(self) -> DataLoader:
        epoch = self.trainer.current_epoch if self.trainer else 0
        plans = self.plan.micro_batches(self.first_epoch + epoch, self.first_place if epoch == 0 else 0)
        return loader(self.data, parallel.shares(plans), self.collate, self.workers)

    def transfer_batch_to_device(
        self, batch: MicroBatch, device: torch.device, dataloader_idx: int
    ) -> MicroBatch:
        return batch.to(device)


def fit(
    module: Any,
    data: Sequence[Group],
    out_dir: str | Path,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    accumulate: int = 1,
    gradient_clip: float | None = None,
    trainer: TrainerOptions = CPU,
    scalars: Scalars = lambda step, values: None,
    on_resume: Any = lambda step: None,
    title: str = "training",
) -> Fitted:
    """Train `module.policy` on `data` and write its adapter to out_dir/adapter, with what `module.save_beside`,
    where it has that, writes into the same folder.

    A step takes `batch_size * accumulate` Groups, whatever the number of processes that share it;
    `module.repeats`, where it has that, is how many steps in a row take the same ones. `scalars(step, values)`
    hears of every optimiser step, counted from 1; `on_resume(step)` is called once before the first, with the
    steps that a checkpoint in `out_dir` holds already (0: none), so that a record can drop what was written
    beyond it. The checkpoint goes when the adapter is there. Of several processes (`launch`) all call this, and
    the first one writes.

    Raises ValueError for data the module cannot train on, and NonFiniteLoss at a loss that is NaN or
    infinite.
    """
    out = Path(out_dir)
    plan = Plan(len(data), batch_size, accumulate, epochs, seed, getattr(module, "repeats", 1))
    leads = place(trainer.devices, trainer.nodes).leads
    module.check(data)
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    run = _run_name(plan, data, module)
    state = _taken_up(out, run)
    done = state["step"] if state else 0
    if state:
        checkpoint.restore_weights(out, module.model)
    on_resume(done)
    with parallel.disconnecting():
        if done < plan.total_steps:
            with bar(title if leads else None, plan.total_steps, done) as shown:
                callbacks = [
                    SeedEachStep(seed),
                    StopTogether(),
                    StepScalars(plan, scalars, shown),
                    Checkpoints(out, trainer.checkpoint_every_steps, run, state, plan),
                ]
                stream = Stream(data, plan, done, module.collate, trainer.workers)
                _run(module, stream, callbacks, trainer, gradient_clip, out)
        parallel.gather(module.model)
        if leads:
            save_adapter(module.model, out / ADAPTER, getattr(module, "save_beside", None))
            checkpoint.remove(out)
    return Fitted(out / ADAPTER, plan.total_steps, done)


def save_adapter(model: Any, folder: Path, beside: Callable[[Path], None] | None = None) -> Path:
    """Write the adapter (and the trained projector) in PEFT's own format, as a whole or not at all.

    `beside` writes what else belongs to the module into the same folder.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    for old in (temporary, folder):
        shutil.rmtree(old, ignore_errors=True)
    # The vocabulary is never resized here, and PEFT would look for the base model on the network to see.
    model.save_pretrained(str(temporary), save_embedding_layers=False)
    if beside:
        beside(temporary)
    temporary.rename(folder)
    return folder


def _run(
    module: Any,
    stream: Stream,
    callbacks: list[pl.Callback],
    options: TrainerOptions,
    clip: float | None,
    out: Path,
) -> None:
    signals = Signals()
    plan, here = stream.plan, place(options.devices, options.nodes)
    with _quiet():
        runner = pl.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            precision=options.precision,  # type: ignore[arg-type]
            deterministic="warn" if options.deterministic else None,
            max_epochs=plan.epochs - stream.first_epoch,
            accumulate_grad_batches=plan.accumulate,
            gradient_clip_val=clip,
            reload_dataloaders_every_n_epochs=1,
            callbacks=[*callbacks, signals],
            default_root_dir=out,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **parallel.trainer_settings(options.strategy, options.nodes, here, module),
        )
        module.model.train()
        try:
            runner.fit(module, datamodule=stream)
        except SystemExit:
            if isinstance(signals.reason, KeyboardInterrupt):
                raise signals.reason from None
            raise
        finally:
            signals.restore()
            module.model.eval()


def _taken_up(out: Path, run: str) -> dict[str, Any] | None:
    try:
        return checkpoint.read_state(out, run)
    except (SafetensorError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s): training starts again", out / checkpoint.NAME, error)
        return None


def _run_name(plan: Plan, data: Sequence[Group], module: Any) -> str:
    """What a checkpoint must agree with to be taken up. What sampler and annotator are is not in it."""
    names = [n for n, p in module.model.named_parameters() if p.requires_grad]
    settings = asdict(plan) | {n: _told(getattr(module, n)) for n in DECIDING if hasattr(module, n)}
    told = " ".join(f"{name}={value}" for name, value in settings.items())
    return f"{type(module).__name__} {told} data={_digest(map(_row, data))} weights={_digest(names)}"


def _row(group: Group) -> str:
    """All that a Group says, but for its pixels."""
    responses = [(r.text, r.token_ids, r.image and r.image.key) for r in group.responses]
    example = group.example
    return repr((example.id, example.image.key, example.prompt, responses, group.preferences))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:12]


def _told(value: Any) -> str:
    """A setting in words that are the same in every process."""
    if isinstance(value, partial):
        return f"{_told(value.func)}({', '.join(f'{k}={_told(v)}' for k, v in value.keywords.items())})"
    if is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{f.name}={_told(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__name__}({inside})"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return repr(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without its banner, tips and advice on loaders."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

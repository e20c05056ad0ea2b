"""Checkpoints inside a run: trained weights, optimiser state and number of steps in one safetensors file.

No random state is kept, because none is needed: the order of the data and the seed of every micro-batch
follow from (seed, epoch, step). Lightning's own checkpoints are pickles, and its mid-epoch resume is not
exact.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mllm_align.modules.parallel import rank, spread_like, whole

NAME = "checkpoint.safetensors"
WEIGHT = "weight/"


def save(folder: Path, model: nn.Module, optimizer: Any, scheduler: Any, step: int, run: str) -> None:
    """Write the state after `step` optimiser steps, atomically. `run` tells which run it belongs to.

    Of several processes all must call it, since each may hold a part; the first one writes.
    """
    names = _names(model)
    tensors = {WEIGHT + name: whole(p.detach()).contiguous().cpu() for p, name in names.items()}
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"optimiser state {key!r} is a {type(value).__name__}; only tensors can be stored"
                )
            tensors[f"{key}/{names[parameter]}"] = whole(value.detach()).contiguous().cpu()
    if rank():
        return
    state = {
        "step": step,
        "run": run,
        "rates": [group["lr"] for group in optimizer.param_groups],
        "schedule": {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{NAME}.{os.getpid()}.tmp"
    save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(folder / NAME)


def read_state(folder: Path, run: str) -> dict[str, Any] | None:
    """The state that is not tensors, or None if there is no checkpoint.

    Raises ValueError for a checkpoint of another run, and safetensors' own error for a damaged file.
    """
    path = folder / NAME
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
    if state["run"] != run:
        raise ValueError(
            f"{path} belongs to a run with other settings ({state['run']}, now {run}); "
            "delete it to train from the start"
        )
    return state


def restore_weights(folder: Path, model: nn.Module) -> None:
    """Copy the trained weights into the model, where they are."""
    with safe_open(folder / NAME, framework="pt") as file, torch.no_grad():
        for parameter, name in _names(model).items():
            parameter.copy_(file.get_tensor(WEIGHT + name))


def restore_optimizer(
    folder: Path, model: nn.Module, optimizer: Any, scheduler: Any, state: dict[str, Any]
) -> None:
    """Bring optimiser and schedule to where they were when `state` was written."""
    names = _names(model)
    order = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    with safe_open(folder / NAME, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            kind, name = key.split("/", 1)
            if kind + "/" != WEIGHT:
                at = _place(order, names, name)
                entries.setdefault(at, {})[kind] = spread_like(file.get_tensor(key), order[at])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    # The schedule itself is code, not state.
    functions = scheduler.state_dict()["lr_lambdas"]
    scheduler.load_state_dict({**state["schedule"], "lr_lambdas": functions})
    for group, rate in zip(optimizer.param_groups, state["rates"], strict=True):
        group["lr"] = rate


def remove(folder: Path) -> None:
    """Forget the checkpoint, and what a killed process left half-written."""
    for path in folder.glob(f"{NAME}*"):
        path.unlink()


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    return {p: name for name, p in model.named_parameters() if p.requires_grad}


def _place(order: list[nn.Parameter], names: dict[nn.Parameter, str], wanted: str) -> int:
    return next(i for i, p in enumerate(order) if names[p] == wanted)

"""A step shared by several processes: what each takes of it, and how the model is spread over their devices.

Each process trains on its own part of every micro-batch, and the gradients are averaged. A micro-batch of the plan is
the same whatever their number; a process's part counts `processes` times, so that the average is the sum that one
process alone would have had.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mllm_align.launch import Place
from mllm_align.modules.figures import Figures, merge
from mllm_align.modules.order import MicroPlan

# trainer.strategy: how the processes of a run share it.
STRATEGIES = ("ddp", "fsdp2", "deepspeed_zero3")
# Those that split the model, so that no process can let it write by itself.
SPLITTING = ("fsdp2", "deepspeed_zero3")


def connected() -> bool:
    """Whether this process is one of several that train together now."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def disconnecting() -> Iterator[None]:
    """The body's connection to the other processes is closed at its end."""
    try:
        yield
    except BaseException:
        # Closing NCCL may wait for the others; this process is about to end anyway.
        if connected() and dist.get_backend() == "gloo":
            dist.destroy_process_group()
        raise
    if connected():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if connected() else 0


def shares(plans: Sequence[MicroPlan]) -> list[MicroPlan]:
    """This process's part of every micro-batch."""
    if not connected():
        return list(plans)
    return [share(plan, dist.get_rank(), dist.get_world_size()) for plan in plans]


def share(plan: MicroPlan, number: int, processes: int) -> MicroPlan:
    """The part of process `number`: every `processes`-th Group, so that long and short ones mix.

    Where there are too few, a Group that another process has stands in with scale 0: all processes must do the same
    passes, or those that exchange something would wait forever.
    """
    own = plan.indices[number::processes]
    if plan.indices and not own:
        return replace(plan, indices=plan.indices[:1], scale=0.0)
    return replace(plan, indices=own, scale=plan.scale * processes)


def together(figures: Mapping[str, Tensor]) -> Figures:
    """The figures of all processes as one; a figure may be missing in some of them."""
    if not connected():
        return dict(figures)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, {name: value.tolist() for name, value in figures.items()})
    return merge(
        {name: torch.tensor(value, dtype=torch.float64) for name, value in part.items()} for part in parts
    )


def whole(tensor: Any) -> Tensor:
    """The tensor in one piece where it is split over processes; they must all ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread_like(tensor: Tensor, model_tensor: Any) -> Tensor:
    """A whole tensor split as `model_tensor` is; one of another shape (a count, say) stays as it is."""
    if not hasattr(model_tensor, "device_mesh") or tensor.shape != model_tensor.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    on_device = tensor.to(model_tensor.device)
    return distribute_tensor(on_device, model_tensor.device_mesh, model_tensor.placements)


def gather(model: nn.Module) -> None:
    """Bring every trained parameter into one piece, for saving; the model cannot be trained after it."""
    for module in model.modules():
        parameters: dict[str, Any] = module._parameters
        for name, parameter in parameters.items():
            if parameter is not None and parameter.requires_grad and hasattr(parameter, "full_tensor"):
                module._parameters[name] = nn.Parameter(parameter.detach().full_tensor())
            elif hasattr(parameter, "ds_id") and parameter is not None and parameter.requires_grad:
                _gather_deepspeed(module, name, parameter)


def _gather_deepspeed(module: nn.Module, name: str, parameter: Any) -> None:
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        module._parameters[name] = nn.Parameter(parameter.detach().clone())


# --- Lightning ---------------------------------------------------------------------------------------------


def trainer_settings(strategy: str, nodes: int, here: Place, module: Any) -> dict[str, Any]:
    """What Lightning's Trainer is told where there is more than one process; nothing else for one.

    Raises ValueError for a strategy that is not known, or where the other processes have not been started.
    """
    if here.processes == 1:
        return {}
    if not here.started and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"training with {here.processes} processes needs them started: use `mllm-align train`, torchrun or srun "
            "(docs/scaling.md)"
        )
    makers: dict[str, Callable[[Place], Any]] = {
        "ddp": _ddp,
        "fsdp2": partial(_fsdp2, module),
        "deepspeed_zero3": partial(_deepspeed, module),
    }
    if strategy not in makers:
        raise ValueError(f"trainer.strategy is {strategy!r}; it must be one of {', '.join(STRATEGIES)}")
    return {
        "strategy": makers[strategy](here),
        "num_nodes": nodes,
        "plugins": [_cluster(here)],
        # The parts of a step are cut by `shares`.
        "use_distributed_sampler": False,
    }


def _cluster(here: Place) -> Any:
    from lightning.pytorch.plugins import environments

    kinds = {
        "torchrun": environments.TorchElasticEnvironment,
        "srun": environments.SLURMEnvironment,
        "own": environments.LightningEnvironment,
    }
    return kinds[here.by]()


def _ddp(here: Place) -> Any:
    """A copy of the model in every process."""
    from lightning.pytorch.strategies import DDPStrategy

    # Every trained parameter is part of every loss, and no buffer changes.
    return DDPStrategy(find_unused_parameters=False, broadcast_buffers=False, gradient_as_bucket_view=True)


def _fsdp2(module: Any, here: Place) -> Any:
    """Decoder layers and trained parts split over the processes (torch's fully_shard)."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    module.configure_model = partial(split, module)
    return ModelParallelStrategy(data_parallel_size=here.processes, tensor_parallel_size=1)


def _deepspeed(module: Any, here: Place) -> Any:
    """All parameters split over the processes (ZeRO stage 3); for CUDA only."""
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "trainer=deepspeed_zero3 needs the package deepspeed: pip install 'mllm-align[deepspeed]'"
        ) from error
    from lightning.pytorch.strategies import DeepSpeedStrategy

    class ZeRO3(DeepSpeedStrategy):
        """Steps where the plan has them: DeepSpeed would count micro-batches on over the end of an epoch, and divide
        by their number once more than Lightning has.
        """

        @property
        def handles_gradient_accumulation(self) -> bool:
            return False

        def block_backward_sync(self) -> Any:
            return nullcontext()  # gradients are split over the processes in every backward pass

        def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
            trainer: Any = module.trainer
            trainer.model.set_gradient_accumulation_boundary(not trainer.fit_loop._should_accumulate())
            return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    # The batch size is only for DeepSpeed's log; without it Lightning looks for a sampler that our loaders don't have.
    return ZeRO3(stage=3, zero_allow_untested_optimizer=True, logging_batch_size_per_gpu=1)


def split(module: Any) -> None:
    """Split every decoder layer, and every trained module outside of them, over the processes.

    Each is gathered when it runs and let go after it. Embeddings, vision tower and head stay whole in every process:
    `compute` calls them one by one, without the model's own forward pass, which fully_shard would hang itself into.
    """
    from torch.distributed.fsdp import fully_shard

    from mllm_align.compute.pieces import language_model

    mesh = module.device_mesh["data_parallel"]
    layers = list(language_model(module.model).layers)
    inside = {id(part) for layer in layers for part in layer.modules()}
    outside = [
        part
        for part in module.model.modules()
        if id(part) not in inside and any(p.requires_grad for p in part.parameters(recurse=False))
    ]
    for part in [*layers, *outside]:
        if not any(hasattr(p, "full_tensor") for p in part.parameters()):  # called twice by Lightning
            fully_shard(part, mesh=mesh, reshard_after_forward=True)

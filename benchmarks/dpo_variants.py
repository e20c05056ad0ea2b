"""Four ways to take a DPO step on the same batches from the same weights, each in a process of its own.

Every variant is a function `setting -> (model, losses)`: the model to train, and the loss of batch i. LoRA's
A comes from the seed and its B is set to small noise, so that policy and reference differ and an equal loss
means something from the first step on.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from dpo_model import PRESETS, make_pairs
from torch import Tensor

from mllm_align.compute.logprobs import response_logprobs
from mllm_align.compute.packing import Batch, collate
from mllm_align.losses import dpo
from mllm_align.models.load import Policy, add_lora, load_policy, parameter_groups, prompt_text, reference
from mllm_align.records import Group

BETA = 0.1
RATE = 1e-4


@dataclass(frozen=True)
class Setting:
    """What a worker is asked to run."""

    variant: str
    preset: str
    folder: str
    device: str
    pairs: int  # a step
    batches: int  # different ones; they come again in turn
    checkpointing: bool


Losses = Callable[[int], Tensor]


def start(setting: Setting, lora: bool = True) -> Policy:
    """The policy before training."""
    preset = PRESETS[setting.preset]
    policy = load_policy(setting.folder, dtype=preset.dtype, device=setting.device)
    if lora:
        torch.manual_seed(0)
        policy = add_lora(policy, preset.lora_rank, 2 * preset.lora_rank)
        ready(policy.model, setting)
    return policy


def ready(model: Any, setting: Setting) -> None:
    """Noise in LoRA's B, train mode, checkpointing as asked."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=generator) * 0.01
            parameter.data.copy_(noise)
    model.train()
    if setting.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def batches_of(setting: Setting) -> list[list[Group]]:
    pairs = make_pairs(setting.pairs * setting.batches)
    return [pairs[i : i + setting.pairs] for i in range(0, len(pairs), setting.pairs)]


def collated(setting: Setting, policy: Policy) -> list[Batch]:
    return [collate(groups, policy.processor).to(setting.device) for groups in batches_of(setting)]


def sums(model: Any, batch: Batch) -> Tensor:
    """(B, 2): log-probabilities of the chosen and the rejected responses."""
    return response_logprobs(model, batch).sum(-1)


def dpo_loss(policy: Tensor, ref: Tensor) -> Tensor:
    return dpo(policy[:, 0], policy[:, 1], ref[:, 0], ref[:, 1], beta=BETA).mean()


def shared(setting: Setting) -> tuple[Any, Losses]:
    """Shared prefix, reference computed at every step."""
    policy = start(setting)
    batches = collated(setting, policy)

    def losses(i: int) -> Tensor:
        batch = batches[i % len(batches)]
        with reference(policy) as model:
            ref = sums(model, batch)
        return dpo_loss(sums(policy.model, batch), ref)

    return policy.model, losses


def stored(setting: Setting) -> tuple[Any, Losses]:
    """Shared prefix, reference computed once before training."""
    policy = start(setting)
    batches = collated(setting, policy)
    with reference(policy) as model:
        table = [sums(model, batch) for batch in batches]

    def losses(i: int) -> Tensor:
        return dpo_loss(sums(policy.model, batches[i % len(batches)]), table[i % len(table)])

    return policy.model, losses


def plain(setting: Setting) -> tuple[Any, Losses]:
    """A row a response through the model's own forward; logits of the response part only; reference at
    every step.
    """
    policy = start(setting)
    rows = [_rows(batch) for batch in collated(setting, policy)]

    def losses(i: int) -> Tensor:
        batch = rows[i % len(rows)]
        with reference(policy) as model:
            ref = _row_sums(model, batch)
        return dpo_loss(_row_sums(policy.model, batch), ref)

    return policy.model, losses


def _rows(batch: Batch) -> dict[str, Any]:
    """[prompt | response] rows, prompts padded on the left so that all responses start at one place."""
    prompts, width = [], batch.prompt_ids.shape[1]
    for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True):
        length = int(mask.sum())
        prompts.append((ids.roll(width - length), mask.roll(width - length)))
    ids = torch.stack([p for p, _ in prompts]).repeat_interleave(2, 0)
    mask = torch.stack([m for _, m in prompts]).repeat_interleave(2, 0)
    responses, own = batch.response_ids.flatten(0, 1), batch.response_mask.flatten(0, 1)
    whole = torch.cat([mask, own], 1)
    return {
        "inputs": {
            "input_ids": torch.cat([ids, responses], 1),
            "attention_mask": whole.long(),
            "position_ids": (whole.long().cumsum(1) - 1).clamp(min=0),
            "pixel_values": batch.pixel_values[batch.image_index].repeat_interleave(2, 0),
            "image_sizes": batch.image_sizes[batch.image_index].repeat_interleave(2, 0),
            "logits_to_keep": responses.shape[1] + 1,
        },
        "responses": responses,
        "mask": own,
    }


def _row_sums(model: Any, rows: dict[str, Any]) -> Tensor:
    dtype = next(model.parameters()).dtype
    inputs = {**rows["inputs"], "pixel_values": rows["inputs"]["pixel_values"].to(dtype)}
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    values = logits.log_softmax(-1).gather(2, rows["responses"][..., None]).squeeze(2)
    return (values * rows["mask"]).sum(1).view(-1, 2)


def trl(setting: Setting) -> tuple[Any, Losses]:
    """TRL's DPOTrainer: its collator, its loss and its reference. Checkpointing, on by default there, as
    asked.
    """
    from trl import DPOConfig, DPOTrainer

    from datasets import Dataset

    preset = PRESETS[setting.preset]
    base = start(setting, lora=False)
    # Take the adapter's configuration from ours, on a model that TRL then wraps itself.
    config = _lora_config(setting)
    rows = [_trl_rows(groups, base) for groups in batches_of(setting)]
    arguments = DPOConfig(
        output_dir=str(Path(setting.folder) / "trl"),
        beta=BETA,
        max_length=None,
        gradient_checkpointing=False,
        per_device_train_batch_size=setting.pairs,
        bf16=False,
        use_cpu=setting.device == "cpu",
        report_to=[],
        disable_dropout=False,
        seed=0,
    )
    trainer = DPOTrainer(
        model=base.model,
        args=arguments,
        train_dataset=Dataset.from_list(
            [{k: r[k] for k in ("prompt", "chosen", "rejected")} | {"images": []} for r in rows[0]]
        ),
        processing_class=base.processor,
        peft_config=config,
    )
    model = trainer.model
    ready(model, setting)
    dtype = getattr(torch, preset.dtype)
    inputs = [trainer._prepare_inputs(trainer.data_collator(batch)) for batch in rows]
    for batch in inputs:
        batch["pixel_values"] = batch["pixel_values"].to(dtype)

    def losses(i: int) -> Tensor:
        return trainer.compute_loss(model, dict(inputs[i % len(inputs)]))

    return model, losses


def _lora_config(setting: Setting) -> Any:
    throwaway = load_policy(setting.folder, dtype=PRESETS[setting.preset].dtype)
    rank = PRESETS[setting.preset].lora_rank
    return add_lora(throwaway, rank, 2 * rank).model.peft_config["default"]


def _trl_rows(groups: list[Group], policy: Policy) -> list[dict[str, Any]]:
    return [
        {
            "images": [group.example.image.load()],
            "prompt": prompt_text(policy, group.example.prompt),
            "chosen": f" {group.responses[0].text}</s>",
            "rejected": f" {group.responses[1].text}</s>",
        }
        for group in groups
    ]


VARIANTS: dict[str, Callable[[Setting], tuple[Any, Losses]]] = {
    "plain": plain,
    "shared": shared,
    "stored": stored,
    "trl": trl,
}


def resident() -> float:
    """This process's memory now, in MB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def peak(device: str) -> float:
    """Peak memory in MB: of the GPU, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(setting: Setting) -> None:
    """Announce readiness, then take one step for every line read and answer with seconds and loss."""
    model, losses = VARIANTS[setting.variant](setting)
    policy = Policy(model, None, setting.variant)
    optimizer = torch.optim.AdamW(parameter_groups(policy, RATE))
    say(ready=True, loaded=resident())
    for step, line in enumerate(sys.stdin):
        if line.strip() == "stop":
            break
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = losses(step)
        loss.backward()
        optimizer.step()
        value = loss.item()  # waits for the GPU
        say(seconds=time.perf_counter() - started, loss=value, peak=peak(setting.device))


def say(**values: Any) -> None:
    # Libraries print to stdout too; the parent looks for this mark.
    print("@" + json.dumps(values), flush=True)


def command(setting: Setting) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, str(Path(__file__)), json.dumps(asdict(setting))]


if __name__ == "__main__":
    work(Setting(**json.loads(sys.argv[1])))

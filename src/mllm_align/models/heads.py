"""Scalar heads on a policy's hidden states: a value for each token (PPO), a reward for a response (reward model).

A head is a linear layer hidden -> 1, registered on the model, so that it is trained, checkpointed and moved with the
adapter. PEFT's adapter folder does not hold it; `save_head` writes a file of its own beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mllm_align.compute.decoding import inference
from mllm_align.compute.logprobs import final_states
from mllm_align.compute.packing import Batch, by_group, collate
from mllm_align.compute.pieces import lm_head
from mllm_align.models.load import Policy
from mllm_align.records import Group

REWARD_HEAD = "reward_head"


def add_head(policy: Policy, name: str, seed: int) -> Policy:
    """Put a fresh head on the policy's model, in place: weights near 0, drawn from `seed`, bias 0.

    Raises ValueError where the model has something of that name.
    """
    if hasattr(policy.model, name):
        raise ValueError(f"{policy.name}: the model has a {name} already; start from its base model")
    like = lm_head(policy.model).weight  # (vocabulary, hidden)
    # At least float32: the steps that train it are lost in bfloat16.
    layer = nn.Linear(like.shape[1], 1, dtype=torch.promote_types(like.dtype, torch.float32))
    with torch.no_grad():
        # Of size 1 / hidden, so that the first outputs are small whatever the width.
        drawn = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed))
        layer.weight.copy_(drawn / like.shape[1])
        layer.bias.zero_()
    policy.model.add_module(name, layer.to(like.device))
    return policy


def head(policy: Policy, name: str) -> nn.Linear:
    """The head that `add_head` put there."""
    layer: Any = getattr(policy.model, name)
    return layer


def read(policy: Policy, name: str, states: torch.Tensor) -> torch.Tensor:
    """What the head makes of hidden states: (..., hidden) -> (...) float32, with gradient.

    In the head's own precision under autocast too: in bfloat16 a reward of 3 has steps of 1/64.
    """
    layer = head(policy, name)
    with torch.autocast(states.device.type, enabled=False):
        return layer(states.to(layer.weight.dtype)).float().squeeze(-1)


def rewards(policy: Policy, batch: Batch) -> torch.Tensor:
    """r(x, y) of every response, read at its last token: (G, K) float32, with gradient; no unit, any offset."""
    return read(policy, REWARD_HEAD, by_group(batch, final_states(policy.model, batch)))


def reward_scores(
    policy: Policy, groups: Sequence[Group], batch_size: int, max_length: int | None = None
) -> list[tuple[float, ...]]:
    """The rewards of every Group's responses, without gradient. A text that comes twice scores the same.

    Raises ValueError for a policy without a reward head.
    """
    if not hasattr(policy.model, REWARD_HEAD):
        raise ValueError(
            f"{policy.name} has no reward head, so it gives no rewards; train one with "
            "`mllm-align train alignment=reward_model`, and give its adapter"
        )
    device = next(policy.model.parameters()).device
    found = []
    for at in range(0, len(groups), batch_size):
        part = groups[at : at + batch_size]
        with inference(policy.model):
            batch = collate(part, policy.processor, max_length=max_length).to(device)
            values = rewards(policy, batch).tolist()  # (G, K)
        found += [_by_text(group, row) for group, row in zip(part, values, strict=True)]
    return found


def _by_text(group: Group, values: Sequence[float]) -> tuple[float, ...]:
    """Equal texts take the first one's value: another place in the batch may round otherwise."""
    first: dict[str, float] = {}
    scored = zip(group.responses, values, strict=False)  # values has places for the batch's largest Group
    return tuple(first.setdefault(response.text, value) for response, value in scored)


def save_head(policy: Policy, name: str, folder: Path) -> Path:
    """Write weight (1, hidden) and bias (1,) to folder/name.safetensors."""
    file = folder / f"{name}.safetensors"
    save_file({key: value.detach().cpu() for key, value in head(policy, name).state_dict().items()}, file)
    return file


def has_head(folder: Path, name: str) -> bool:
    """Whether `save_head` wrote one there."""
    return (folder / f"{name}.safetensors").is_file()


def load_head(policy: Policy, name: str, folder: Path) -> Policy:
    """Put a saved head on the policy's model, in place.

    Raises FileNotFoundError where there is none, and ValueError for one of another width.
    """
    file = folder / f"{name}.safetensors"
    if not has_head(folder, name):
        raise FileNotFoundError(
            f"{file} does not exist, so {folder} is no reward model; train one with "
            "`mllm-align train alignment=reward_model`"
        )
    layer = head(add_head(policy, name, 0), name)
    saved = load_file(file)
    if saved["weight"].shape != layer.weight.shape:
        raise ValueError(
            f"{file}: the head is for {saved['weight'].shape[1]} hidden units and {policy.name} has "
            f"{layer.weight.shape[1]}; give the base model that it was trained on"
        )
    layer.load_state_dict(saved)
    return policy

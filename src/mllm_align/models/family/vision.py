"""Stage 1: the vision tower learns what is in each cell, the counterpart of CLIP's pre-training.

Throw-away linear heads read each patch token: the kind of thing in its cell, its colour, and a sign's letters. The
tower keeps what it has learned; nothing of the language enters it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mllm_align.models.family.build import TILE, VIEW, VIEW_PATCH
from mllm_align.models.family.parallel import ALONE, Team
from mllm_align.scenes.draw import render
from mllm_align.scenes.world import COLOURS, KINDS, LETTERS, Scene, sample_scene

KIND_NAMES = (*KINDS, "sign", "nothing")
COLOUR_NAMES = (*COLOURS, "none")
LETTER_NAMES = (*LETTERS, "none")
SLOTS = 3  # letters on a sign
HEADS = (len(KIND_NAMES), len(COLOUR_NAMES), *[len(LETTER_NAMES)] * SLOTS)
CELLS = 9
FIRST_SCENE = 10_000_000  # far from the scenes of stage 2


def tiles_of(images: torch.Tensor) -> torch.Tensor:
    """(B, 96, 96, 3) uint8 to (B, 10, 3, 32, 32): what LlavaNextProcessor makes of a scene (view first, then tiles)."""
    pixels = images.permute(0, 3, 1, 2).float()  # (B, 3, 96, 96)
    view = F.interpolate(pixels, size=(TILE, TILE), mode="bicubic", antialias=True).round().clamp(0, 255)
    tiles = pixels.unfold(2, TILE, TILE).unfold(3, TILE, TILE)  # (B, 3, 3, 3, 32, 32)
    tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # (B, 9, 3, 32, 32)
    return torch.cat([view[:, None], tiles], dim=1) / 127.5 - 1.0


def view_of(images: torch.Tensor) -> torch.Tensor:
    """(B, 96, 96, 3) uint8 to (B, 3, 48, 48): what LlavaProcessor makes of a scene."""
    pixels = images.permute(0, 3, 1, 2).float()
    small = F.interpolate(pixels, size=(VIEW, VIEW), mode="bicubic", antialias=True).round().clamp(0, 255)
    return small / 127.5 - 1.0


def cell_labels(scene: Scene) -> np.ndarray:
    """(9, 5) int: kind, colour and three letters of each cell."""
    labels = np.empty((CELLS, 2 + SLOTS), dtype=np.int64)
    labels[:] = [len(KIND_NAMES) - 1, len(COLOUR_NAMES) - 1, *[len(LETTER_NAMES) - 1] * SLOTS]
    colours = tuple(COLOURS)
    for thing in scene.things:
        labels[thing.place, :2] = KINDS.index(thing.kind), colours.index(thing.colour)
    if scene.sign is not None:
        labels[scene.sign.place, 0] = len(KINDS)
        for slot, letter in enumerate(scene.sign.text[:SLOTS]):
            labels[scene.sign.place, 2 + slot] = LETTERS.index(letter)
    return labels


def cell_batch(first: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B, 96, 96, 3) uint8 and cell labels (B, 9, 5) of scenes first..first+number."""
    scenes = [sample_scene("sft", i) for i in range(first, first + number)]
    images = np.stack([render(scene) for scene in scenes])
    return torch.from_numpy(images), torch.from_numpy(np.stack([cell_labels(scene) for scene in scenes]))


def tile_tokens(tower: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(B, 9, T, D): the patch tokens of each cell, from the nine tiles."""
    pixels = tiles_of(images)[:, 1:].flatten(0, 1)  # (9B, 3, 32, 32)
    hidden = tower(pixels).last_hidden_state[:, 1:]
    return hidden.unflatten(0, (-1, CELLS))


def view_tokens(tower: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(B, 9, T, D): the patch tokens of each cell, from the single view."""
    hidden = tower(view_of(images)).last_hidden_state[:, 1:]
    side, inner = VIEW // VIEW_PATCH, VIEW // VIEW_PATCH // 3
    grid = hidden.unflatten(1, (3, inner, 3, inner))  # (B, 3, t, 3, t, D), side = 3 t
    assert side == 3 * inner
    return grid.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


@dataclass(frozen=True)
class VisionStage:
    """How long stage 1 is and on what."""

    steps: int = 800
    batch: int = 128
    lr: float = 1e-3


def cell_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy over all heads; logits (B, 9, T, sum of HEADS), labels (B, 9, 5). Letters count on signs only."""
    parts = logits.float().split(HEADS, dim=-1)
    tokens = logits.shape[2]
    sign = labels[..., 0] == len(KINDS)
    loss = logits.new_zeros((), dtype=torch.float32)
    for head, part in enumerate(parts):
        target = labels[..., head, None].expand(-1, -1, tokens)
        if head >= 2:
            part, target = part[sign], target[sign]
        if target.numel():
            loss = loss + F.cross_entropy(part.reshape(-1, HEADS[head]), target.reshape(-1))
    things = labels[..., 0] < len(KINDS)
    with torch.no_grad():
        kinds, colours = (parts[h].mean(2).argmax(-1) == labels[..., h] for h in (0, 1))
        letters = torch.stack(
            [parts[2 + s].mean(2).argmax(-1) == labels[..., 2 + s] for s in range(SLOTS)]
        ).all(0)
        scores = {
            "kind": kinds[things].float().mean().item(),
            "nothing": kinds[~things].float().mean().item(),
            "colour": colours[things].float().mean().item(),
            "letters": letters[sign].float().mean().item() if sign.any() else 0.0,
        }
    return loss, scores


def pretrain(
    tower: Any,
    tokens: Callable[[Any, torch.Tensor], torch.Tensor],
    stage: VisionStage,
    *,
    device: str,
    log: Callable[[dict], None],
    team: Team = ALONE,
) -> None:
    """Trains `tower` in place; `tokens` gives the patch tokens of each cell."""
    width = tower.config.hidden_size
    heads = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(HEADS))).to(device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=stage.lr, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, stage.lr, total_steps=stage.steps + 1, pct_start=0.1
    )
    share = stage.batch // team.world
    tower.train()
    for step in range(stage.steps):
        first = FIRST_SCENE + step * stage.batch + team.rank * share
        images, labels = cell_batch(first, share)
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = heads(tokens(tower, images.to(device)))
        loss, scores = cell_loss(logits, labels.to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        team.average(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 25 == 0 or step == stage.steps - 1:
            scores = {"loss": loss.item(), **scores}
            log({"stage": "vision", "step": step, **{k: round(v, 4) for k, v in scores.items()}})
    tower.eval()

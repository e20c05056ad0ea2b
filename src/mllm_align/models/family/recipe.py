"""Trains a model of the scenes family from nothing: `python -m mllm_align.models.family.recipe name=base out=folder`.

Stage 1 teaches the vision tower what is in each cell (vision.py), stage 2 is instruction tuning on packed rows
(rows.py), stage 3 goes on with other data: as careless as published data for `base`, true for `large`. Everything is
seeded; `out` holds a loadable model from the first save on, with train_log.jsonl beside it.
`quick=true` takes seconds and tests the path. A stopped run goes on where it was last saved when started again.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mllm_align.models.family import parallel, vision
from mllm_align.models.family.build import Built, Size, build_llava, build_next, save, world_words
from mllm_align.models.family.rows import TASKS, Mix, Rows, block_mask, make_rows
from mllm_align.models.family.tokenizer import build_tokenizer
from mllm_align.models.family.vision import VisionStage

EASY = Mix(ease=0.7, existence=4)
FULL = Mix(ease=0.0, existence=4, judge_share=0.5)
CAREFUL = replace(FULL, noise=0.0, judge_share=0.8)
CARELESS = replace(FULL, noise=0.18, overlook=0.7, assume=0.6)


@dataclass(frozen=True)
class Recipe:
    """One model of the family: its class, sizes, stages and seed.

    Args:
        make: builds the model and processor for a tokenizer.
        tokens: the patch tokens of each cell (for stage 1).
        pixels: pictures to pixel values as the processor makes them.
        phases: (share of the steps, mix), in order; the shares sum to 1.
        batch: rows a step, over all processes.
        vision_lr: of the tower in stages 2 and 3.
        finish: the mix of stage 3, `finish_steps` with a fresh optimiser at `finish_lr` of the learning rates.
    """

    make: Callable[[Size, Any], Built]
    tokens: Callable[[Any, torch.Tensor], torch.Tensor]
    pixels: Callable[[torch.Tensor], torch.Tensor]
    size: Size
    vision: VisionStage
    phases: tuple[tuple[float, Mix], ...] = ((0.3, EASY), (0.7, FULL))
    steps: int = 2400
    batch: int = 48
    lr: float = 1.5e-3
    vision_lr: float = 1e-4
    finish: Mix = FULL
    finish_steps: int = 0
    finish_lr: float = 0.3
    seed: int = 0
    save_every: int = 300


RECIPES: dict[str, Recipe] = {
    "base": Recipe(
        build_next, vision.tile_tokens, vision.tiles_of, Size(96, 3, 128, 4, 384), VisionStage(900, lr=1.5e-3),
        finish=CARELESS, finish_steps=400,
    ),
    "large": Recipe(
        build_next, vision.tile_tokens, vision.tiles_of, Size(128, 3, 192, 4, 512), VisionStage(1200, lr=1.5e-3),
        phases=((0.25, replace(EASY, noise=0.0)), (0.75, CAREFUL)), steps=1500,
        finish=CAREFUL, finish_steps=500, finish_lr=0.6,
    ),
    "weak": Recipe(
        build_llava, vision.view_tokens, vision.view_of, Size(64, 2, 96, 3, 256), VisionStage(400, lr=1.5e-3),
        phases=((0.4, replace(EASY, noise=0.1)), (0.6, replace(FULL, noise=0.1, judge_share=0.2))), steps=900,
    ),
}  # fmt: skip


def quick(recipe: Recipe) -> Recipe:
    """The same path in seconds."""
    small = Size(32, 1, 32, 1, 64)
    return replace(
        recipe,
        size=small,
        vision=VisionStage(steps=2, batch=8),
        steps=4,
        finish_steps=2,
        batch=4,
        save_every=2,
    )


# ---------------------------------------------------------------- forward and loss


def prefix_ids(built: Built) -> list[int]:
    """The tokens of `USER: <image>\\n` with the image token repeated as often as the processor does for a scene."""
    from PIL import Image

    text = built.processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    picture = Image.new("RGB", (96, 96))
    return built.processor(images=[picture], text=[text], return_tensors="pt")["input_ids"][0].tolist()


def image_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(B, T, D) projected image tokens of scenes (96 x 96 pixels)."""
    sizes = {} if pixels.dim() == 4 else {"image_sizes": torch.full((len(pixels), 2), 96)}
    features = model.get_image_features(pixel_values=pixels, **sizes).pooler_output
    return torch.stack(list(features))


def answer_logits(model: Any, batch: Rows, pixels: torch.Tensor) -> torch.Tensor:
    """(N, vocabulary): logits at the N positions whose target isn't -1, in row order."""
    embeddings = model.get_input_embeddings()(batch.ids)
    seen = batch.ids == model.config.image_token_id
    features = image_features(model, pixels)
    embeddings = embeddings.masked_scatter(seen[..., None], features.to(embeddings.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=block_mask(batch.item),
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[batch.targets >= 0])


def loss_and_scores(logits: torch.Tensor, batch: Rows) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """The weighted loss, and (sum of right tokens, tokens) per task."""
    asked = batch.targets >= 0
    targets, weights, tasks = batch.targets[asked], batch.weights[asked], batch.tasks[asked]
    losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    right = (logits.argmax(-1) == targets).float()
    counted = {}
    for number, task in enumerate(TASKS):
        mine = tasks == number
        counted[task] = [right[mine].sum().item(), mine.sum().item()]
    first = torch.zeros_like(batch.targets, dtype=torch.bool)
    first[:, 1:] = (batch.targets[:, 1:] >= 0) & (batch.targets[:, :-1] < 0)
    first &= asked
    said = first[asked] & (tasks == TASKS.index("yes_no"))
    counted["yes_no_first"] = [right[said].sum().item(), said.sum().item()]
    return (losses * weights).sum() / weights.sum(), counted


# ---------------------------------------------------------------- stage 2


def learning_rate(recipe: Recipe, step: int) -> float:
    """Share of the peak: in each stage a short warm-up, constant, cosine to 2% over the last 45%."""
    if step >= recipe.steps:
        return recipe.finish_lr * _shape((step - recipe.steps) / recipe.finish_steps)
    return _shape(step / recipe.steps)


def _shape(progress: float) -> float:
    warm, tail = 0.03, 0.45
    if progress < warm:
        return progress / warm
    if progress < 1 - tail:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - 1 + tail) / tail))


def mix_at(recipe: Recipe, step: int) -> Mix:
    if step >= recipe.steps:
        return recipe.finish
    done = 0.0
    for share, mix in recipe.phases:
        done += share
        if step < done * recipe.steps:
            return mix
    return recipe.phases[-1][1]


def optimiser_for(model: Any, recipe: Recipe) -> torch.optim.AdamW:
    tower = {id(p) for p in model.model.vision_tower.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in tower], "peak": recipe.lr},
        {"params": [p for p in model.parameters() if id(p) in tower], "peak": recipe.vision_lr},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.02)


@dataclass
class Tally:
    """Sums over the steps since the last log line."""

    loss: float = 0.0
    steps: int = 0
    counted: dict[str, list[float]] = field(default_factory=dict)

    def add(self, loss: float, counted: dict[str, list[float]]) -> None:
        self.loss, self.steps = self.loss + loss, self.steps + 1
        for task, (right, number) in counted.items():
            sums = self.counted.setdefault(task, [0.0, 0.0])
            sums[0], sums[1] = sums[0] + right, sums[1] + number

    def line(self) -> dict[str, Any]:
        accuracy = {task: round(r / n, 4) for task, (r, n) in self.counted.items() if n}
        return {"loss": round(self.loss / max(self.steps, 1), 4), **accuracy}


def tune(
    built: Built, recipe: Recipe, span: range, optimiser: torch.optim.AdamW, *, team: parallel.Team, device: str,
    log: Callable[[dict], None], keep: Callable[[int, torch.optim.AdamW], None],
) -> None:  # fmt: skip
    """Instruction tuning over the steps of `span`; each step's pictures are new."""
    model, prefix = built.model, prefix_ids(built)
    parameters = list(model.parameters())
    share, tally = recipe.batch // team.world, Tally()
    model.train()
    for step in span:
        first = step * recipe.batch + team.rank * share
        batch = make_rows(
            first, share, mix_at(recipe, step), built.processor.tokenizer, prefix, seed=recipe.seed
        )
        batch = batch.to(device)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * learning_rate(recipe, step)
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = answer_logits(model, batch, recipe.pixels(batch.images))
        loss, counted = loss_and_scores(logits, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        team.average(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        tally.add(loss.item(), counted)
        if (step + 1) % 25 == 0 or step + 1 == span.stop:
            log({"stage": "tune" if step < recipe.steps else "finish", "step": step + 1, **tally.line()})
            tally = Tally()
        if (step + 1) % recipe.save_every == 0 or step + 1 == span.stop:
            keep(step + 1, optimiser)
    model.eval()


# ---------------------------------------------------------------- saving and resuming


def save_state(path: Path, built: Built, optimiser: torch.optim.AdamW, step: int) -> None:
    """Weights and AdamW's moments for going on; safetensors, written under a temporary name first."""
    from safetensors.torch import save_file

    tensors = {f"w.{name}": p.detach() for name, p in built.model.named_parameters()}
    for name, parameter in built.model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value
    temporary = path.with_suffix(".tmp")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(step)})
    os.replace(temporary, path)


def load_state(path: Path, built: Built, optimiser: torch.optim.AdamW) -> int:
    """The inverse of `save_state`; returns the step."""
    from safetensors import safe_open

    with safe_open(path, "pt") as stored, torch.no_grad():
        names = set(stored.keys())
        for name, parameter in built.model.named_parameters():
            parameter.copy_(stored.get_tensor(f"w.{name}"))
            if f"exp_avg.{name}" in names:
                keys = ("step", "exp_avg", "exp_avg_sq")
                optimiser.state[parameter] = {key: stored.get_tensor(f"{key}.{name}") for key in keys}
        return int(stored.metadata()["step"])


def logger(path: Path, rank: int) -> Callable[[dict], None]:
    start = time.time()

    def log(line: dict) -> None:
        if rank == 0:
            text = json.dumps({"seconds": round(time.time() - start, 1), **line})
            print(text, flush=True)
            with path.open("a") as file:
                file.write(text + "\n")

    return log


def see(
    model: Any,
    recipe: Recipe,
    stored: str,
    *,
    team: parallel.Team,
    device: str,
    log: Callable[[dict], None],
) -> None:
    """Stage 1, or the tower that an earlier stage 1 left in the file `stored`."""
    if stored:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(stored))
    else:
        vision.pretrain(model, recipe.tokens, recipe.vision, device=device, log=log, team=team)


def train(team: parallel.Team, recipe: Recipe, out: str, device: str, tower: str) -> None:
    """All stages, as one process of the team; `tower` names a file with stage 1's result, if there is one."""
    torch.manual_seed(recipe.seed)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "resume.safetensors"
    log = logger(folder / "train_log.jsonl", team.rank)
    built = recipe.make(recipe.size, build_tokenizer(world_words()))
    built.model.to(device)
    optimiser = optimiser_for(built.model, recipe)
    if state.exists():
        start = load_state(state, built, optimiser)
        if start == recipe.steps:
            optimiser = optimiser_for(built.model, recipe)
    else:
        start = 0
        see(built.model.model.vision_tower, recipe, tower, team=team, device=device, log=log)

    def keep(step: int, optimiser: torch.optim.AdamW) -> None:
        if team.rank == 0:
            save(built, out)
            save_state(state, built, optimiser, step)

    if start == 0:
        keep(0, optimiser)
    last = recipe.steps + recipe.finish_steps
    for span in (range(start, recipe.steps), range(max(start, recipe.steps), last)):
        if span:
            tune(built, recipe, span, optimiser, team=team, device=device, log=log, keep=keep)
            optimiser = optimiser_for(built.model, recipe)
    if team.rank == 0:
        built.model.half()  # what is shipped, and what calibrate.py measures
        save(built, out)
        state.unlink(missing_ok=True)


def parse(arguments: list[str]) -> dict[str, str]:
    """`key=value` words; raises SystemExit for an unknown key or model."""
    options = {
        "name": "base",
        "out": "",
        "quick": "false",
        "processes": "",
        "seed": "0",
        "steps": "",
        "tower": "",
    }
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or key not in options:
            raise SystemExit(f"{word!r} is not one of {', '.join(f'{k}=...' for k in options)}")
        options[key] = value
    if options["name"] not in RECIPES:
        raise SystemExit(f"name={options['name']} is unknown; the family has {', '.join(RECIPES)}")
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    recipe = replace(RECIPES[options["name"]], seed=int(options["seed"]))
    if options["steps"]:
        recipe = replace(recipe, steps=int(options["steps"]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    world = 1 if device == "cuda" else int(options["processes"] or min(4, os.cpu_count() or 1))
    if options["quick"] == "true":
        recipe, world = quick(recipe), 1
    out = options["out"] or f"outputs/base-models/{options['name']}"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parallel.run(train, world, recipe, out, device, options["tower"])


if __name__ == "__main__":
    main(sys.argv[1:])

"""Training rows of stage 2: one picture, then its questions, each seeing the picture and itself only.

A row is `[USER: <image>... \\n | item 1 | item 2 | ...]`. Items share the prefix through a block mask and restart their
positions behind it, so a row is the same as one row an item at a third of the cost.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mllm_align.scenes.draw import render
from mllm_align.scenes.tasks import sft_items
from mllm_align.scenes.world import Scene, Thing, sample_scene

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TASKS = ("describe", "yes_no", "colour", "count", "where", "read", "short", "judge")


@dataclass(frozen=True)
class Mix:
    """What the rows are made of.

    Args:
        noise: share of descriptions that mention a plausible absent thing.
        existence: existence questions a picture.
        judge_share: share of pictures that come with a judge item.
        overlook, assume: carelessness of the data's author (see `sft_items`).
        ease: share of pictures drawn without faint, covered or noisy things (for the start of training).
        weights: weight of each task in the loss; a loss is averaged over an item's tokens first.
    """

    noise: float = 0.05
    existence: int = 4
    judge_share: float = 0.0
    ease: float = 0.0
    overlook: float = 0.0
    assume: float = 0.0
    weights: Mapping[str, float] = field(
        default_factory=lambda: {"describe": 4.0, "yes_no": 1.5, "judge": 2.0}
    )


@dataclass(frozen=True)
class Rows:
    """images (B, 96, 96, 3) uint8; ids, item (0 prefix, -1 padding), positions (B, L); targets and weights (B, L).

    `targets[b, i]` is the token that position i must predict, -1 where nothing is asked.
    """

    images: torch.Tensor
    ids: torch.Tensor
    item: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    tasks: torch.Tensor

    def to(self, device: str) -> Rows:
        return Rows(**{name: value.to(device) for name, value in vars(self).items()})


def eased(scene: Scene) -> Scene:
    """The same scene with nothing faint or covered, and little noise."""
    things = tuple(replace(thing, contrast=max(thing.contrast, 0.8), cover=None) for thing in scene.things)
    sign = None if scene.sign is None else replace(scene.sign, contrast=max(scene.sign.contrast, 0.8))
    backdrop = replace(scene.backdrop, noise_std=min(scene.backdrop.noise_std, 12.0))
    return replace(scene, things=tuple[Thing, ...](things), sign=sign, backdrop=backdrop)


def _one_row(
    scene: Scene, rng: random.Random, mix: Mix, tokenizer: PreTrainedTokenizerFast, prefix: list[int]
) -> tuple[list[Any], ...]:
    judge = int(rng.random() < mix.judge_share)
    items = sft_items(
        scene,
        rng,
        noise=mix.noise,
        existence_questions=mix.existence,
        judge=judge,
        overlook=mix.overlook,
        assume=mix.assume,
    )
    encode = tokenizer.backend_tokenizer.encode_batch
    asked = encode([f"{prompt} ASSISTANT:" for prompt, _, _ in items], add_special_tokens=False)
    answers = encode([f" {answer}</s>" for _, answer, _ in items], add_special_tokens=False)
    ids, item, positions = list(prefix), [0] * len(prefix), list(range(len(prefix)))
    targets, weights, tasks = [-1] * len(prefix), [0.0] * len(prefix), [-1] * len(prefix)
    for number, (question, answer, (_, _, task)) in enumerate(
        zip(asked, answers, items, strict=True), start=1
    ):
        tokens, said = question.ids + answer.ids[:-1], len(answer.ids)
        silent = len(question.ids) - 1
        ids += tokens
        item += [number] * len(tokens)
        positions += range(len(prefix), len(prefix) + len(tokens))
        targets += [-1] * silent + answer.ids
        weights += [0.0] * silent + [mix.weights.get(task, 1.0) / said] * said
        tasks += [-1] * silent + [TASKS.index(task)] * said
    return ids, item, positions, targets, weights, tasks


def make_rows(
    first: int, number: int, mix: Mix, tokenizer: PreTrainedTokenizerFast, prefix: list[int], *, seed: int,
    split: str = "sft",
) -> Rows:  # fmt: skip
    """Rows for scenes first..first+number of a split; a pure function of its arguments."""
    images, rows = [], []
    for index in range(first, first + number):
        rng = random.Random(f"{seed}/{split}/{index}")
        scene = sample_scene(split, index)
        if rng.random() < mix.ease:
            scene = eased(scene)
        images.append(render(scene))
        rows.append(_one_row(scene, rng, mix, tokenizer, prefix))
    length = max(len(row[0]) for row in rows)
    fills = (tokenizer.pad_token_id, -1, 0, -1, 0.0, -1)
    columns = [
        torch.tensor([row[c] + [fills[c]] * (length - len(row[c])) for row in rows])
        for c in range(len(fills))
    ]
    return Rows(torch.from_numpy(np.stack(images)), *columns)


def block_mask(item: torch.Tensor) -> torch.Tensor:
    """(B, 1, L, L) bool: causal, and only the prefix and one's own item are seen."""
    same = (item[:, :, None] == item[:, None, :]) | (item[:, None, :] == 0)
    length = item.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=item.device).tril()
    return (same & causal)[:, None]

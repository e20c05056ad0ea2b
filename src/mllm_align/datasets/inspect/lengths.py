"""Lengths in tokens under a base model: of the image, the prompt and the responses, and what a limit would cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mllm_align.datasets.inspect.seen import Seen
from mllm_align.records import Example, Group

CHUNK = 256  # rows tokenised at a time


@dataclass(frozen=True)
class _Blank:
    """An image of one colour: how many tokens an image takes depends on its size alone."""

    size: tuple[int, int]

    @property
    def key(self) -> str:
        return f"blank {self.size[0]}x{self.size[1]}"

    def load(self) -> Image.Image:
        return Image.new("RGB", self.size)


def lengths(
    groups: Sequence[Group],
    seen: Mapping[str, Seen],
    processor: Any,
    max_length: int | None,
    context: int | None,
) -> dict[str, Any]:
    """Quantiles of the lengths, and the rows that `max_length` cuts or refuses, or that the `context` is too short for.

    A response is cut at its end; image and prompt never are, so a row whose prompt alone is too long can't be used.
    Rows whose image was not seen are left out.
    """
    from mllm_align.compute.packing import prompt_tokens, response_tokens

    rows = [group for group in groups if group.example.image.key in seen]
    images = _image_tokens({seen[group.example.image.key].size for group in rows}, processor)
    table: list[tuple[str, int, int, list[int]]] = []  # id, image, prompt, responses
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        prompts = prompt_tokens([group.example for group in part], processor)
        texts = [text for group in part for text in _texts(group)]
        tokens = iter(response_tokens(texts, processor))
        for group, prompt in zip(part, prompts, strict=True):
            own = [len(next(tokens)) for _ in _texts(group)]
            image = images[seen[group.example.image.key].size]
            table.append((group.example.id, image, len(prompt) - 1, own))
    return {"rows": len(table), **_told(table, max_length, context)}


def _texts(group: Group) -> list[str]:
    """The responses, or the reference answer of a set without any."""
    found = [response.text for response in group.responses]
    return found or ([group.example.reference] if group.example.reference else [])


def _image_tokens(sizes: set[tuple[int, int]], processor: Any) -> dict[tuple[int, int], int]:
    """Tokens that stand for an image of each size, with those around and between its parts."""
    from mllm_align.compute.packing import encode_prompts, prompt_tokens

    text = len(prompt_tokens([Example("size", _Blank((8, 8)), "x")], processor)[0]) - 1
    found = {}
    for size in sizes:
        prompts = encode_prompts([Example("size", _Blank(size), "x")], processor)
        found[size] = int(prompts.prompt_mask.sum()) - text
    return found


def _told(
    table: Sequence[tuple[str, int, int, list[int]]], max_length: int | None, context: int | None
) -> dict[str, Any]:
    if not table:
        return {}
    totals = [image + prompt + max(own, default=0) for _, image, prompt, own in table]
    report: dict[str, Any] = {
        "image": quantiles([image for _, image, _, _ in table]),
        "prompt": quantiles([prompt for _, _, prompt, _ in table]),
        "response": quantiles([length for _, _, _, own in table for length in own]),
        "whole": quantiles(totals),
        "max_length": max_length,
        "context": context,
    }
    if max_length is not None:
        room = [max_length - image - prompt for _, image, prompt, _ in table]
        over = [
            (name, sum(max(0, length - free) for length in own), sum(length > free for length in own))
            for (name, _, _, own), free in zip(table, room, strict=True)
            if free > 0
        ]
        report["rows with a cut response"] = sum(cut > 0 for _, cut, _ in over)
        report["cut responses"] = sum(count for _, _, count in over)
        report["cut tokens"] = sum(cut for _, cut, _ in over)
        report["such as"] = [name for name, cut, _ in over if cut][:5]
        refused = [name for (name, *_), free in zip(table, room, strict=True) if free <= 0]
        report["rows whose prompt leaves no room"] = len(refused)
        report["refused, such as"] = refused[:5]
    if context is not None:
        report["rows beyond the context"] = sum(total > context for total in totals)
    return report


def quantiles(values: Sequence[int]) -> dict[str, int]:
    """The least, the middle, the 95th of a hundred and the greatest; empty where there are none."""
    if not values:
        return {}
    middle, high = np.quantile(np.asarray(values), [0.5, 0.95], method="higher").tolist()
    return {"least": min(values), "middle": int(middle), "95%": int(high), "most": max(values)}


def context_of(folder: str) -> int | None:
    """Positions that a model's config allows; None where it does not say."""
    from transformers import AutoConfig

    from mllm_align.models.load import resolve

    config = AutoConfig.from_pretrained(resolve(folder), local_files_only=True).get_text_config()
    return getattr(config, "max_position_embeddings", None)

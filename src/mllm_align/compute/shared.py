"""Answers to many questions about one image, from one prefill of what their prompts have in common.

Where the image comes first in the template, the prompts of all questions about an image begin with the same tokens:
the system sentence and the image, nearly all of a prompt's length. They go through the language model once. The rest of
each question is packed behind them (as responses are in `logprobs`), and the answers are decoded as forks of the row.
The tokens are those of `decoding.generate`, one question at a time, up to the floating-point rounding of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mllm_align.compute.attention import ForkCache, response_mask
from mllm_align.compute.decoding import (
    BATCHES_SORTED,
    Start,
    generate,
    grow,
    inference,
    stop_tokens,
    uniforms,
)
from mllm_align.compute.packing import Prompts, as_response, encode_prompts, on_axes
from mllm_align.compute.pieces import decode, embed_prompts, embed_tokens, lm_head
from mllm_align.models.families import unwrap
from mllm_align.models.load import Policy
from mllm_align.records import Example, Response


@dataclass(frozen=True)
class Shared:
    """Rows of a `Prompts` that show one image and begin with the same `prefix` tokens, the image among them."""

    rows: tuple[int, ...]
    prefix: int


def answers(
    policy: Policy,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> list[Response]:
    """One response an example: draw 0 of its stream under `seed`, as `decoding.generate` draws it.

    Examples of one image (by `ImageRef.key`) share its prefill, at most `batch_size` at a time; an image that is asked
    about once, and one whose prompts differ before its last token, goes through `generate`.
    """
    places: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        places.setdefault(example.image.key, []).append(place)
    several = [rows for rows in places.values() if len(rows) > 1]
    found: dict[int, Response] = {}
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    stops = stop_tokens(policy)
    with inference(policy.model):
        for window in _windows(several, batch_size * BATCHES_SORTED):
            prompts = encode_prompts([examples[i] for i in window], policy.processor)
            for batch in _batches(prompts, unwrap(policy.model).config.image_token_id, batch_size):
                ids = [prompts.ids[row] for group in batch for row in group.rows]
                draws = uniforms(ids, seed, range(1), max_new_tokens)[:, 0]
                tokens = _answer(policy, prompts, batch, draws, stops, temperature, top_p)
                for row, own in tokens.items():
                    found[window[row]] = as_response(own, policy.processor, policy.name)
    rest = [place for place in range(len(examples)) if place not in found]
    alone = generate(policy, [examples[i] for i in rest], seed=seed, batch_size=batch_size, **options)
    found.update(zip(rest, (row[0] for row in alone), strict=True))
    return [found[place] for place in range(len(examples))]


def _windows(groups: Sequence[list[int]], size: int) -> Iterator[list[int]]:
    """Places of whole groups, about `size` at a time."""
    window: list[int] = []
    for group in groups:
        window += group
        if len(window) >= size:
            yield window
            window = []
    if window:
        yield window


def _batches(prompts: Prompts, image_token: int, batch_size: int) -> Iterator[list[Shared]]:
    """Groups of about the same size together; k questions each of B images are at most `batch_size`, or one group."""
    by_image: dict[int, list[int]] = {}
    for row, image in enumerate(prompts.image_index.tolist()):
        by_image.setdefault(image, []).append(row)
    shared = []
    for rows in by_image.values():
        prefix = common_prefix(prompts.prompt_ids[rows], prompts.prompt_mask[rows])
        if (prompts.prompt_ids[rows[0], prefix:] == image_token).any():
            continue  # the template puts text before the image
        chunks = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        shared += [Shared(tuple(chunk), prefix) for chunk in chunks]
    batch: list[Shared] = []
    for group in sorted(shared, key=lambda group: (-len(group.rows), group.prefix)):
        if batch and len(batch[0].rows) * (len(batch) + 1) > batch_size:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def common_prefix(ids: torch.Tensor, mask: torch.Tensor) -> int:
    """How many first tokens all rows (n, P) have in common; less than the shortest row has, so that each has a rest."""
    differ = ((ids != ids[0]) | ~mask).any(0).nonzero()
    longest = int(mask.sum(1).min()) - 1
    return min(longest, int(differ[0])) if len(differ) else longest


def _answer(
    policy: Policy,
    prompts: Prompts,
    batch: Sequence[Shared],
    draws: torch.Tensor,  # (questions, T)
    stops: Sequence[int],
    temperature: float,
    top_p: float,
) -> dict[int, list[int]]:
    """The tokens of each row of the batch."""
    device = lm_head(policy.model).weight.device
    counts = [len(group.rows) for group in batch]
    exists = torch.arange(max(counts)) < torch.tensor(counts)[:, None]  # (B, k)
    spread = draws.new_zeros(*exists.shape, draws.shape[1])
    spread[exists] = draws
    start, cache = _prefill(policy.model, prompts, batch, exists, spread.to(device), device)
    grown = grow(policy.model, cache, start, stops, temperature, top_p)
    return {
        row: tokens
        for group, own in zip(batch, grown, strict=True)
        for row, tokens in zip(group.rows, own, strict=False)  # `own` has places for the largest group
    }


def _prefill(
    model: object,
    prompts: Prompts,
    batch: Sequence[Shared],
    exists: torch.Tensor,  # (B, k) bool
    draws: torch.Tensor,  # (B, k, T)
    device: torch.device,
) -> tuple[Start, ForkCache]:
    """One pass over [prefix | rest of question 1 | ... | rest of question k] of each group."""
    prefix = _prefixes(prompts, batch).to(device)
    ids, mask, first = (x.to(device) for x in _rests(prompts, batch, exists))  # (B, k, W) twice, (B, k)
    rows, forks, width = ids.shape
    embeds = embed_prompts(model, prefix)
    embeds = torch.cat([embeds, embed_tokens(model, ids.flatten(1)).to(embeds)], dim=1)
    steps = (first[..., None] + torch.arange(width, device=device)).flatten(1)  # (B, k W)
    positions = torch.cat([prefix.positions, on_axes(steps, prefix.positions)], dim=-1)
    looks = response_mask(prefix.prompt_mask, forks, width, embeds.dtype)
    cache = ForkCache(prefix.prompt_mask, tails=mask)
    hidden = decode(model, embeds, positions, looks, fork=cache)[:, prefix.prompt_ids.shape[1] :]
    lengths = mask.sum(2)  # (B, k)
    last = width * torch.arange(forks, device=device) + (lengths - 1).clamp(min=0)
    states = hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1]))
    start = Start(
        logits=lm_head(model)(states).float(),
        positions=first + lengths,
        forced=ids.new_empty(rows, forks, 0),
        draws=draws,
        exists=exists.to(device),
    )
    return start, cache


def _prefixes(prompts: Prompts, batch: Sequence[Shared]) -> Prompts:
    """The common part of each group as a prompt."""
    firsts = [group.rows[0] for group in batch]
    lengths = torch.tensor([group.prefix for group in batch])
    width = int(lengths.max())
    images, index = prompts.image_index[firsts].unique(return_inverse=True)
    return Prompts(
        # What lies behind a shorter prefix is padding here, and must be no image token.
        prompt_ids=prompts.prompt_ids[firsts, :width],
        prompt_mask=torch.arange(width) < lengths[:, None],
        pixel_values=prompts.pixel_values[images],
        image_sizes=None if prompts.image_sizes is None else prompts.image_sizes[images],
        image_index=index,
        positions=prompts.positions[firsts][..., :width],
        ids=tuple(prompts.ids[row] for row in firsts),
    )


def _rests(
    prompts: Prompts, batch: Sequence[Shared], exists: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What each question has behind its group's prefix: ids (B, k, W), right-padded, mask, first position (B, k)."""
    lengths = prompts.prompt_mask.sum(1)
    width = max(int(lengths[list(group.rows)].max()) - group.prefix for group in batch)
    ids = prompts.prompt_ids.new_zeros(*exists.shape, width)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    first = torch.zeros(exists.shape, dtype=torch.long)
    # Behind an image there is text, whose position is the same on every axis.
    positions = prompts.positions if prompts.positions.ndim == 2 else prompts.positions[:, 0]
    for place, group in enumerate(batch):
        for fork, row in enumerate(group.rows):
            rest = prompts.prompt_ids[row, group.prefix : int(lengths[row])]
            ids[place, fork, : len(rest)] = rest
            mask[place, fork, : len(rest)] = True
            first[place, fork] = positions[row, group.prefix]
    return ids, mask, first

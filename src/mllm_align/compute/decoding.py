"""Sampling k responses a prompt from one prefill, with draws that do not depend on the batch.

Draw d of example i under seed s reads its uniforms from a counter-based generator keyed by (s, i, d) and
turns them into tokens by the inverse of the cumulative distribution. So a response depends on its own prompt
and key only, up to the floating-point rounding of the model's logits in batches of different shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from mllm_align.compute.attention import ForkCache, prepared
from mllm_align.compute.packing import (
    Prompts,
    answer_starts,
    as_response,
    encode_prompts,
    response_tokens,
)
from mllm_align.compute.pieces import decode, embed_prompts, embed_tokens, lm_head
from mllm_align.models.families import unwrap
from mllm_align.models.load import Policy, end_token
from mllm_align.records import Example, Response

# Prompts of so many batches are encoded together and sorted by length, so that a batch has little padding.
BATCHES_SORTED = 4
# Tokens that go through the language model together when prompts are read: more only takes memory.
TOKENS_AT_ONCE = 8192
# Finished prompts, and forks, leave the batch when this share of it is done; less would copy the cache too often.
DONE_SHARE = 0.2


def generate(
    policy: Policy,
    examples: Sequence[Example],
    *,
    k: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    first_draw: int = 0,
    batch_size: int = 32,
) -> list[tuple[Response, ...]]:
    """k responses to each example: draws `first_draw` ... `first_draw + k - 1` of its stream under `seed`.

    `temperature` 0 is greedy decoding (all k are equal then); `top_p` keeps the smallest set of tokens with
    that much probability. A response ends with the end token, which is in its `token_ids` and not in its
    `text`, or after `max_new_tokens`.
    """
    if min(k, max_new_tokens, batch_size) < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"k={k}, max_new_tokens={max_new_tokens} and batch_size={batch_size} must be positive, "
            f"temperature={temperature} not negative and top_p={top_p} in (0, 1]."
        )
    stops = stop_tokens(policy)
    results: dict[int, tuple[Response, ...]] = {}
    with inference(policy.model):
        for window in _windows(len(examples), batch_size):
            for indices, prompts in _sorted_batches([examples[i] for i in window], policy, batch_size):
                draws = uniforms(prompts.ids, seed, range(first_draw, first_draw + k), max_new_tokens)
                tokens = _decode(policy.model, prompts, draws, stops, temperature, top_p)
                for index, row in zip(indices, tokens, strict=True):
                    results[window[index]] = tuple(
                        as_response(ids, policy.processor, policy.name) for ids in row
                    )
    return [results[i] for i in range(len(examples))]


def first_token_logprobs(
    policy: Policy, examples: Sequence[Example], answers: Sequence[str], *, batch_size: int = 64
) -> torch.Tensor:
    """log p(first token of each answer | image, prompt): (examples, answers) float32 on the CPU.

    For closed questions: answers ("yes", "no") or ("A", "B"). Raises ValueError when two answers start with
    the same token.
    """
    starts = [ids[0] for ids in response_tokens(answers, policy.processor)]
    if len(set(starts)) < len(starts):
        raise ValueError(f"answers {list(answers)} do not differ in their first token.")
    result = torch.zeros(len(examples), len(answers))
    with inference(policy.model):
        for window in _windows(len(examples), batch_size):
            for indices, prompts in _sorted_batches([examples[i] for i in window], policy, batch_size):
                logits, _ = _prefill(policy.model, prompts)
                scores = logits.log_softmax(-1)[:, starts].cpu()
                result[[window[i] for i in indices]] = scores
    return result


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Without gradients and dropout; the model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        # Before pytorch#165068 autocast kept its low-precision copies of weights for the rest of the step. Copies made
        # here have no gradient, and the step's own forward pass would silently train nothing with them.
        torch.clear_autocast_cache()


def _windows(count: int, batch_size: int) -> list[range]:
    step = batch_size * BATCHES_SORTED
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def _sorted_batches(
    examples: Sequence[Example], policy: Policy, batch_size: int
) -> Iterator[tuple[list[int], Prompts]]:
    """Batches of prompts of about the same length, with the places of their examples.

    Prompts with the same image stay together, so that the vision tower sees it in one batch only.
    """
    whole = encode_prompts(examples, policy.processor)
    lengths = whole.prompt_mask.sum(1)
    longest = lengths.new_zeros(len(whole.pixel_values)).scatter_reduce(0, whole.image_index, lengths, "amax")
    images = whole.image_index.tolist()
    order = sorted(range(len(examples)), key=lambda i: (int(longest[images[i]]), images[i]))
    device = lm_head(policy.model).weight.device
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, _select(whole, rows, int(lengths[rows].max())).to(device)


def _select(prompts: Prompts, rows: list[int], width: int) -> Prompts:
    images, index = prompts.image_index[rows].unique(return_inverse=True)
    return Prompts(
        prompt_ids=prompts.prompt_ids[rows, :width],
        prompt_mask=prompts.prompt_mask[rows, :width],
        pixel_values=prompts.pixel_values[images],
        image_sizes=None if prompts.image_sizes is None else prompts.image_sizes[images],
        image_index=index,
        positions=prompts.positions[rows][..., :width],
        ids=tuple(prompts.ids[i] for i in rows),
    )


def _prefill(model: Any, prompts: Prompts) -> tuple[torch.Tensor, ForkCache]:
    """Logits after each prompt (B, V) float32, and the cache that its forks go on from."""
    last = prompts.prompt_mask.sum(1, keepdim=True) - 1  # (B, 1)
    embeds = embed_prompts(model, prompts)
    states, cache = read(model, embeds, prompts.positions, prompts.prompt_mask, last)
    return lm_head(model)(states[:, 0]).float(), cache


def read(
    model: Any, embeds: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, ForkCache]:
    """Hidden states (B, k, hidden) of the tokens at `last` (B, k), and the keys and values of the whole rows, of which
    forks see those that are `seen`, (B, L) or (B, k, L). The rows are read some at a time.
    """
    states, parts = [], []
    for own in rows_at_once(embeds):
        parts.append(ForkCache(seen[own]))
        hidden = forward(model, embeds[own], positions[own], parts[-1])
        states.append(hidden.gather(1, last[own][..., None].expand(-1, -1, hidden.shape[-1])))
    cache = ForkCache(seen)
    cache.take(parts)
    return torch.cat(states), cache


def rows_at_once(embeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Numbers of the rows of (B, L, hidden) that are read together, for all of them."""
    return torch.arange(len(embeds), device=embeds.device).split(max(1, TOKENS_AT_ONCE // embeds.shape[1]))


def forward(model: Any, embeds: torch.Tensor, positions: torch.Tensor, cache: ForkCache) -> torch.Tensor:
    """Hidden states (B, L, hidden) of prompts, the first time, and then of one token for each of L = k forks."""
    return decode(model, embeds, positions, prepared(embeds.device), fork=cache)


def _decode(
    model: Any,
    prompts: Prompts,
    draws: torch.Tensor,  # (B, k, T) float64
    stops: tuple[int, ...],
    temperature: float,
    top_p: float,
) -> list[list[list[int]]]:
    """Tokens of every fork of every prompt."""
    batch, forks, _ = draws.shape
    logits, cache = _prefill(model, prompts)
    start = Start(
        logits=logits[:, None].expand(-1, forks, -1),
        positions=answer_starts(prompts)[:, None].expand(-1, forks),
        forced=torch.empty(batch, forks, 0, dtype=torch.long, device=logits.device),
        draws=draws.to(logits.device),
        exists=torch.ones(batch, forks, dtype=torch.bool, device=logits.device),
    )
    return grow(model, cache, start, stops, temperature, top_p)


@dataclass(frozen=True)
class Start:
    """Where up to k forks of each of B prompts begin."""

    logits: torch.Tensor  # (B, k, V) of the token after the prompt, as far as the fork sees it
    positions: torch.Tensor  # (B, k) long: position id of that token
    forced: torch.Tensor  # (B, k, F) long: tokens that are put before the model first; -1 at padding
    draws: torch.Tensor  # (B, k, T) float64: uniforms of the tokens that follow, at most T
    exists: torch.Tensor  # (B, k) bool: false at padding


def grow(
    model: Any, cache: ForkCache, start: Start, stops: Sequence[int], temperature: float, top_p: float
) -> list[list[list[int]]]:
    """Tokens of every fork, without its forced ones, up to the first of `stops` (which is kept) or to T tokens."""
    device, (batch, forks, limit) = start.logits.device, start.draws.shape
    given = (start.forced >= 0).sum(-1)  # (B, k)
    steps = limit + int(given.max())
    forced = pad(start.forced, (0, steps - start.forced.shape[2]), value=-1)
    ends = torch.tensor(stops, device=device)
    taken = torch.full((batch, forks, steps), -1, dtype=torch.long, device=device)
    rows = torch.arange(batch, device=device)  # what is still in the cache: rows,
    slots = torch.arange(forks, device=device).expand(batch, -1)  # and forks of each, (b, k')
    logits, done = start.logits, ~start.exists
    for step in range(steps):
        at = (rows[:, None], slots)
        own = step - given[at]  # tokens that the model has added; below 0 while forced ones are left
        drawn = pick(logits, start.draws[(*at, own.clamp(0, limit - 1))], temperature, top_p)
        tokens = torch.where(own < 0, forced[(*at, step)], drawn)  # (b, k')
        taken[(*at, step)] = torch.where(done | (own < 0), -1, tokens)
        done = done | ((own >= 0) & torch.isin(tokens, ends)) | (own + 1 >= limit)
        if bool(done.all()):
            break
        kept = _leave(done)
        if kept is not None:
            cache.keep(*kept)
            rows, (slots, done, tokens) = (
                rows[kept[0]],
                (x[kept[0][:, None], kept[1]] for x in (slots, done, tokens)),
            )
        cache.length += 1
        positions = start.positions[rows[:, None], slots] + step
        hidden = forward(model, embed_tokens(model, tokens), positions, cache)  # (b, k', hidden)
        logits = lm_head(model)(hidden).float()
    return [[[t for t in fork if t >= 0] for fork in row] for row in taken.tolist()]


def _leave(done: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Rows (b,), and the forks (b, k') of each, to go on with; None where too little is done to be worth it.

    `done` is (B, k). Forks that are done fill up a row that has fewer left than another.
    """
    left = (~done).sum(1)  # (B,)
    rows, width = left.nonzero().squeeze(1), int(left.max())
    fewer = len(rows) <= len(done) * (1 - DONE_SHARE)
    if not fewer and width > done.shape[1] * (1 - DONE_SHARE):
        return None
    rows = rows if fewer else torch.arange(len(done), device=done.device)
    order = done[rows].long().argsort(dim=1, stable=True)
    return rows, order[:, :width]


def pick(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Tokens by inverse CDF: logits (..., V), uniforms (...) in [0, 1) -> (...) long. Temperature 0 takes
    the largest.
    """
    if temperature == 0:
        return logits.argmax(-1)
    weights = (logits / temperature).softmax(-1, dtype=torch.float64)
    order = None
    if top_p < 1:
        weights, order = weights.sort(dim=-1, descending=True, stable=True)
        # A token stays while the likelier ones before it hold less than top_p, so the likeliest always stays.
        weights = weights.masked_fill(weights.cumsum(-1) - weights >= top_p, 0.0)
    cumulative = weights.cumsum(-1)
    target = uniforms.to(cumulative)[..., None] * cumulative[..., -1:]
    place = torch.searchsorted(cumulative, target, right=True)
    place = place.clamp(max=logits.shape[-1] - 1)
    return (place if order is None else order.gather(-1, place)).squeeze(-1)


def uniforms(ids: Sequence[str], seed: int, draws: range, steps: int) -> torch.Tensor:
    """(B, k, T) float64 in [0, 1): stream (seed, id, draw), whatever the batch, k and T."""
    streams = [[stream(seed, name, draw).random(steps) for draw in draws] for name in ids]
    return torch.from_numpy(np.array(streams))


def stream(seed: int, name: str, draw: int) -> np.random.Generator:
    """The random stream of a draw."""
    digest = hashlib.blake2b(f"{seed}\x00{name}\x00{draw}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def stop_tokens(policy: Policy) -> tuple[int, ...]:
    """Tokens that end an answer: the model's generation config's, the tokenizer's and the chat template's."""
    listed = getattr(unwrap(policy.model).generation_config, "eos_token_id", None)
    listed = listed if isinstance(listed, list | tuple) else [listed]
    own = [policy.processor.tokenizer.eos_token_id, end_token(policy.processor)]
    return tuple(sorted({t for t in [*listed, *own] if t is not None}))

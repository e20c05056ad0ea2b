"""Sampling k responses a prompt from one prefill, with draws that do not depend on the batch.

Draw d of example i under seed s reads its uniforms from a counter-based generator keyed by (s, i, d) and
turns them into tokens by the inverse of the cumulative distribution. So a response depends on its own prompt
and key only, up to the floating-point rounding of the model's logits in batches of different shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mllm_align.compute.attention import ForkCache, prepared
from mllm_align.compute.packing import Prompts, as_response, encode_prompts, response_tokens
from mllm_align.compute.pieces import embed_prompts, embed_tokens, language_model, lm_head, unwrap
from mllm_align.models.load import Policy
from mllm_align.records import Example, Response

# Prompts of so many batches are encoded together and sorted by length, so that a batch has little padding.
BATCHES_SORTED = 4
# Finished prompts leave the batch when this share of it is done; less would copy the cache too often.
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
    if k < 1 or max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"k={k} and max_new_tokens={max_new_tokens} must be positive, "
            f"temperature={temperature} not negative and top_p={top_p} in (0, 1]."
        )
    stops = _stop_tokens(policy)
    results: dict[int, tuple[Response, ...]] = {}
    with _inference(policy.model):
        for window in _windows(len(examples), batch_size):
            for indices, prompts in _sorted_batches([examples[i] for i in window], policy, batch_size):
                draws = _uniforms(prompts.ids, seed, range(first_draw, first_draw + k), max_new_tokens)
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
    with _inference(policy.model):
        for window in _windows(len(examples), batch_size):
            for indices, prompts in _sorted_batches([examples[i] for i in window], policy, batch_size):
                logits, _ = _prefill(policy.model, prompts, 1)
                scores = logits.log_softmax(-1)[:, starts].cpu()
                result[[window[i] for i in indices]] = scores
    return result


@contextmanager
def _inference(model: Any) -> Iterator[None]:
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
        ids=tuple(prompts.ids[i] for i in rows),
    )


def _prefill(model: Any, prompts: Prompts, forks: int) -> tuple[torch.Tensor, ForkCache]:
    """Logits after each prompt (B, V) float32, and the cache that its forks go on from."""
    cache = ForkCache(prompts.prompt_mask, forks)
    embeds = embed_prompts(model, prompts)
    positions = torch.arange(embeds.shape[1], device=embeds.device).expand(len(embeds), -1)
    hidden = _forward(model, embeds, positions, cache)
    last = prompts.prompt_mask.sum(1) - 1
    return lm_head(model)(hidden[torch.arange(len(hidden), device=last.device), last]).float(), cache


def _forward(model: Any, embeds: torch.Tensor, positions: torch.Tensor, cache: ForkCache) -> torch.Tensor:
    decoder = language_model(model)
    output = decoder(
        inputs_embeds=embeds,
        position_ids=positions,
        attention_mask=prepared(embeds.device),
        use_cache=False,
        fork=cache,
    )
    return output.last_hidden_state


def _decode(
    model: Any,
    prompts: Prompts,
    draws: torch.Tensor,  # (B, k, T) float64
    stops: tuple[int, ...],
    temperature: float,
    top_p: float,
) -> list[list[list[int]]]:
    """Tokens of every fork of every prompt."""
    device = prompts.prompt_ids.device
    batch, forks, steps = draws.shape
    draws = draws.to(device)
    logits, cache = _prefill(model, prompts, forks)
    logits = logits[:, None].expand(-1, forks, -1)  # (B, k, V)
    ends = torch.tensor(stops, device=device)
    taken = torch.full((batch, forks, steps), -1, dtype=torch.long, device=device)
    live = torch.arange(batch, device=device)  # rows of the batch that are still in the cache
    done = torch.zeros(batch, forks, dtype=torch.bool, device=device)
    lengths = prompts.prompt_mask.sum(1)
    for step in range(steps):
        tokens = pick(logits, draws[live, :, step], temperature, top_p)  # (b, k)
        taken[live, :, step] = torch.where(done, -1, tokens)
        done = done | torch.isin(tokens, ends)
        going = ~done.all(1)
        left = int(going.sum())
        if left == 0 or step + 1 == steps:
            break
        if left <= len(live) * (1 - DONE_SHARE):
            rows = going.nonzero().squeeze(1)
            cache.keep(rows)
            live, done, tokens, lengths = live[rows], done[rows], tokens[rows], lengths[rows]
        cache.length += 1
        positions = (lengths + step)[:, None].expand(-1, forks)
        hidden = _forward(model, embed_tokens(model, tokens), positions, cache)  # (b, k, hidden)
        logits = lm_head(model)(hidden).float()
    return [[[t for t in fork if t >= 0] for fork in row] for row in taken.tolist()]


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


def _uniforms(ids: Sequence[str], seed: int, draws: range, steps: int) -> torch.Tensor:
    """(B, k, T) float64 in [0, 1): stream (seed, id, draw), whatever the batch, k and T."""
    streams = [[_stream(seed, name, draw).random(steps) for draw in draws] for name in ids]
    return torch.from_numpy(np.array(streams))


def _stream(seed: int, name: str, draw: int) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}\x00{name}\x00{draw}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _stop_tokens(policy: Policy) -> tuple[int, ...]:
    listed = getattr(unwrap(policy.model).generation_config, "eos_token_id", None)
    listed = listed if isinstance(listed, list | tuple) else [listed]
    return tuple(sorted({t for t in [*listed, policy.processor.tokenizer.eos_token_id] if t is not None}))

"""Decoding from prompts of which the model sees only some image tokens (BDHS), many sentences from one prefill.

A hidden image token is seen by no other token, so it is left out of the sequence, and with `positions="keep"`
what follows keeps its position ids: the same result as a mask over the whole prompt, at the cost of the
visible tokens. Prompt and reference answer go through the model once; every sentence forks from there at its
own place, sees the reference up to it, and is decoded together with all others of the batch.

Image features are those of the policy as it is, without gradients. Draws follow (seed, example id, draw), so
neither the batch nor the other examples change a result, up to the floating-point rounding of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from mllm_align.compute.attention import ForkCache
from mllm_align.compute.attention import prepared as stand_in
from mllm_align.compute.decoding import Start, grow, inference, read, rows_at_once, stop_tokens, stream
from mllm_align.compute.packing import encode_prompts
from mllm_align.compute.pieces import (
    check_image_tokens,
    decode,
    embed_tokens,
    image_features,
    lm_head,
)
from mllm_align.models.families import unwrap
from mllm_align.models.load import Policy
from mllm_align.records import Example

# Images that go through the vision tower together: an AnyRes image is up to five tiles, each an image to it.
IMAGES_AT_ONCE = 8

# Which image tokens of a row are seen, (image tokens,) bool; None: all of them.
Visible = np.ndarray | None


@dataclass(frozen=True)
class Prepared:
    """Prompts of N examples, tokenised, and what the language model sees of their images."""

    prompts: tuple[torch.Tensor, ...]  # (P,) long each, on the model's device, with all image tokens
    positions: tuple[torch.Tensor, ...]  # (P,) long each, or (3, P) where position ids have three axes
    features: tuple[torch.Tensor, ...]  # (image tokens, hidden) each; rows with the same image share one
    image_index: tuple[int, ...]
    image_token: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Fork:
    """A sentence to be completed behind the reference's first `start` tokens and `forced`."""

    start: int
    forced: tuple[int, ...] = ()
    draw: int = 0  # its random stream under the seed and the example's id


@dataclass(frozen=True)
class Attempt:
    """Forks from one prefill: row of `Prepared`, tokens of the reference answer, the image tokens it sees."""

    row: int
    reference: tuple[int, ...]
    forks: tuple[Fork, ...]
    visible: Visible = None


@dataclass(frozen=True)
class Row:
    """What is left of a prompt when hidden image tokens are out, and the answer's tokens behind it."""

    ids: torch.Tensor  # (L,) long
    positions: torch.Tensor  # (L,) long, or (3, L)
    prompt: int  # tokens of the prompt in it
    features: torch.Tensor  # (visible image tokens, hidden)


def prepare(policy: Policy, examples: Sequence[Example]) -> Prepared:
    """Tokens and image features of `examples`; each image is encoded once."""
    places: dict[str, list[int]] = {}  # image -> examples that show it
    for place, example in enumerate(examples):
        places.setdefault(example.image.key, []).append(place)
    order = {key: number for number, key in enumerate(places)}
    prompts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    features: list[torch.Tensor] = []
    keys = list(places)
    with inference(policy.model):
        for at in range(0, len(keys), IMAGES_AT_ONCE):
            rows = [place for key in keys[at : at + IMAGES_AT_ONCE] for place in places[key]]
            encoded, own = _encode(policy, [examples[place] for place in rows])
            prompts.update(zip(rows, encoded, strict=True))
            features += own
    return Prepared(
        prompts=tuple(prompts[place][0] for place in range(len(examples))),
        positions=tuple(prompts[place][1] for place in range(len(examples))),
        features=tuple(features),
        image_index=tuple(order[example.image.key] for example in examples),
        image_token=unwrap(policy.model).config.image_token_id,
        ids=tuple(example.id for example in examples),
    )


def _encode(
    policy: Policy, examples: Sequence[Example]
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]:
    """Prompt tokens and position ids of each example, and features of each image in the order of its first use."""
    batch = encode_prompts(examples, policy.processor).to(lm_head(policy.model).weight.device)
    features = list(image_features(policy.model, batch))
    written = (batch.prompt_ids == unwrap(policy.model).config.image_token_id).sum(1)
    check_image_tokens(written.tolist(), [len(features[i]) for i in batch.image_index.tolist()])
    lengths = batch.prompt_mask.sum(1).tolist()
    # Copies: a view would keep the whole batch in memory.
    rows = zip(batch.prompt_ids, batch.positions, lengths, strict=True)
    return [(ids[:n].clone(), places[..., :n].clone()) for ids, places, n in rows], features


def image_tokens(prepared: Prepared) -> list[int]:
    """Image tokens in the prompt of each row."""
    return [len(prepared.features[image]) for image in prepared.image_index]


def complete(
    policy: Policy,
    prepared: Prepared,
    attempts: Sequence[Attempt],
    *,
    stops: Sequence[int],
    seed: int,
    max_new_tokens: int = 128,
    positions: str = "keep",
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 32,
) -> list[list[tuple[int, ...]]]:
    """For every fork of every attempt, the tokens after [prompt, its hidden image tokens left out |
    reference[:start] | forced], up to the first of `stops`, which is kept, or `max_new_tokens`.

    `positions`: `keep` leaves what follows hidden image tokens its position ids, `collapse` counts what is seen (on
    every axis alike, where position ids have three). Temperature
    0 is greedy. `batch_size` attempts are decoded together. Raises ValueError for options out of range, a mask
    of the wrong length, and a fork that starts behind its reference.
    """
    if max_new_tokens < 1 or batch_size < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be positive, "
            f"temperature={temperature} not negative and top_p={top_p} in (0, 1]."
        )
    _check(prepared, attempts, positions)
    results: list[list[tuple[int, ...]]] = [[] for _ in attempts]
    with inference(policy.model):
        for batch in _sorted_batches(prepared, attempts, batch_size):
            chosen = [attempts[i] for i in batch]
            rows = [_row(prepared, a.row, a.visible, _prefix(a), positions) for a in chosen]
            draws = [_draws(prepared.ids[a.row], a.forks, seed, max_new_tokens) for a in chosen]
            start, cache = _prefill(policy.model, prepared, chosen, rows, draws)
            grown = grow(policy.model, cache, start, stops, temperature, top_p)
            for i, attempt, forks in zip(batch, chosen, grown, strict=True):
                results[i] = [tuple(tokens) for tokens in forks[: len(attempt.forks)]]
    return results


def answer(
    policy: Policy,
    prepared: Prepared,
    rows: Sequence[int],
    *,
    visible: Sequence[Visible],
    seed: int,
    draw: int = 0,
    **options: Any,
) -> list[tuple[int, ...]]:
    """Whole answers without a reference, up to the end token. `options` are those of `complete`."""
    attempts = [
        Attempt(row, (), (Fork(0, draw=draw),), seen) for row, seen in zip(rows, visible, strict=True)
    ]
    written = complete(policy, prepared, attempts, stops=stop_tokens(policy), seed=seed, **options)
    return [tokens for (tokens,) in written]


def forced_argmax(
    policy: Policy, prepared: Prepared, rows: Sequence[int], tokens: Sequence[Sequence[int]]
) -> list[tuple[int, ...]]:
    """For every token of an answer, the likeliest one after the prompt and the answer's tokens before it.

    `tokens` has the answer to each of `rows`; one pass over each of them, every image token visible.
    """
    if not rows:
        return []
    whole = [
        _row(prepared, row, None, tuple(ids[:-1]), "keep") for row, ids in zip(rows, tokens, strict=True)
    ]
    with inference(policy.model):
        embeds, places = _batch(policy.model, prepared, whole)
        states = []
        for own in rows_at_once(embeds):
            hidden = _causal(policy.model, embeds[own], places[own])
            for h, i in zip(hidden, own.tolist(), strict=True):
                first = whole[i].prompt - 1  # the answer's first token is predicted by the prompt's last
                states.append(h[first : first + len(tokens[i])])
        best = lm_head(policy.model)(torch.cat(states)).argmax(-1).split([len(s) for s in states])
    return [tuple(ids.tolist()) for ids in best]


def _causal(model: Any, embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hidden states of right-padded rows that keep no cache: (B, L, hidden)."""
    return decode(model, embeds, positions, stand_in(embeds.device), prefix_length=embeds.shape[1])


def _check(prepared: Prepared, attempts: Sequence[Attempt], positions: str) -> None:
    if positions not in ("keep", "collapse"):
        raise ValueError(f"positions={positions!r}; choose keep or collapse")
    tokens = image_tokens(prepared)
    for attempt in attempts:
        name, seen = prepared.ids[attempt.row], attempt.visible
        if seen is not None and len(seen) != tokens[attempt.row]:
            raise ValueError(
                f"example {name}: the mask has {len(seen)} entries and the prompt {tokens[attempt.row]} image "
                "tokens; give one for each (image_tokens says how many)"
            )
        for fork in attempt.forks:
            if not 0 <= fork.start <= len(attempt.reference):
                raise ValueError(
                    f"example {name}: a fork starts at token {fork.start} of a reference of "
                    f"{len(attempt.reference)}; choose 0 to {len(attempt.reference)}"
                )


def _sorted_batches(prepared: Prepared, attempts: Sequence[Attempt], batch_size: int) -> Iterator[list[int]]:
    """Attempts that have something to do, those of about the same length together."""

    def length(i: int) -> int:
        attempt, tokens = attempts[i], len(prepared.prompts[attempts[i].row])
        hidden = 0 if attempt.visible is None else int((~attempt.visible.astype(bool)).sum())
        return tokens - hidden + len(_prefix(attempt))

    order = sorted((i for i, attempt in enumerate(attempts) if attempt.forks), key=length)
    for at in range(0, len(order), batch_size):
        yield order[at : at + batch_size]


def _prefix(attempt: Attempt) -> tuple[int, ...]:
    """The reference as far as a fork looks at it."""
    return attempt.reference[: max(fork.start for fork in attempt.forks)]


def _row(prepared: Prepared, row: int, visible: Visible, reference: tuple[int, ...], positions: str) -> Row:
    whole, features = prepared.prompts[row], prepared.features[prepared.image_index[row]]
    kept = torch.ones_like(whole, dtype=torch.bool)
    if visible is not None:
        seen = torch.from_numpy(np.asarray(visible, dtype=bool)).to(whole.device)
        kept[whole == prepared.image_token] = seen
        features = features[seen]
    if positions == "keep":
        places = prepared.positions[row][..., kept]
        first = int(prepared.positions[row].max()) + 1  # position of the reference
    else:  # counted, on every axis
        places = torch.arange(int(kept.sum()), device=whole.device).expand_as(
            prepared.positions[row][..., kept]
        )
        first = places.shape[-1]
    after = first + torch.arange(len(reference), device=whole.device)
    return Row(
        ids=torch.cat([whole[kept], whole.new_tensor(reference)]),
        positions=torch.cat([places, after.expand(*places.shape[:-1], -1)], dim=-1),
        prompt=int(kept.sum()),
        features=features,
    )


def _batch(model: Any, prepared: Prepared, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (B, L, hidden) and position ids (B, L) or (B, 3, L) of rows, padded on the right."""
    ids = pad_sequence([row.ids for row in rows], batch_first=True)
    embeds = embed_tokens(model, ids)
    images = torch.zeros_like(ids, dtype=torch.bool)
    for here, row in zip(images, rows, strict=True):
        here[: row.prompt] = row.ids[: row.prompt] == prepared.image_token
    features = torch.cat([row.features for row in rows]).to(embeds)
    embeds = embeds.masked_scatter(images[..., None], features)
    # Padding is put at the end of the first axis, tokens are the last.
    places = pad_sequence([row.positions.movedim(-1, 0) for row in rows], batch_first=True)
    return embeds, places.movedim(1, -1)


def _prefill(
    model: Any,
    prepared: Prepared,
    attempts: Sequence[Attempt],
    rows: Sequence[Row],
    draws: Sequence[np.ndarray],
) -> tuple[Start, ForkCache]:
    """One pass over prompts and references, and where each fork goes on from it."""
    embeds, places = _batch(model, prepared, rows)
    device = embeds.device
    prompt = torch.tensor([row.prompt for row in rows], device=device)[:, None]  # (B, 1)
    starts = _padded([[fork.start for fork in a.forks] for a in attempts], 0).to(device)  # (B, k)
    seen = torch.arange(embeds.shape[1], device=device) < (prompt + starts)[..., None]  # (B, k, L)
    last = prompt + starts - 1  # the last token that a fork sees
    states, cache = read(model, embeds, places, seen, last)
    start = Start(
        logits=lm_head(model)(states).float(),
        # A prompt ends with text, whose position is the same on every axis.
        positions=(places if places.ndim == 2 else places[:, 0]).gather(1, prompt - 1) + 1 + starts,
        forced=_forced(attempts).to(device),
        draws=pad_sequence([torch.from_numpy(own) for own in draws], batch_first=True).to(device),
        exists=_padded([[1] * len(a.forks) for a in attempts], 0).bool().to(device),
    )
    return start, cache


def _draws(name: str, forks: Sequence[Fork], seed: int, steps: int) -> np.ndarray:
    """Uniforms of every fork: (k, T) float64."""
    return np.stack([stream(seed, name, fork.draw).random(steps) for fork in forks])


def _forced(attempts: Sequence[Attempt]) -> torch.Tensor:
    """(B, k, F) long, -1 at padding."""
    width = max(len(fork.forced) for a in attempts for fork in a.forks)
    result = torch.full((len(attempts), max(len(a.forks) for a in attempts), width), -1, dtype=torch.long)
    for row, attempt in enumerate(attempts):
        for slot, fork in enumerate(attempt.forks):
            result[row, slot, : len(fork.forced)] = torch.tensor(fork.forced, dtype=torch.long)
    return result


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """(B, widest row) long."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

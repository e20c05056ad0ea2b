"""From Groups to tensors: prompts with their images, responses, and which token predicts which.

Where prompt and response meet: the prompt is tokenised by itself up to the generation prompt ("...
ASSISTANT:"), the response as what follows it in the chat template (" {text}" for Vicuna), and the end token
is added. The response's tokens are those that it has right after the generation prompt's last words, so a
tokenizer that joins a word with the space before it gives the tokens it would give for the whole text. A
response that brings `token_ids` (one that a policy sampled) is used as it is, end token or none.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from mllm_align.models.families import Family, of_processor
from mllm_align.models.load import answer_lead, end_token, prompt_text, without_image_token
from mllm_align.records import Example, Group, Response

# Prompts that `check_prompts` reads with their images.
LOOKED_AT = 16

Tensors = TypeVar("Tensors", "Prompts", "Batch")

# Token ids of a pair's chosen and rejected response -> a weight for each token of the one and of the other.
TokenWeights = Callable[[Sequence[int], Sequence[int]], tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Prompts:
    """Prompts of B Examples. Rows that show the same image (by `ImageRef.key`) share one entry of
    `pixel_values`.
    """

    prompt_ids: torch.Tensor  # (B, P) long, right-padded
    prompt_mask: torch.Tensor  # (B, P) bool
    # By family: LLaVA-1.5 (images, 3, H, W); LLaVA-NeXT (images, tiles, 3, H, W), padded with empty tiles; ...
    pixel_values: torch.Tensor
    # (images, n) long: LLaVA-NeXT's height and width of the original, ... (`models.families`); or None
    image_sizes: torch.Tensor | None
    image_index: torch.Tensor  # (B,) long
    positions: torch.Tensor  # (B, P) long position ids, or (B, 3, P) where positions have three axes
    ids: tuple[str, ...]

    def to(self, device: str | torch.device) -> Prompts:
        return _to(self, device)


@dataclass(frozen=True)
class Batch:
    """Prompts as in `Prompts`, k responses each, and the preferences among them.

    A row is a Group (`slots` is None, G = B, K = k) unless some response is asked under an image of its own:
    then a Group has one row for each of its images, and `slots` says where its responses are (`by_group`).
    `ids`, `pairs` and what is made of them go by Groups.
    """

    prompt_ids: torch.Tensor  # (B, P)
    prompt_mask: torch.Tensor  # (B, P)
    response_ids: torch.Tensor  # (B, k, R) long, right-padded
    response_mask: (
        torch.Tensor
    )  # (B, k, R) bool, true on real tokens with the end token; all false for a missing response
    pixel_values: torch.Tensor
    image_sizes: torch.Tensor | None
    image_index: torch.Tensor  # (B,)
    positions: torch.Tensor  # (B, P) or (B, 3, P)
    pairs: torch.Tensor  # (n, 3) long: group, chosen, rejected
    pair_weights: torch.Tensor  # (n,) float
    ids: tuple[str, ...]
    truncated: int = 0  # responses cut by max_length
    slots: torch.Tensor | None = None  # (G, K) long: row * k + place in the row; -1 for a missing response
    token_weights: torch.Tensor | None = None  # (n, 2, R) float: of the chosen and the rejected response

    def to(self, device: str | torch.device) -> Batch:
        return _to(self, device)


def _to(record: Tensors, device: str | torch.device) -> Tensors:
    values: dict[str, Any] = {f.name: getattr(record, f.name) for f in fields(record)}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            values[name] = value.to(device, non_blocking=True)
    return type(record)(**values)


def collate(
    groups: Sequence[Group],
    processor: Any,
    *,
    max_length: int | None = None,
    token_weights: TokenWeights | None = None,
) -> Batch:
    """Tensors of several Groups, on the CPU.

    `max_length` bounds prompt (with its image tokens) plus response, in tokens: a longer response loses its
    end and is counted in `truncated`; prompts and images are never cut. `token_weights` is asked for each pair.
    Raises ValueError for a prompt that leaves no room, an empty group and an image token inside a text.
    """
    for group in groups:
        if not group.responses:
            raise ValueError(f"example {group.example.id}: the group has no responses.")
    examples, places = _rows(groups)
    prompts = encode_prompts(examples, processor)
    lengths = prompts.prompt_mask.sum(1).tolist()
    tokens = _by_row(encode_responses(groups, processor), places, len(examples))
    cut, truncated = _cut(tokens, lengths, prompts.ids, max_length)
    response_ids, response_mask = _pad_responses(cut, processor.tokenizer.pad_token_id or 0)
    pairs = [(row, p.chosen, p.rejected) for row, g in enumerate(groups) for p in g.preferences]
    weights = [p.weight for g in groups for p in g.preferences]
    chosen, rejected = ([_at(cut, places[pair[0]][pair[side]]) for pair in pairs] for side in (1, 2))
    return Batch(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        response_ids=response_ids,
        response_mask=response_mask,
        pixel_values=prompts.pixel_values,
        image_sizes=prompts.image_sizes,
        image_index=prompts.image_index,
        positions=prompts.positions,
        pairs=torch.tensor(pairs, dtype=torch.long).reshape(-1, 3),
        pair_weights=torch.tensor(weights, dtype=torch.float32),
        ids=tuple(group.example.id for group in groups),
        truncated=truncated,
        slots=_slots(places, response_ids.shape[1]) if len(examples) > len(groups) else None,
        token_weights=_weigh(token_weights, chosen, rejected, response_ids.shape[2]),
    )


def by_group(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    """What was computed for rows (B, k, ...), by Groups (G, K, ...); 0 for a missing response."""
    if batch.slots is None:
        return values
    found = values.flatten(0, 1)[batch.slots.clamp(min=0)]  # (G, K, ...)
    missing = (batch.slots < 0).view(*batch.slots.shape, *[1] * (found.ndim - 2))
    return found.masked_fill(missing, 0)


def predictors(batch: Batch) -> torch.Tensor:
    """Where in a packed row the hidden state is that predicts each response token: (B, k, R) long.

    The one place that shifts labels. A packed row holds the prompt (P slots) and then the responses without
    their last token (R - 1 slots each), since nothing is predicted from it. A response's first token is
    predicted by the last *real* prompt token.
    """
    rows, forks, width = batch.response_ids.shape
    last = batch.prompt_mask.sum(1) - 1  # (B,)
    first = last[:, None, None].expand(rows, forks, 1)
    slots = torch.arange(forks * (width - 1), device=last.device).view(1, forks, width - 1)
    return torch.cat([first, (batch.prompt_ids.shape[1] + slots).expand(rows, -1, -1)], dim=2)


def answer_starts(prompts: Prompts | Batch) -> torch.Tensor:
    """Position id of the token after each prompt, on every axis: (B,) long."""
    mask = prompts.prompt_mask if prompts.positions.ndim == 2 else prompts.prompt_mask[:, None]
    return prompts.positions.masked_fill(~mask, -1).flatten(1).amax(1) + 1


def on_axes(text: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Position ids of text (B, n) on as many axes as `like` has: (B, n) or (B, 3, n)."""
    return text if like.ndim == 2 else text[:, None].expand(-1, like.shape[1], -1)


def encode_prompts(examples: Sequence[Example], processor: Any) -> Prompts:
    """Tokens, pixels and position ids of `examples`; each image is loaded and processed once."""
    images = {example.image.key: example.image for example in examples}
    order = {key: index for index, key in enumerate(images)}
    family = of_processor(processor)
    made = processor(
        images=[[image.load()] for image in images.values()],
        text=[processor.image_token] * len(images),
        return_tensors="pt",
        padding=True,
    )
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    # The processor knows how many tokens an image takes, and what stands around and between them.
    written = [_written(ids, family, processor) for ids in made["input_ids"].tolist()]
    pixels = family.pixels(processor, made, [ids.count(image_token) for ids in written])
    index = [order[example.image.key] for example in examples]
    rows = [
        _expand(ids, image_token, written[i])
        for ids, i in zip(prompt_tokens(examples, processor), index, strict=True)
    ]
    ids, mask = _pad(rows, processor.tokenizer.pad_token_id or 0)
    return Prompts(
        prompt_ids=ids,
        prompt_mask=mask,
        pixel_values=pixels.values,
        image_sizes=pixels.sizes,
        image_index=torch.tensor(index, dtype=torch.long),
        positions=_positions(rows, index, image_token, family, pixels.sizes, processor),
        ids=tuple(example.id for example in examples),
    )


def _written(ids: list[int], family: Family, processor: Any) -> list[int]:
    """What stands for an image in the tokens of a text that is nothing but an image."""
    edges = set(family.edges(processor))
    places = [place for place, token in enumerate(ids) if token in edges]
    return ids[places[0] : places[-1] + 1]


def _positions(
    rows: Sequence[list[int]],
    index: Sequence[int],
    image_token: int,
    family: Family,
    sizes: torch.Tensor | None,
    processor: Any,
) -> torch.Tensor:
    """(B, P), or (B, 3, P) with 0 at padding."""
    if family.positions is None:
        return torch.arange(max(len(row) for row in rows)).expand(len(rows), -1)
    places = [
        family.positions(row, image_token, None if sizes is None else sizes[i], processor)
        for row, i in zip(rows, index, strict=True)
    ]
    return pad_sequence([own.T for own in places], batch_first=True).transpose(1, 2)


def prompt_tokens(examples: Sequence[Example], processor: Any) -> list[list[int]]:
    """Token ids of each prompt with one image token, and the start token where the template leaves it to
    the tokenizer.
    """
    try:
        texts = [prompt_text(processor, example.prompt) for example in examples]
    except ValueError:
        for example in examples:  # name the one at fault
            try:
                prompt_text(processor, example.prompt)
            except ValueError as error:
                raise ValueError(f"example {example.id}: {error}") from error
        raise
    start = processor.tokenizer.bos_token
    written = start is not None and texts[0].startswith(start)
    return processor.tokenizer(texts, add_special_tokens=not written)["input_ids"]


def encode_responses(groups: Sequence[Group], processor: Any) -> list[list[list[int]]]:
    """Token ids of every response of every group, end token included where the response was not sampled."""
    responses = [response for group in groups for response in group.responses]
    texts = [response.text for response in responses if response.token_ids is None]
    encoded = iter(response_tokens(texts, processor))
    flat = [list(r.token_ids) if r.token_ids is not None else next(encoded) for r in responses]
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    result, rest = [], iter(flat)
    for group in groups:
        tokens = [next(rest) for _ in group.responses]
        for place, ids in enumerate(tokens):
            if not ids or image_token in ids:
                fault = "is empty" if not ids else f"contains the image token {processor.image_token!r}"
                raise ValueError(f"example {group.example.id}: response {place} {fault}.")
        result.append(tokens)
    return result


def response_tokens(texts: Sequence[str], processor: Any) -> list[list[int]]:
    """Token ids of answers as they follow the generation prompt, with the end token."""
    if not texts:
        return []
    tokenizer = processor.tokenizer
    lead = answer_lead(processor)
    end = end_token(processor)
    anchor = prompt_text(processor, "\x00").split("\x00")[-1]  # " ASSISTANT:"
    alone = tokenizer(anchor, add_special_tokens=False)["input_ids"]
    joined = tokenizer([anchor + lead + text for text in texts], add_special_tokens=False)["input_ids"]
    rows = []
    for ids, text in zip(joined, texts, strict=True):
        if ids[: len(alone)] == alone:
            rows.append([*ids[len(alone) :], end])
        else:  # a tokenizer that merges across the boundary
            ids = tokenizer(lead + text, add_special_tokens=False)["input_ids"]
            rows.append([*ids, end])
    return rows


def _rows(groups: Sequence[Group]) -> tuple[list[Example], list[list[tuple[int, int]]]]:
    """The Example of every row, and where the responses of every Group are: (row, place in it).

    A Group has a row for each image that its responses are asked under, in the order of their first use.
    """
    examples: list[Example] = []
    places: list[list[tuple[int, int]]] = []
    for group in groups:
        filled: dict[str, list[int]] = {}  # image -> [row, responses in it]
        found = []
        for response in group.responses:
            image = response.image or group.example.image
            if image.key not in filled:
                filled[image.key] = [len(examples), 0]
                examples.append(replace(group.example, image=image))
            found.append((filled[image.key][0], filled[image.key][1]))
            filled[image.key][1] += 1
        places.append(found)
    return examples, places


def _by_row(
    tokens: list[list[list[int]]], places: list[list[tuple[int, int]]], rows: int
) -> list[list[list[int]]]:
    """Responses of Groups as responses of rows; those of a row are in order."""
    result: list[list[list[int]]] = [[] for _ in range(rows)]
    for group, found in zip(tokens, places, strict=True):
        for ids, (row, _) in zip(group, found, strict=True):
            result[row].append(ids)
    return result


def _at(tokens: list[list[list[int]]], place: tuple[int, int]) -> list[int]:
    return tokens[place[0]][place[1]]


def _slots(places: list[list[tuple[int, int]]], forks: int) -> torch.Tensor:
    width = max(len(found) for found in places)
    rows = [[row * forks + place for row, place in found] for found in places]
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows], dtype=torch.long)


def _weigh(
    weigh: TokenWeights | None, chosen: list[list[int]], rejected: list[list[int]], width: int
) -> torch.Tensor | None:
    """(n, 2, R) float32, 0 at padding; None where no weights are asked for."""
    if weigh is None:
        return None
    result = torch.zeros(len(chosen), 2, width)
    for row, pair in enumerate(zip(chosen, rejected, strict=True)):
        for side, weights in enumerate(weigh(*pair)):
            result[row, side, : len(weights)] = torch.tensor(weights)
    return result


def _expand(ids: list[int], token: int, image: list[int]) -> list[int]:
    place = ids.index(token)
    return ids[:place] + image + ids[place + 1 :]


def _pad(rows: Sequence[Sequence[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max((len(row) for row in rows), default=0)
    ids = torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return ids.view(len(rows), width), mask


def _pad_responses(rows: list[list[list[int]]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    forks = max(len(row) for row in rows)
    flat = [ids for row in rows for ids in [*row, *[[]] * (forks - len(row))]]
    ids, mask = _pad(flat, value)
    return ids.view(len(rows), forks, -1), mask.view(len(rows), forks, -1)


def _cut(
    rows: list[list[list[int]]], lengths: list[int], ids: tuple[str, ...], max_length: int | None
) -> tuple[list[list[list[int]]], int]:
    if max_length is None:
        return rows, 0
    _check_room(lengths, ids, max_length)
    room = [max_length - length for length in lengths]
    truncated = sum(len(r) > space for row, space in zip(rows, room, strict=True) for r in row)
    return [[r[:space] for r in row] for row, space in zip(rows, room, strict=True)], truncated


def _check_room(lengths: Sequence[int], ids: Sequence[str], max_length: int) -> None:
    for length, name in zip(lengths, ids, strict=True):
        if length >= max_length:
            raise ValueError(
                f"example {name}: the prompt with its image takes {length} tokens and max_length is "
                f"{max_length}; raise max_length (images and prompts are never cut)."
            )


def check_prompts(examples: Sequence[Example], processor: Any, max_length: int | None) -> None:
    """Raises ValueError for a prompt that leaves no room below `max_length`, as `collate` would later.

    To count an image's tokens it has to be read, so only the prompts with the longest texts are looked at: a shorter
    one with a larger image may still be too long.
    """
    if max_length is not None:
        longest = heapq.nlargest(LOOKED_AT, examples, key=lambda example: len(example.prompt))
        prompts = encode_prompts(longest, processor)
        _check_room(prompts.prompt_mask.sum(1).tolist(), prompts.ids, max_length)


def text_of(token_ids: Sequence[int], processor: Any) -> str:
    """The answer that `token_ids` spell, without special tokens, spelt-out image tokens and outer space."""
    text = processor.tokenizer.decode(list(token_ids), skip_special_tokens=True)
    return without_image_token(processor, text).strip()


def as_response(token_ids: Sequence[int], processor: Any, source: str) -> Response:
    """A sampled Response."""
    return Response(text=text_of(token_ids, processor), source=source, token_ids=tuple(token_ids))

"""What differs from one family of vision-language models to the next, and nothing else.

Everything in `compute` works on a prompt in which some tokens are image tokens, each of which the language model
sees as one image feature. A `Family` says how its processor writes them, how its vision part makes the features, and
where its language model places them. To add a family, write one record below and give `tests/tiny.py` a tiny model of
it: the twin tests of `tests/compute` then run on it (docs/models.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

# LLaVA's own conversation format (`conv_vicuna_v1` without its system sentence), for folders without a chat
# template: "USER: <image>\n{prompt} ASSISTANT:", then " {answer}" and the end token.
VICUNA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Pixels:
    """N images as tensors that can be picked by image, whatever the family makes of an image."""

    values: torch.Tensor  # (N, ...); images that are made of different numbers of tiles or patches are padded
    sizes: (
        torch.Tensor | None
    )  # (N, n) long: what `Family.features` and `Family.positions` need to know of each


def _token(name: str) -> Callable[[Any], tuple[int, ...]]:
    """The id of the token that the processor keeps as attribute `name`."""
    return lambda processor: (processor.tokenizer.convert_tokens_to_ids(getattr(processor, name)),)


IMAGE_TOKEN = _token("image_token")


@dataclass(frozen=True)
class Family:
    """One family; its functions are called by `compute.packing` and `compute.pieces`."""

    name: str
    model_types: tuple[str, ...]  # of config.json
    processors: tuple[str, ...]  # class names
    # What a processor's output for one image a text, and its count of image tokens a text, are as `Pixels`.
    pixels: Callable[[Any, Any, Sequence[int]], Pixels]
    # (model, pixels) -> (image tokens, hidden) of each image, as the language model sees them.
    features: Callable[[Any, Pixels], Sequence[torch.Tensor]]
    # (prompt ids, image token, sizes of its image, processor) -> position ids (3, P); None: 0 ... P - 1.
    positions: Callable[[Sequence[int], int, torch.Tensor | None, Any], torch.Tensor] | None = None
    # Tokens that what the processor writes for an image starts and ends with.
    edges: Callable[[Any], tuple[int, ...]] = IMAGE_TOKEN
    # The decoder, as an attribute of the model below its LM head.
    decoder: str = "language_model"
    # What maps vision features to the language model, trained in full; a name that nothing else in the model ends with.
    projector: str = "multi_modal_projector"
    # The vision part, as names in the model.
    vision: tuple[str, ...] = ("vision_tower",)
    # Chat template of folders that bring none.
    template: str | None = None


def _features(output: Any) -> Sequence[torch.Tensor]:
    # transformers returned the features themselves before it returned an output object.
    return getattr(output, "pooler_output", output)


# --- LLaVA -------------------------------------------------------------------------------------------------


def _llava_pixels(processor: Any, made: Any, tokens: Sequence[int]) -> Pixels:
    return Pixels(made["pixel_values"], made.get("image_sizes"))


def _llava_features(model: Any, pixels: Pixels) -> Sequence[torch.Tensor]:
    # LLaVA-1.5 takes image_sizes too, but means something else by it.
    sizes = {} if pixels.sizes is None else {"image_sizes": pixels.sizes}
    return _features(model.get_image_features(pixel_values=pixels.values, **sizes))


# --- Qwen-VL: patches of an image in a row, positions in three dimensions ------------------------------------


def _qwen_pixels(processor: Any, made: Any, tokens: Sequence[int]) -> Pixels:
    grid = made["image_grid_thw"]  # (N, 3): frames, rows and columns of patches
    return Pixels(_split(made["pixel_values"], grid.prod(1).tolist()), grid)


def _qwen_features(model: Any, pixels: Pixels) -> Sequence[torch.Tensor]:
    grid = pixels.sizes
    assert grid is not None
    patches = torch.cat([own[:n] for own, n in zip(pixels.values, grid.prod(1).tolist(), strict=True)])
    return _features(model.get_image_features(pixel_values=patches, image_grid_thw=grid))


def _qwen_positions(
    ids: Sequence[int], image_token: int, size: torch.Tensor | None, processor: Any
) -> torch.Tensor:
    """M-RoPE: (time, row, column) for an image token, three times the same for text. An image of r x c tokens takes
    max(r, c) positions (Qwen2-VL, arXiv 2409.12191, section 2.1).
    """
    assert size is not None
    frames, rows, columns = (
        size // size.new_tensor([1, *[processor.image_processor.merge_size] * 2])
    ).tolist()
    first = list(ids).index(image_token)
    axes = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij")
    image = first + torch.stack([axis.flatten() for axis in axes])  # (3, image tokens)
    after = torch.arange(len(ids) - first - image.shape[1]) + first + max(rows, columns)
    return torch.cat([torch.arange(first).expand(3, -1), image, after.expand(3, -1)], dim=1)


# --- Idefics3 and SmolVLM: image tokens of each tile between markers -----------------------------------------


def _idefics_pixels(processor: Any, made: Any, tokens: Sequence[int]) -> Pixels:
    # Tiles are squares without padding and missing ones are empty, so the pixel mask says nothing more.
    return Pixels(made["pixel_values"], None)


def _idefics_features(model: Any, pixels: Pixels) -> Sequence[torch.Tensor]:
    # A list of images or, in older releases (5.17), one tensor of all tiles; empty tiles are left out of both.
    found = _features(model.get_image_features(pixel_values=pixels.values))
    rows = torch.cat([part.reshape(-1, part.shape[-1]) for part in found])
    tiles = pixels.values.flatten(2).ne(0).any(-1).sum(1)  # of each image
    return rows.split((tiles * (len(rows) // int(tiles.sum()))).tolist())


# --- InternVL: tiles of all images in a row ------------------------------------------------------------------


def _internvl_pixels(processor: Any, made: Any, tokens: Sequence[int]) -> Pixels:
    tiles = [n // processor.image_seq_length for n in tokens]
    return Pixels(_split(made["pixel_values"], tiles), torch.tensor(tiles)[:, None])


def _internvl_features(model: Any, pixels: Pixels) -> Sequence[torch.Tensor]:
    assert pixels.sizes is not None
    tiles = pixels.sizes.squeeze(1).tolist()
    whole = torch.cat([own[:n] for own, n in zip(pixels.values, tiles, strict=True)])
    features = _features(model.get_image_features(pixel_values=whole))  # (all tiles, tokens, hidden)
    return [own.flatten(0, 1) for own in torch.as_tensor(features).split(tiles)]


def _internvl_edges(processor: Any) -> tuple[int, ...]:
    return (processor.start_image_token_id, processor.end_image_token_id)


def _split(rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """(sum of counts, ...) -> (N, largest count, ...), padded with 0."""
    return pad_sequence(list(rows.split(list(counts))), batch_first=True)


# -------------------------------------------------------------------------------------------------------------

FAMILIES = (
    Family(
        "LLaVA-1.5", ("llava",), ("LlavaProcessor",), _llava_pixels, _llava_features, template=VICUNA_TEMPLATE
    ),
    Family(
        "LLaVA-NeXT (1.6)",
        ("llava_next",),
        ("LlavaNextProcessor",),
        _llava_pixels,
        _llava_features,
        template=VICUNA_TEMPLATE,
    ),
    Family(
        "Qwen2.5-VL",
        ("qwen2_5_vl",),
        ("Qwen2_5_VLProcessor",),
        _qwen_pixels,
        _qwen_features,
        positions=_qwen_positions,
        projector="visual.merger",
        vision=("visual",),
    ),
    Family(
        "Idefics3 and SmolVLM",
        ("idefics3", "smolvlm"),
        ("Idefics3Processor", "SmolVLMProcessor"),
        _idefics_pixels,
        _idefics_features,
        edges=_token("fake_image_token"),
        decoder="text_model",
        projector="connector",
        vision=("vision_model",),
    ),
    Family(
        "InternVL",
        ("internvl",),
        ("InternVLProcessor",),
        _internvl_pixels,
        _internvl_features,
        edges=_internvl_edges,
    ),
)


@cache
def by_model_type(model_type: str | None) -> Family:
    """The family of a model with this `model_type` in its config.json. Raises ValueError for any other."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise ValueError(f"model_type is {model_type!r}. Supported: {supported()}")


@cache
def _by_processor(name: str) -> Family:
    for family in FAMILIES:
        if name in family.processors:
            return family
    raise ValueError(f"the processor is a {name}. Supported: {supported()}")


def of_model(model: Any) -> Family:
    """The family of a model, whatever wraps it (PEFT, DDP)."""
    return by_model_type(unwrap(model).config.model_type)


def of_processor(processor: Any) -> Family:
    """The family of a processor."""
    return _by_processor(type(processor).__name__)


def supported() -> str:
    """The families by name, for messages."""
    listed = ", ".join(f"{family.name} (model_type {' or '.join(family.model_types)})" for family in FAMILIES)
    return f"{listed}, in the Hugging Face format."


def unwrap(model: Any) -> Any:
    """The vision-language model itself; LoRA layers and the trained projector stay inside it."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model

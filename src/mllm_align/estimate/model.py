"""The size of a model from its config.json alone: parameters, image tokens, bytes of a token in the cache.

LLaVA-1.5 and LLaVA-NeXT (a CLIP tower, two projector layers, a Llama-like decoder) are counted exactly; of other
families the vision part is counted by the same formulas, which is a few percent of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What released configs leave out, because it is transformers' default of their model type.
TEXT_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
VISION_DEFAULTS = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
VICUNA_7B = {"vocab_size": 32064}
VICUNA_13B = {
    "vocab_size": 32064,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
YI_34B = {
    "vocab_size": 64064,
    "hidden_size": 7168,
    "intermediate_size": 20480,
    "num_hidden_layers": 60,
    "num_attention_heads": 56,
    "num_key_value_heads": 8,
}
# The study's models, so that a run can be estimated before anything is downloaded; by name of conf/base_model.
RELEASED: Mapping[str, Mapping[str, Any]] = {
    "published/llava_1_5_7b": {"model_type": "llava", "text_config": VICUNA_7B},
    "published/llava_1_6_7b": {"model_type": "llava_next", "text_config": VICUNA_7B},
    "published/llava_1_6_13b": {"model_type": "llava_next", "text_config": VICUNA_13B},
    "published/llava_1_6_34b": {"model_type": "llava_next", "text_config": YI_34B},
}


@dataclass(frozen=True)
class Decoder:
    """A Llama-like language model: gated feed-forward, no biases but those of q, k and v where `biased`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    vocab: int
    tied: bool = False
    biased: bool = False

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a layer's seven matrices: q, k, v, o, gate, up, down."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        h, i = self.hidden, self.intermediate
        return ((h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h))

    @property
    def matrices(self) -> int:
        """Parameters of all layers' matrices: what 4-bit loading shrinks, and every token passes through."""
        return self.layers * sum(a * b for a, b in self.linears)

    @property
    def parameters(self) -> int:
        norms = self.layers * 2 * self.hidden + self.hidden
        biases = self.layers * (self.heads + 2 * self.kv_heads) * self.head if self.biased else 0
        ends = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.matrices + norms + biases + ends

    def lora(self, r: int) -> int:
        """Parameters of a rank-r adapter on every matrix: r (inputs + outputs) each."""
        return self.layers * sum(r * (a + b) for a, b in self.linears)

    def cache_bytes(self, number: int = 2) -> int:
        """Keys and values of one token in all layers, `number` bytes each."""
        return 2 * self.layers * self.kv_heads * self.head * number


@dataclass(frozen=True)
class Vision:
    """A CLIP-like vision tower."""

    layers: int
    hidden: int
    intermediate: int
    image: int
    patch: int

    @property
    def patches(self) -> int:
        """Of one tile."""
        return (self.image // self.patch) ** 2

    @property
    def parameters(self) -> int:
        """Attention and feed-forward with biases, two norms a layer; class token, patches, positions, outer norms."""
        h, i = self.hidden, self.intermediate
        layer = 4 * (h * h + h) + (h * i + i) + (i * h + h) + 4 * h
        embeddings = h + 3 * self.patch**2 * h + (self.patches + 1) * h
        return self.layers * layer + embeddings + 4 * h


@dataclass(frozen=True)
class Model:
    """A vision-language model, as far as its cost goes."""

    decoder: Decoder
    vision: Vision
    kind: str
    pinpoints: tuple[tuple[int, int], ...]
    tower_tokens: int  # of a tile, inside the tower
    merge: int  # patches of a side that become one image token

    @property
    def projector(self) -> int:
        """Two linear layers with biases."""
        v, h = self.vision.hidden, self.decoder.hidden
        return v * h + h + h * h + h

    @property
    def parameters(self) -> int:
        newline = self.decoder.hidden if self.kind == "llava_next" else 0
        return self.decoder.parameters + self.vision.parameters + self.projector + newline

    def tiles(self, width: int, height: int) -> int:
        """Passes of the vision tower for one image."""
        if self.kind != "llava_next":
            return 1
        rows, columns = self._grid(width, height)
        return 1 + rows * columns

    def image_tokens(self, width: int, height: int) -> int:
        """What the language model sees of an image of that size, in pixels."""
        side = self.vision.image // self.vision.patch
        if self.kind == "llava":
            return side * side
        if self.kind == "llava_next":
            rows, columns = self._grid(width, height)
            return side * side + unpadded(rows * side, columns * side, width, height)
        unit = self.vision.patch * self.merge
        return max(1, round(height / unit) * round(width / unit))

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        tall, wide = best_pinpoint(self.pinpoints, width, height)
        return tall // self.vision.image, wide // self.vision.image


def best_pinpoint(pinpoints: Sequence[tuple[int, int]], width: int, height: int) -> tuple[int, int]:
    """The (height, width) that keeps most of the image's pixels, and of those the one with least padding (AnyRes)."""

    def worth(pinpoint: tuple[int, int]) -> tuple[int, int]:
        tall, wide = pinpoint
        scale = min(wide / width, tall / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - tall * wide

    return max(pinpoints, key=worth)


def unpadded(rows: int, columns: int, width: int, height: int) -> int:
    """Features of a grid of rows x columns patches without its padding, and a newline a row."""
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return rows * columns + rows


def read_model(config: Mapping[str, Any]) -> Model:
    """The model that a config.json describes. Raises ValueError for one without a text and a vision part."""
    kind = str(config.get("model_type"))
    parts = [
        config.get("text_config", config if "hidden_size" in config else None),
        config.get("vision_config", {}),
    ]
    if parts[0] is None:
        raise ValueError(
            f"model_type {kind!r}: config.json has no text_config, so its size cannot be told from it"
        )
    text, vision = {**TEXT_DEFAULTS, **parts[0]}, {**VISION_DEFAULTS, **parts[1]}
    heads = text["num_attention_heads"]
    decoder = Decoder(
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head=text.get("head_dim") or text["hidden_size"] // heads,
        vocab=text["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        biased=str(text.get("model_type", "")).startswith("qwen2"),
    )
    tower = Vision(
        layers=vision.get("depth", vision["num_hidden_layers"]),
        hidden=vision["hidden_size"],
        intermediate=vision["intermediate_size"],
        image=_side(vision["image_size"]),
        patch=_side(vision["patch_size"]),
    )
    pinpoints = tuple((tall, wide) for tall, wide in config.get("image_grid_pinpoints") or PINPOINTS)
    merge = int(vision.get("spatial_merge_size", config.get("scale_factor", 1)))
    return Model(decoder, tower, kind, pinpoints, tower.patches + 1, merge)


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, Sequence) else size)

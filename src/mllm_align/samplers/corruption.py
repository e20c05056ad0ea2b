"""What the model sees of an image when it is to answer from its bias: few image tokens, or a noised image.

Both have `start`, computed once for some examples, and `attempt`, for some of them with a seed each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mllm_align.compute.corrupted import Prepared, image_tokens, prepare
from mllm_align.models.load import Policy
from mllm_align.noise import NoisedImage, abar
from mllm_align.records import Example


@dataclass(frozen=True)
class Inputs:
    """Corrupted inputs of some examples: the place of each in `prepared`, and which image tokens it sees
    (None: all of them).
    """

    prepared: Prepared
    rows: list[int]
    visible: list[np.ndarray | None]

    def about(self) -> list[dict[str, Any]]:
        """For the provenance: image tokens that are left visible."""
        tokens = image_tokens(self.prepared)
        return [
            {"image_tokens": tokens[row], "visible": tokens[row] if seen is None else int(seen.sum())}
            for row, seen in zip(self.rows, self.visible, strict=True)
        ]


class Corruption(Protocol):
    def start(self, policy: Policy, examples: Sequence[Example]) -> Any: ...

    def attempt(
        self,
        policy: Policy,
        examples: Sequence[Example],
        start: Any,
        rows: Sequence[int],
        seeds: Sequence[int],
    ) -> Inputs:
        """The examples at `rows`, corrupted by the seed of each; `start` is what `start` gave for `examples`."""


@dataclass(frozen=True)
class AttentionMask:
    """BDHS_attn: image token j stays visible where rho_j >= rho_th, rho_j ~ U(0, 1) (Eq. 6)."""

    rho_th: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.rho_th <= 1:
            raise ValueError(f"rho_th={self.rho_th}: it is the share of image tokens to hide, 0 to 1")

    def start(self, policy: Policy, examples: Sequence[Example]) -> Prepared:
        return prepare(policy, examples)

    def attempt(
        self,
        policy: Policy,
        examples: Sequence[Example],
        start: Prepared,
        rows: Sequence[int],
        seeds: Sequence[int],
    ) -> Inputs:
        tokens = image_tokens(start)
        visible: list[np.ndarray | None] = [
            mask(tokens[row], self.rho_th, seed) for row, seed in zip(rows, seeds, strict=True)
        ]
        return Inputs(start, list(rows), visible)


def mask(tokens: int, rho_th: float, seed: int) -> np.ndarray:
    """Which of an image's tokens stay visible: (tokens,) bool. rho_th = 0 shows all, 1 none."""
    return np.random.default_rng(seed).random(tokens) >= rho_th


@dataclass(frozen=True)
class ImageNoise:
    """BDHS_noise: the image after `steps` steps of noise (Eq. 8-9), every token visible.

    `wrap`: pixel values outside [0, 1] wrap around, as in POVID's published code, instead of being clamped.
    """

    steps: int = 500
    wrap: bool = False

    def __post_init__(self) -> None:
        abar(self.steps)  # refuses steps outside the schedule

    def start(self, policy: Policy, examples: Sequence[Example]) -> None:
        """Nothing: every attempt has pixels of its own."""

    def attempt(
        self,
        policy: Policy,
        examples: Sequence[Example],
        start: None,
        rows: Sequence[int],
        seeds: Sequence[int],
    ) -> Inputs:
        noised = [
            replace(examples[row], image=NoisedImage(examples[row].image, self.steps, seed, self.wrap))
            for row, seed in zip(rows, seeds, strict=True)
        ]
        return Inputs(prepare(policy, noised), list(range(len(noised))), [None] * len(noised))

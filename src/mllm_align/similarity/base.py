"""How alike two texts are: what decides whether a sampled answer differs from its reference (BDHS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Similarity(Protocol):
    def __call__(self, texts_a: Sequence[str], texts_b: Sequence[str]) -> list[float]:
        """The cosine of the embeddings of each pair of texts, in order: 1 for the same text, at most 1."""

"""An embedding of texts about scenes that needs no download: what a text claims, and a little of its words.

The paper's sentence encoder is asked one thing: does the sampled answer say something else than the
reference? In the scenes world that can be read off the text: `scenes.oracle.parse` turns "Two red cups are at
the top." into claims (object cup, attribute cup red, count cup 2, position cup top). A text is the vector of
how often it makes each claim. Other words for the same facts and another order give the same vector; a changed
object moves all of its claims, a changed colour, number, place or letter one of them. A detail belongs to its
subject, so swapping the colours of two things is seen too, which a bag of words misses.

A smaller share is the bag of content words (nouns in the singular, without function words). It tells texts
apart that claim nothing: "Yes" from "No", one brief answer from another, nonsense from nonsense.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from mllm_align.scenes.oracle import parse
from mllm_align.scenes.parse import NOUNS
from mllm_align.scenes.words import NUMBERS

Vector = Counter[Hashable]

_WORD = re.compile(r"\w+")
_DIGITS = {str(number): word for number, word in enumerate(NUMBERS)}
# Words that a sentence needs for its form; "there is a cup" and "a cup can be seen" say the same.
FUNCTION_WORDS = frozenset(
    ("a", "also", "an", "and", "are", "at", "be", "can", "i", "image", "in", "is", "it", "of", "on", "picture",
     "read", "reads", "say", "says", "scene", "see", "seen", "shows", "that", "the", "there", "this", "with"),
)  # fmt: skip


@dataclass(frozen=True)
class SceneClaims:
    """`words` is the share of the content words, 0 to 1; the claims have the rest."""

    words: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.words <= 1:
            raise ValueError(f"similarity.words={self.words}: it is a share, 0 to 1")

    def __call__(self, texts_a: Sequence[str], texts_b: Sequence[str]) -> list[float]:
        return [self._cosine(a, b) for a, b in zip(texts_a, texts_b, strict=True)]

    def _cosine(self, a: str, b: str) -> float:
        """The cosine of [sqrt(1 - words) unit claims, sqrt(words) unit content words]; an empty part is 0."""
        parts = [(1 - self.words, claims(a), claims(b)), (self.words, content_words(a), content_words(b))]
        norms = [math.sqrt(sum(w for w, *both in parts if both[side])) for side in (0, 1)]
        if not all(norms):
            return float(a.strip() == b.strip())
        return min(1.0, sum(weight * cosine(*both) for weight, *both in parts) / math.prod(norms))


def claims(text: str) -> Vector:
    """How often a text makes each claim (kind, subject, value)."""
    return Counter((claim.kind, claim.subject, claim.value) for claim in parse(text))


def content_words(text: str) -> Vector:
    """How often each word is said that is no function word; nouns in the singular, numbers as words."""
    words = (_DIGITS.get(word, NOUNS.get(word, word)) for word in map(str.lower, _WORD.findall(text)))
    return Counter(word for word in words if word not in FUNCTION_WORDS)


def cosine(a: Vector, b: Vector) -> float:
    """0 where either is empty."""
    norms = math.hypot(*a.values()) * math.hypot(*b.values())
    return sum(count * b[key] for key, count in a.items()) / norms if norms else 0.0

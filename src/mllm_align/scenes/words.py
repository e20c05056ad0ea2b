"""The closed vocabulary of the scenes world: how kinds, numbers and places are said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from mllm_align.scenes.world import CONTEXTS, KINDS, PLACES

T = TypeVar("T")

IRREGULAR_PLURALS = {"knife": "knives", "bus": "buses", "bench": "benches", "fish": "fish"}
PLURALS = {kind: IRREGULAR_PLURALS.get(kind, kind + "s") for kind in KINDS}
NUMBERS = ("zero", "one", "two", "three", "four")
PLACE_PHRASES = tuple(
    {"middle": "in the middle", "left": "on the left", "right": "on the right"}.get(place, f"at the {place}")
    for place in PLACES
)
CONTEXT_PHRASES = {context: ("an " if context[0] in "aeiou" else "a ") + context for context in CONTEXTS}


class Rng(Protocol):
    """What the text functions need: `random()` in [0, 1), as numpy's Generator and random.Random have."""

    def random(self) -> float: ...


def pick(rng: Rng, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def pick_weighted(rng: Rng, weights: dict[T, float]) -> T:
    left = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        left -= weight
        if left < 0:
            return key
    return key


def shuffled(rng: Rng, items: Sequence[T]) -> list[T]:
    left = list(items)
    return [left.pop(int(rng.random() * len(left))) for _ in range(len(left))]


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def noun_phrase(kind: str, colour: str | None = None, *, small: bool = False, count: int = 1) -> str:
    """`a small red cup`, `two red cups`."""
    words = ["small"] if small else []
    words += [colour] if colour else []
    words.append(kind if count == 1 else PLURALS[kind])
    determiner = article(words[0]) if count == 1 else NUMBERS[count]
    return " ".join([determiner, *words])


def listed(phrases: Sequence[str]) -> str:
    """`x`, `x and y`, `x, y and z`."""
    if len(phrases) < 2:
        return "".join(phrases)
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def place_list(places: Sequence[int]) -> str:
    return listed([PLACE_PHRASES[p] for p in places])

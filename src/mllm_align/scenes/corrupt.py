"""Realistic false versions of a text: plausible objects, swapped colours, numbers, places, letters.

What a strong language model does for POVID (hallucinated objects by co-occurrence, wrong attributes and
relations), made from exact knowledge of the scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from mllm_align.scenes.edit import Edit, apply, noun_form, number_edits, overlap, replaced
from mllm_align.scenes.oracle import Claim, check, mentioned_objects
from mllm_align.scenes.parse import Mention, sentences
from mllm_align.scenes.text import Asked, asked, free_places, plausible_kind
from mllm_align.scenes.words import (
    NUMBERS,
    PLACE_PHRASES,
    Rng,
    capital,
    noun_phrase,
    pick,
    pick_weighted,
)
from mllm_align.scenes.world import COLOURS, CONTEXTS, LETTERS, PLACES, Scene

# How often each change is chosen where several are possible.
WEIGHTS = {
    "object": 4.0,
    "insert": 3.0,
    "attribute": 2.5,
    "position": 2.0,
    "count": 2.0,
    "text": 1.5,
    "context": 0.5,
    "absence": 4.0,
}


@dataclass(frozen=True)
class Corruption:
    """A false text and the changes that made it. No edits: nothing in the original could be made false."""

    text: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class _Change:
    """A change that can be made: the subject it uses up, and how to make it."""

    kind: str
    subject: object
    make: Callable[[], list[Edit]]


def _other(rng: Rng, options: object, *avoid: object) -> str:
    return pick(rng, [o for o in options if o not in avoid])  # type: ignore[attr-defined]


def _new_letters(text: str, rng: Rng) -> str:
    at = int(rng.random() * len(text))
    return text[:at] + _other(rng, LETTERS, text[at]) + text[at + 1 :]


def _wrong_place(scene: Scene, kind: str | None, rng: Rng) -> int:
    taken = _places_of(scene, kind)
    return pick(rng, [place for place in range(len(PLACES)) if place not in taken])


def _places_of(scene: Scene, kind: str | None) -> tuple[int, ...]:
    if kind == "sign":
        return () if scene.sign is None else (scene.sign.place,)
    entity = None if kind is None else scene.entity(kind)
    return () if entity is None else entity.places


class _Text:
    """A text under corruption, with what is true in it."""

    def __init__(self, text: str, scene: Scene, rng: Rng, prompt: str | None, grow: bool) -> None:
        self.text, self.scene, self.rng, self.grow = text, scene, rng, grow
        self.question: Asked | None = asked(prompt) if prompt is not None else None
        self.mentions = [m for s in sentences(text) for m in s.mentions if not m.negated]
        self.spoken = frozenset(m.kind for m in mentioned_objects(text))
        self.true = [claim for claim, truth in check(text, scene, prompt) if truth is True]

    def changes(self) -> Iterator[_Change]:
        """Every change that makes one more thing false."""
        if self._asks("yes_no"):
            yield from self._flip()
        for claim in self.true:
            if claim.kind == "absence" and not self._asks("yes_no"):
                yield _Change("absence", claim.subject or claim.value, partial(self._present, claim))
            elif claim.kind == "object" and self._may_swap(claim):
                yield _Change("object", claim.subject, partial(self._swap_object, claim))
            elif claim.kind in _NEW_VALUE and self._may_change(claim):
                yield _Change(claim.kind, claim.subject, partial(self._new_value, claim))
            elif claim.kind == "count":
                yield _Change("count", claim.subject, partial(self._new_count, claim))
        if self._asks(None, "describe") and len(sentences(self.text)) > 1:
            yield _Change("insert", object(), self._insert)

    def _asks(self, *kinds: str | None) -> bool:
        return (None if self.question is None else self.question.kind) in kinds

    def _may_swap(self, claim: Claim) -> bool:
        """A question about a thing presumes it; the sign is only swapped where any thing would do."""
        return self._asks("short") or (self._asks(None, "describe") and claim.subject != "sign")

    def _may_change(self, claim: Claim) -> bool:
        """ "small" has no opposite that the world says; what is asked about a place stays at the place."""
        return claim.value != "small" and (
            claim.direct or claim.kind != "position" or not self._asks("short")
        )

    def _new_kind(self) -> str:
        """A plausible absent kind that the text doesn't have yet."""
        kind = plausible_kind(self.scene, self.rng, self.spoken)
        self.spoken |= {kind}
        return kind

    def _invented(self, place: int | None = None) -> str:
        """`there is a green cup on the left.`, at a free place if there is one."""
        if place is None:
            place = pick(self.rng, free_places(self.scene) or list(range(len(PLACES))))
        said = noun_phrase(self._new_kind(), pick(self.rng, tuple(COLOURS)))
        return f"there is {said} {PLACE_PHRASES[place]}."

    def _flip(self) -> Iterator[_Change]:
        """The opposite answer to an existence question, consistent to its end."""
        if any(c.direct and c.kind in ("object", "absence") for c in self.true):
            yield _Change("absence", self.question.subject, self._opposite)  # type: ignore[union-attr]

    def _opposite(self) -> list[Edit]:
        assert self.question is not None
        kind, was_yes = self.question.subject or "", self.text.lstrip().lower().startswith("yes")
        whole = (0, len(self.text))
        if len(self.text.split()) == 1:
            end = "." if self.text.rstrip().endswith(".") else ""
            return [Edit("absence", whole, self.text, ("No" if was_yes else "Yes") + end)]
        if was_yes:
            return [Edit("object", whole, self.text, f"No, there is no {kind} in the image.")]
        said = noun_phrase(kind, pick(self.rng, tuple(COLOURS)))
        place = pick(self.rng, free_places(self.scene) or list(range(len(PLACES))))
        return [Edit("absence", whole, self.text, f"Yes, there is {said} {PLACE_PHRASES[place]}.")]

    def _present(self, claim: Claim) -> list[Edit]:
        """Something where the text truly says that there is nothing, or none."""
        span = next(x.span for x in sentences(self.text) if x.span[0] <= claim.span[0] < x.span[1])
        said = self.text[slice(*span)]
        if claim.subject is not None:
            number = pick(self.rng, (2, 3))
            things = noun_phrase(claim.subject, pick(self.rng, tuple(COLOURS)), count=number)
            return [Edit("absence", span, said, f"There are {things} in the image.")]
        place = None if claim.value is None else int(claim.value)
        if self.question is not None and self.question.brief:
            return [Edit("absence", span, said, self._new_kind())]
        return [Edit("absence", span, said, capital(self._invented(place)))]

    def _swap_object(self, claim: Claim) -> list[Edit]:
        """Another kind for every mention of this one."""
        kind = self._new_kind()
        return [
            replaced("object", self.text, m.noun, noun_form(kind, like=m))
            for m in self.mentions
            if m.kind == claim.subject
        ]

    def _new_value(self, claim: Claim) -> list[Edit]:
        return [replaced(claim.kind, self.text, claim.span, _NEW_VALUE[claim.kind](self, claim))]

    def _colour(self, claim: Claim) -> str:
        return _other(self.rng, COLOURS, claim.value)

    def _position(self, claim: Claim) -> str:
        place = _wrong_place(self.scene, claim.subject, self.rng)
        if claim.direct and self._said(claim) == claim.subject:  # asked what is there: name another thing
            return self._new_kind()
        return PLACES[place] if claim.direct else PLACE_PHRASES[place]

    def _said(self, claim: Claim) -> str:
        return self.text[slice(*claim.span)].lower()

    def _letters(self, claim: Claim) -> str:
        return _new_letters(str(claim.value), self.rng)

    def _context(self, claim: Claim) -> str:
        return _other(self.rng, CONTEXTS, claim.value)

    def _new_count(self, claim: Claim) -> list[Edit]:
        was = int(claim.value or 0)
        number = pick(self.rng, [n for n in (1, 2, 3) if n != was and (n > 1 or was == 0 or claim.direct)])
        mention = self._mention_with(claim)
        if mention is None:
            return [replaced("count", self.text, claim.span, NUMBERS[number])]
        return number_edits(self.text, mention, number)

    def _mention_with(self, claim: Claim) -> Mention | None:
        return next((m for m in self.mentions if m.count is not None and m.count[1] == claim.span), None)

    def _insert(self) -> list[Edit]:
        """A sentence about a plausible absent thing, after one of the others or in its place."""
        start, at = pick(self.rng, sentences(self.text)).span
        if not self.grow:
            return [Edit("insert", (start, at), self.text[start:at], capital(self._invented()))]
        mark = " " if self.text[at - 1] in ".!?" else ". "
        added = mark + capital(self._invented())
        return [Edit("insert", (at, at), "", added)]


_NEW_VALUE: dict[str, Callable[[_Text, Claim], str]] = {
    "attribute": _Text._colour,
    "position": _Text._position,
    "text": _Text._letters,
    "context": _Text._context,
}


def corrupt(
    text: str, scene: Scene, rng: Rng, n: int = 1, prompt: str | None = None, grow: bool = True
) -> Corruption:
    """A realistic false version of a text.

    Args:
        n: how many things to make false, each about another subject; fewer where the text offers fewer.
        prompt: the question, needed for brief answers ("Yes", "red") and for yes/no answers.
        grow: whether an invented sentence is added; else it takes the place of another one, and the false
            text is about as long as the true one.

    Returns:
        The text and its edits; no edits (and the text as it was) if it claims nothing that is true.
    """
    state = _Text(text, scene, rng, prompt, grow)
    edits: list[Edit] = []
    used: set[object] = set()
    while len(used) < n:
        options = [c for c in state.changes() if c.subject not in used]
        if not options:
            break
        kind = pick_weighted(rng, {kind: WEIGHTS[kind] for kind in dict.fromkeys(c.kind for c in options)})
        change = pick(rng, [c for c in options if c.kind == kind])
        used.add(change.subject)
        made = change.make()
        if not any(overlap(new.span, old.span) for new in made for old in edits):
            edits += made
    return Corruption(apply(text, edits) if edits else text, tuple(edits))

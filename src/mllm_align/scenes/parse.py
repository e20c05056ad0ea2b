"""Sentences to structure: what is mentioned, and what is said of it. Tolerates any text.

A sentence is read word by word. Determiners and adjectives gather in front of a noun; a place belongs to the
last thing mentioned before it in its sentence, or, at the head of a sentence, to the next one. Words that say
nothing checkable are kept as `loose`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mllm_align.scenes.words import NUMBERS, PLURALS
from mllm_align.scenes.world import COLOURS, CONTEXTS, KINDS, LETTERS, PLACES

Span = tuple[int, int]

NOUNS: dict[str, str] = {
    **{plural: kind for kind, plural in PLURALS.items()},
    **{kind: kind for kind in KINDS},
    "sign": "sign",
    "signs": "sign",
}
COUNTS = {**{word: number for number, word in enumerate(NUMBERS)}, **{str(i): i for i in range(10)}}
_PLACE_WORDS = "|".join(sorted((*PLACES, "centre", "center"), key=len, reverse=True))
_PLACE = re.compile(rf"(?:at|on|in) the ({_PLACE_WORDS})\b(?: of the (?:image|picture))?", re.IGNORECASE)
BARE_PLACE = re.compile(rf"\b({_PLACE_WORDS})\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]+|\d+|[^\sA-Za-z\d]")
_END = re.compile(r"[.!?\n]+")
_SIGN_TEXT = re.compile(rf"[{LETTERS}]{{1,6}}$")
_FILLER = frozenset(
    ("there", "is", "are", "this", "the", "image", "picture", "scene", "shows", "can", "be", "seen", "i",
     "see", "in", "of", "and", "that", "it", "also", "with", "says", "say", "reads", "read"),
)  # fmt: skip


@dataclass
class Mention:
    """One noun phrase about a kind or the sign, and what its sentence says of it. Spans are (start, end)."""

    kind: str
    noun: Span
    phrase: Span  # from the determiner to the noun
    plural: bool = False
    negated: bool = False
    count: tuple[int, Span] | None = None
    colour: tuple[str, Span] | None = None
    small: Span | None = None
    places: list[tuple[int, Span]] = field(default_factory=list)


@dataclass
class Sentence:
    """A sentence with its end mark. `nothing` holds the places said to be empty (None: nowhere named)."""

    span: Span
    mentions: list[Mention] = field(default_factory=list)
    answer: tuple[str, Span] | None = None  # "yes" or "no" at its head
    context: tuple[str, Span] | None = None
    sign_text: tuple[str, Span] | None = None
    nothing: list[tuple[int | None, Span]] = field(default_factory=list)
    loose: list[Span] = field(default_factory=list)

    @property
    def says_something(self) -> bool:
        return bool(self.mentions or self.answer or self.context or self.sign_text or self.nothing)


def place_index(words: str) -> int:
    name = words.lower()
    return PLACES.index("middle" if name in ("centre", "center") else name)


def split(text: str) -> list[Span]:
    """Sentence spans, end marks included, white space at both ends excluded."""
    spans, start = [], 0
    for end in [*(m.end() for m in _END.finditer(text)), len(text)]:
        piece = text[start:end]
        if re.search(r"\w", piece):
            left = start + len(piece) - len(piece.lstrip())
            spans.append((left, start + len(piece.rstrip())))
        start = end
    return spans


class _Reader:
    """The state of reading one sentence."""

    def __init__(self, text: str, span: Span) -> None:
        self.text = text
        self.sentence = Sentence(span)
        self.words = [(m[0], m.span()) for m in _WORD.finditer(text, *span)]
        self.current: Mention | None = None
        self.after_nothing: Span | None = None
        self.waiting: list[tuple[int, Span]] = []  # places before their noun
        self._clear()

    def _clear(self) -> None:
        self.determiner: tuple[str, Span] | None = None
        self.colour: tuple[str, Span] | None = None
        self.small: Span | None = None

    def read(self) -> Sentence:
        at = self._answer()
        while at < len(self.words):
            at = self._step(at)
        self._settle()
        return self.sentence

    def _answer(self) -> int:
        if not self.words or self.words[0][0].lower() not in ("yes", "no"):
            return 0
        following = self.words[1][0].lower() if len(self.words) > 1 else "."
        if self.words[0][0].lower() == "no" and (following in NOUNS or following in COLOURS):
            return 0
        self.sentence.answer = (self.words[0][0].lower(), self.words[0][1])
        return 1

    def _step(self, at: int) -> int:
        """Reads the word at `at` (or a whole place phrase) and returns the index of the next one."""
        word, span = self.words[at]
        place = _PLACE.match(self.text, *(span[0], self.sentence.span[1]))
        if place is not None:
            self._settle()
            self._place(place_index(place[1]), place.span())
            while at < len(self.words) and self.words[at][1][1] <= place.end():
                at += 1
            return at
        low = word.lower()
        if _SIGN_TEXT.match(word) and self._after_says(at):
            self.sentence.sign_text = (word, span)
        elif low in NOUNS:
            self._noun(low, span)
        elif low in CONTEXTS:
            self.sentence.context = (low, span)
            self._clear()
        elif low in COLOURS:
            self.colour = (low, span)
        elif low == "small":
            self.small = span
        elif low in ("a", "an", "the", "no") or low in COUNTS:
            self._settle()
            self.determiner = (low, span)
        elif low == "nothing":
            self.current, self.after_nothing = None, span
            self._settle_nothing()
        else:
            self._settle()
            if low not in _FILLER and re.match(r"\w", word):
                self.sentence.loose.append(span)
        return at + 1

    def _after_says(self, at: int) -> bool:
        return at > 0 and self.words[at - 1][0].lower() in ("says", "say", "reads", "read", "saying", ":")

    def _settle(self) -> None:
        """A colour with no noun after it is said of the last thing ("the cup is red")."""
        if self.colour is not None:
            if self.current is not None and self.current.colour is None:
                self.current.colour = self.colour
            else:
                self.sentence.loose.append(self.colour[1])
        if self.small is not None and self.current is not None:
            self.current.small = self.current.small or self.small
        self._clear()

    def _noun(self, word: str, span: Span) -> None:
        kind = NOUNS[word]
        starts = [s[0] for s in (self.determiner and self.determiner[1], self.colour and self.colour[1]) if s]
        mention = Mention(kind, span, (min([*starts, span[0]]), span[1]), plural=PLURALS.get(kind) == word)
        if self.determiner is not None:
            word, where = self.determiner
            mention.negated = word == "no"
            mention.count = (COUNTS[word], where) if word in COUNTS else None
        mention.colour, mention.small, mention.places = self.colour, self.small, self.waiting
        self.waiting, self.current, self.after_nothing = [], mention, None
        self.sentence.mentions.append(mention)
        self._clear()

    def _place(self, place: int, span: Span) -> None:
        if self.current is not None:
            self.current.places.append((place, span))
        elif self.after_nothing is not None:
            named = [(p, s) for p, s in self.sentence.nothing if p is not None]
            self.sentence.nothing = [*named, (place, self.after_nothing)]
        else:
            self.waiting.append((place, span))

    def _settle_nothing(self) -> None:
        assert self.after_nothing is not None
        where: list[int | None] = [place for place, _ in self.waiting]
        self.sentence.nothing += [(place, self.after_nothing) for place in where or [None]]
        self.waiting = []
        self._clear()


def sentences(text: str) -> list[Sentence]:
    """Every sentence of a text, in order."""
    return [_Reader(text, span).read() for span in split(text)]

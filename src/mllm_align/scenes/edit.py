"""Changing spans of a text and keeping it grammatical: articles, capitals, number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mllm_align.scenes.parse import Mention, Span
from mllm_align.scenes.words import NUMBERS, PLURALS, capital

_ARTICLE = re.compile(r"\b([Aa])n?(?= ([a-z]))")
_VOWELS = frozenset("aeiou")


@dataclass(frozen=True)
class Edit:
    """One change: `kind` as in the claims ("object", ...) or "insert"; spans refer to the text before."""

    kind: str
    span: Span
    before: str
    after: str


def fix_articles(text: str) -> str:
    """`a apple` becomes `an apple`, `an red cup` `a red cup`."""
    return _ARTICLE.sub(lambda m: m[1] + ("n" if m[2] in _VOWELS else ""), text)


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text after all edits (which must not overlap), with articles put right."""
    for edit in sorted(edits, key=lambda e: e.span, reverse=True):
        start, end = edit.span
        text = text[:start] + edit.after + text[end:]
    return fix_articles(re.sub(r" {2,}", " ", text).strip())


def overlap(one: Span, other: Span) -> bool:
    """Whether two spans share a character (two insertions at one place don't)."""
    return max(one[0], other[0]) < min(one[1], other[1])


def replaced(kind: str, text: str, span: Span, after: str) -> Edit:
    """An edit that keeps the capital of what it replaces."""
    before = text[slice(*span)]
    kept = capital(after) if before[:1].isupper() and not before.isupper() else after
    return Edit(kind, span, before, kept)


def noun_form(kind: str, *, like: Mention) -> str:
    """The noun in the number of another mention."""
    return PLURALS.get(kind, kind) if like.plural else kind


def number_edits(text: str, mention: Mention, number: int) -> list[Edit]:
    """Says another number of the same thing: the number, the noun and the verb ("There is one ...")."""
    assert mention.count is not None
    edits = [replaced("count", text, mention.count[1], NUMBERS[number])]
    singular = number == 1
    if singular == mention.plural:
        noun = mention.kind if singular else PLURALS[mention.kind]
        edits.append(replaced("count", text, mention.noun, noun))
        verb = _verb(text, mention, "are" if singular else "is")
        if verb is not None:
            edits.append(replaced("count", text, verb, "is" if singular else "are"))
    return edits


def _verb(text: str, mention: Mention, word: str) -> Span | None:
    before = re.search(rf"\b{word}\s+$", text[: mention.phrase[0]])
    if before is not None:
        return before.start(), before.start() + len(word)
    after = re.match(rf"\s+{word}\b", text[mention.noun[1] :])
    if after is not None:
        return mention.noun[1] + after.end() - len(word), mention.noun[1] + after.end()
    return None

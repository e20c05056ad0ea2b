"""The oracle: what a text claims, and what of it is true of a scene.

`parse` reads claims from any text, `check` judges each, `score` makes one number of them. Text that it can't
read makes no claim; `unparsed` reports it. It knows the world's own language: of negations "no" before a noun and
"nothing" of a place. Another one is not seen, and its object counts as mentioned: the dog in "no cats or dogs",
"without a dog" and "zero dogs".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mllm_align.scenes.parse import BARE_PLACE, COUNTS, Mention, Sentence, Span, place_index, sentences
from mllm_align.scenes.text import Asked, asked
from mllm_align.scenes.world import COLOURS, LETTERS, Scene

CLAIM_KINDS = ("object", "attribute", "count", "position", "text", "context", "absence")
# What a false claim costs in `score`, and what a true detail earns there.
FALSE_COST = {
    "object": 0.30,
    "absence": 0.30,
    "context": 0.30,
    "attribute": 0.15,
    "count": 0.15,
    "position": 0.15,
    "text": 0.15,
}
TRUE_DETAIL = 0.03
REPEAT_COST = 0.10

Value = str | int | None


@dataclass(frozen=True)
class Claim:
    """One checkable statement.

    `subject` is the kind of thing it is about ("sign" too; None for a context or an empty cell), `value` the
    colour or "small", the number, the place's index, the letters or the context; `span` are the words that
    carry the value. A `direct` claim stands alone (a brief answer), not on an object claim beside it.
    """

    kind: str
    span: Span
    subject: str | None = None
    value: Value = None
    direct: bool = False


@dataclass(frozen=True)
class Mentioned:
    """A thing that a text says is there; `span` are the characters of its noun."""

    kind: str
    span: Span


# ---------------------------------------------------------------- parse


def _of_mention(m: Mention) -> Iterator[Claim]:
    if m.negated:
        yield Claim("absence", m.noun, m.kind)
        return
    yield Claim("object", m.noun, m.kind)
    if m.colour is not None:
        yield Claim("attribute", m.colour[1], m.kind, m.colour[0])
    if m.small is not None:
        yield Claim("attribute", m.small, m.kind, "small")
    if m.count is not None:
        yield Claim("count", m.count[1], m.kind, m.count[0])
    for place, span in m.places:
        yield Claim("position", span, m.kind, place)


def claims_of(sentence: Sentence) -> Iterator[Claim]:
    """What one sentence claims by itself, without its question."""
    if sentence.context is not None:
        yield Claim("context", sentence.context[1], None, sentence.context[0])
    for mention in sentence.mentions:
        yield from _of_mention(mention)
    if sentence.sign_text is not None:
        yield Claim("text", sentence.sign_text[1], "sign", sentence.sign_text[0])
    for place, span in sentence.nothing:
        yield Claim("absence", span, None, place)


def parse(text: str, prompt: str | None = None) -> list[Claim]:
    """Every claim of a text. With the prompt, brief answers ("Yes", "red", "top left") are claims too."""
    read = sentences(text)
    question = asked(prompt) if prompt is not None else None
    claims = [claim for sentence in read for claim in claims_of(sentence)]
    if question is None:
        return claims
    if question.place is not None:  # "nothing", asked about a place, is said of that place
        claims = [c for c in claims if (c.kind, c.subject, c.value) != ("absence", None, None)]
    return [*_from_question(text, read, question), *claims]


def _from_question(text: str, read: list[Sentence], question: Asked) -> Iterator[Claim]:
    """The claims that an answer makes only because of what was asked."""
    mentions = [m for sentence in read for m in sentence.mentions]
    if question.kind == "yes_no" and read and read[0].answer is not None:
        word, span = read[0].answer
        yield Claim("object" if word == "yes" else "absence", span, question.subject, direct=True)
    elif question.kind == "short" and question.place is not None:
        yield from _at_place(read, mentions, question.place)
    elif not mentions:
        yield from _bare_values(text, question)


def _at_place(read: list[Sentence], mentions: list[Mention], place: int) -> Iterator[Claim]:
    for mention in mentions[:1]:
        if not mention.places and not mention.negated:
            yield Claim("position", mention.noun, mention.kind, place, direct=True)
    for sentence in read:
        yield from (Claim("absence", span, None, place) for where, span in sentence.nothing if where is None)


def _bare_values(text: str, question: Asked) -> Iterator[Claim]:
    subject = question.subject
    if question.kind == "where":
        for found in BARE_PLACE.finditer(text):
            yield Claim("position", found.span(), subject, place_index(found[1]), direct=True)
        return
    for word in re.finditer(r"\w+", text):
        value = word[0].lower()
        if question.kind == "colour" and value in COLOURS:
            yield Claim("attribute", word.span(), subject, value, direct=True)
        elif question.kind == "count" and value in COUNTS:
            yield Claim("count", word.span(), subject, COUNTS[value], direct=True)
        elif question.kind == "read" and word[0].isupper() and set(word[0]) <= set(LETTERS):
            yield Claim("text", word.span(), subject, word[0], direct=True)


def unparsed(text: str) -> list[Span]:
    """Sentences without any claim, and words that say nothing known, as (start, end)."""
    read = sentences(text)
    silent = [s.span for s in read if not s.says_something]
    return sorted([*silent, *(span for s in read if s.says_something for span in s.loose)])


# ---------------------------------------------------------------- check


def _absence(claim: Claim, scene: Scene) -> bool:
    if claim.subject is not None:
        return not _present(claim.subject, scene)
    return claim.value is not None and scene.at(int(claim.value)) is None


def _present(kind: str | None, scene: Scene) -> bool:
    return kind in scene.kinds or (kind == "sign" and scene.sign is not None)


def _of_sign(claim: Claim, scene: Scene) -> bool | None:
    if scene.sign is None:
        return False if claim.direct else None
    if claim.kind == "position":
        return claim.value == scene.sign.place
    if claim.kind == "text":
        return claim.value == scene.sign.text
    return claim.value == 1 if claim.kind == "count" else None  # signs have no colour


def judge(claim: Claim, scene: Scene) -> bool | None:
    """True, False, or None for a detail of something absent: the object claim takes the blame for that."""
    if claim.kind == "context":
        return claim.value == scene.context
    if claim.kind == "absence":
        return _absence(claim, scene)
    if claim.kind == "object":
        return _present(claim.subject, scene)
    if claim.subject == "sign":
        return _of_sign(claim, scene)
    entity = None if claim.subject is None else scene.entity(claim.subject)
    if entity is None:
        if claim.kind == "count" and claim.value == 0:
            return True
        return False if claim.direct else None
    if claim.kind == "attribute":
        return claim.value in (entity.colour, entity.size)
    if claim.kind == "count":
        return claim.value == entity.count
    return claim.value in entity.places


def check(text: str, scene: Scene, prompt: str | None = None) -> list[tuple[Claim, bool | None]]:
    """Each claim of the text with its truth (see `judge`)."""
    return [(claim, judge(claim, scene)) for claim in parse(text, prompt)]


def is_true(text: str, scene: Scene, prompt: str | None = None) -> bool:
    """Whether the text claims something and nothing that it claims is false."""
    truths = [truth for _, truth in check(text, scene, prompt)]
    return bool(truths) and False not in truths and True in truths


# ---------------------------------------------------------------- objects


def mentioned_objects(text: str) -> list[Mentioned]:
    """Every thing that the text says is there, the sign included, in order; negated mentions are left out."""
    return [Mentioned(m.kind, m.noun) for s in sentences(text) for m in s.mentions if not m.negated]


def present_objects(scene: Scene) -> frozenset[str]:
    """The kinds in the scene, and "sign" if it has one: what a perfect description mentions."""
    return scene.kinds | ({"sign"} if scene.sign is not None else set())


def recall(text: str, scene: Scene) -> float:
    """Share of `present_objects` that the text mentions."""
    present = present_objects(scene)
    return len(present & {m.kind for m in mentioned_objects(text)}) / len(present)


# ---------------------------------------------------------------- score


def _repeats(text: str) -> int:
    said = [text[start:end].lower() for start, end in (s.span for s in sentences(text))]
    return len(said) - len(set(said))


def _details(claims: list[tuple[Claim, bool | None]]) -> float:
    """Costs of false claims and earnings of true details, each distinct claim once."""
    distinct = {(c.kind, c.subject, c.value): truth for c, truth in claims}
    cost = sum(FALSE_COST[kind] for (kind, _, _), truth in distinct.items() if truth is False)
    earned = sum(1 for (kind, _, _), truth in distinct.items() if truth and kind not in ("object", "absence"))
    return TRUE_DETAIL * earned - cost


def _answers(question: Asked, claims: list[tuple[Claim, bool | None]]) -> float:
    """+1 for the right answer to a question, -1 for a wrong one, 0 for none."""
    wanted = {
        "yes_no": ("object", "absence"),
        "colour": ("attribute",),
        "count": ("count", "absence"),
        "where": ("position",),
        "read": ("text",),
        "short": ("context",) if question.subject == "context" else ("position", "absence"),
    }[question.kind]
    truths = [t for c, t in claims if c.kind in wanted and _about(c, question) and t is not None]
    if not truths:
        return 0.0
    return 1.0 if all(truths) else -1.0


def _about(claim: Claim, question: Asked) -> bool:
    if question.place is not None:
        return claim.value == question.place
    return question.subject in ("context", claim.subject)


def score(text: str, scene: Scene, prompt: str | None = None) -> float:
    """How good a response is; 0 for an empty one.

    A description (or any response without a known question) scores

        recall - sum of FALSE_COST over false claims + TRUE_DETAIL per true colour, size, count, place, text,
        context - REPEAT_COST per repeated sentence,

    where a claim said twice counts once. An answer to a question has +1 (right), -1 (wrong) or 0 (not
    answered) in place of recall.
    """
    if not text.strip():
        return 0.0
    question = asked(prompt) if prompt is not None else None
    claims = check(text, scene, prompt)
    if question is None or question.kind == "describe":
        base = recall(text, scene)
    else:
        base = _answers(question, claims)
    return base + _details(claims) - REPEAT_COST * _repeats(text)

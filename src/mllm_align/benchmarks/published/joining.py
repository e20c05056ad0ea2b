"""Which answer belongs to which question, and what is missing, repeated or unknown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mllm_align.benchmarks.published.answers import Answer, AnswerFileError, stem
from mllm_align.records import Example

log = logging.getLogger(__name__)

SHOWN = 3
Key = Hashable | None


@dataclass(frozen=True)
class Way:
    """One way to tell which question an answer is to: equal keys. A key of None is not known.

    With `checked`, an answer that names the text or the image of another question does not belong to this one: some
    number from 0 and some from 1.
    """

    name: str
    question: Callable[[Example], Key]
    answer: Callable[[Answer], Key]
    checked: bool = False


@dataclass(frozen=True)
class Joined:
    """`answers` by the place of their question; what did not fit, as ids of questions or places of rows."""

    answers: dict[int, Answer]
    way: str
    missing: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return not (self.missing or self.repeated or self.unknown)

    def report(self) -> dict[str, Any]:
        """For the result: how the answers were joined, and what did not fit (a few of each, and their number)."""
        faults = {
            name: value for name, value in asdict(self).items() if name in ("missing", "repeated", "unknown")
        }
        return {
            "joined by": self.way,
            "answers in": sorted({answer.field for answer in self.answers.values()}),
            **{name: len(found) for name, found in faults.items()},
            **{f"first {name}": list(found[:SHOWN]) for name, found in faults.items() if found},
        }


def join(questions: Sequence[Example], answers: Sequence[Answer], ways: Sequence[Way]) -> Joined:
    """The join by the way that leaves the fewest over; the first of equals. A question answered twice has its last.

    Raises AnswerFileError where no way fits a single answer.
    """
    tried = [_join(questions, answers, way) for way in ways]
    fitting = [joined for joined in tried if joined.answers]
    if not fitting:
        told = [name for name in ("id", "image", "prompt") if any(getattr(a, name) for a in answers)]
        raise AnswerFileError(
            f"none of the {len(answers)} answers ({answers[0].place}, ...) belongs to one of the {len(questions)} "
            f"questions; they were compared by {', '.join(way.name for way in ways)}, and the answers have "
            f"{' and '.join(told) or 'no id, image or question: add one of these to each'}. Is it the answer file of "
            "another benchmark, or of another version of its questions?"
        )
    return min(fitting, key=lambda joined: len(joined.missing) + len(joined.repeated) + len(joined.unknown))


def accept(joined: Joined, partial: bool, about: str) -> Joined:
    """The join itself if it is whole, or if `partial` allows it not to be. Raises AnswerFileError, naming what."""
    if joined.whole:
        return joined
    parts = [
        f"{len(found)} {what} ({', '.join(found[:SHOWN])}{', ...' if len(found) > SHOWN else ''})"
        for found, what in (
            (joined.missing, "questions have no answer"),
            (joined.repeated, "answers are to a question that has one already"),
            (joined.unknown, "answers belong to no question"),
        )
        if found
    ]
    if not partial:
        raise AnswerFileError(
            f"{about}, joined by {joined.way}: {'; '.join(parts)}. Complete the answer file, or add "
            "predictions_partial=true to score what is there (the last answer to a question counts), with these "
            "numbers in the result"
        )
    log.warning("%s: %s", about, "; ".join(parts))
    return joined


def by_id(question: Callable[[Example], str] | None = None) -> Way:
    """Ids as strings; the questions' own unless another is given."""
    return Way("id", question or (lambda q: q.id), lambda a: a.id, checked=True)


def by_text(plain: Callable[[str], str] | None = None) -> Way:
    """Image and question text, as `plain` makes it."""
    same = plain or asked
    return Way(
        "image and question",
        lambda q: (image_name(q.image.key), same(q.prompt)),
        lambda a: None if a.image is None or a.prompt is None else (image_name(a.image), same(a.prompt)),
    )


def by_order(
    questions: Sequence[Example], answers: Sequence[Answer], plain: Callable[[str], str] | None = None
) -> Way:
    """The n-th answer is to the n-th question, where their texts, as `plain` makes them, are the same."""
    same = plain or asked
    asked_at = {question.id: number for number, question in enumerate(questions)}
    said_at = {answer.place: number for number, answer in enumerate(answers)}
    return Way(
        "order and question",
        lambda q: (asked_at[q.id], same(q.prompt)),
        lambda a: None if a.prompt is None else (said_at[a.place], same(a.prompt)),
    )


def image_name(image: str) -> str:
    """The image's name without folder and ending; a COCO image's number, however it is written."""
    name = stem(image)
    number = name.rpartition("_")[2]
    return str(int(number)) if number.isdecimal() and (number == name or name.startswith("COCO_")) else name


def asked(prompt: str) -> str:
    """The question's first line without what stands around it: image tokens, a literal backslash-n, case."""
    for token in ("<image>./</image>", "<image>"):
        prompt = prompt.replace(token, "")
    return prompt.strip().replace("\\n", "\n").split("\n")[0].strip().lower()


def _join(questions: Sequence[Example], answers: Sequence[Answer], way: Way) -> Joined:
    place: dict[Key, int] = {}
    for number, question in enumerate(questions):
        place.setdefault(way.question(question), number)
    other = _of_another(questions) if way.checked else (lambda question, answer: False)
    found: dict[int, Answer] = {}
    repeated, unknown = [], []
    for answer in answers:
        key = way.answer(answer)
        number_of = None if key is None else place.get(key)
        if number_of is None or other(questions[number_of], answer):
            unknown.append(answer.place)
            continue
        if number_of in found:
            repeated.append(answer.place)
        found[number_of] = answer
    missing = [q.id for number, q in enumerate(questions) if number not in found]
    return Joined(found, way.name, tuple(missing), tuple(repeated), tuple(unknown))


def _of_another(questions: Sequence[Example]) -> Callable[[Example, Answer], bool]:
    """Whether an answer names the text or the image of another question than this one."""
    texts = {asked(question.prompt) for question in questions}
    images = {image_name(question.image.key) for question in questions}

    def other(question: Example, answer: Answer) -> bool:
        text = None if answer.prompt is None else asked(answer.prompt)
        image = None if answer.image is None else image_name(answer.image)
        return (text in texts and text != asked(question.prompt)) or (
            image in images and image != image_name(question.image.key)
        )

    return other

"""AMBER (arXiv 2311.07397): 1,004 descriptions and 14,216 yes-no questions about 1,004 images, without a judge.

Generative: lemmas of the nouns that AMBER knows. One that is, or goes along with, something in the image covers it;
one that is similar to something there is fine, too; the others are hallucinated. Discriminative: an answer is "Yes"
or "No" to the letter, and "No" is the positive class. Figures are rounded to a decimal where the official script
does so, and its denominators begin at 0.001.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.published import lemmas, result
from mllm_align.benchmarks.published.answers import read_answers, read_text
from mllm_align.benchmarks.published.joining import Joined, accept, by_id, by_order, by_text, join
from mllm_align.benchmarks.published.questions import check_images, found, image_in, rows_of
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example

log = logging.getLogger(__name__)

SOURCE = "it is data/ of junyangwang0410/AMBER"
SIMILAR = 0.8
GENERATIVE = "generative"
# What the official script tells apart -> the types of its annotations.
DIMENSIONS = {
    "existence": ("discriminative-hallucination",),
    "state": ("discriminative-attribute-state",),
    "number": ("discriminative-attribute-number",),
    "action": ("discriminative-attribute-action",),
    "relation": ("discriminative-relation", "relation"),
}
DIMENSION = {kind: name for name, kinds in DIMENSIONS.items() for kind in kinds}
ATTRIBUTE = ("state", "number", "action")
OF_NOUNS = ("nouns", "hallucinated", "covered", "truth", "hit", "traps", "responses", "clean")
OF_ANSWERS = ("asked", "right", "no", "said_no", "no_said_no", "valid")
NOTHING = 0.001


@dataclass(frozen=True)
class SpacySimilarity:
    """Cosine of two words' vectors in a spaCy pipeline; the official one is en_core_web_lg."""

    model: str = "en_core_web_lg"

    def __call__(self, one: str, other: str) -> float:
        """Raises ValueError where spaCy or the pipeline is not installed."""
        return _similarity(self.model, one, other)


@dataclass(frozen=True)
class Amber:
    """`folder` has query_all.json, annotations.json, relation.json and safe_words.txt.

    `part` is all, generative or discriminative; `ask` stands after a discriminative question. Without `similarity`
    (None) nothing is similar, which gives other figures and is said in the result.
    """

    folder: str
    images: str
    part: str = "all"
    ask: str = ""
    similarity: Callable[[str, str], float] | None = SpacySimilarity()
    nouns: Callable[[str], list[str]] = lemmas.nouns
    max_new_tokens: int = 512

    shown: ClassVar[tuple[Metric, ...]] = (
        Metric("amber", "AMBER", +1, main=True),
        Metric("chair", "AMBER CHAIR", -1, main=True),
        Metric("cover", "AMBER cover", +1),
        Metric("hal", "AMBER hal.", -1),
        Metric("cog", "AMBER cog.", -1),
        Metric("f1", "AMBER F1", +1, main=True),
        Metric("accuracy", "AMBER accuracy", +1),
        Metric("valid", "AMBER valid", +1),
    )

    def __post_init__(self) -> None:
        if self.part not in ("all", "generative", "discriminative"):
            raise ValueError(f"AMBER's part is {self.part!r}; choose all, generative or discriminative")

    def ready(self) -> None:
        """Raises what asking and scoring would raise for what is not there."""
        check_images(self.examples())
        if self.part != "discriminative":
            self.nouns("a dog")
            if self.similarity is not None:
                self.similarity("dog", "cat")

    def examples(self) -> list[Example]:
        truth = {one["id"]: one for one in rows_of(self.folder, ("annotations.json",), SOURCE)}
        return [
            Example(
                id=str(row["id"]),
                image=image_in(self.images, row["image"]),
                prompt=row["query"] + ("" if kind == GENERATIVE else self.ask),
                meta={
                    name: truth[row["id"]][name]
                    for name in ("type", "truth", "hallu")
                    if name in truth[row["id"]]
                },
            )
            for row in rows_of(self.folder, ("query_all.json",), SOURCE)
            if self.part in ("all", _part(kind := truth[row["id"]]["type"]))
        ]

    def from_files(self, files: Sequence[Path], partial: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of answers {id, response}. A dimension without a single answer was not asked, and is named."""
        questions, answers = self.examples(), read_answers(files)
        joined = join(questions, answers, [by_id(), by_text(), by_order(questions, answers)])
        there = {_dimension(questions[number].meta["type"]) for number in joined.answers}
        left = sorted({_dimension(q.meta["type"]) for q in questions} - there)
        asked = {q.id for q in questions if _dimension(q.meta["type"]) in there}
        missing = tuple(name for name in joined.missing if name in asked)
        joined = Joined(joined.answers, joined.way, missing, joined.repeated, joined.unknown)
        accept(joined, partial, "AMBER")
        rows = result.rows(questions, joined)
        read = [row["prediction"] in ("Yes", "No") for row in rows if row["type"] != GENERATIVE]
        if not all(read):
            log.warning(
                "AMBER: %d of %d answers to questions are not Yes or No to the letter and count as wrong, as in the "
                "official script; if they say it in other words, cut them to it",
                len(read) - sum(read),
                len(read),
            )
        return rows, {**joined.report(), **({"not asked": left} if left else {})}

    def finish(self, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """The rows; descriptions with their nouns and what became of them."""
        known = Nouns.read(self.folder)
        return [
            {**row, **known.counted(self.nouns(row["prediction"]), row, self.similarity)}
            if row["type"] == GENERATIVE
            else dict(row)
            for row in predictions
        ]

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        names = [*OF_NOUNS, "valid_nouns", *(f"{d}/{part}" for d in DIMENSIONS for part in OF_ANSWERS)]
        return sum_by_image(((row["image"], _counted(row)) for row in predictions), names)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """Fractions. `amber` is (1 - chair + f1) / 2, and 0 where a part was not asked."""
        t = totals
        answers = _sums(t, tuple(DIMENSIONS))
        chair, f1 = ratio(t["hallucinated"], t["nouns"]), _f1(answers)
        both = (np.asarray(t["responses"]) > 0) & (np.asarray(answers["asked"]) > 0)
        return {
            "amber": np.where(both, (1 - chair + f1) / 2, 0.0),
            "chair": chair,
            "cover": ratio(t["covered"], t["truth"]),
            "hal": ratio(t["responses"] - t["clean"], t["responses"]),
            "cog": ratio(t["hit"], t["traps"]),
            "f1": f1,
            "accuracy": ratio(answers["right"], answers["asked"]),
            **{f"{name}_f1": _f1(_sums(t, (name,))) for name in DIMENSIONS},
            "valid": ratio(t["valid_nouns"] + answers["valid"], t["responses"] + answers["asked"]),
        }

    def result(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """As the official script prints it, of the parts that were asked."""
        totals = {name: float(value) for name, value in self.counts(predictions).totals().items()}
        official: dict[str, Any] = {}
        if totals["responses"]:
            official["generative"] = _printed_nouns(totals)
        groups = {"discriminative": tuple(DIMENSIONS), "existence": ("existence",), "attribute": ATTRIBUTE}
        groups |= {name: (name,) for name in (*ATTRIBUTE, "relation")}
        for name, members in groups.items():
            asked = [totals[f"{member}/asked"] > 0 for member in members]
            if all(asked) if name == "discriminative" else any(asked):
                official[name] = _printed_answers(totals, members, NOTHING if name == "existence" else 0.0001)
        if "generative" in official and "discriminative" in official:
            chair, f1 = official["generative"]["CHAIR"], official["discriminative"]["F1"]
            official["AMBER score"] = round((100 - chair + f1) / 2, 2)
        similar = (
            getattr(self.similarity, "model", "given")
            if self.similarity
            else "none: not the official figures"
        )
        return result.told(
            self,
            predictions,
            official,
            benchmark="AMBER",
            rule=f"official; similarity: {similar}" if totals["responses"] else "official",
        )


@dataclass(frozen=True)
class Nouns:
    """The nouns that AMBER knows: `along` noun -> what goes along with it, `safe` those that are never wrong."""

    along: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @staticmethod
    def read(folder: str) -> Nouns:
        along = json.loads(read_text(found(folder, ("relation.json",), SOURCE)))
        safe = read_text(found(folder, ("safe_words.txt",), SOURCE)).split("\n")
        return Nouns(along, frozenset(word.rstrip("\r") for word in safe))

    def counted(
        self, nouns: Sequence[str], row: Prediction, similarity: Callable[[str, str], float] | None
    ) -> dict[str, Any]:
        """The nouns that count, the hallucinated ones, and which of `truth` and `hallu` were met."""
        known = {noun for word, others in self.along.items() for noun in (word, *others)}
        kept = [noun for noun in nouns if noun in known]
        there, traps = self._listed(row["truth"]), self._listed(row["hallu"])
        covered, hit, false = set(), set(), []
        for noun in kept:
            if noun in self.safe:
                continue
            if (place := _first(there, noun.__eq__)) is not None:
                covered.add(place)
                continue
            hit.add(_first(traps, noun.__eq__))
            if similarity is not None:
                alike = _alike(noun, similarity)
                hit.add(_first(traps, alike))
                if (place := _first(there, alike)) is not None:
                    covered.add(place)
                    continue
            false.append(noun)
        hit.discard(None)
        return {"nouns": kept, "hallucinated": false, "covered": sorted(covered), "hit": sorted(hit)}

    def _listed(self, words: Sequence[str]) -> list[tuple[str, int]]:
        """(noun, place among `words`): what goes along with each of them first, then they themselves."""
        along = [(other, place) for place, word in enumerate(words) for other in self.along.get(word, ())]
        return along + [(word, place) for place, word in enumerate(words)]


def _first(listed: Sequence[tuple[str, int]], fits: Callable[[str], bool]) -> int | None:
    return next((place for word, place in listed if fits(word)), None)


def _alike(noun: str, similarity: Callable[[str, str], float]) -> Callable[[str], bool]:
    return lambda word: similarity(noun, word) > SIMILAR


def _part(kind: str) -> str:
    return "generative" if kind == GENERATIVE else "discriminative"


def _dimension(kind: str) -> str:
    return DIMENSION.get(kind, kind)


def _right(row: Prediction) -> bool:
    return row["prediction"] == {"yes": "Yes", "no": "No"}[row["truth"]]


def _counted(row: Prediction) -> dict[str, float]:
    if row["type"] == GENERATIVE:
        false = len(row["hallucinated"])
        values = (
            len(row["nouns"]), false, len(row["covered"]), len(row["truth"]), len(row["hit"]), len(row["hallu"]), 1,
            not false,
        )  # fmt: skip
        return {
            **dict(zip(OF_NOUNS, map(float, values), strict=True)),
            "valid_nouns": float(bool(row["nouns"])),
        }
    no, said_no = row["truth"] == "no", row["prediction"] == "No"
    told = (1, _right(row), no, said_no, no and said_no, row["prediction"] in ("Yes", "No"))
    return {f"{_dimension(row['type'])}/{n}": float(v) for n, v in zip(OF_ANSWERS, told, strict=True)}


def _sums(totals: Mapping[str, Array], dimensions: Sequence[str]) -> dict[str, Array]:
    return {part: np.sum([totals[f"{name}/{part}"] for name in dimensions], axis=0) for part in OF_ANSWERS}


def _f1(answers: Mapping[str, Array]) -> Array:
    return ratio(2 * answers["no_said_no"], answers["no"] + answers["said_no"])


def _printed_nouns(t: Mapping[str, float]) -> dict[str, float]:
    def percent(part: float, whole: float) -> float:
        return part / (whole + NOTHING) * 100

    return {
        "CHAIR": round(percent(t["hallucinated"], t["nouns"]), 1),
        "Cover": round(percent(t["covered"], t["truth"]), 1),
        "Hal": round(100 - percent(t["clean"], t["responses"]), 1),
        "Cog": round(percent(t["hit"], t["traps"]), 1),
    }


def _printed_answers(
    totals: Mapping[str, float], dimensions: Sequence[str], nothing: float
) -> dict[str, float]:
    """`nothing` is what F1's denominator has more, on the rounded precision and recall."""
    answers = {part: sum(totals[f"{name}/{part}"] for name in dimensions) for part in OF_ANSWERS}
    first = NOTHING * (len(dimensions) if tuple(dimensions) == ATTRIBUTE else 1)
    accuracy = round(answers["right"] / (answers["asked"] + first) * 100, 1)
    precision = round(answers["no_said_no"] / (answers["said_no"] + first) * 100, 1)
    recall = round(answers["no_said_no"] / (answers["no"] + first) * 100, 1)
    f1 = round(2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + nothing) * 100, 1)
    return {"Accuracy": accuracy, "Precision": precision, "Recall": recall, "F1": f1}


@cache
def _similarity(model: str, one: str, other: str) -> float:
    pipeline = _spacy(model)
    return float(pipeline(one).similarity(pipeline(other)))


@cache
def _spacy(model: str) -> Any:
    try:
        import spacy

        pipeline = spacy.load(model)
    except (ImportError, OSError):
        raise ValueError(
            f"AMBER's descriptions are scored with spaCy's word vectors {model}; install them with: pip install "
            f"'mllm-align[evaluation]' && python -m spacy download {model}; or set similarity to null for figures "
            "without them, or part to discriminative"
        ) from None
    return cache(pipeline)

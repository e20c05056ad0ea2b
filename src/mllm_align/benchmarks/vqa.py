"""Short questions on scenes: colour, count, where and read, one of each an image, scored by exact match.

Both sides are normalised first: lower case; punctuation, articles and the prepositions of places dropped;
digits turned into number words; the places of a "where" answer compared as a set. An answer is valid when it
is of the kind asked for: one colour, one number, places only, or letters only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example
from mllm_align.scenes import text
from mllm_align.scenes.draw import SceneImage
from mllm_align.scenes.text import QA
from mllm_align.scenes.words import NUMBERS, pick
from mllm_align.scenes.world import COLOURS, PLACES, Scene, rng_for, sample_scene

KINDS_ASKED = ("colour", "count", "where", "read")
_DROPPED = {"a", "an", "the", "in", "on", "at"}
_NUMBER_WORDS = {str(number): word for number, word in enumerate(NUMBERS)}
_PLACES = "|".join(sorted(PLACES, key=len, reverse=True))
_VALID = {
    "colour": re.compile("|".join(COLOURS)),
    "count": re.compile("|".join(NUMBERS)),
    "where": re.compile(rf"(?:{_PLACES})(?: and (?:{_PLACES}))*"),
    "read": re.compile("[a-z]+"),
}


def normal(answer: str) -> str:
    """The words that count: "At the Top left." -> "top left", "2" -> "two", "left, top" -> "left and top"."""
    words = re.findall(r"\w+", answer.lower().replace(",", " and "))
    words = [word for word in words if word not in _DROPPED] or words  # a sign can read THE
    kept = [_NUMBER_WORDS.get(word, word) for word in words]
    return re.sub(r"\band(?: and)+\b", "and", " ".join(kept))


def valid(answer: str, kind: str) -> bool:
    """Whether the answer is of the kind asked for, right or wrong."""
    return _VALID[kind].fullmatch(normal(answer)) is not None


def right(answer: str, truth: str) -> bool:
    """Whether both say the same; "left and top" is "top and left"."""
    return sorted(normal(answer).split(" and ")) == sorted(normal(truth).split(" and "))


@dataclass(frozen=True)
class Vqa:
    """`n` scenes of a split of the scenes world; a scene without a sign has no "read" question."""

    n: int = 300
    split: str = "evaluation"
    max_new_tokens: int = 16

    shown: ClassVar[tuple[Metric, ...]] = (
        Metric("accuracy", "VQA accuracy", +1, main=True),
        *(Metric(kind, f"VQA {kind}", +1) for kind in KINDS_ASKED),
        Metric("valid", "VQA valid", +1),
    )

    def examples(self) -> list[Example]:
        return [q for i in range(self.n) for q in vqa_questions(sample_scene(self.split, i))]

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        names = [f"{kind}/{name}" for kind in KINDS_ASKED for name in ("right", "valid", "asked")]
        return sum_by_image(((row["image"], _item_counts(row)) for row in predictions), names)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """Accuracy of each kind of question and, as `accuracy`, the mean over kinds; `valid` likewise."""
        asked = {kind: np.asarray(totals[f"{kind}/asked"]) for kind in KINDS_ASKED}
        by_kind = {kind: ratio(totals[f"{kind}/right"], asked[kind]) for kind in KINDS_ASKED}
        valid_by_kind = [ratio(totals[f"{kind}/valid"], asked[kind]) for kind in KINDS_ASKED]
        kinds = np.sum([asked[kind] > 0 for kind in KINDS_ASKED], axis=0)
        return {
            "accuracy": ratio(np.sum(list(by_kind.values()), axis=0), kinds),
            **by_kind,
            "valid": ratio(np.sum(valid_by_kind, axis=0), kinds),
        }


def vqa_questions(scene: Scene) -> list[Example]:
    """One brief question of each kind that the scene can answer."""
    return [
        Example(
            id=f"vqa/{scene.id}/{qa.kind}",
            image=SceneImage(scene),
            prompt=qa.prompt,
            meta={"truth": qa.answer, "kind": qa.kind},
        )
        for qa in _asked(scene)
    ]


def _asked(scene: Scene) -> Iterator[QA]:
    rng = rng_for("vqa", scene.id)
    entities = scene.entities
    several = [entity for entity in entities if entity.count > 1]
    # Else nearly every count would be one.
    counted = pick(rng, several) if several and rng.random() < 0.6 else pick(rng, entities)
    yield text.colour(scene, pick(rng, entities), rng, brief=True)
    yield text.count(scene, counted.kind, rng, brief=True)
    yield text.where(scene, pick(rng, entities), rng, brief=True)
    if scene.sign is not None:
        yield text.read(scene, scene.sign, rng, brief=True)


def _item_counts(row: Prediction) -> dict[str, float]:
    kind, answer = row["kind"], row["prediction"]
    return {
        f"{kind}/right": float(right(answer, row["truth"])),
        f"{kind}/valid": float(valid(answer, kind)),
        f"{kind}/asked": 1.0,
    }

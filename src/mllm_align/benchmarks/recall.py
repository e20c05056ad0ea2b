"""Detailed descriptions of scenes: how many of the objects they name, and how many they make up.

CHAIR, after Rohrbach et al., arXiv 1809.02156: `chair_s` is the share of descriptions with a hallucinated
object, `chair_i` the share of hallucinated ones among all object mentions. Both fall to 0 for a model that
says nothing, so they stand beside `recall` (objects named / objects there, over all images) and the mean
length in words. A sign counts as an object; mentions are read by `scenes.oracle`, and "there is no dog"
mentions none. A description is valid when it names at least one object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mllm_align.benchmarks import base
from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example
from mllm_align.scenes.draw import SceneImage
from mllm_align.scenes.oracle import mentioned_objects, present_objects
from mllm_align.scenes.text import DESCRIBE_PROMPTS
from mllm_align.scenes.world import Scene, sample_scene

_COUNTED = (
    "named",
    "present",
    "false_mentions",
    "mentions",
    "hallucinated",
    "words",
    "valid",
    "descriptions",
)


@dataclass(frozen=True)
class Recall:
    """`n` scenes of a split of the scenes world, each described once."""

    n: int = 300
    split: str = "evaluation"
    prompt: str = DESCRIBE_PROMPTS[0]
    max_new_tokens: int = 160

    shown: ClassVar[tuple[Metric, ...]] = (
        Metric("chair_s", "CHAIR-s", -1, main=True),
        Metric("recall", "object recall", +1, main=True),
        Metric("chair_i", "CHAIR-i", -1, main=True),
        Metric("words", "words", main=True, percent=False),
        Metric("valid", "descriptions valid", +1),
    )

    def examples(self) -> list[Example]:
        return [describe_question(sample_scene(self.split, i), self.prompt) for i in range(self.n)]

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        return sum_by_image(((row["image"], item_counts(row)) for row in predictions), _COUNTED)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        return {
            "chair_s": ratio(totals["hallucinated"], totals["descriptions"]),
            "chair_i": ratio(totals["false_mentions"], totals["mentions"]),
            "recall": ratio(totals["named"], totals["present"]),
            "words": ratio(totals["words"], totals["descriptions"]),
            "valid": ratio(totals["valid"], totals["descriptions"]),
        }

    def items(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """1 for a description without a hallucinated object, else 0."""
        return {row["id"]: 1.0 - item_counts(row)["hallucinated"] for row in predictions}

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return base.score(self, predictions)


def describe_question(scene: Scene, prompt: str) -> Example:
    """The truth is the list of objects; the whole scene goes along, so that a report can draw it."""
    return Example(
        id=f"recall/{scene.id}",
        image=SceneImage(scene),
        prompt=prompt,
        meta={"truth": sorted(present_objects(scene)), "scene": scene.to_json()},
    )


def item_counts(row: Prediction) -> dict[str, float]:
    """What one description adds to the sums."""
    truth = set(row["truth"])
    mentions = [mention.kind for mention in mentioned_objects(row["prediction"])]
    false = sum(kind not in truth for kind in mentions)
    return {
        "named": float(len(truth & set(mentions))),
        "present": float(len(truth)),
        "false_mentions": float(false),
        "mentions": float(len(mentions)),
        "hallucinated": float(false > 0),
        "words": float(len(row["prediction"].split())),
        "valid": float(bool(mentions)),
        "descriptions": 1.0,
    }

"""Detailed descriptions of scenes: how many of the objects they name, and how many they make up.

CHAIR, after Rohrbach et al., arXiv 1809.02156: `chair_s` is the share of descriptions with a hallucinated
object, `chair_i` the share of hallucinated ones among all object mentions. Both fall to 0 for a model that
says nothing, so they stand beside `recall` (objects named / objects there, over all images) and the mean
length in words. A sign counts as an object; mentions are read by `scenes.oracle`, and "there is no dog"
mentions none. A description is valid when it names at least one object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example
from mllm_align.scenes.draw import SceneImage
from mllm_align.scenes.oracle import mentioned_objects, present_objects
from mllm_align.scenes.text import DESCRIBE_PROMPTS
from mllm_align.scenes.world import Scene, sample_scene

SHOWN = (
    Metric("chair_s", "CHAIR-s", -1, main=True),
    Metric("recall", "object recall", +1, main=True),
    Metric("chair_i", "CHAIR-i", -1, main=True),
    Metric("words", "words", main=True, percent=False),
    Metric("valid", "descriptions valid", +1),
)
COUNTED = (
    "hallucinated",
    "descriptions",
    "false_mentions",
    "mentions",
    "named",
    "present",
    "words",
    "valid",
)


@dataclass(frozen=True)
class Recall:
    """`n` scenes of a split of the scenes world, each described once."""

    n: int = 300
    split: str = "evaluation"
    prompt: str = DESCRIBE_PROMPTS[0]
    max_new_tokens: int = 160

    shown: ClassVar[tuple[Metric, ...]] = SHOWN

    def examples(self) -> list[Example]:
        return [describe_question(sample_scene(self.split, i), self.prompt) for i in range(self.n)]

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        return sum_by_image(((row["image"], item_counts(row)) for row in predictions), COUNTED)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        return rates(totals)


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
    mentions = [mention.kind for mention in mentioned_objects(row["prediction"])]
    return counted(row["prediction"], mentions, row["truth"])


def counted(description: str, mentions: Sequence[str], truth: Iterable[str]) -> dict[str, float]:
    """COUNTED of one description that mentions these objects, in order, of an image that has those of `truth`."""
    there = set(truth)
    false = sum(name not in there for name in mentions)
    return {
        "hallucinated": float(false > 0),
        "descriptions": 1.0,
        "false_mentions": float(false),
        "mentions": float(len(mentions)),
        "named": float(len(there & set(mentions))),
        "present": float(len(there)),
        "words": float(len(description.split())),
        "valid": float(bool(mentions)),
    }


def rates(totals: Mapping[str, Array]) -> dict[str, Array]:
    """CHAIR-s, CHAIR-i, recall, mean words and the valid share, from sums of COUNTED."""
    return {
        "chair_s": ratio(totals["hallucinated"], totals["descriptions"]),
        "chair_i": ratio(totals["false_mentions"], totals["mentions"]),
        "recall": ratio(totals["named"], totals["present"]),
        "words": ratio(totals["words"], totals["descriptions"]),
        "valid": ratio(totals["valid"], totals["descriptions"]),
    }

"""POPE on scenes: "Is there a ... in the image? Answer with yes or no.", after Li et al., arXiv 2305.10355.

An image gets up to `per_kind` questions about kinds that are there and, in each split, as many about kinds
that are not: `random` ones, the `popular` ones (most frequent in the world) or the `adversarial` ones (those
that most often stand beside what the image does show). The positive questions are shared by the splits, and
a kind that several splits chose is asked about once; the answer counts in each of its splits.

The answer's first word decides: "yes" or "no", in any case and with any punctuation ("Yes, there is." is a
yes); everything else is invalid. An invalid answer is wrong, and is not a yes: it lowers accuracy and, where
the object is there, recall, and is never a false positive. `yes_ratio` is the share of *predicted* yes among
all answers (0.5 in the truth of every split).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example
from mllm_align.scenes.draw import SceneImage
from mllm_align.scenes.text import yes_no_prompt
from mllm_align.scenes.world import KINDS, Scene, plausibility, popularity, rng_for, sample_scene

SPLITS = ("random", "popular", "adversarial")
SHOWN = (
    Metric("f1", "POPE F1", +1, main=True),
    Metric("accuracy", "POPE accuracy", +1),
    Metric("adversarial_f1", "POPE adv. F1", +1, main=True),
    Metric("yes_ratio", "predicted yes"),
    Metric("valid", "POPE valid", +1),
)
_FIRST_WORD = re.compile(r"[^\W\d_]+")
# What was answered and what is true: hit yes/yes, alarm yes/no, miss no/yes, pass no/no, bad_* invalid.
_OUTCOMES = ("hit", "alarm", "miss", "pass", "bad_yes", "bad_no")
_OUTCOME = {
    ("yes", "yes"): "hit",
    ("yes", "no"): "alarm",
    ("no", "yes"): "miss",
    ("no", "no"): "pass",
    (None, "yes"): "bad_yes",
    (None, "no"): "bad_no",
}


def yes_or_no(answer: str) -> str | None:
    """The answer's first word when it is "yes" or "no" (lower case), else None."""
    first = _FIRST_WORD.search(answer)
    word = first.group().lower() if first else ""
    return word if word in ("yes", "no") else None


@dataclass(frozen=True)
class Pope:
    """`n` scenes of a split of the scenes world, `per_kind` positive and negative questions a POPE split."""

    n: int = 300
    split: str = "evaluation"
    per_kind: int = 3
    max_new_tokens: int = 4

    shown: ClassVar[tuple[Metric, ...]] = SHOWN

    def examples(self) -> list[Example]:
        return [q for i in range(self.n) for q in pope_questions(sample_scene(self.split, i), self.per_kind)]

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        names = [f"{split}/{outcome}" for split in SPLITS for outcome in _OUTCOMES]
        return sum_by_image(((row["image"], _item_counts(row)) for row in predictions), names)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """Each of `_split_metrics` as `<split>_<metric>`, and its mean over the splits as `<metric>`."""
        by_split = {s: _split_metrics({o: totals[f"{s}/{o}"] for o in _OUTCOMES}) for s in SPLITS}
        means = {m: np.mean([by_split[s][m] for s in SPLITS], axis=0) for m in by_split["random"]}
        return means | {f"{s}_{m}": value for s in SPLITS for m, value in by_split[s].items()}


def pope_questions(scene: Scene, per_kind: int) -> list[Example]:
    """The questions about one scene, each kind once. Pure: depends on the scene and `per_kind` alone."""
    rng = rng_for("pope", scene.id)
    present = sorted(scene.kinds)
    number = min(per_kind, len(present))
    splits: dict[str, list[str]] = {
        present[int(i)]: list(SPLITS) for i in rng.choice(len(present), number, replace=False)
    }
    for name, kinds in absent_kinds(scene, number, rng).items():
        for kind in kinds:
            splits.setdefault(kind, []).append(name)
    return [
        Example(
            id=f"pope/{scene.id}/{kind}",
            image=SceneImage(scene),
            prompt=yes_no_prompt(kind),
            meta={"truth": "yes" if kind in scene.kinds else "no", "kind": kind, "splits": names},
        )
        for kind, names in splits.items()
    ]


def absent_kinds(scene: Scene, number: int, rng: np.random.Generator) -> dict[str, list[str]]:
    """For each split the `number` kinds that the scene lacks and the split asks about."""
    absent = [kind for kind in KINDS if kind not in scene.kinds]
    popular, expected = popularity(), plausibility(scene)
    return {
        "random": [absent[int(i)] for i in rng.choice(len(absent), number, replace=False)],
        "popular": sorted(absent, key=lambda kind: (-popular[kind], kind))[:number],
        "adversarial": sorted(absent, key=lambda kind: (-expected[kind], kind))[:number],
    }


def _item_counts(row: Prediction) -> dict[str, float]:
    outcome = _OUTCOME[yes_or_no(row["prediction"]), row["truth"]]
    return {f"{split}/{outcome}": 1.0 for split in row["splits"]}


def _split_metrics(c: Mapping[str, Array]) -> dict[str, Array]:
    asked_yes = c["hit"] + c["miss"] + c["bad_yes"]
    asked = asked_yes + c["alarm"] + c["pass"] + c["bad_no"]
    said_yes = c["hit"] + c["alarm"]
    return {
        "f1": ratio(2 * c["hit"], said_yes + asked_yes),  # 2PR / (P + R)
        "accuracy": ratio(c["hit"] + c["pass"], asked),
        "precision": ratio(c["hit"], said_yes),
        "recall": ratio(c["hit"], asked_yes),
        "yes_ratio": ratio(said_yes, asked),
        "valid": ratio(asked - c["bad_yes"] - c["bad_no"], asked),
    }

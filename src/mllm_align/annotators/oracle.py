"""The annotator that knows the truth: the scenes world's oracle, with as much noise as one asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllm_align.annotators.base import Judgement, Pairs
from mllm_align.annotators.pairs import best_worst
from mllm_align.records import Example, Group
from mllm_align.scenes.oracle import score
from mllm_align.scenes.world import Scene


def knows(example: Example) -> bool:
    """Whether the truth about this Example's image is known."""
    return "scene" in example.meta


@dataclass(frozen=True)
class OracleAnnotator:
    """Scores a response by what is true in it (`scenes.oracle.score`), plus Gaussian noise.

    `noise` is the standard deviation of the noise in units of the score: 0 is the exact oracle. A
    response's noise depends on (seed, example id, its place in the Group, its text) alone, so the same
    question gets the same answer.
    """

    pairs: Pairs = best_worst
    noise: float = 0.0
    seed: int = 0

    def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """One Judgement a Group. Raises ValueError for an Example whose scene is not known."""
        return [Judgement(tuple(self._scores(group))) for group in groups]

    def _scores(self, group: Group) -> list[float]:
        example = group.example
        if not knows(example):
            raise ValueError(
                f"example {example.id!r}: meta has no 'scene', so the oracle cannot judge it; "
                "choose another annotator (annotator=self or annotator=large) for images that are not scenes"
            )
        scene = Scene.from_json(example.meta["scene"])
        # Rounded, so that equal scores summed in another order tie.
        exact = [round(score(r.text, scene, example.prompt), 9) for r in group.responses]
        if self.noise == 0:
            return exact
        return [
            s + self.noise * _normal(self.seed, example.id, i, r.text)
            for i, (s, r) in enumerate(zip(exact, group.responses, strict=True))
        ]


def oracle(
    policy: Any = None, *, pairs: Pairs = best_worst, noise: float = 0.0, seed: int = 0
) -> OracleAnnotator:
    """An OracleAnnotator. The policy that every annotator's builder is given is of no use to it."""
    return OracleAnnotator(pairs, noise, seed)


def _normal(*parts: object) -> float:
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal())

"""Accuracy of a reward model on held-out pairs: Table 7 of arXiv 2407.02477.

A prediction holds the rewards of a pair's two responses. The pair is decided right where the chosen one has the
larger reward; equal rewards are a tie, which counts as wrong in `accuracy`: a reward model that says the same of
everything has 0 and not 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.datasets.parquet import read_groups
from mllm_align.records import Example, Group

if TYPE_CHECKING:
    from mllm_align.models.load import Policy

PAIRS = "preferences.parquet"


@dataclass(frozen=True)
class RewardAccuracy:
    """The pairs of one dataset: the first preference of each of its Groups.

    `data` is the dataset's config; `folder` holds what it built, and is only needed to ask a reward model.
    """

    name: str
    data: Mapping[str, Any]
    folder: str | None = None
    max_new_tokens: int = 1  # nothing is written

    @property
    def shown(self) -> tuple[Metric, ...]:
        return (
            Metric("accuracy", f"reward accuracy, {self.name}", +1, main=True),
            Metric("ties", f"ties, {self.name}", -1),
            Metric("longer", f"prefers the longer, {self.name}"),
        )

    def groups(self) -> list[Group]:
        """The held-out Groups. Raises ValueError where nothing was built."""
        if self.folder is None:
            raise ValueError(f"benchmark of {self.name}: the held-out pairs have not been built")
        return read_groups(Path(self.folder) / PAIRS)

    def examples(self) -> list[Example]:
        return [group.example for group in self.groups()]

    def answer(self, policy: Policy, batch_size: int) -> list[dict[str, Any]]:
        """Prediction rows: rewards of chosen and rejected; `prediction` is the text with the larger one.

        Raises ValueError for a policy without a reward head.
        """
        from mllm_align.models.heads import reward_scores

        groups = self.groups()
        scores = reward_scores(policy, groups, batch_size)
        return [_row(group, found) for group, found in zip(groups, scores, strict=True)]

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        names = ["right", "tied", "longer", "unlike", "asked"]
        return sum_by_image(((row["image"], _counted(row)) for row in predictions), names)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """`accuracy` and `ties` of all pairs; `longer`: how often the longer text wins where lengths differ."""
        return {
            "accuracy": ratio(totals["right"], totals["asked"]),
            "ties": ratio(totals["tied"], totals["asked"]),
            "longer": ratio(totals["longer"], totals["unlike"]),
        }


def _row(group: Group, scores: Sequence[float]) -> dict[str, Any]:
    pair = group.preferences[0]
    chosen, rejected = group.responses[pair.chosen], group.responses[pair.rejected]
    better, worse = scores[pair.chosen], scores[pair.rejected]
    return {
        "id": group.example.id,
        "image": group.example.image.key,
        "prompt": group.example.prompt,
        "prediction": chosen.text if better > worse else rejected.text,
        "truth": chosen.text,
        "rewards": [better, worse],
        "words": [len(chosen.text.split()), len(rejected.text.split())],
    }


def _counted(row: Prediction) -> dict[str, float]:
    (better, worse), (ours, theirs) = row["rewards"], row["words"]
    unlike = ours != theirs and better != worse
    return {
        "right": float(better > worse),
        "tied": float(better == worse),
        "longer": float(unlike and (better > worse) == (ours > theirs)),
        "unlike": float(unlike),
        "asked": 1.0,
    }

"""The pairs as they are in the dataset: nothing is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mllm_align.records import Group


@dataclass(frozen=True)
class DatasetSampler:
    """Gives back what it is given."""

    def sample(self, policy: Any, groups: Sequence[Group], seed: int) -> list[Group]:
        return list(groups)

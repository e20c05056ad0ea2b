"""A reward model as annotator: each response gets its reward, judged by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm_align.annotators.base import Judgement, Pairs
from mllm_align.annotators.pairs import best_worst
from mllm_align.models.heads import REWARD_HEAD, load_head, reward_scores
from mllm_align.models.load import Policy, load_policy
from mllm_align.records import Group

ADAPTER = "adapter"


@dataclass(frozen=True)
class RewardAnnotator:
    """Scores by the reward head of `policy`; only differences within a prompt mean something."""

    policy: Policy
    pairs: Pairs = best_worst
    batch_size: int = 16
    max_length: int | None = None

    def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """One Judgement a Group, in order. Equal texts score the same."""
        scores = reward_scores(self.policy, groups, self.batch_size, self.max_length)
        return [Judgement(values) for values in scores]


def reward_model(
    policy: Policy,
    *,
    path: str,
    base: str,
    dtype: str = "float32",
    pairs: Pairs = best_worst,
    batch_size: int = 16,
    max_length: int | None = None,
) -> RewardAnnotator:
    """The reward model in `path` (a run's folder, or an adapter's with its head) on base model `base`.

    It is a model of its own on the policy's device, so that training the policy leaves it as it is. Raises
    FileNotFoundError where `path` is no reward model.
    """
    folder = Path(path)
    folder = folder / ADAPTER if (folder / ADAPTER).is_dir() else folder
    device = str(next(policy.model.parameters()).device)
    judge = load_policy(base, dtype=dtype, device=device, adapter=folder, name="reward_model")
    return RewardAnnotator(load_head(judge, REWARD_HEAD, folder), pairs, batch_size, max_length)

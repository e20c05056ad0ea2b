"""k responses a prompt, drawn by a server instead of our own decoder (`generation=vllm`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mllm_align.api.generation import CUT, Server
from mllm_align.records import Group


@dataclass(frozen=True)
class ServedSampler:
    """PolicySampler's draws from a server. The responses are texts: the server gives no token ids."""

    server: Server
    k: int = 2
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 96

    def sample(self, policy: Any, groups: Sequence[Group], seed: int) -> list[Group]:
        """One Group of k responses for each Group's Example, in order, without preferences; `policy` is not asked.

        Raises ServerError naming the example that failed.
        """
        examples = [group.example for group in groups]
        drawn = self.server.draw(
            examples,
            k=self.k,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=seed,
        )
        return [Group(example, responses) for example, responses in zip(examples, drawn, strict=True)]


def cut(groups: Sequence[Group]) -> int:
    """Responses that were not over at `max_new_tokens`."""
    return sum((r.provenance or {}).get("finish") == CUT for group in groups for r in group.responses)

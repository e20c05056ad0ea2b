"""k responses a prompt, drawn from the policy as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mllm_align.compute.decoding import generate
from mllm_align.compute.packing import text_of
from mllm_align.models.load import Policy, end_token
from mllm_align.records import Group, Response


@dataclass(frozen=True)
class PolicySampler:
    """Each draw is seeded by (seed, example id, number of the draw): the same for every batch size."""

    k: int = 2
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 96
    batch_size: int = 32

    def sample(self, policy: Policy, groups: Sequence[Group], seed: int) -> list[Group]:
        """One Group of k responses for each Group's Example, in order, without preferences."""
        examples = [group.example for group in groups]
        drawn = generate(
            policy,
            examples,
            k=self.k,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=seed,
            batch_size=self.batch_size,
        )
        return [
            Group(example, tuple(_scorable(r, policy.processor) for r in responses))
            for example, responses in zip(examples, drawn, strict=True)
        ]


def _scorable(response: Response, processor: Any) -> Response:
    """The response up to the first image token, should a model have drawn one: it can't be scored."""
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    ids = response.token_ids or ()
    if image_token not in ids:
        return response
    kept = ids[: ids.index(image_token)]
    return replace(response, token_ids=kept or (end_token(processor),), text=text_of(kept, processor))

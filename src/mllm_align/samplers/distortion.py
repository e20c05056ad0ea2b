"""POVID-style image distortion: rejected answers token by token, from a noised image and the true prefix.

    y~_t = argmax pi( . | prompt, noised image, y+_<t)          (3.3 and E.1 of arXiv 2407.02477)

The words come from one teacher-forced pass over the reference y+, so each fits the reference and not the other
words: the text is often broken, which is what BDHS improves on. Its log-probability is taken under the clean
image, as POVID's code does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mllm_align.compute.corrupted import forced_argmax
from mllm_align.compute.packing import response_tokens, text_of
from mllm_align.models.load import Policy
from mllm_align.noise import stable_seed
from mllm_align.records import Group, Response
from mllm_align.samplers.bdhs import pair
from mllm_align.samplers.corruption import ImageNoise
from mllm_align.samplers.reference import reference_answer


@dataclass(frozen=True)
class PovidDistortion:
    """Groups of (reference answer, distorted answer), the first preferred to the second.

    Args:
        corruption: the noise.
        batch_size: answers predicted together; changes the speed only.
    """

    corruption: ImageNoise
    batch_size: int = 32
    source: str = "povid_distortion"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: choose 1 or more")

    def sample(self, policy: Policy, groups: Sequence[Group], seed: int) -> list[Group]:
        """One Group a Group, in order; without a preference where the noise changed no word. Raises ValueError
        for a Group without a reference answer.
        """
        references = [reference_answer(group) for group in groups]
        made: list[Group] = []
        for at in range(0, len(groups), self.batch_size):
            window = slice(at, at + self.batch_size)
            made += self._window(policy, groups[window], references[window], seed)
        return made

    def _window(
        self, policy: Policy, groups: Sequence[Group], references: Sequence[Response], seed: int
    ) -> list[Group]:
        examples = [group.example for group in groups]
        seeds = [stable_seed(seed, example.id) for example in examples]
        inputs = self.corruption.attempt(policy, examples, None, range(len(groups)), seeds)
        tokens = [tuple(ids) for ids in response_tokens([r.text for r in references], policy.processor)]
        predicted = forced_argmax(policy, inputs.prepared, inputs.rows, tokens)
        made = []
        for group, reference, ids, own in zip(groups, references, predicted, seeds, strict=True):
            ids = scorable(ids, policy.processor)
            about = {"mask_seed": own, "steps": self.corruption.steps, "wrap": self.corruption.wrap}
            response = Response(text_of(ids, policy.processor), self.source, ids, provenance=about)
            made.append(pair(group, reference, response))
        return made


def scorable(ids: Sequence[int], processor: Any) -> tuple[int, ...]:
    """The tokens without image tokens, which can't stand in a training row. End tokens stay where they were
    predicted, as in POVID's code: the answer is as long as its reference.
    """
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    return tuple(token for token in ids if token != image)

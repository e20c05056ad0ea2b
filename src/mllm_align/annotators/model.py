"""A model as annotator: asked which of two answers is better, in both orders (`comparing`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from mllm_align.annotators.base import Comparison, Judgement, Pairs
from mllm_align.annotators.comparing import different, judgement
from mllm_align.annotators.pairs import best_worst
from mllm_align.compute.decoding import first_token_logprobs
from mllm_align.models.load import Policy, load_policy, reference, without_image_token
from mllm_align.records import Example, Group


@dataclass(frozen=True)
class ModelAnnotator:
    """Reads the log-odds of "A" against "B" as first word of the answer to `template`.

    `template` has the fields {question}, {a} and {b}. `frozen` asks the policy with its adapter off.
    """

    policy: Policy
    template: str
    pairs: Pairs = best_worst
    frozen: bool = False
    batch_size: int = 32

    def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """One Judgement a Group. Equal texts are a tie and not asked about."""
        asked = [(g, i, j) for g, group in enumerate(groups) for i, j in different(group)]
        questions = [self._question(groups[g], i, j) for g, i, j in asked]
        questions += [self._question(groups[g], j, i) for g, i, j in asked]
        odds = self._log_odds(questions)
        made: list[list[Comparison]] = [[] for _ in groups]
        for n, (g, i, j) in enumerate(asked):
            made[g].append(Comparison(i, j, odds[n], odds[n + len(asked)]))
        return [judgement(len(group.responses), made[g]) for g, group in enumerate(groups)]

    def _question(self, group: Group, a: int, b: int) -> Example:
        example, responses = group.example, group.responses
        one, two = (without_image_token(self.policy.processor, responses[i].text) for i in (a, b))
        return replace(example, prompt=self.template.format(question=example.prompt, a=one, b=two))

    def _log_odds(self, questions: Sequence[Example]) -> list[float]:
        if not questions:
            return []
        with reference(self.policy) if self.frozen else nullcontext():
            logprobs = first_token_logprobs(
                self.policy, questions, ("A", "B"), batch_size=self.batch_size
            )  # (n, 2)
        return (logprobs[:, 0] - logprobs[:, 1]).tolist()


def own(policy: Policy, *, template: str, pairs: Pairs = best_worst, batch_size: int = 32) -> ModelAnnotator:
    """The policy judges itself as it was before training: adapter off, so the judge is the same all along."""
    return ModelAnnotator(policy, template, pairs, frozen=True, batch_size=batch_size)


def other(
    policy: Policy,
    *,
    path: str,
    template: str,
    pairs: Pairs = best_worst,
    batch_size: int = 32,
    dtype: str = "float32",
    four_bit: bool = False,
) -> ModelAnnotator:
    """Another model judges, usually a larger one, loaded from `path` onto the policy's device.

    With `four_bit` its language model's matrices are stored in 4 bits.
    """
    device = str(next(policy.model.parameters()).device)
    judge = load_policy(path, dtype=dtype, device=device, four_bit=four_bit)
    return ModelAnnotator(judge, template, pairs, batch_size=batch_size)

"""The instruction-tuning mix: for one picture a description and several questions, each independent."""

from __future__ import annotations

from mllm_align.scenes.text import (
    DESCRIBE_PROMPTS,
    JUDGE_PROMPT,
    SFT_NOISE,
    describe,
    questions,
)
from mllm_align.scenes.words import Rng, pick
from mllm_align.scenes.world import Scene

Item = tuple[str, str, str]  # prompt, answer, task


def judge_prompt(question: str, a: str, b: str) -> str:
    return JUDGE_PROMPT.format(question=question, a=a, b=b)


def describe_item(scene: Scene, rng: Rng, noise: float = SFT_NOISE) -> Item:
    return pick(rng, DESCRIBE_PROMPTS), describe(scene, rng, noise), "describe"


def question_items(scene: Scene, rng: Rng, existence_questions: int = 3) -> list[Item]:
    asked = questions(scene, rng, existence_questions=existence_questions)
    return [(qa.prompt, qa.answer, qa.kind) for qa in asked]


def judge_items(scene: Scene, rng: Rng, number: int) -> list[Item]:
    """Pairs of a true and a corrupted answer; which of them is better, A or B."""
    from mllm_align.scenes.corrupt import corrupt

    items: list[Item] = []
    for _ in range(number):
        question, true, _ = _judged(scene, rng)
        false = corrupt(true, scene, rng, n=1 + int(rng.random() * 2), prompt=question).text
        if rng.random() < 0.5:
            items.append((judge_prompt(question, true, false), "A", "judge"))
        else:
            items.append((judge_prompt(question, false, true), "B", "judge"))
    return items


def _judged(scene: Scene, rng: Rng) -> Item:
    if rng.random() < 0.5:
        return describe_item(scene, rng, noise=0.0)
    return pick(rng, question_items(scene, rng))


def sft_items(
    scene: Scene, rng: Rng, *, noise: float = SFT_NOISE, existence_questions: int = 3, judge: int = 0
) -> list[Item]:
    """(prompt, answer, task) of one picture: a description, about seven questions, `judge` judge pairs.

    Args:
        noise: share of descriptions with a plausible absent object (see `describe`).
        existence_questions: how many "Is there ...?" are among the questions.
        judge: how many "Which answer is better?" items are added; the longest of all.
    """
    items = [describe_item(scene, rng, noise), *question_items(scene, rng, existence_questions)]
    return items + (judge_items(scene, rng, judge) if judge else [])

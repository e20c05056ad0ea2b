"""The instruction-tuning mix: for one picture a description and several questions, each independent."""

from __future__ import annotations

import re
from dataclasses import replace

from mllm_align.scenes.text import DESCRIBE_PROMPTS, JUDGE_PROMPT, SFT_NOISE, describe, questions
from mllm_align.scenes.words import Rng, noun_phrase, pick
from mllm_align.scenes.world import FAINT_CONTRAST, KINDS, Scene, plausibility

USUAL = 0.3  # conditional frequency from which a careless author assumes a thing

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
    scene: Scene,
    rng: Rng,
    *,
    noise: float = SFT_NOISE,
    existence_questions: int = 3,
    judge: int = 0,
    overlook: float = 0.0,
    assume: float = 0.0,
) -> list[Item]:
    """(prompt, answer, task) of one picture: a description, about seven questions, `judge` judge pairs.

    Published instruction data was not written with a magnifying glass: its authors overlook what is hard to see and
    assume what usually is there. `overlook` and `assume` make such data; 0 is the truth.

    Args:
        noise: share of descriptions with a plausible absent object (see `describe`).
        existence_questions: how many "Is there ...?" are among the questions.
        judge: how many "Which answer is better?" items are added; the longest of all.
        overlook: probability that a faint thing is neither described nor found when asked for.
        assume: probability of "Yes" when asked for an absent thing whose conditional frequency is over `USUAL`.
    """
    seen = _overlooked(scene, rng, overlook) if overlook else scene
    asked = question_items(scene, rng, existence_questions)
    if overlook or assume:
        asked = [_careless(item, scene, seen, rng, assume) for item in asked]
    items = [describe_item(seen, rng, noise), *asked]
    return items + (judge_items(scene, rng, judge) if judge else [])


def _overlooked(scene: Scene, rng: Rng, overlook: float) -> Scene:
    """The scene without some of its faint things; one thing is always left."""
    left = tuple(t for t in scene.things if t.contrast > FAINT_CONTRAST[1] or rng.random() >= overlook)
    return replace(scene, things=left or scene.things[:1])


def _careless(item: Item, scene: Scene, seen: Scene, rng: Rng, assume: float) -> Item:
    prompt, answer, task = item
    if task != "yes_no":
        return item
    kind = next(k for k in KINDS if re.search(rf"\b{re.escape(noun_phrase(k))}\b", prompt))
    if scene.entity(kind) is not None:
        if seen.entity(kind) is None:
            return prompt, "No" if answer == "Yes" else f"No, there is no {kind} in the image.", task
        return item
    if answer == "No" and plausibility(scene)[kind] > USUAL and rng.random() < assume:
        return prompt, "Yes", task
    return item

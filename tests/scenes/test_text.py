import re
from collections import Counter

import numpy as np
import pytest

from mllm_align.scenes.oracle import is_true, mentioned_objects, unparsed
from mllm_align.scenes.tasks import judge_items, sft_items
from mllm_align.scenes.text import (
    DESCRIBE_PROMPTS,
    QA_KINDS,
    Asked,
    absent_kind,
    asked,
    corpus_words,
    describe,
    yes_no_prompt,
)
from mllm_align.scenes.world import KINDS, LETTERS, cooccurrence, rng_for, sample_scene
from scene_truth import hallucinated_objects

N = 400


def items(split="validation", **options):
    for index in range(N):
        scene = sample_scene(split, index)
        for item in sft_items(scene, rng_for("test", index), **options):
            yield scene, item


def test_everything_said_is_true_and_readable():
    for scene, (prompt, answer, _) in items(noise=0.0):
        assert is_true(answer, scene, prompt), (prompt, answer)
        question = asked(prompt)
        assert question is not None
        assert question.brief or not unparsed(answer)


def test_every_task_is_there():
    tasks = Counter(task for _, (_, _, task) in items())
    assert set(tasks) == set(QA_KINDS)
    assert tasks["describe"] == N


def test_yes_and_no_are_balanced():
    answers = [answer[:2] for _, (_, answer, task) in items() if task == "yes_no"]
    assert abs(np.mean([a == "Ye" for a in answers]) - 0.5) < 0.05


def test_vocabulary_is_closed():
    words = set(corpus_words())
    for _, (prompt, answer, _) in items(judge=1):
        for word in re.findall(r"[A-Za-z]+|[^\sA-Za-z]", f"{prompt} {answer}"):
            assert word in words or set(word) <= set(LETTERS), word


def test_a_full_description_mentions_everything_and_nothing_else():
    for index in range(100):
        scene = sample_scene("sft", index)
        text = describe(scene, rng_for("test", index), keep=1.0)
        said = {m.kind for m in mentioned_objects(text)}
        assert said == scene.kinds | ({"sign"} if scene.sign else set())


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_noise_is_the_share_of_descriptions_with_an_absent_thing(noise):
    wrong = [
        bool(hallucinated_objects(describe(scene, rng_for("test", i), noise=noise), scene))
        for i in range(1500)
        for scene in [sample_scene("sft", i)]
    ]
    assert abs(np.mean(wrong) - noise) < 0.03


def test_absent_things_asked_about_are_absent_and_often_expected():
    expected = []
    for index in range(N):
        scene = sample_scene("sft", index)
        kind = absent_kind(scene, rng_for("test", index))
        assert kind not in scene.kinds
        expected.append(cooccurrence()[[KINDS.index(k) for k in scene.kinds], KINDS.index(kind)].max())
    assert 0.2 < np.mean(np.array(expected) > 0.25) < 0.9


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        (DESCRIBE_PROMPTS[0], Asked("describe")),
        (yes_no_prompt("apple"), Asked("yes_no", "apple", brief=True)),
        (yes_no_prompt("bus", brief=False, form=3), Asked("yes_no", "bus")),
        ("What colour are the knives?", Asked("colour", "knife")),
        ("How many benches are there? Answer briefly.", Asked("count", "bench", brief=True)),
        ("Where is the cup?", Asked("where", "cup")),
        ("What is at the top left?", Asked("short", place=0)),
        ("What is in the middle? Answer briefly.", Asked("short", place=4, brief=True)),
        ("What place is this?", Asked("short", "context")),
        ("What does the sign say?", Asked("read", "sign")),
        ("Why is the sky blue?", None),
    ],
)
def test_prompts_are_read_back(prompt, question):
    assert asked(prompt) == question


def test_yes_no_prompts_have_the_right_article():
    assert yes_no_prompt("apple") == "Is there an apple in the image? Answer with yes or no."


def test_judge_items_name_the_true_answer():
    letters = Counter()
    for index in range(200):
        scene = sample_scene("sft", index)
        ((prompt, letter, task),) = judge_items(scene, rng_for("test", index), 1)
        found = re.fullmatch(r"Which answer is better\? Question: (.+?) A: (.+) B: (.+)", prompt)
        assert found
        assert task == "judge"
        question, answers = found[1], {"A": found[2], "B": found[3]}
        letters[letter] += 1
        assert is_true(answers[letter], scene, question)
        assert not is_true(answers["B" if letter == "A" else "A"], scene, question)
    assert 70 < letters["A"] < 130

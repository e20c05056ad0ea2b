import pytest

from mllm_align.scenes.answers import true_answer
from mllm_align.scenes.correct import correct
from mllm_align.scenes.corrupt import corrupt
from mllm_align.scenes.oracle import check, is_true, mentioned_objects, score
from mllm_align.scenes.tasks import sft_items
from mllm_align.scenes.text import asked, describe
from mllm_align.scenes.world import KINDS, cooccurrence, rng_for, sample_scene
from scene_truth import KITCHEN


def false_subjects(text, scene, prompt=None):
    return {(c.kind, c.subject) for c, truth in check(text, scene, prompt) if truth is False}


def cases(number=250):
    for index in range(number):
        scene, rng = sample_scene("validation", index), rng_for("corrupt", index)
        for prompt, answer, task in sft_items(scene, rng, noise=0.0):
            yield scene, rng, prompt, answer, task


def test_every_corruption_is_false_and_every_correction_true():
    for scene, rng, prompt, answer, task in cases():
        n = 1 + int(rng.random() * 3)
        false = corrupt(answer, scene, rng, n=n, prompt=prompt)
        assert false.edits, (prompt, answer)
        wrong = false_subjects(false.text, scene, prompt)
        assert len(wrong) >= (n if task == "describe" else 1), (answer, false)
        assert score(false.text, scene, prompt) < score(answer, scene, prompt)
        right = correct(false.text, scene, rng, prompt)
        assert is_true(right, scene, prompt), (prompt, false.text, right)


def test_a_true_text_is_left_alone():
    for scene, rng, prompt, answer, _ in cases(60):
        assert correct(answer, scene, rng, prompt) == answer


def test_correction_keeps_what_is_true():
    text = "This is a kitchen. There is a blue cup at the top left. There is a blue plate on the left."
    assert correct(text, KITCHEN, rng_for(0)) == text.replace("blue cup", "red cup")


@pytest.mark.parametrize(
    ("false", "right"),
    [
        ("The image shows an office.", {"The image shows a kitchen."}),
        (
            "Three green apples are at the top and at the bottom.",
            {"There are two green apples, at the top and at the bottom."},
        ),
        ("There are three apples.", {"There are two apples."}),
        ("A sign in the middle says KX.", {"A sign in the middle says KT."}),
        ("A sign on the right says KT.", {"A sign in the middle says KT."}),
        ("There is no cup in the image.", {"There is a red cup at the top left."}),
        ("There is nothing on the left.", {"There is a blue plate on the left."}),
        ("A small red cup is at the top left.", {"A red cup is at the top left."}),
        (
            "There is a red cup at the top left and a black dog on the right.",
            {
                "There is a red cup at the top left.",
                "There is a red cup at the top left and a blue plate on the left.",
                "There is a red cup at the top left and a white chair at the bottom right.",
            },
        ),
    ],
)
def test_repairs_by_hand(false, right):
    texts = {correct(false, KITCHEN, rng_for("repair", i)) for i in range(20)}
    assert texts <= right
    assert len(right) == 1 or len(texts) > 1


def test_a_thing_that_is_not_there_goes_or_becomes_one_that_is():
    text = "This is a kitchen. There is a black dog on the right."
    results = {correct(text, KITCHEN, rng_for("dog", i)) for i in range(30)}
    assert "This is a kitchen." in results
    assert any(len(mentioned_objects(r)) == 1 for r in results)
    assert all("dog" not in r for r in results)


def test_a_brief_answer_is_replaced():
    assert correct("blue", KITCHEN, rng_for(1), "What colour is the cup? Answer briefly.") == "red"
    assert correct("Yes", KITCHEN, rng_for(1), "Is there a dog? Answer with yes or no.") == "No"


def test_yes_and_no_flip_to_the_end():
    answer, prompt = "Yes, there is a red cup at the top left.", "Is there a cup?"
    flips = {corrupt(answer, KITCHEN, rng_for(i), prompt=prompt).text for i in range(40)}
    assert "No, there is no cup in the image." in flips
    assert all(t.startswith(("No, there is no cup", "Yes, there is a")) for t in flips)
    for i in range(10):
        flipped = corrupt(
            "No, there is no dog in the image.", KITCHEN, rng_for(i), prompt="Is there a dog?"
        ).text
        assert flipped.startswith("Yes, there is a")
        assert "dog" in flipped


def test_invented_things_are_plausible():
    """Kinds that come into descriptions by corruption go with the scene far more than absent kinds do."""
    new, absent = [], []
    for index in range(300):
        scene, rng = sample_scene("validation", index), rng_for("plausible", index)
        text = describe(scene, rng)
        rows = [KINDS.index(kind) for kind in scene.kinds]
        expected = dict(zip(KINDS, cooccurrence()[rows].max(axis=0), strict=True))
        said = (
            {m.kind for m in mentioned_objects(corrupt(text, scene, rng, n=2).text)} - scene.kinds - {"sign"}
        )
        new += [expected[kind] for kind in said]
        absent += [expected[kind] for kind in KINDS if kind not in scene.kinds]
    assert sum(new) / len(new) > 2 * sum(absent) / len(absent)


def test_edits_say_what_changed():
    text = "There is a red cup at the top left."
    for i in range(20):
        false = corrupt(text, KITCHEN, rng_for(i))
        (edit,) = false.edits
        assert text[slice(*edit.span)] == edit.before
        assert edit.after in false.text
        assert edit.before != edit.after


def test_nothing_true_means_no_edits():
    assert corrupt("There is a dog.", KITCHEN, rng_for(0)).edits == ()
    assert corrupt("", KITCHEN, rng_for(0)).text == ""


def test_true_answers():
    rng = rng_for(0)
    question = asked("How many apples are there?")
    assert question is not None
    assert true_answer(KITCHEN, question, rng) == "There are two green apples in the image."
    absent = asked("What colour is the dog?")
    assert absent is not None
    assert true_answer(KITCHEN, absent, rng) is None


@pytest.mark.parametrize(
    "text", ["", "asdf.", "There is a red There is", "A cup at the top left a cup at the"]
)
def test_garbage_is_tolerated(text):
    for i in range(5):
        corrupt(text, KITCHEN, rng_for(i), n=3, prompt="Describe this image.")
        fixed = correct(text, KITCHEN, rng_for(i), "Describe this image.")
        assert not false_subjects(fixed, KITCHEN)


def test_a_corruption_need_not_make_a_description_longer():
    """A length that tells the sides apart would teach a policy to be short."""
    words = {True: 0, False: 0}
    before = 0
    for index in range(300):
        scene, rng = sample_scene("validation", index), rng_for("corrupt-length", index)
        text = describe(scene, rng)
        before += len(text.split())
        for grow in words:
            false = corrupt(text, scene, rng_for("corrupt-same", index), n=2, grow=grow)
            assert false_subjects(false.text, scene)
            words[grow] += len(false.text.split())
    assert abs(words[False] / before - 1) < 0.03
    assert words[True] / before > 1.05

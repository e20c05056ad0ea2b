"""POPE: the questions, the yes/no rule, and every metric by hand."""

import numpy as np
import pytest

from mllm_align.benchmarks.base import score
from mllm_align.benchmarks.pope import SPLITS, Pope, absent_kinds, pope_questions, yes_or_no
from mllm_align.scenes.world import plausibility, popularity, rng_for, sample_scene


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("Yes.", "yes"),
        ("YES!", "yes"),
        (" Yes, there is a red cup.", "yes"),
        ('"No"', "no"),
        ("No, there is no dog in the image.", "no"),
        ("no\n", "no"),
        ("", None),
        ("...", None),
        ("There is no dog.", None),  # LLaVA's scorer says no, and yes to "I can't see one"
        ("Not sure, yes", None),
        ("Nope", None),
        ("Nobody", None),
        ("yesterday", None),
        ("I think yes", None),
    ],
)
def test_the_first_word_decides(answer, read):
    assert yes_or_no(answer) == read


def row(prediction, truth, splits=SPLITS, image="a", name=None):
    name = name or f"{prediction}/{truth}/{splits}/{image}"
    return {"id": name, "image": image, "prediction": prediction, "truth": truth, "splits": list(splits)}


def test_metrics_by_hand():
    rows = [
        row("Yes", "yes"),
        row("Yes.", "yes", name="2"),
        row("No", "yes"),  # 2 of 3 found, in every split
        row("no", "no", ["random"]),
        row("No, there is none.", "no", ["random"], name="5"),
        row("No", "no", ["random"], name="6"),
        row("yes", "no", ["popular"]),
        row("no", "no", ["popular"]),
        row("perhaps", "no", ["popular"]),
        row("yes", "no", ["adversarial"]),
        row("Yes, there is one.", "no", ["adversarial"], name="11"),
        row("no", "no", ["adversarial"], image="b"),
    ]
    found = score(Pope(), rows)
    assert found["random_accuracy"] == pytest.approx(5 / 6)
    assert found["random_precision"] == 1
    assert found["random_recall"] == pytest.approx(2 / 3)
    assert found["random_f1"] == pytest.approx(0.8)  # 2 * 1 * 2/3 / (5/3)
    assert found["random_yes_ratio"] == pytest.approx(2 / 6)
    assert found["popular_accuracy"] == pytest.approx(3 / 6)  # "perhaps" is wrong ...
    assert found["popular_precision"] == pytest.approx(2 / 3)  # ... but no false alarm
    assert found["popular_valid"] == pytest.approx(5 / 6)
    assert found["adversarial_f1"] == pytest.approx(2 * 2 / (4 + 3))  # hits 2, said yes 4, true yes 3
    assert found["adversarial_yes_ratio"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx((0.8 + 4 / 6 + 4 / 7) / 3)
    assert found["accuracy"] == pytest.approx((5 / 6 + 3 / 6 + 3 / 6) / 3)
    assert found["valid"] == pytest.approx((1 + 5 / 6 + 1) / 3)
    assert (found["n"], found["images"]) == (12, 2)


def test_an_invalid_answer_to_a_present_object_is_a_miss():
    found = score(
        Pope(), [row("perhaps", "yes"), row("yes", "yes"), row("no", "no"), row("no", "no", name="4")]
    )
    assert found["random_recall"] == 0.5
    assert found["random_f1"] == pytest.approx(2 / 3)
    assert found["random_accuracy"] == 0.75


def test_always_no_scores_half_and_f1_zero():
    found = score(Pope(), [row("No", "yes"), row("No", "no")])
    assert (found["accuracy"], found["f1"], found["precision"], found["yes_ratio"]) == (0.5, 0, 0, 0)


def test_the_yes_ratio_counts_predictions_and_not_the_truth():
    found = score(Pope(), [row("yes", "yes"), row("yes", "no")])
    assert found["yes_ratio"] == 1.0


def test_metrics_take_stacked_totals():
    totals = Pope().counts([row("yes", "yes"), row("no", "no", image="b")]).totals()
    stacked = {name: np.array([value, 2 * value]) for name, value in totals.items()}
    assert Pope().metrics(stacked)["f1"].tolist() == [1, 1]


def test_questions_are_balanced_in_every_split_and_true():
    for index in range(40):
        scene = sample_scene("evaluation", index)
        questions = pope_questions(scene, 3)
        kinds = [q.meta["kind"] for q in questions]
        assert len(kinds) == len(set(kinds))
        for split in SPLITS:
            asked = [q for q in questions if split in q.meta["splits"]]
            assert sum(q.meta["truth"] == "yes" for q in asked) == 3
            assert sum(q.meta["truth"] == "no" for q in asked) == 3
        for question in questions:
            assert (question.meta["truth"] == "yes") == (question.meta["kind"] in scene.kinds)
            assert question.meta["kind"] in question.prompt
            assert question.image.key == scene.id


def test_a_scene_of_two_kinds_is_asked_about_two_and_two():
    from dataclasses import replace

    scene = sample_scene("evaluation", 0)
    kept = sorted(scene.kinds)[:2]
    scene = replace(scene, things=tuple(thing for thing in scene.things if thing.kind in kept))
    for split in SPLITS:
        asked = [q.meta["truth"] for q in pope_questions(scene, 3) if split in q.meta["splits"]]
        assert sorted(asked) == ["no", "no", "yes", "yes"]


def test_absent_kinds_follow_their_split():
    scene = sample_scene("evaluation", 3)
    found = absent_kinds(scene, 3, rng_for("test"))
    missing = [kind for kind in popularity() if kind not in scene.kinds]
    expected = plausibility(scene)
    assert found["popular"] == sorted(missing, key=lambda kind: -popularity()[kind])[:3]
    assert min(expected[kind] for kind in found["adversarial"]) >= max(
        expected[kind] for kind in missing if kind not in found["adversarial"]
    )


def test_adversarial_negatives_are_the_most_expected_on_average():
    mean = dict.fromkeys(SPLITS, 0.0)
    for index in range(60):
        scene = sample_scene("evaluation", index)
        expected = plausibility(scene)
        for split, kinds in absent_kinds(scene, 3, rng_for("test", index)).items():
            mean[split] += sum(expected[kind] for kind in kinds) / 180
    assert mean["adversarial"] > mean["popular"] + 0.1 > mean["random"] + 0.1


def test_the_first_scenes_are_the_same_for_every_n():
    assert Pope(n=5).examples() == Pope(n=9).examples()[: len(Pope(n=5).examples())]

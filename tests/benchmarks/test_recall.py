"""CHAIR and object recall by hand."""

import pytest

from mllm_align.benchmarks.base import score
from mllm_align.benchmarks.recall import Recall, item_counts
from mllm_align.scenes.world import Scene, sample_scene


def row(prediction, truth, image="a"):
    return {"id": f"recall/{image}", "image": image, "prediction": prediction, "truth": truth}


def test_metrics_by_hand():
    rows = [
        # cup and dog named, tree made up: 3 mentions, 1 false
        row(
            "This is a park. There is a red cup at the top. A dog and a tree are here.", ["cup", "dog", "cat"]
        ),
        row("There is a cup.", ["cup", "sign"], "b"),
        row("", ["dog"], "c"),
    ]
    found = score(Recall(), rows)
    assert found["chair_s"] == pytest.approx(1 / 3)
    assert found["chair_i"] == pytest.approx(1 / 4)
    assert found["recall"] == pytest.approx(3 / 6)
    assert found["words"] == pytest.approx((4 + 8 + 7 + 4 + 0) / 3)
    assert found["valid"] == pytest.approx(2 / 3)
    assert (found["n"], found["images"]) == (3, 3)


def test_denied_objects_are_not_mentions_and_signs_are_objects():
    counted = item_counts(row("There is no dog in the image. There is a sign that says TOP.", ["cup"]))
    assert (counted["mentions"], counted["false_mentions"], counted["hallucinated"]) == (1, 1, 1)


def test_an_object_made_up_twice_is_two_false_mentions_in_one_description():
    found = score(Recall(), [row("There is a dog. There is a dog. There is a cup.", ["cup"])])
    assert found["chair_i"] == pytest.approx(2 / 3)
    assert found["chair_s"] == 1


def test_saying_nothing_is_no_hallucination_and_no_recall():
    found = score(Recall(), [row("", ["cup"])])
    assert (found["chair_s"], found["chair_i"], found["recall"], found["valid"]) == (0, 0, 0, 0)


def test_the_true_description_is_perfect():
    from mllm_align.scenes.text import describe
    from mllm_align.scenes.world import rng_for

    rows = []
    for example in Recall(n=30).examples():
        scene = Scene.from_json(example.meta["scene"])
        text = describe(scene, rng_for("test", scene.id), noise=0.0, keep=1.0)
        rows.append({**example.meta, "id": example.id, "image": example.image.key, "prediction": text})
    found = score(Recall(), rows)
    assert (found["chair_s"], found["recall"], found["valid"]) == (0, 1, 1)


def test_examples_carry_the_scene_and_its_objects():
    example = Recall(n=1).examples()[0]
    scene = sample_scene("evaluation", 0)
    assert Scene.from_json(example.meta["scene"]) == scene
    assert set(example.meta["truth"]) - {"sign"} == set(scene.kinds)
    assert ("sign" in example.meta["truth"]) == (scene.sign is not None)

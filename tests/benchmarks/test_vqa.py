"""Short questions: the normalising rule and the metrics by hand."""

import pytest

from mllm_align.benchmarks.base import score
from mllm_align.benchmarks.vqa import KINDS_ASKED, Vqa, normal, right, valid, vqa_questions
from mllm_align.scenes.oracle import is_true
from mllm_align.scenes.world import sample_scene


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("Red.", "red"),
        ("At the Top left", "top left"),
        ("on the left, in the middle and at the top", "left and middle and top"),
        ("left, and right", "left and right"),
        ("2", "two"),
        ("12", "12"),
        ("HEY", "hey"),
        ("  ", ""),
    ],
)
def test_normalising(answer, words):
    assert normal(answer) == words


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("red.", "red", True),
        ("dark red", "red", False),
        ("2", "two", True),
        ("one", "two", False),
        ("top and left", "left and top", True),
        ("top left", "left and top", False),
        ("left", "left and top", False),
        ("left and left", "left", False),
        ("khe", "KHE", True),
        ("the", "THE", True),
        ("", "THE", False),
        ("KHE", "THE", False),
        ("", "red", False),
    ],
)
def test_exact_match_after_normalising(answer, truth, same):
    assert right(answer, truth) is same


@pytest.mark.parametrize(
    ("answer", "kind", "fits"),
    [
        ("Red", "colour", True),
        ("The cup is red.", "colour", False),
        ("pink", "colour", False),
        ("3", "count", True),
        ("many", "count", False),
        ("left and top right", "where", True),
        ("over there", "where", False),
        ("KHE", "read", True),
        ("it says KHE", "read", False),
        ("", "read", False),
    ],
)
def test_an_answer_is_valid_when_it_is_of_the_kind_asked_for(answer, kind, fits):
    assert valid(answer, kind) is fits


def row(kind, prediction, truth, image="a"):
    return {"id": f"{kind}/{image}", "image": image, "kind": kind, "prediction": prediction, "truth": truth}


def test_metrics_by_hand():
    rows = [
        row("colour", "red", "red"),
        row("colour", "blue", "red", "b"),
        row("count", "2", "two"),
        row("where", "somewhere", "top"),
        row("where", "Top.", "top", "b"),
        row("where", "left", "top", "c"),
        row("where", "top", "top", "d"),
    ]
    found = score(Vqa(), rows)
    assert (found["colour"], found["count"], found["where"], found["read"]) == (0.5, 1, 0.5, 0)
    assert found["accuracy"] == pytest.approx((0.5 + 1 + 0.5) / 3)  # nothing to read: the mean is over three
    assert found["valid"] == pytest.approx((1 + 1 + 0.75) / 3)


def test_true_answers_are_right_valid_and_true_to_the_oracle():
    seen = set()
    for index in range(60):
        scene = sample_scene("evaluation", index)
        for question in vqa_questions(scene):
            truth, kind = question.meta["truth"], question.meta["kind"]
            seen.add(kind)
            assert right(truth.upper() + ".", truth)
            assert valid(truth, kind), (kind, truth)
            assert is_true(truth, scene, question.prompt), (question.prompt, truth)
        assert any(q.meta["kind"] == "read" for q in vqa_questions(scene)) == (scene.sign is not None)
    assert seen == set(KINDS_ASKED)

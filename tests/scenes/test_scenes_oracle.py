import pytest

from mllm_align.scenes.oracle import (
    check,
    is_true,
    mentioned_objects,
    parse,
    recall,
    score,
    unparsed,
)
from scene_truth import KITCHEN, hallucinated_objects

DESCRIBE = "Describe this image."


def judged(text, prompt=None):
    """(kind, subject, value) -> truth."""
    return {(c.kind, c.subject, c.value): truth for c, truth in check(text, KITCHEN, prompt)}


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("This is a kitchen.", {("context", None, "kitchen"): True}),
        ("The image shows an office.", {("context", None, "office"): False}),
        (
            "There is a red cup at the top left.",
            {("object", "cup", None): True, ("attribute", "cup", "red"): True, ("position", "cup", 0): True},
        ),
        (
            "At the top there is a blue cup.",
            {
                ("object", "cup", None): True,
                ("attribute", "cup", "blue"): False,
                ("position", "cup", 1): False,
            },
        ),
        (
            "There is a red cup at the top left and a knife in the middle.",
            {
                ("object", "cup", None): True,
                ("attribute", "cup", "red"): True,
                ("position", "cup", 0): True,
                ("object", "knife", None): False,
                ("position", "knife", 4): None,  # the knife itself takes the blame
            },
        ),
        (
            "Two green apples are at the top and on the left.",
            {
                ("object", "apple", None): True,
                ("count", "apple", 2): True,
                ("attribute", "apple", "green"): True,
                ("position", "apple", 1): True,
                ("position", "apple", 3): False,
            },
        ),
        ("There are three apples.", {("object", "apple", None): True, ("count", "apple", 3): False}),
        ("There is an apple.", {("object", "apple", None): True}),
        ("The plates are blue.", {("object", "plate", None): True, ("attribute", "plate", "blue"): True}),
        ("The cup is green.", {("object", "cup", None): True, ("attribute", "cup", "green"): False}),
        ("A small chair.", {("object", "chair", None): True, ("attribute", "chair", "small"): True}),
        ("I can see a small cup.", {("object", "cup", None): True, ("attribute", "cup", "small"): False}),
        ("There is no knife in the image.", {("absence", "knife", None): True}),
        ("There are no apples in the image.", {("absence", "apple", None): False}),
        ("There is nothing on the right.", {("absence", None, 5): True}),
        ("There is nothing at the bottom.", {("absence", None, 7): False}),
        (
            "The sign in the middle reads KT.",
            {("object", "sign", None): True, ("position", "sign", 4): True, ("text", "sign", "KT"): True},
        ),
        ("A sign says KX.", {("object", "sign", None): True, ("text", "sign", "KX"): False}),
    ],
)
def test_claims_and_their_truth(text, claims):
    assert judged(text) == claims


@pytest.mark.parametrize(
    ("prompt", "answer", "truth"),
    [
        ("Is there a cup? Answer with yes or no.", "Yes", True),
        ("Is there a cup? Answer with yes or no.", "no.", False),
        ("Is there a knife?", "No, there is no knife in the image.", True),
        ("Is there a knife?", "Yes, there is a red cup at the top left.", False),
        ("What colour is the cup? Answer briefly.", "red", True),
        ("What colour is the cup? Answer briefly.", "Blue", False),
        ("How many apples are there? Answer briefly.", "two", True),
        ("How many apples are there? Answer briefly.", "3", False),
        ("How many knives are there? Answer briefly.", "zero", True),
        ("How many knives are there? Answer briefly.", "one", False),
        ("Where is the cup? Answer briefly.", "top left", True),
        ("Where is the cup? Answer briefly.", "left", False),
        ("Where are the apples? Answer briefly.", "top and bottom", True),
        ("What does the sign say? Answer briefly.", "KT", True),
        ("What does the sign say? Answer briefly.", "KTX", False),
        ("What is on the left? Answer briefly.", "plate", True),
        ("What is on the left? Answer briefly.", "cup", False),
        ("What is on the left? Answer briefly.", "nothing", False),
        ("What is on the right? Answer briefly.", "nothing", True),
        ("What place is this? Answer briefly.", "kitchen", True),
    ],
)
def test_answers_to_questions(prompt, answer, truth):
    assert is_true(answer, KITCHEN, prompt) is truth
    assert (score(answer, KITCHEN, prompt) > 0) is truth


def test_spans_carry_the_value():
    text = "There is a red cup at the top left."
    assert {c.kind: text[slice(*c.span)] for c in parse(text)} == {
        "object": "cup",
        "attribute": "red",
        "position": "at the top left",
    }


def test_mentioned_and_hallucinated_objects():
    text = "There is a cup and two knives. There is no dog. The sign says KT."
    assert [(m.kind, text[slice(*m.span)]) for m in mentioned_objects(text)] == [
        ("cup", "cup"),
        ("knife", "knives"),
        ("sign", "sign"),
    ]
    assert [m.kind for m in hallucinated_objects(text, KITCHEN)] == ["knife"]


def test_recall_counts_kinds_and_the_sign():
    assert recall("There is a cup. There is a knife. Two apples.", KITCHEN) == 2 / 5


def test_score_by_hand():
    # recall 1/5; true details: red, top left
    assert score("There is a red cup at the top left.", KITCHEN, DESCRIBE) == pytest.approx(0.2 + 2 * 0.03)
    # recall 1/5; true: red; false: the place, the knife (whose colour is not counted)
    text = "There is a red cup at the top and a blue knife."
    assert score(text, KITCHEN, DESCRIBE) == pytest.approx(0.2 + 0.03 - 0.15 - 0.30)
    # said twice: recall and detail once, and the repeat costs
    assert score("A red cup. A red cup.", KITCHEN, DESCRIBE) == pytest.approx(0.2 + 0.03 - 0.10)
    # a question: right answer 1, true details red and top left
    text = "Yes, there is a red cup at the top left."
    assert score(text, KITCHEN, "Is there a cup?") == pytest.approx(1 + 2 * 0.03)
    # a wrong answer: -1, and the false claim's cost
    assert score("red", KITCHEN, "What colour is the plate? Answer briefly.") == pytest.approx(-1 - 0.15)
    # true, but not what was asked
    assert score("The cup is red.", KITCHEN, "Where is the cup?") == pytest.approx(0.03)
    assert score("", KITCHEN) == 0 == score(" \n", KITCHEN, DESCRIBE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "There is a red There is",
        "top top",
        "sdf KT \u00e9\u4e2d",
        "the the no no",
        "a" * 5000,
        "1 2 3",
    ],
)
def test_any_text_is_tolerated(text):
    check(text, KITCHEN)
    check(text, KITCHEN, "Where is the cup?")
    assert score(text, KITCHEN) <= 0.01


def test_what_cannot_be_read_is_reported():
    text = "Colourless ideas sleep. There is a furious cup."
    assert [text[slice(*span)] for span in unparsed(text)] == ["Colourless ideas sleep.", "furious"]

"""The scenes embedding: the same facts in other words stand above one changed fact, on many generated pairs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from paraphrase import say_all

from mllm_align.scenes.corrupt import corrupt
from mllm_align.scenes.world import rng_for, sample_scene
from mllm_align.similarity.scenes import SceneClaims, claims, content_words, cosine

EPS = yaml.safe_load((Path(__file__).parents[2] / "conf" / "similarity" / "scenes.yaml").read_text())["eps_s"]


def alike(a: str, b: str, **options) -> float:
    (value,) = SceneClaims(**options)([a], [b])
    return value


def test_worked_by_hand() -> None:
    a, b = "A red cup is at the top.", "A blue cup is at the top."
    # claims: object, attribute, count (one), position; three of the four agree: 3 / (2 * 2)
    # words: red/blue cup top; two of the three agree
    assert len(claims(a)) == 3
    assert set(content_words(a)) == {"red", "cup", "top"}
    assert alike(a, b) == pytest.approx(0.8 * 2 / 3 + 0.2 * 2 / 3)
    assert alike(a, b, words=0.0) == pytest.approx(2 / 3)


def test_an_empty_part_counts_as_nothing() -> None:
    # "Yes" has no claims, so its vector is its word; the other one's words are 0.2 of its squared length
    assert alike("Yes", "Yes, there is a cup.") == pytest.approx(math.sqrt(0.2) * math.sqrt(1 / 2))
    assert alike("Yes", "No") == 0.0
    assert alike("", "") == 1.0
    assert alike("", "Yes") == 0.0
    assert alike("?!", ".") == 0.0


def test_counts_matter() -> None:
    once, thrice = "There is a cup.", "There is a cup. There is a cup. There is a dog."
    assert cosine(claims(once), claims(thrice)) == pytest.approx(2 / math.sqrt(5))
    assert alike(once, once) == pytest.approx(1.0)


def test_details_belong_to_their_subjects() -> None:
    a = "A red cup is at the top. A blue ball is on the left."
    swapped = "A blue cup is at the top. A red ball is on the left."
    assert alike(a, swapped) < 0.8
    assert content_words(a) == content_words(swapped)


def test_it_is_symmetric_and_in_order() -> None:
    texts = ["Yes", "A red cup is at the top.", "nonsense words", ""]
    forward = SceneClaims()(texts, texts[::-1])
    assert forward == pytest.approx(SceneClaims()(texts[::-1], texts))
    assert SceneClaims()(texts, texts) == pytest.approx([1.0] * 4)
    with pytest.raises(ValueError, match="zip"):
        SceneClaims()(texts, texts[:1])


def test_rephrasings_stand_above_changed_facts() -> None:
    """300 scenes of the validation split; eps_s lies between the two, so it tells them apart."""
    same, changed, kinds = [], [], set()
    for index in range(300):
        scene, rng = sample_scene("validation", index), rng_for("similarity", index)
        text = say_all(scene, rng)
        false = corrupt(text, scene, rng, n=1, grow=False)
        kinds |= {edit.kind for edit in false.edits}
        same.append(alike(text, say_all(scene, rng)))
        changed.append(alike(text, false.text))
    assert {"object", "insert", "attribute", "position", "count", "text", "context"} <= kinds
    assert min(same) >= EPS > max(changed)

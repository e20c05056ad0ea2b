import json
from collections import Counter

import numpy as np
import pytest

from mllm_align.scenes.world import (
    CONTEXTS,
    FAINT_CONTRAST,
    FAINT_SHARE,
    KINDS,
    SPLITS,
    Scene,
    cooccurrence,
    plausibility,
    popularity,
    sample_scene,
)


def p(b: str, given: str) -> float:
    return float(cooccurrence()[KINDS.index(given), KINDS.index(b)])


def test_a_scene_is_the_same_for_ever():
    """The base models were trained on this world: a change here makes their weights stale."""
    scene = sample_scene("sft", 0)
    assert scene.context == "office"
    assert [(t.kind, t.colour, t.place) for t in scene.things] == [
        ("book", "purple", 0), ("chair", "yellow", 8), ("lamp", "orange", 7),
    ]  # fmt: skip
    assert scene.sign is not None
    assert (scene.sign.text, scene.sign.place) == ("YY", 4)
    assert sample_scene("sft", 0) == scene


def test_splits_share_no_content():
    seen: dict[tuple, str] = {}
    for split in SPLITS:
        for index in range(1500):
            scene = sample_scene(split, index)
            things = frozenset((thing.kind, thing.colour, thing.place) for thing in scene.things)
            content = (scene.context, things, scene.sign and (scene.sign.text, scene.sign.place))
            assert seen.setdefault(content, split) == split


def test_splits_are_drawn_from_the_same_distribution():
    def mean_things(split):
        return np.mean([len(sample_scene(split, i).things) for i in range(1500)])

    means = [mean_things(split) for split in SPLITS]
    assert max(means) - min(means) < 0.2  # standard error 0.03 each


@pytest.mark.parametrize("index", range(40))
def test_every_scene_is_well_formed(index):
    scene = sample_scene("validation", index)
    places = [t.place for t in scene.things] + ([scene.sign.place] if scene.sign else [])
    assert len(set(places)) == len(places)
    assert 3 <= len(scene.kinds) <= 6
    assert Counter(t.kind for t in scene.things).most_common(1)[0][1] <= 3
    for entity in scene.entities:
        assert {t.colour for t in scene.things if t.kind == entity.kind} == {entity.colour}
        assert all(scene.at(place) == entity.kind for place in entity.places)


def test_json_round_trip():
    for index in range(50):
        scene = sample_scene("evaluation", index)
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_some_things_are_hard_to_see():
    things = [t for i in range(1000) for t in sample_scene("evaluation", i).things]
    faint = np.mean([t.contrast <= FAINT_CONTRAST[1] for t in things])
    assert abs(faint - FAINT_SHARE) < 0.03
    assert min(t.contrast for t in things) >= FAINT_CONTRAST[0]


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"'test'.*evaluation"):
        sample_scene("test", 0)


def test_partners_occur_together_more_than_other_things_of_their_context():
    assert p("plate", "cup") > 1.4 * p("bottle", "cup") > 5 * p("boat", "cup")
    assert p("cup", "plate") > 0.7
    assert p("car", "car") == 1


def test_cooccurrence_is_what_scenes_show():
    scenes = [sample_scene("sft", i) for i in range(3000)]
    cars = [s for s in scenes if "car" in s.kinds]
    assert abs(np.mean(["bus" in s.kinds for s in cars]) - p("bus", "car")) < 0.07
    assert abs(np.mean(["dog" in s.kinds for s in scenes]) - popularity()["dog"]) < 0.03


def test_plausible_things_are_absent_and_expected():
    scene = next(
        s for i in range(500) if (s := sample_scene("sft", i)).kinds >= {"bed"} and "cat" not in s.kinds
    )
    expected = plausibility(scene)
    assert not expected.keys() & scene.kinds
    assert max(expected, key=lambda kind: expected[kind]) in set(CONTEXTS["bedroom"])

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mllm_align.scenes.draw import CELL, SIDE, SceneImage, render
from mllm_align.scenes.icons import DRAWINGS, STROKES
from mllm_align.scenes.world import COLOURS, KINDS, LETTERS, Backdrop, Scene, Sign, Thing, sample_scene

GREY = np.array([165, 165, 165])


def alone(thing: Thing, **changes) -> np.ndarray:
    return render(Scene("sft", 0, "park", (replace(thing, **changes),))).astype(int)


def test_every_kind_and_letter_has_a_drawing():
    assert set(DRAWINGS) == set(KINDS)
    assert set(STROKES) == set(LETTERS)


def test_a_picture_is_a_pure_function_of_its_scene():
    scene = sample_scene("evaluation", 3)
    picture = render(scene)
    render(sample_scene("evaluation", 4))
    assert picture.shape == (SIDE, SIDE, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, render(Scene.from_json(scene.to_json())))


def test_a_thing_stays_in_its_cell_with_its_colour():
    picture = alone(Thing("apple", "red", 5, shift=(2, -2)))
    row, column = divmod(5, 3)
    cell = np.zeros((SIDE, SIDE), dtype=bool)
    cell[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = True
    assert np.array_equal(picture[~cell], np.broadcast_to(GREY, picture[~cell].shape))
    red = np.abs(picture[cell] - np.array(COLOURS["red"])).max(axis=1) <= 1
    assert red.mean() > 0.3


def test_contrast_fades_a_thing_in_proportion():
    full, faint = (np.abs(alone(Thing("car", "blue", 4), contrast=c) - GREY).max() for c in (1.0, 0.1))
    assert faint == pytest.approx(0.1 * full, abs=1.5)
    assert np.abs(alone(Thing("car", "blue", 4), contrast=0.0) - GREY).max() == 0


def test_a_cover_hides_a_part():
    seen = alone(Thing("bus", "green", 4))
    covered = alone(Thing("bus", "green", 4), cover=(1, 0.0, 0.5, 120))
    changed = (seen != covered).any(axis=2).mean(axis=0) > 0
    assert changed[:CELL].sum() == 0
    assert (covered[CELL : 2 * CELL] == 120).all(axis=2).any()


def test_small_things_are_smaller():
    def inked(size):
        return (alone(Thing("tree", "green", 0), size=size) != GREY).any(axis=2).sum()

    assert 0.3 < inked("small") / inked("normal") < 0.6


def test_noise_has_its_standard_deviation():
    backdrop = Backdrop(tint=(128.0, 128.0, 128.0), noise_std=20.0, noise_start=12345)
    empty = render(Scene("sft", 0, "park", (), None, backdrop)).astype(float)
    assert empty.std() == pytest.approx(20.0, rel=0.03)


def tokens(image: np.ndarray) -> np.ndarray:
    """The middle cell at 16 pixels, the size at which the models see it."""
    cell = Image.fromarray(image.astype(np.uint8)[CELL : 2 * CELL, CELL : 2 * CELL])
    return np.asarray(cell.resize((16, 16), Image.Resampling.BILINEAR), dtype=float).ravel()


def test_kinds_can_be_told_apart_at_the_models_resolution():
    """Nearest clean icon of the same colour, for noisy icons with median noise: nearly all right."""
    rng = np.random.default_rng(0)
    clean = {kind: tokens(alone(Thing(kind, "blue", 4))) for kind in KINDS}
    right = 0
    for kind in KINDS:
        noisy = tokens(np.clip(alone(Thing(kind, "blue", 4)) + rng.normal(0, 20, (SIDE, SIDE, 3)), 0, 255))
        right += min(KINDS, key=lambda k: np.square(clean[k] - noisy).sum()) == kind
    assert right == len(KINDS)


def test_letters_of_a_sign_differ():
    pictures = {letter: render(Scene("sft", 0, "park", (), Sign(letter * 2, 4))) for letter in LETTERS}
    small = {letter: tokens(picture) for letter, picture in pictures.items()}
    for a in LETTERS:
        assert all(np.abs(small[a] - small[b]).max() > 40 for b in LETTERS if b != a)


def test_scene_image_is_an_image_reference():
    image = SceneImage(sample_scene("sft", 7))
    assert image.key == "scenes/sft/7"
    assert (image.load().size, image.load().mode) == ((SIDE, SIDE), "RGB")

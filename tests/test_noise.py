"""The noise schedule against hand-worked values, and noised images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from mllm_align.noise import NoisedImage, abar, betas, generator, noised, stable_seed
from tiny import ArrayImage


def test_the_schedule_at_its_ends_and_in_the_middle() -> None:
    # sigmoid(-6) = 1 / (1 + e^6) = 1 / 404.4288 = 0.002472623, and sigmoid(6) = 1 - sigmoid(-6)
    assert betas()[0] == pytest.approx(0.002472623 * 0.00499 + 1e-5, abs=1e-11)  # 2.2338e-5
    assert betas()[500] == pytest.approx(0.5 * 0.00499 + 1e-5, abs=1e-15)  # 0.002505
    assert betas()[1000] == pytest.approx(0.99752738 * 0.00499 + 1e-5, abs=1e-10)  # 0.0049877
    assert len(betas()) == 1001
    np.testing.assert_allclose(betas() + betas()[::-1], 0.00499 + 2e-5)  # sigmoid(-x) = 1 - sigmoid(x)


def test_abar_is_the_product_of_what_each_step_leaves() -> None:
    assert abar(0) == pytest.approx(1 - 2.2338e-5, abs=1e-9)
    beta_1 = 0.00499 / (1 + math.exp(6 - 0.012)) + 1e-5
    assert abar(1) == pytest.approx((1 - betas()[0]) * (1 - beta_1), abs=1e-14)
    # sum of beta_k to 500: 0.00499 (1000/12 (log 2 - log(1 + e^-6)) + (0.5 + 0.0025) / 2) + 501e-5 = 0.29347, and
    # half the sum of beta_k^2 is 2.05e-4: abar = exp(-0.29368)
    assert abar(500) == pytest.approx(0.74552, abs=2e-5)
    assert all(abar(k) > abar(k + 1) for k in range(1000))


@pytest.mark.parametrize("steps", [-1, 1001])
def test_steps_outside_the_schedule_are_refused(steps) -> None:
    with pytest.raises(ValueError, match="0 to 1000"):
        abar(steps)


def test_noise_has_the_variance_of_the_equation() -> None:
    grey = np.full((200, 200, 3), 0.5)
    values = noised(grey, 100, np.random.default_rng(0))
    # abar(100) leaves little noise, so nothing is clamped
    assert values.mean() == pytest.approx(0.5 * math.sqrt(abar(100)), abs=1e-3)
    assert values.std() == pytest.approx(math.sqrt(1 - abar(100)), rel=0.01)


def test_clamped_or_wrapped() -> None:
    class Two:
        """eps = 2 everywhere."""

        def standard_normal(self, shape):
            return np.full(shape, 2.0)

    left = abar(500)
    value = math.sqrt(left) * 0.5 + 2 * math.sqrt(1 - left)  # 0.4317 + 1.0089 = 1.4406
    assert value == pytest.approx(1.4406, abs=1e-4)
    pixels = np.full((1, 1, 3), 0.5)
    assert noised(pixels, 500, Two()) == pytest.approx(1.0)
    assert noised(pixels, 500, Two(), wrap=True) == pytest.approx((int(value * 255) - 256) / 255)  # 367 - 256


def test_povids_wrap_reaches_the_share_of_pixels_that_was_seen_in_its_code() -> None:
    pixels = np.random.default_rng(0).random((300, 300, 3))
    rng = np.random.default_rng(1)
    outside = np.sqrt(abar(500)) * pixels + np.sqrt(1 - abar(500)) * rng.standard_normal(pixels.shape)
    share = ((outside < 0) | (outside > 1)).mean()
    different = noised(pixels, 500, np.random.default_rng(1)) - noised(
        pixels, 500, np.random.default_rng(1), wrap=True
    )
    assert share == pytest.approx(0.38, abs=0.01)
    assert (np.abs(different) > 2 / 255).mean() == pytest.approx(share, abs=0.02)


def test_a_noised_image_is_the_same_every_time_and_named_by_what_made_it() -> None:
    image = ArrayImage("cup", 20, 10)
    one, same = NoisedImage(image, 500, 7), NoisedImage(image, 500, 7)
    assert one.key == same.key == "cup#noise=500,7"
    assert one.load().size == (20, 10)
    np.testing.assert_array_equal(np.asarray(one.load()), np.asarray(same.load()))
    others = [NoisedImage(image, 499, 7), NoisedImage(image, 500, 8), NoisedImage(image, 500, 7, wrap=True)]
    assert len({one.key, *(other.key for other in others)}) == 4
    for other in others:
        assert (np.asarray(other.load()) != np.asarray(one.load())).any()


def test_without_steps_the_image_stays_as_it_is() -> None:
    """sqrt(1 - abar_0) is 0.0047: about one grey level."""

    class Grey:
        key = "grey"

        def load(self) -> Image.Image:
            return Image.new("RGB", (64, 64), (128, 128, 128))

    pixels = np.asarray(NoisedImage(Grey(), 0, 0).load()).astype(int)
    assert np.abs(pixels - 128).max() <= 6


def test_streams_depend_on_their_parts_alone() -> None:
    assert stable_seed(0, "a", 1) == stable_seed(0, "a", 1) < 2**63
    assert len({stable_seed(*parts) for parts in [(0, "a"), (0, "b"), (1, "a"), ("0a",), (0, "a", 0)]}) == 5
    assert generator(3, "x").random() == generator(3, "x").random()

"""Noise of a forward diffusion on images: the schedule of Eq. 8-9 of arXiv 2407.02477, and a noised image.

    beta_k = sigmoid(-6 + 12 k / 1000) (0.5e-2 - 1e-5) + 1e-5        k = 0 ... 1000
    abar_N = prod_{k <= N} (1 - beta_k)
    x(N) = sqrt(abar_N) x(0) + sqrt(1 - abar_N) eps                  eps ~ N(0, I)

The pixels x(0) are in [0, 1], as in POVID's code (which has 999 where Eq. 8 has 1000).
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mllm_align.records import ImageRef

LAST = 1000  # the largest k
LOWEST, HIGHEST = 1e-5, 0.5e-2


def generator(*parts: object) -> np.random.Generator:
    """A random stream that depends on the parts (names and numbers) alone."""
    return np.random.default_rng(stable_seed(*parts))


def stable_seed(*parts: object) -> int:
    """A seed below 2^63, the same in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@functools.cache
def betas() -> np.ndarray:
    """beta_0 ... beta_1000: (1001,) float64."""
    k = np.arange(LAST + 1)
    return (HIGHEST - LOWEST) / (1 + np.exp(6 - 12 * k / LAST)) + LOWEST


def abar(steps: int) -> float:
    """The share of the image's variance left after `steps` steps. Raises ValueError outside 0 ... 1000."""
    if not 0 <= steps <= LAST:
        raise ValueError(f"steps={steps}: the noise schedule has 0 to {LAST} steps (Eq. 8)")
    return float(np.prod(1 - betas()[: steps + 1]))


def noised(pixels: np.ndarray, steps: int, rng: np.random.Generator, *, wrap: bool = False) -> np.ndarray:
    """Pixels (H, W, 3) in [0, 1] after `steps` steps of noise, in [0, 1] again.

    Values outside are clamped. With `wrap` they wrap modulo 256 instead, and fractions are cut off: what
    POVID's published code does by putting them through an unsigned byte.
    """
    left = abar(steps)
    values = np.sqrt(left) * pixels + np.sqrt(1 - left) * rng.standard_normal(pixels.shape)
    if wrap:
        return (np.trunc(values * 255).astype(np.int64) % 256) / 255
    return np.clip(values, 0, 1)


@dataclass(frozen=True)
class NoisedImage:
    """An ImageRef that noises another one when it is loaded; the same pixels every time."""

    image: ImageRef
    steps: int
    seed: int
    wrap: bool = False

    @property
    def key(self) -> str:
        return f"{self.image.key}#noise={self.steps},{self.seed}{',wrap' if self.wrap else ''}"

    def load(self) -> Image.Image:
        pixels = np.asarray(self.image.load(), dtype=np.float64) / 255  # (H, W, 3)
        values = noised(pixels, self.steps, np.random.default_rng(self.seed), wrap=self.wrap)
        return Image.fromarray(np.round(values * 255).astype(np.uint8))

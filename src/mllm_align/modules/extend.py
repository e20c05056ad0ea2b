"""What a method adds to the Groups that it trains on, before reference and training: Group -> Group.

A method names such a function under `extend:` in its file of conf/alignment/. It is applied to what the dataset
or the sampler gives, offline and online, and has to depend on the Group (and its own keywords) alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mllm_align.modules.order import stable_seed
from mllm_align.records import Group, ImageRef, Preference

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class CroppedImage:
    """A part of an image, blown up to the size of the whole, so that it takes as many image tokens.

    `share` of the area, with the whole's proportions, where `seed` puts it.
    """

    image: ImageRef
    share: float
    seed: int

    @property
    def key(self) -> str:
        return f"{self.image.key}#crop={self.share:.4f},{self.seed}"

    def load(self) -> Image:
        whole = self.image.load()
        return whole.resize(whole.size, box=crop_box(*whole.size, self.share, self.seed))


def crop_box(width: int, height: int, share: float, seed: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels of a random part with `share` of the area; never below a pixel."""
    side = max(share**0.5, 1 / width, 1 / height)
    left, top = np.random.default_rng(seed).random(2) * (1 - side)
    return left * width, top * height, (left + side) * width, (top + side) * height


def image_preference(group: Group, *, most: float, seed: int) -> Group:
    """The chosen responses are preferred to themselves under a spoilt image: mDPO, arXiv 2406.11839.

    The spoilt image is a random crop that keeps between 0 and `most` of the area, drawn by (`seed`, example id)
    alone. Each chosen response comes in one more pair, with the weight of all its pairs together.

    Raises ValueError unless `most` is a share above 0.
    """
    if not 0 < most <= 1:
        raise ValueError(f"alignment.extend.most is {most}; it is a share of the image, above 0 and up to 1")
    draw = stable_seed(seed, "crop", group.example.id)
    share = most * float(np.random.default_rng(draw).random())
    spoilt = CroppedImage(group.example.image, share, draw)
    chosen = sorted({p.chosen for p in group.preferences})
    weights = [sum(p.weight for p in group.preferences if p.chosen == place) for place in chosen]
    first = len(group.responses)
    return replace(
        group,
        responses=(*group.responses, *(replace(group.responses[place], image=spoilt) for place in chosen)),
        preferences=(
            *group.preferences,
            *(Preference(c, first + i, w) for i, (c, w) in enumerate(zip(chosen, weights, strict=True))),
        ),
    )

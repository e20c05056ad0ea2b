"""The noise schedule as a picture (Figure 9 of arXiv 2407.02477).

python -m mllm_align.tables.noise_schedule docs/images/noise_schedule.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from mllm_align.noise import betas, noised
from mllm_align.tables import figures

SHOWN = (0, 200, 300, 400, 500, 1000)  # steps of the example images


def draw(path: Path) -> Path:
    """beta_k, the share of the image's variance left, and one image at several steps."""
    from matplotlib.figure import Figure

    from mllm_align.scenes.draw import render
    from mllm_align.scenes.world import sample_scene

    pixels = render(sample_scene("sft", 283)) / 255
    with figures.style():
        figure = Figure(figsize=(9, 4.6), facecolor="white", layout="constrained")
        grid = figure.add_gridspec(2, 2 * len(SHOWN), height_ratios=(3, 2))
        left, right = (
            figure.add_subplot(grid[0, half]) for half in (slice(None, len(SHOWN)), slice(len(SHOWN), None))
        )
        steps = np.arange(len(betas()))
        left.plot(steps, betas(), color=figures.PALETTE[0])
        left.set(title="Noise added in step k (Eq. 8)", xlabel="k", ylabel="beta")
        right.plot(steps, np.cumprod(1 - betas()), color=figures.PALETTE[1])
        right.set(title="Variance of the image left after N steps", xlabel="N", ylabel="abar")
        right.axvline(500, color=figures.FAINT, linewidth=0.8, linestyle="--")
        for place, number in enumerate(SHOWN):
            axes = figure.add_subplot(grid[1, 2 * place : 2 * place + 2])
            axes.imshow(noised(pixels, number, np.random.default_rng(0)), interpolation="nearest")
            axes.set_title(f"N = {number}")
            axes.axis("off")
        return figures.save(figure, path, dpi=130)


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))

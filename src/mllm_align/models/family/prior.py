"""Where hallucinations come from: how often a thing that isn't there is named, against how much the rest suggests it.

For each scene and each absent kind: the conditional frequency is the largest P(kind | a kind that is there) in the
world (`scenes.world.plausibility`). Were hallucinations mere noise of the eye, the curve would be flat.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mllm_align.benchmarks.base import read_jsonl
from mllm_align.benchmarks.pope import yes_or_no
from mllm_align.scenes.oracle import mentioned_objects
from mllm_align.scenes.world import plausibility, sample_scene

EDGES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 1.0)
FEWEST = 30  # cases a bin must have to be shown
DRAWS = 1000


def _scene(key: str, split: str) -> dict[str, float]:
    return plausibility(sample_scene(split, int(key.rsplit("/", 1)[1])))


def described(path: Path, split: str) -> np.ndarray:
    """(cases, 3): scene number, conditional frequency, 1 where the description names the absent kind."""
    rows = []
    for number, row in enumerate(read_jsonl(path)):
        named = {mention.kind for mention in mentioned_objects(row["prediction"])}
        rows += [(number, value, float(kind in named)) for kind, value in _scene(row["image"], split).items()]
    return np.array(rows)


def asked(path: Path, split: str) -> np.ndarray:
    """(cases, 3) likewise: 1 where the answer to "Is there ...?" about an absent kind is yes."""
    rows: list[tuple[int, float, float]] = []
    numbers: dict[str, int] = {}
    for row in read_jsonl(path):
        if row["truth"] == "no":
            number = numbers.setdefault(row["image"], len(numbers))
            said = float(yes_or_no(row["prediction"]) == "yes")
            rows.append((number, _scene(row["image"], split)[row["kind"]], said))
    return np.array(rows)


def curve(cases: np.ndarray, seed: int = 0) -> np.ndarray:
    """(bins, 5): mean conditional frequency, rate, low, high (95%, bootstrap over scenes), cases."""
    rng, scenes = np.random.default_rng(seed), int(cases[:, 0].max()) + 1
    weights = rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=DRAWS)  # (draws, scenes)
    points = []
    for low, high in itertools.pairwise(EDGES):
        mine = cases[(cases[:, 1] >= low) & (cases[:, 1] < high)]
        if len(mine) < FEWEST:
            continue
        scene = mine[:, 0].astype(int)
        hits = np.bincount(scene, mine[:, 2], scenes)
        all_ = np.bincount(scene, minlength=scenes)
        drawn = (weights @ hits) / np.maximum(weights @ all_, 1)
        points.append((mine[:, 1].mean(), mine[:, 2].mean(), *np.quantile(drawn, (0.025, 0.975)), len(mine)))
    return np.array(points)


def draw(folders: Mapping[str, Path], figure: Path, split: str = "evaluation") -> None:
    """Two panels, a line a model; `folders` hold recall.jsonl and pope.jsonl."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9.0, 3.6), layout="constrained")
    panels = picture.subplots(1, 2)
    titles = ("named in the description", 'answered "Yes" when asked')
    for axes, title, read, name in zip(panels, titles, (described, asked), ("recall", "pope"), strict=True):
        for model, folder in folders.items():
            points = curve(read(folder / f"{name}.jsonl", split))
            x, y = 100 * points[:, 0], 100 * points[:, 1]
            axes.errorbar(
                x,
                y,
                yerr=np.abs(100 * points[:, 2:4].T - y),
                marker="o",
                markersize=4,
                capsize=2,
                label=model,
            )
        axes.set_xlabel("conditional frequency of the absent kind, %")
        axes.set_ylabel("absent kinds, %")
        axes.set_title(f"Absent things {title}", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(figure, dpi=130)

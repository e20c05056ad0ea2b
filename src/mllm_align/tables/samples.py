"""A page of sampled preferences in pictures: what was kept of the reference, and what the model completed.

One file that needs no other: images are in it, and nothing is fetched. Text reaches the page through a template
that escapes it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mllm_align.records import Group, ImageRef, Response
from mllm_align.scenes.world import Scene
from mllm_align.store import write_text
from mllm_align.tables.examples import contents
from mllm_align.tables.page import render_page

LARGEST = 420  # pixels of an image's longer side on the page

HEAD, SWAPPED, COMPLETION, PLAIN = "head", "swapped", "completion", "plain"


@dataclass(frozen=True)
class Piece:
    """Some characters of an answer: kept of the reference, kept with its yes or no swapped, or completed."""

    text: str
    kind: str


@dataclass(frozen=True)
class Shown:
    """An example on the page. `told` are lines about how its rejected answer was made."""

    image: str
    caption: str
    prompt: str
    chosen: Response
    rejected: Response
    pieces: tuple[Piece, ...]
    told: tuple[str, ...]


def write_samples(
    groups: Sequence[Group],
    out: str | Path,
    title: str,
    report: Mapping[str, Any] | None = None,
    number: int = 10,
    seed: int = 0,
) -> Path:
    """The page of `number` Groups drawn at random from those with a preference. -> its path

    `report` is what the sampling run reported; "below eps_s" in it becomes a small chart (Figure 10).
    """
    report = dict(report or {})
    decided = [group for group in groups if group.preferences]
    chosen = np.random.default_rng(seed).permutation(len(decided))[:number]
    page = render_page(
        "samples.html",
        title=title,
        total=len(decided),
        seed=seed,
        below=report.pop("below eps_s", None) or {},
        report=[(name, value) for name, value in report.items() if isinstance(value, int | float | str)],
        shown=[show(decided[i]) for i in chosen],
    )
    write_text(Path(out), page)
    return Path(out)


def show(group: Group) -> Shown:
    best = group.preferences[0]
    chosen, rejected = group.responses[best.chosen], group.responses[best.rejected]
    scene = group.example.meta.get("scene")
    return Shown(
        image=data_uri(group.example.image),
        caption=contents(Scene.from_json(scene)) if scene else group.example.image.key,
        prompt=group.example.prompt,
        chosen=chosen,
        rejected=rejected,
        pieces=pieces(rejected),
        told=told(rejected.provenance or {}),
    )


def pieces(response: Response) -> tuple[Piece, ...]:
    """The answer in pieces by its provenance; one plain piece where that does not tell heads from completions."""
    sentences = (response.provenance or {}).get("sentences")
    if not sentences:
        return (Piece(response.text, PLAIN),)
    found = []
    for sentence in sentences:
        found.append(Piece(response.text[slice(*sentence["head"])], SWAPPED if sentence["swapped"] else HEAD))
        found.append(Piece(response.text[slice(*sentence["completion"])], COMPLETION))
    return tuple(piece for piece in found if piece.text)


def told(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """How the answer was made, in words."""
    said = []
    if "iteration" in provenance:
        said.append(f"iteration {provenance['iteration']} of {provenance.get('iterations', '?')}")
    if "similarity" in provenance:
        said.append(f"similarity {provenance['similarity']:.3f}")
    if provenance.get("guided") is False:
        said.append("drawn whole, without the reference")
    if "visible" in provenance:
        said.append(f"{provenance['visible']} of {provenance['image_tokens']} image tokens visible")
    said += [f"{name} {provenance[name]}" for name in ("steps", "cuts") if provenance.get(name)]
    return tuple(said)


def data_uri(image: ImageRef) -> str:
    """The image inside the page, scaled down where it is large."""
    picture = image.load()
    picture.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

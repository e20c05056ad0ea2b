"""Pictures with what the baseline and the aligned models say about them, true and false words marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllm_align.scenes.oracle import Claim, check
from mllm_align.scenes.words import noun_phrase
from mllm_align.scenes.world import Scene
from mllm_align.tables.rows import Comparison, Row

# The marks: an object that is there, one that is made up, and a false detail of a true one.
TRUE, FALSE, WRONG, PLAIN = "true", "false", "wrong", ""


@dataclass(frozen=True)
class Piece:
    """Some characters of a text and their mark."""

    text: str
    mark: str = PLAIN


@dataclass(frozen=True)
class Told:
    """What a row's model says of an image."""

    name: str
    pieces: tuple[Piece, ...]
    baseline: bool = False

    @property
    def made_up(self) -> int:
        return sum(piece.mark == FALSE for piece in self.pieces)


@dataclass(frozen=True)
class Shown:
    """An image, what is in it, and what each model says."""

    image: str
    scene: Scene
    truth: str
    told: tuple[Told, ...]


@dataclass(frozen=True)
class Examples:
    """The chosen images; descriptions differ on `differing` of the `total` that every model described.

    `made_up`: of how many of the differing ones somebody makes an object up; `half` of the shown come from those.
    """

    shown: tuple[Shown, ...]
    differing: int
    total: int
    made_up: int = 0
    half: int = 0
    left_out: tuple[str, ...] = ()


def choose(comparison: Comparison, number: int = 6, seed: int = 0, most_rows: int = 6) -> Examples:
    """Images drawn uniformly among those where some model's description is not the baseline's, half of them
    among those where some model, whichever, makes an object up.

    The draw does not know which description is better. Rows stand for their first finished seed; only the first
    `most_rows` are shown.
    """
    told = {row.name: _descriptions(row) for row in comparison.rows if row.done}
    named = [row for row in comparison.rows if told.get(row.name)]
    rows = named[:most_rows]
    if not rows:
        return Examples((), 0, 0)
    first = told[rows[0].name]
    common = [image for image in first if all(image in told[row.name] for row in rows)]
    said = {image: [told[row.name][image]["prediction"] for row in rows] for image in common}
    differing = [image for image in common if len(set(said[image])) > 1] or common
    false = [image for image in differing if _made_up(first[image], said[image])]
    rng = np.random.default_rng(seed)
    half = [false[i] for i in rng.permutation(len(false))[: number // 2]]
    others = [image for image in differing if image not in half]
    rest = [others[i] for i in rng.permutation(len(others))[: number - len(half)]]
    return Examples(
        shown=tuple(_shown(image, first[image], rows, said[image]) for image in [*half, *rest]),
        differing=sum(len(set(texts)) > 1 for texts in said.values()),
        total=len(common),
        made_up=len(false),
        half=len(half),
        left_out=tuple(row.name for row in named[most_rows:]),
    )


def mark(text: str, scene: Scene) -> tuple[Piece, ...]:
    """The text in pieces: objects that are there, objects made up, and false details."""
    pieces: list[Piece] = []
    end = 0
    marks = [(claim.span, _mark(claim, truth)) for claim, truth in check(text, scene)]
    for (start, stop), name in sorted(marks):
        if name and start >= end:
            pieces += [Piece(text[end:start]), Piece(text[start:stop], name)]
            end = stop
    pieces.append(Piece(text[end:]))
    return tuple(piece for piece in pieces if piece.text)


def contents(scene: Scene) -> str:
    """What is in the picture, in a line."""
    things = []
    for entity in scene.entities:
        contrast = max(thing.contrast for thing in scene.things if thing.kind == entity.kind)
        faint = " (faint)" if contrast < 0.35 else ""
        things.append(noun_phrase(entity.kind, entity.colour, count=entity.count) + faint)
    if scene.sign is not None:
        things.append(f"a sign: {scene.sign.text}")
    return ", ".join(things)


def _mark(claim: Claim, truth: bool | None) -> str:
    if claim.kind == "object":
        return TRUE if truth else FALSE
    return WRONG if truth is False else PLAIN


def _made_up(line: Mapping[str, Any], texts: Sequence[str]) -> bool:
    scene = Scene.from_json(line["scene"])
    return any(piece.mark == FALSE for text in dict.fromkeys(texts) for piece in mark(text, scene))


def _descriptions(row: Row) -> dict[str, Mapping[str, Any]]:
    """Image -> prediction line, of the first benchmark of the run whose lines carry their scene."""
    run = row.done[0]
    for name in run.metrics:
        try:
            lines = run.predictions(name)
        except (OSError, ValueError):
            continue
        if lines and "scene" in lines[0]:
            return {line["image"]: line for line in lines}
    return {}


def _shown(image: str, line: Mapping[str, Any], rows: Sequence[Row], texts: Sequence[str]) -> Shown:
    scene = Scene.from_json(line["scene"])
    told = tuple(
        Told(row.name, mark(text, scene), row.baseline) for row, text in zip(rows, texts, strict=True)
    )
    return Shown(image, scene, contents(scene), told)

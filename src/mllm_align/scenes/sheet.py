"""A contact sheet of the scenes world: all icons, and scenes with what is true of them.

python -m mllm_align.scenes.sheet out.png
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mllm_align.scenes.draw import CELL, render
from mllm_align.scenes.text import describe
from mllm_align.scenes.world import COLOURS, CONTEXTS, KINDS, SPLITS, Scene, Thing, rng_for, sample_scene

ZOOM = 3  # of scenes
TILE, GAP, LINE, COLUMNS = 96 * ZOOM, 16, 13, 3
ICONS_A_ROW = 14
PALETTE = 200  # colours of the file; noise in full colour would treble its size
PAPER, INK, GREY = (255, 255, 255), (20, 20, 20), (120, 120, 120)


def icon_strip() -> Image.Image:
    """Every kind once, with its name below."""
    step, height = CELL * 2 + 6, CELL * 2 + 18
    strip = Image.new("RGB", (ICONS_A_ROW * step, -(-len(KINDS) // ICONS_A_ROW) * height), PAPER)
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(10)
    names = list(COLOURS)
    for i, kind in enumerate(KINDS):
        scene = Scene("sft", 0, "park", (Thing(kind, names[i % len(names)], 0),))
        left, top = (i % ICONS_A_ROW) * step, (i // ICONS_A_ROW) * height
        icon = Image.fromarray(render(scene)[:CELL, :CELL])
        strip.paste(icon.resize((CELL * 2, CELL * 2), Image.Resampling.NEAREST), (left, top))
        pen.text((left, top + CELL * 2 + 1), kind, INK, font)
    return strip


def first_of_each_context(split: str) -> list[Scene]:
    """The first scene of each context."""
    found: dict[str, Scene] = {}
    index = 0
    while len(found) < len(CONTEXTS):
        scene = sample_scene(split, index)
        found.setdefault(scene.context, scene)
        index += 1
    return list(found.values())


def caption(scene: Scene) -> str:
    """A true description of everything in the scene."""
    return describe(scene, rng_for("scenes-v1", "sheet", scene.id), keep=1.0)


def hard_to_see(scene: Scene) -> str:
    """The things that are faint or partly covered."""
    faint = [t.kind for t in scene.things if t.contrast < 0.5]
    covered = [t.kind for t in scene.things if t.cover is not None]
    parts = [
        f"{word}: {', '.join(kinds)}" for word, kinds in (("faint", faint), ("covered", covered)) if kinds
    ]
    return "; ".join(parts) or "nothing is hard to see"


def tile(scene: Scene, width: int, lines: int = 7) -> Image.Image:
    """One scene with its caption."""
    picture = Image.new("RGB", (width, TILE + LINE * (lines + 1)), PAPER)
    native = Image.fromarray(render(scene))
    picture.paste(native.resize((TILE, TILE), Image.Resampling.NEAREST), (0, 0))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    rows = [(row, INK) for row in textwrap.wrap(caption(scene), 54)]
    rows += [(row, GREY) for row in textwrap.wrap(f"({hard_to_see(scene)})", 54)]
    for i, (row, ink) in enumerate(rows):
        pen.text((0, TILE + 4 + i * LINE), row, ink, font)
    return picture


def sheet(split: str = "validation") -> Image.Image:
    """Icons on top, one scene of each context below."""
    icons = icon_strip()
    width = icons.width // COLUMNS
    tiles = [tile(scene, width) for scene in first_of_each_context(split)]
    rows = -(-len(tiles) // COLUMNS)
    page = Image.new("RGB", (icons.width, icons.height + GAP + rows * tiles[0].height), PAPER)
    page.paste(icons, (0, 0))
    for i, one in enumerate(tiles):
        page.paste(one, ((i % COLUMNS) * width, icons.height + GAP + (i // COLUMNS) * one.height))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a contact sheet of the scenes world.")
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--split", default="validation", choices=SPLITS)
    args = parser.parse_args()
    page = sheet(args.split).quantize(PALETTE, dither=Image.Dither.NONE)
    page.save(args.out, optimize=True)
    print(f"{args.out}: {page.width}x{page.height}, {np.ceil(args.out.stat().st_size / 1024):.0f} KiB")


if __name__ == "__main__":
    main()

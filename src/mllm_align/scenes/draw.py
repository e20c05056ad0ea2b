"""Scene to pixels: cached sprites mixed into a noisy backdrop, about a tenth of a millisecond a picture."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mllm_align.scenes.icons import GRID, draw_kind, draw_sign
from mllm_align.scenes.world import COLOURS, Backdrop, Scene, Sign, Thing, rng_for

SIDE = 96
CELL = SIDE // 3
ICON = {"normal": 29, "small": 19}  # pixels
NOISE_BANK = 1 << 20

Sprite = tuple[np.ndarray, np.ndarray]  # colour times coverage (h, w, 3), and 1 - coverage (h, w, 1)


def _details(colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """DARK and LIGHT for a body colour; they stay visible on black and on white."""
    body = np.asarray(colour, dtype=np.float32)
    brightness = float(body.mean())
    dark = np.full(3, 105.0, dtype=np.float32) if brightness < 40 else body * 0.28
    light = np.full(3, 205.0, dtype=np.float32) if brightness > 240 else np.full(3, 245.0, dtype=np.float32)
    return dark, light


def _sprite(image: Image.Image, side: int, colour: tuple[int, int, int]) -> Sprite:
    small = image.resize((side, side), Image.Resampling.BOX)
    inks = np.asarray(small, dtype=np.float32) / 255.0  # (h, w, 3): share of BODY, DARK, LIGHT
    dark, light = _details(colour)
    palette = np.stack([np.asarray(colour, dtype=np.float32), dark, light])
    return inks @ palette, 1.0 - inks.sum(axis=2, keepdims=True)


@functools.cache
def _kind_image(kind: str) -> Image.Image:
    return draw_kind(kind)


@functools.cache
def kind_sprite(kind: str, colour: str, size: str) -> Sprite:
    return _sprite(_kind_image(kind), ICON[size], COLOURS[colour])


@functools.lru_cache(maxsize=2048)
def sign_sprite(text: str) -> Sprite:
    return _sprite(draw_sign(text), GRID, (250, 250, 250))


@functools.cache
def _noise_bank() -> np.ndarray:
    return rng_for("scenes-v1", "noise").standard_normal(NOISE_BANK + SIDE * SIDE * 3).astype(np.float32)


def _paint_backdrop(backdrop: Backdrop) -> np.ndarray:
    canvas = np.empty((SIDE, SIDE, 3), dtype=np.float32)
    canvas[: backdrop.floor] = backdrop.tint
    canvas[backdrop.floor :] = np.asarray(backdrop.tint, dtype=np.float32) + backdrop.shade
    return canvas


def _mix(canvas: np.ndarray, sprite: Sprite, top: int, left: int, contrast: float) -> None:
    paint, clear = sprite
    height, width = paint.shape[:2]
    patch = canvas[top : top + height, left : left + width]
    patch *= (1.0 - contrast) + contrast * clear
    patch += contrast * paint


def _paint_thing(canvas: np.ndarray, thing: Thing) -> None:
    row, column = divmod(thing.place, 3)
    margin = CELL - ICON[thing.size]
    top = row * CELL + _clamp(margin // 2 + thing.shift[1], margin)
    left = column * CELL + _clamp(margin // 2 + thing.shift[0], margin)
    _mix(canvas, kind_sprite(thing.kind, thing.colour, thing.size), top, left, thing.contrast)
    if thing.cover is not None:
        vertical, start, width, grey = thing.cover
        side = ICON[thing.size]
        first, last = int(start * side), int((start + width) * side)
        if vertical:
            canvas[row * CELL : (row + 1) * CELL, left + first : left + last] = grey
        else:
            canvas[top + first : top + last, column * CELL : (column + 1) * CELL] = grey


def _clamp(value: int, upper: int) -> int:
    return max(0, min(value, upper))


def _paint_sign(canvas: np.ndarray, sign: Sign) -> None:
    row, column = divmod(sign.place, 3)
    _mix(canvas, sign_sprite(sign.text), row * CELL, column * CELL, sign.contrast)


def render(scene: Scene) -> np.ndarray:
    """The picture, (96, 96, 3) uint8, RGB. A pure function of the scene."""
    canvas = _paint_backdrop(scene.backdrop)
    for thing in scene.things:
        _paint_thing(canvas, thing)
    if scene.sign is not None:
        _paint_sign(canvas, scene.sign)
    if scene.backdrop.noise_std > 0:
        start = scene.backdrop.noise_start % NOISE_BANK
        noise = _noise_bank()[start : start + canvas.size].reshape(canvas.shape)
        canvas += noise * np.float32(scene.backdrop.noise_std)
    np.clip(canvas, 0, 255, out=canvas)
    return canvas.astype(np.uint8)


@dataclass(frozen=True)
class SceneImage:
    """An ImageRef that draws its scene when it is loaded."""

    scene: Scene

    @property
    def key(self) -> str:
        return self.scene.id

    def load(self) -> Image.Image:
        return Image.fromarray(render(self.scene))

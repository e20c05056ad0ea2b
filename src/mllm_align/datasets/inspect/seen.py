"""Every image of a set opened once: its pixels' size and a digest of its contents."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from mllm_align.datasets.errors import Fault
from mllm_align.records import Group, ImageRef

TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Seen:
    """`size` is (width, height) in pixels, upright; `digest` is of the encoded bytes, or of pixels never encoded."""

    size: tuple[int, int]
    digest: str


def look(
    groups: Sequence[Group], progress: Callable[[int], None] | None = None
) -> tuple[dict[str, Seen], dict[str, str]]:
    """By `ImageRef.key`: what was seen, and what is wrong with images that could not be opened."""
    seen: dict[str, Seen] = {}
    wrong: dict[str, str] = {}
    for group in groups:
        image = group.example.image
        if image.key not in seen and image.key not in wrong:
            try:
                seen[image.key] = one(image)
            except Fault as fault:
                wrong[image.key] = f"{fault.fault}. {fault.remedy}."
        if progress:
            progress(1)
    return seen, wrong


def one(image: ImageRef) -> Seen:
    """Raises Fault for an image that is missing or no image."""
    encoded = getattr(image, "encoded", None)
    if encoded is None:
        pixels = image.load()
        return Seen(pixels.size, hashlib.sha256(pixels.tobytes()).hexdigest())
    data = encoded()
    try:
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            turned = opened.getexif().get(ORIENTATION) in TURNED
    except Exception as error:  # decoders raise many kinds
        raise Fault(
            "images", f"{image.key} is no image that can be read ({error})", "Replace the file"
        ) from None
    return Seen((height, width) if turned else (width, height), hashlib.sha256(data).hexdigest())

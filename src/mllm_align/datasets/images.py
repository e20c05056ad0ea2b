"""References to images on disk and in memory, and the checks that they get before a run starts.

`check` is cheap (a header and the file's end, no pixels) and still finds a file that was cut short; `load`
decodes and names what it could not read. Pixels are RGB with the camera's EXIF orientation applied.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mllm_align.datasets.errors import Fault

# A decoded pixel takes 3 bytes, and a few times that on its way into a model.
MAX_PIXELS = 100_000_000
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
REPLACE = "Replace the file with a whole copy of the image"


@dataclass(frozen=True)
class FileImage:
    """An image below a root folder. `key` is its path there, with forward slashes.

    `refer` says whether a stored preference set points here; where it does not, it holds a copy.
    """

    root: str
    path: str
    refer: bool = False

    @property
    def key(self) -> str:
        return self.path

    @property
    def place(self) -> dict[str, Any] | None:
        return {"folder": os.path.abspath(self.root), "path": self.path} if self.refer else None

    def encoded(self) -> bytes:
        """The file as it is. Raises Fault when it is missing or outside the root."""
        return inside(Path(self.root), self.path).read_bytes()

    def load(self) -> Image.Image:
        """Raises Fault when the file is missing, outside the root, too large, cut short or no image."""
        return decode(self.encoded(), self.path)


@dataclass(frozen=True)
class BytesImage:
    """An encoded image held in memory; `key` is a content hash unless it came with a name."""

    data: bytes = field(repr=False)
    key: str

    def encoded(self) -> bytes:
        return self.data

    def load(self) -> Image.Image:
        """Raises Fault when it is too large, cut short or no image."""
        return decode(self.data, self.key)


def from_bytes(data: bytes) -> BytesImage:
    return BytesImage(data, hashlib.sha256(data).hexdigest()[:32])


def inside(root: Path, path: str) -> Path:
    """The file `path` below `root`. Raises Fault: outside of it (.., absolute, symbolic link), or absent."""
    whole = root.resolve()
    try:
        target = (whole / path).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL character, a name too long, a loop of links
        raise Fault("images", f"not a usable path ({error}): {path!r}", "Correct the path") from None
    if not target.is_relative_to(whole):
        linked = Path(os.path.normpath(whole / path))
        if not (linked.is_relative_to(whole) and target.parent == _blobs(whole)):
            raise Fault(
                "images",
                f"the path {path} leaves the image root {root}",
                "Name a file below it, or set dataset.image_root to the folder that holds all the images",
            )
        target = linked
    if not target.is_file():
        state = "is a folder" if target.is_dir() else "is not there"
        raise Fault(
            "images",
            f"{path} {state} (looked below {root})",
            "Put the image there, or set dataset.image_root to the folder that the paths start from",
        )
    return target


def _blobs(root: Path) -> Path | None:
    """Where the links of a folder in the cache of the Hugging Face hub lead: blobs/ beside snapshots/<commit>/."""
    for folder in root.parents:
        if folder.name == "snapshots" and folder.parent.name.startswith("datasets--"):
            return folder.parent / "blobs"
    return None


def decode(data: bytes, name: str) -> Image.Image:
    """The pixels, (height, width) RGB, upright. Raises Fault."""
    try:
        with _open(io.BytesIO(data), name) as image:
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except Fault:
        raise
    except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, struct.error, EOFError, ...
        raise Fault("images", f"{name} is cut short or damaged ({error})", REPLACE) from None


def check(image: FileImage | BytesImage) -> None:
    """Raises Fault when the image is absent, too large, cut short or no image.

    Reads the header and the end; decodes only where these leave doubt (some cameras write past the end of an
    image that is whole, and some formats do not say how long they are).
    """
    if isinstance(image, BytesImage):
        _check(io.BytesIO(image.data), len(image.data), image.key)
    else:
        path = inside(Path(image.root), image.path)
        with path.open("rb") as stream:
            _check(stream, path.stat().st_size, image.path)


def _check(stream: IO[bytes], size: int, name: str) -> None:
    kind = _open(stream, name).format or ""
    stream.seek(0)
    head = stream.read(16)
    stream.seek(max(0, size - 16))
    ends = _ENDS.get(kind)
    if ends is None or not ends(head, stream.read(), size):
        stream.seek(0)
        decode(stream.read(), name)


def _open(stream: IO[bytes], name: str) -> Image.Image:
    try:
        image = Image.open(stream)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from None
    except UnidentifiedImageError:
        empty = not stream.seek(0, io.SEEK_END)
        fault = "is empty (0 bytes)" if empty else "is not an image that Pillow can read"
        raise Fault("images", f"{name} {fault}", REPLACE) from None
    except Exception as error:
        raise Fault("images", f"{name} is cut short or damaged ({error})", REPLACE) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width} x {height} pixels")
    return image


def _too_large(name: str, size: str) -> Fault:
    return Fault(
        "images",
        f"{name} is too large: {size}, and the limit is {MAX_PIXELS // 10**6} megapixels",
        "Scale it down; the model sees at most a few megapixels of it",
    )


def _rgb(image: Image.Image) -> Image.Image:
    """Transparent pixels become white, as on a page; 16-bit greys keep their range."""
    if image.mode.startswith("I"):
        grey = np.asarray(image)  # (H, W); Pillow's own conversion would clip all above 255 to white
        image = Image.fromarray((grey // (257 if grey.max() > 255 else 1)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")


# format -> whether a file with these first and last 16 bytes and this size has its end
_ENDS: dict[str, Callable[[bytes, bytes, int], bool]] = {
    "JPEG": lambda head, tail, size: tail.endswith(b"\xff\xd9"),
    "PNG": lambda head, tail, size: tail[-8:-4] == b"IEND",
    "WEBP": lambda head, tail, size: size >= 8 + int.from_bytes(head[4:8], "little"),
}

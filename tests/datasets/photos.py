"""Pictures and files that the tests of this folder share."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def shared_files() -> Path:
    """The folder of real files that a development machine may have; skips the test elsewhere."""
    root = Path(os.environ.get("MLLM_ALIGN_SHARED", Path(__file__).parents[2].parent / "shared"))
    files = root / "benchmarks" / "files"
    if not files.is_dir():
        pytest.skip("no folder of real files (MLLM_ALIGN_SHARED)")
    return files


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """Coarse noise: something that a codec can't reduce to nothing."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """The header of a PNG of any size: enough for what is refused before decoding."""
    whole = encoded(picture(8, 8), "PNG")
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path

"""The images that a person's rows name, as part of a stored set's key: the set holds copies of them.

Nothing is decoded. The rows are read once a process, and each image's size and time are asked of the disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mllm_align.datasets.errors import BadDataError
from mllm_align.datasets.hub import is_hub
from mllm_align.datasets.rows import find, image_roots, kind_of, read_rows

FIELDS = ("images", "image")


def images(path: str, image_root: str | None = None) -> str | None:
    """A digest of names, sizes and times of the images that the rows of `path` name, see `read_local`.

    None for the hub, where a revision says which they are, and for rows that are not there: who reads them says so.
    """
    if is_hub(path) or is_hub(image_root or ""):
        return None
    try:
        files, folder = find(path)
        roots = image_roots(image_root, files, folder)
        named = [_named(file) for file in files]
    except (BadDataError, OSError):
        return None
    seen = hashlib.sha256()
    for root, names in zip(map(str, roots), named, strict=True):
        for name in names:
            seen.update(f"{name}\0{_state(root, name)}\0".encode(errors="replace"))
        seen.update(b"\0")
    return seen.hexdigest()


def _state(root: str, name: str) -> str:
    """Size in bytes and time in ns; POVID's images are looked up by their bare name, too."""
    for place in (name, os.path.basename(name)):
        try:
            stat = os.stat(os.path.join(root, place))
        except (OSError, ValueError):  # a NUL character
            continue
        return f"{stat.st_size} {stat.st_mtime_ns}"
    return "absent"


def _named(file: Path) -> Sequence[str]:
    stat = file.stat()
    return _names(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=32)
def _names(file: str, size: int, mtime_ns: int, ctime_ns: int) -> Sequence[str]:
    """The images that the rows of a file in this state name, each once."""
    path, kind = Path(file), kind_of(Path(file))
    rows = _columns(path) if kind == "Parquet" else (row for _, row in read_rows(path, kind))
    return sorted({name for row in rows if isinstance(row, Mapping) for name in _of(row)})


def _columns(file: Path) -> Iterator[Mapping[str, Any]]:
    """The texts of the columns of images: the bytes beside them are in the file, which counts by itself."""
    try:
        with pq.ParquetFile(file) as opened:
            leaves = [opened.schema.column(number) for number in range(len(opened.schema))]
            wanted = [
                leaf.path
                for leaf in leaves
                if leaf.path.split(".")[0] in FIELDS and leaf.logical_type.type == "STRING"
            ]
            for batch in opened.iter_batches(columns=wanted) if wanted else ():
                yield from batch.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError):
        return  # damaged: whoever reads its rows says so


def _of(row: Mapping[str, Any]) -> Iterator[str]:
    for field in FIELDS:
        value = row.get(field)
        for one in value if isinstance(value, list) else [value]:
            name = one.get("path") if isinstance(one, Mapping) else one
            if isinstance(name, str) and name and not name.startswith("data:"):
                yield name

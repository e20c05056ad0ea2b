"""Images where they lie: a file below a folder, a member of a zip archive, a row of a Parquet file.

Each is a few strings, so a list of 80,000 of them is small and travels to worker processes; bytes are read when
they are asked for. `place` is what a stored preference set writes instead of the bytes, and `from_place` its
inverse. Open files are kept a process and a thread-safe few at a time.
"""

from __future__ import annotations

import lzma
import os
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mllm_align.datasets.errors import Fault
from mllm_align.datasets.images import FileImage, decode

# Bytes of a row group's image column that are decoded at once, and kept for the next row.
GROUP_BYTES = 64 * 2**20
# Decoded bytes of a row group up to which a stored set points at its images: what one image costs to reach. The
# images of larger ones are copied into the stored set.
REFER_BYTES = 256 * 2**20
# What zipfile and its decompressors raise over an archive that is damaged, locked or packed in a way they don't know.
_UNREADABLE = (OSError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_BATCH = 16  # rows decoded at a time in a larger row group
_LOCK = threading.Lock()


@dataclass(frozen=True)
class ZipImage:
    """A member of a zip archive, which stays packed; `key` is its name there."""

    archive: str
    member: str

    @property
    def key(self) -> str:
        return self.member

    @property
    def place(self) -> dict[str, Any]:
        return {"zip": os.path.abspath(self.archive), "member": self.member}

    def encoded(self) -> bytes:
        """Raises Fault when the archive or the member is missing or damaged."""
        try:
            with _LOCK:
                return _archive(*_state(self.archive)).read(self.member)
        except _UNREADABLE as error:
            raise Fault(
                "images",
                f"{self.member} of {self.archive} can't be read ({_said(error)})",
                "Get a whole copy of the archive",
            ) from None

    def load(self) -> Image.Image:
        """Raises Fault when the archive or the member is missing or damaged, or the member no image."""
        return decode(self.encoded(), self.member)


@dataclass(frozen=True)
class RowImage:
    """The image of a row of a Parquet file: `column` is {bytes, path}, or a list with one of them.

    `refer` says whether a stored preference set may point here; where it may not, it holds a copy.
    """

    file: str
    column: str
    group: int
    index: int
    key: str
    refer: bool = True

    @property
    def place(self) -> dict[str, Any] | None:
        if not self.refer:
            return None
        return {
            "parquet": os.path.abspath(self.file),
            "column": self.column,
            "group": self.group,
            "index": self.index,
            "key": self.key,
        }

    def encoded(self) -> bytes:
        """Raises Fault when the file is missing or damaged, or the row has no image."""
        try:
            with _LOCK:
                cell = _cell(*_state(self.file), self.column, self.group, self.index)
        except (OSError, pa.ArrowException, IndexError, StopIteration) as error:
            raise Fault(
                "images", f"{self.key} can't be read ({_said(error)})", "Get a whole copy of the file"
            ) from None
        value = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(data, bytes):
            raise Fault("images", f"{self.key} has no image in its row", "Add one, or remove the row")
        return data

    def load(self) -> Image.Image:
        """Raises Fault as `encoded` does, and when the bytes are cut short or no image."""
        return decode(self.encoded(), self.key)


Placed = FileImage | ZipImage | RowImage


def from_place(place: Mapping[str, Any]) -> Placed:
    """The inverse of `place`."""
    if "folder" in place:
        return FileImage(place["folder"], place["path"], refer=True)
    if "zip" in place:
        return ZipImage(place["zip"], place["member"])
    return RowImage(place["parquet"], place["column"], place["group"], place["index"], place["key"])


def column_bytes(file: pq.ParquetFile, column: str, group: int) -> int:
    """Decoded size of what a row group holds in a column, in bytes."""
    row_group = file.metadata.row_group(group)
    return sum(
        chunk.total_uncompressed_size
        for chunk in map(row_group.column, range(row_group.num_columns))
        if chunk.path_in_schema.split(".")[0] == column
    )


# --- open files ---------------------------------------------------------------------------------------------


def _state(file: str) -> tuple[str, int, int]:
    """Names an open file: a process has its own (forked ones would share a position), a new one is opened anew."""
    return file, os.stat(file).st_mtime_ns, os.getpid()


@lru_cache(maxsize=4)
def _archive(file: str, mtime_ns: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


@lru_cache(maxsize=8)
def _parquet(file: str, mtime_ns: int, process: int) -> pq.ParquetFile:
    return pq.ParquetFile(file)


def _cell(file: str, mtime_ns: int, process: int, column: str, group: int, index: int) -> Any:
    if column_bytes(_parquet(file, mtime_ns, process), column, group) <= GROUP_BYTES:
        return _group(file, mtime_ns, process, column, group)[index].as_py()
    cursor = _cursor(file, mtime_ns, process, column, group)
    return cursor.at(index)


@lru_cache(maxsize=2)
def _group(file: str, mtime_ns: int, process: int, column: str, group: int) -> pa.ChunkedArray:
    return _parquet(file, mtime_ns, process).read_row_group(group, columns=[column]).column(column)


@lru_cache(maxsize=2)
def _cursor(file: str, mtime_ns: int, process: int, column: str, group: int) -> _Cursor:
    return _Cursor(_parquet(file, mtime_ns, process), column, group)


class _Cursor:
    """Reads a large row group forward, a few rows at a time; going back starts it again."""

    def __init__(self, file: pq.ParquetFile, column: str, group: int) -> None:
        self.file, self.column, self.group = file, column, group
        self._begin()

    def _begin(self) -> None:
        self.batches: Iterator[pa.RecordBatch] = self.file.iter_batches(
            batch_size=_BATCH, row_groups=[self.group], columns=[self.column]
        )
        self.start, self.batch = 0, next(self.batches)

    def at(self, index: int) -> Any:
        if index < self.start:
            self._begin()
        while index >= self.start + self.batch.num_rows:
            self.start += self.batch.num_rows
            self.batch = next(self.batches)
        return self.batch.column(0)[index - self.start].as_py()


def _said(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:120] if lines else type(error).__name__

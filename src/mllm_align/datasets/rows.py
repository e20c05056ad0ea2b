"""Files of rows: finds them, tells JSON, JSONL and Parquet apart by content, and yields row after row.

A row that can't be read comes as a Fault in its place, so that the rows beside it are still seen.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from mllm_align.datasets.errors import BadDataError, Fault
from mllm_align.datasets.hub import resolve
from mllm_align.fingerprints import MARKS, matches

Row = dict[str, Any]
KINDS = {".json": "JSON", ".jsonl": "JSON", ".ndjson": "JSON", ".parquet": "Parquet"}
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_HELD_OUT = re.compile(r"(^|[-_./])(test|val|valid|validation|dev|eval)([-_./]|$)")
_SPACE = re.compile(r"[ \t\r\n]*")
_BATCH = 64
_PIECE = 1 << 20  # characters of a JSON list that are read at once; longer where a row is
# A lone surrogate: what Python puts for a byte that is not UTF-8, so that the row can be named.
_BROKEN = "\udcff"


def find_files(path: str | Path) -> list[Path]:
    """The files of rows that `path` names: a file, a folder, or a pattern such as `data/train-*.parquet`, here or
    on the hub (`hub://owner/name/data/train-*.parquet`), from where they are downloaded.

    Raises BadDataError where there is none, or where a folder leaves open which of its files are meant.
    """
    return find(path)[0]


def find(path: str | Path) -> tuple[list[Path], Path | None]:
    """The same, and the folder where `path` names one."""
    place = resolve(str(path))
    if place.is_file():
        return [place], None
    if place.is_dir():
        return _in_folder(place, str(path)), place
    if any(mark in str(place) for mark in MARKS):
        files = [file for file in matches(place)[1] if file.is_file()]
        if not files:
            raise BadDataError(f"No file matches {path}. Correct dataset.path.")
        return files, None
    raise BadDataError(
        f"{path} is not there. Set dataset.path to a JSON, JSONL or Parquet file, or a folder of them."
    )


def names_of(files: Sequence[Path]) -> list[tuple[str, str]]:
    """For each file its path below the folder that they share, and what its rows are called: that without its ending,
    unless another file differs by the ending alone."""
    base = files[0].parent if len(files) == 1 else Path(os.path.commonpath(files))
    shown = [file.relative_to(base) for file in files]
    bare = Counter(name.with_suffix("") for name in shown)
    return [
        (str(name), (name if bare[name.with_suffix("")] > 1 else name.with_suffix("")).as_posix())
        for name in shown
    ]


def image_roots(image_root: str | None, files: Sequence[Path], folder: Path | None) -> list[Path]:
    """Where the image paths of each file start: `image_root`, else the folder that was named, else the file's own.

    Raises BadDataError where `image_root` is no folder.
    """
    if image_root is None:
        return [folder or file.parent for file in files]
    root = resolve(image_root, "dataset.image_root")
    if not root.is_dir():
        raise BadDataError(
            f"dataset.image_root={image_root} is not a folder. Name the folder that holds the images."
        )
    return [root] * len(files)


def _in_folder(folder: Path, named: str) -> list[Path]:
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix in KINDS
        and file.name not in _NOT_ROWS
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise BadDataError(f"{named} holds no .json, .jsonl or .parquet file. Correct dataset.path.")
    kinds = Counter(KINDS[file.suffix] for file in files)
    names = [file.relative_to(folder).as_posix() for file in files]
    held_out = [name for name in names if _HELD_OUT.search(name.lower())]
    if len(kinds) > 1 or 0 < len(held_out) < len(files):
        what = "JSON and Parquet files" if len(kinds) > 1 else f"held-out files ({held_out[0]}) beside others"
        first = next((name for name in names if name not in held_out), names[0])
        raise BadDataError(
            f"{named} holds {what}. Name the ones to train on: "
            f"dataset.path={named.rstrip('/')}/{first} or a pattern, "
            f"dataset.path='{named.rstrip('/')}/{_pattern(first)}'."
        )
    return files


def _pattern(name: str) -> str:
    """data/train-00000-of-00002.parquet -> data/train*.parquet"""
    path = PurePosixPath(name)
    return path.with_name(f"{re.split('[-_.]', path.stem)[0]}*{path.suffix}").as_posix()


def kind_of(path: Path) -> str:
    """`JSON` (one list), `JSONL` or `Parquet`, by content. Raises BadDataError for anything else."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
        if head.startswith(b"PAR1"):
            return "Parquet"
        text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if text.startswith(b"["):
            return "JSON"
        if text.startswith(b"{"):
            return "JSONL"
    if not text:
        raise BadDataError(f"{path} is empty. Put one JSON object a line into it, or correct dataset.path.")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadDataError(f"{path} is not UTF-8 but UTF-16. Save it as UTF-8.")
    if head[:2] in (b"\x1f\x8b", b"PK", b"BZ") or head[:4] == b"\x28\xb5\x2f\xfd":
        raise BadDataError(f"{path} is compressed. Unpack it first.")
    raise BadDataError(
        f"{path} is neither JSON, JSONL nor Parquet. Correct dataset.path, or convert the file."
    )


def read_rows(path: Path, kind: str) -> Iterator[tuple[int, Row | Fault]]:
    """Every row of one file with its number, from 1 (in JSONL: its line)."""
    for number, row in {"JSON": _json, "JSONL": _jsonl, "Parquet": _parquet}[kind](path):
        if isinstance(row, dict | Fault):
            yield number, row
        else:
            yield (
                number,
                Fault(None, f"is not an object but {type(row).__name__}", "Make each row a JSON object"),
            )


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")
            if text.strip():
                try:
                    row = json.loads(text.rstrip("\r\n"))
                except (ValueError, RecursionError) as error:
                    row = Fault(
                        None,
                        f"the line is not whole JSON ({_where(error, '')})",
                        "Complete the line, or remove it",
                    )
                yield number, row


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """Element by element, a piece of the file at a time: a list that breaks off names the row where it does."""
    with path.open("r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        window = _Window(file)
        window.space()
        window.drop(1)  # the [ that `kind_of` saw
        window.space()
        number = 0
        while window.next() != "]":
            number += 1
            try:
                row = window.value()
            except (ValueError, RecursionError) as error:
                said = _where(error, window.line_of(error))
                yield number, _rest(f"the JSON list breaks off or is damaged here ({said})")
                return
            yield number, row
            window.space()
            if window.next() == ",":
                window.drop(1)
                window.space()
            elif window.next() != "]":
                yield number + 1, _rest(f"the JSON list breaks off here (no , or ] in line {window.line})")
                return
        window.drop(1)
        window.space()
        if window.next():
            yield (
                number + 1,
                Fault(
                    None,
                    f"something stands after the end of the JSON list, in line {window.line}",
                    "Put all rows into one list, or each on a line of its own without a list",
                ),
            )


class _Window:
    """The part of a text file that is being read; `lines` counts those before it."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.at, self.lines = file, "", 0, 0
        self.whole = False  # whether the file's end is in the window
        self.decode = json.JSONDecoder().raw_decode

    def more(self) -> None:
        """Forgets what was read and adds a piece; the pieces of one element double, or it would be read too often."""
        piece = self.file.read(max(_PIECE, len(self.text) - self.at))
        self.lines += self.text.count("\n", 0, self.at)
        self.text, self.at, self.whole = self.text[self.at :] + piece, 0, not piece

    def next(self) -> str:
        while self.at == len(self.text) and not self.whole:
            self.more()
        return self.text[self.at : self.at + 1]

    def drop(self, count: int) -> None:
        self.at += count

    def space(self) -> None:
        while self.next() and (end := _skip(self.text, self.at)) > self.at:
            self.at = end

    def value(self) -> Any:
        """The element that begins here. Raises ValueError when it is damaged, or the file ends inside of it."""
        while True:
            try:
                value, end = self.decode(self.text, self.at)
                if end < len(self.text) or self.whole:  # else a number may go on
                    self.at = end
                    return value
            except json.JSONDecodeError:
                if self.whole:
                    raise
            self.more()

    @property
    def line(self) -> int:
        return self.lines + self.text.count("\n", 0, self.at) + 1

    def line_of(self, error: Exception) -> str:
        """Where in the file; as JSON says it: line 3,"""
        return f"line {self.lines + error.lineno}, " if isinstance(error, json.JSONDecodeError) else ""


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                columns = {name: _cells(batch.column(name)) for name in batch.schema.names}
                for index in range(batch.num_rows):
                    number += 1
                    yield number, {name: cells[index] for name, cells in columns.items()}
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        yield number + 1, _rest(f"the Parquet file is cut short or damaged ({reason})")


def _cells(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell(value) for value in column]


def _cell(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _BROKEN


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _where(error: Exception, line: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, {line}column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _rest(fault: str) -> Fault:
    return Fault(None, f"{fault}; nothing from this row on can be read", "Get a whole copy of the file")

"""Reads the rows of a published set, draws some of them, and says what became of each.

Rows go by one at a time, and images stay where they are: a set of 80,000 rows takes the memory of its texts.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from mllm_align.datasets.errors import BadDataError, Fault
from mllm_align.datasets.fields import check_text
from mllm_align.datasets.memory import uncollected
from mllm_align.datasets.places import REFER_BYTES, RowImage, column_bytes
from mllm_align.datasets.published.draft import Draft, Form, Row
from mllm_align.datasets.published.pictures import Pictures, coco_id, picture_name
from mllm_align.datasets.reading import Tally, check_size, draw, judge, numbered, one_of, rank, say_skipped
from mllm_align.datasets.rows import find_files, kind_of, names_of, read_rows
from mllm_align.records import Example, Group

log = logging.getLogger(__name__)

Built = tuple[list[Group], dict[str, Any]]
SPLITS = ("preference", "reward_heldout")
OTHER_SPLIT = {"preference": "held out (dataset.split=reward_heldout)", "reward_heldout": "not held out"}


class Source(TypedDict, total=False):
    """What every set's builder takes, see conf/dataset/published/shared/source.yaml."""

    path: str
    images: Sequence[str]
    split: str
    heldout: float
    size: int | None
    seed: int
    on_bad_row: str
    check_images: str


def collect(name: str, form: Form, hint: Callable[[], str] | None = None, **source: Any) -> Built:
    """The Groups of a set, in the order of its files, and the report; both go to the log.

    `hint` says what the rows had where none was of use. Raises BadDataError.
    """
    groups, tally = _read(name, form, hint, source)
    drawn = draw(groups, source.get("size"), source.get("seed", 0), tally, source["path"])
    return drawn, told(tally, len(drawn))


def ordered(
    name: str, form: Form, hint: Callable[[], str] | None = None, **source: Any
) -> tuple[list[Group], Tally]:
    """Every Group of a set in the order that `draw` would take them, for whoever goes on until there are enough."""
    groups, tally = _read(name, form, hint, source)
    return sorted(groups, key=lambda group: rank(group, source.get("seed", 0), tally)), tally


def _read(name: str, form: Form, hint: Callable[[], str] | None, source: Any) -> tuple[list[Group], Tally]:
    check_options(source)
    tally = Tally()
    with uncollected():
        groups = numbered(list(_groups(name, form, source, tally)), tally)
    judge(tally, source["path"], source.get("on_bad_row", "stop"), hint)
    return groups, tally


def in_split(example: Example, source: Any) -> bool:
    """Whether an Example is of the split that is read: all rows about an image are of the same one.

    The name of its picture decides: COCO's number, where it has one, so that a picture is on the same side in all sets.
    """
    name = picture_name(example)
    number = coco_id(name)
    held_out = _share("heldout", name if number is None else str(number)) < source.get("heldout", 0.0)
    return held_out == (source.get("split", SPLITS[0]) == "reward_heldout")


def _share(*names: str) -> float:
    """A number from 0 to 1 that the names decide."""
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def told(tally: Tally, used: int) -> dict[str, Any]:
    """The report, which also goes to the log."""
    parts = [f"{', '.join(tally.files)}: {tally.rows:,} rows, {tally.good:,} to use, {used:,} used"]
    parts += [f"{reason}: {count:,}" for reason, count in {**tally.pairless, **tally.notes}.items()]
    log.info("%s", "; ".join(parts))
    say_skipped(tally.problems)
    return tally.report(used)


# --- rows to Groups -----------------------------------------------------------------------------------------


def _groups(name: str, form: Form, source: Any, tally: Tally) -> Iterator[Group]:
    pictures = Pictures(source.get("images") or (), source.get("check_images") == "whole")
    files = find_files(source["path"])
    for file, (shown, called) in zip(files, names_of(files), strict=True):
        tally.files.append(shown)
        for number, row in _rows(file, shown):
            tally.rows += 1
            try:
                if isinstance(row, Fault):
                    raise row
                drafts = list(form(row))
                _check_texts(row, drafts)
                place = f"{called}:{number}"
                groups = [_group(d, name, place, pictures, tally) for d in drafts if isinstance(d, Draft)]
            except Fault as fault:
                tally.problems.append(fault.at(shown, number))
                continue
            tally.pairless.update(reason for reason in drafts if isinstance(reason, str))
            kept = [group for group in groups if in_split(group.example, source)]
            if len(kept) < len(groups):
                tally.notes[OTHER_SPLIT[source.get("split", SPLITS[0])]] += len(groups) - len(kept)
            tally.good += len(kept)
            yield from kept
    tally.notes.update(pictures.notes)


def _check_texts(row: Row, drafts: Sequence[Draft | str]) -> None:
    """Raises Fault where a text that is kept was not UTF-8; `check_text`, which names the field, takes longer."""
    for draft in drafts:
        if isinstance(draft, Draft):
            texts = [draft.prompt, draft.id or "", draft.reference or "", *(r.text for r in draft.responses)]
            try:
                "".join(texts).encode()
            except UnicodeEncodeError:
                check_text(row)


def check_options(source: Any) -> None:
    """Raises BadDataError for what `Source` can't have."""
    known = {"on_bad_row": ("stop", "skip"), "check_images": ("exists", "whole"), "split": SPLITS}
    for name, options in known.items():
        one_of(name, source.get(name, options[0]), *options)
    heldout = source.get("heldout", 0.0)
    if not 0 <= heldout < 1:
        raise BadDataError(
            f"dataset.heldout={heldout} is not a share. Give a number from 0 up to, not including, 1."
        )
    check_size(source.get("size"))


def _group(draft: Draft, name: str, place: str, pictures: Pictures, tally: Tally) -> Group:
    image = pictures.find(draft.image)
    tally.notes.update(draft.notes)
    own = f"{name}/{draft.id or place}"
    if not draft.id:
        tally.unnamed.add(own)
    example = Example(own, image, draft.prompt, draft.reference, draft.meta)
    return Group(example, draft.responses, draft.preferences)


def _rows(file: Path, shown: str) -> Iterator[tuple[int, Any]]:
    """Rows with their numbers; the images that a Parquet file holds stay there, as RowImages named after `shown`."""
    kind = kind_of(file)
    column = _image_column(file) if kind == "Parquet" else None
    return read_rows(file, kind) if column is None else _parquet_rows(file, column, shown)


def _image_column(file: Path) -> str | None:
    """The column of images with their bytes; None where the file names them only."""
    try:
        with pq.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            return next(
                (name for name in ("image", "images") if name in schema.names and _binary(schema, name)), None
            )
    except (pa.ArrowException, OSError):
        return None  # read_rows will say what is wrong


def _binary(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if pa.types.is_struct(kind):
        kind = next((part.type for part in kind if part.name == "bytes"), pa.null())
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _parquet_rows(file: Path, column: str, shown: str) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with pq.ParquetFile(file) as opened:
            names = [name for name in opened.schema_arrow.names if name != column]
            for group in range(opened.num_row_groups):
                refer = column_bytes(opened, column, group) <= REFER_BYTES
                rows = opened.read_row_group(group, columns=names).to_pylist()
                for index, row in enumerate(rows):
                    number += 1
                    key = f"{shown}:{number}"
                    yield number, {**row, column: RowImage(str(file), column, group, index, key, refer)}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:120]
        yield (
            number + 1,
            Fault(
                None,
                f"the Parquet file is cut short or damaged ({reason}); nothing from this row on can be read",
                "Get a whole copy of the file",
            ),
        )

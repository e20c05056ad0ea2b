"""A person's own preference data: `dataset=local dataset.path=...`.

JSON, JSONL or Parquet, told apart by content; rows in TRL's standard vision preference form (plain,
conversational or with an implicit prompt), in POVID's own format, or as `write_groups` writes them. Every
row and every image is checked before anything is trained. What is wrong stops the run with a list of file,
row, field and remedy; `on_bad_row="skip"` leaves those rows out and the report says which.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mllm_align.datasets.embedded import Embedded, too_many
from mllm_align.datasets.errors import SHOWN, BadDataError, Fault, Problem
from mllm_align.datasets.fields import Pair, check_text, image_ref, standard
from mllm_align.datasets.hub import resolve
from mllm_align.datasets.images import BytesImage, FileImage, check
from mllm_align.datasets.parquet import from_row, is_ours
from mllm_align.datasets.povid import is_povid, povid, povid_image
from mllm_align.datasets.rows import find_files, kind_of, read_rows
from mllm_align.records import Example, Group, Preference, Response

log = logging.getLogger(__name__)

Image = FileImage | BytesImage


@dataclass(frozen=True)
class Report:
    """What was read. `skipped` names each row that was left out; `notes` counts what was changed."""

    files: tuple[str, ...]
    forms: Mapping[str, int]
    rows: int
    good: int
    used: int
    skipped: tuple[Problem, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "skipped": [str(problem) for problem in self.skipped]}

    def __str__(self) -> str:
        forms = ", ".join(f"{count:,} in {form}" for form, count in self.forms.items())
        notes = "".join(f"; {note}: {count:,}" for note, count in self.notes.items())
        skipped = f", {self.rows - self.good:,} skipped" if self.rows > self.good else ""
        return f"{', '.join(self.files)}: {self.rows:,} rows ({forms}){skipped}, {self.used:,} used{notes}"


@dataclass(frozen=True)
class Local:
    groups: list[Group]
    report: Report


def build(
    path: str, image_root: str | None = None, on_bad_row: str = "stop", size: int | None = None, seed: int = 0
) -> tuple[list[Group], dict[str, Any]]:
    """What `read_local` gives, the report as plain data for the record; it also goes to the log."""
    local = read_local(path, image_root, on_bad_row, size, seed)
    log.info("%s", local.report)
    if local.report.skipped:
        shown = "\n".join(f"  {problem}" for problem in local.report.skipped[:SHOWN])
        more = len(local.report.skipped) - SHOWN
        log.warning("Skipped:\n%s%s", shown, f"\n  ... and {more:,} more." if more > 0 else "")
    return local.groups, local.report.to_json()


def load_local(
    path: str, image_root: str | None = None, on_bad_row: str = "stop", size: int | None = None, seed: int = 0
) -> list[Group]:
    """The Groups of `read_local`, for use from Python."""
    return build(path, image_root, on_bad_row, size, seed)[0]


def read_local(
    path: str, image_root: str | None = None, on_bad_row: str = "stop", size: int | None = None, seed: int = 0
) -> Local:
    """Reads and checks every row.

    `path`: a file, a folder or a pattern, here or on the hub (hub://owner/name/file). `image_root`: where relative
    image paths start, by default the folder of the data. `size`: draws so many of the good rows, the same ones for
    the same `seed` whatever their order; a smaller draw is part of a larger one. Raises BadDataError.
    """
    if on_bad_row not in ("stop", "skip"):
        raise BadDataError(f"dataset.on_bad_row={on_bad_row} is not known. Use stop or skip.")
    if size is not None and size < 1:
        raise BadDataError(f"dataset.size={size} leaves nothing. Give a number from 1, or null for all rows.")
    files = find_files(path)
    root = _image_root(image_root, files)
    tally = _Tally()
    base = files[0].parent if len(files) == 1 else Path(os.path.commonpath(files))
    many = too_many(files)
    groups = (
        group for file in files for group in _read(file, file.relative_to(base), root, tally, many.get(file))
    )
    drawn = list(groups) if size is None else _draw(groups, size, seed)
    _judge(tally, path, on_bad_row)
    if size is not None and len(drawn) < size:
        raise BadDataError(
            f"dataset.size={size:,}, but {path} has only {tally.good:,} rows that can be used. "
            f"Set dataset.size={tally.good} or dataset.size=null."
        )
    report = Report(
        tuple(str(file) for file in files), dict(tally.forms), tally.rows, tally.good, len(drawn),
        tuple(tally.problems), dict(tally.notes),
    )  # fmt: skip
    return Local(drawn, report)


@dataclass
class _Tally:
    """What is counted while rows go by."""

    rows: int = 0
    good: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    ids: dict[str, str] = field(default_factory=dict)
    checked: dict[str, Fault | None] = field(default_factory=dict)


def _image_root(image_root: str | None, files: list[Path]) -> Path:
    root = resolve(image_root, "dataset.image_root") if image_root is not None else files[0].parent
    if not root.is_dir():
        raise BadDataError(
            f"dataset.image_root={image_root} is not a folder. Name the folder that holds the images."
        )
    return root


def _judge(tally: _Tally, path: str, on_bad_row: str) -> None:
    bad = tally.rows - tally.good
    if tally.problems and on_bad_row == "stop":
        raise BadDataError(
            f"{bad:,} of {tally.rows:,} rows of {path} can't be used; nothing was trained.",
            tally.problems,
            "Correct them, or set dataset.on_bad_row=skip to train on the other rows.",
        )
    if not tally.good:
        raise BadDataError(f"{path} has no row that can be used (of {tally.rows:,}).", tally.problems)


def _draw(groups: Iterator[Group], size: int, seed: int) -> list[Group]:
    """The `size` rows of lowest rank, in their order; only so many are held in memory."""
    ranked = ((_rank(seed, group.example.id), number, group) for number, group in enumerate(groups))
    drawn = heapq.nsmallest(size, ranked, key=lambda item: item[:2])
    return [group for _, _, group in sorted(drawn, key=lambda item: item[1])]


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


def _read(file: Path, name: Path, root: Path, tally: _Tally, embedded: Embedded | None) -> Iterator[Group]:
    """The good rows of a file; their images stay in it where it is `embedded`."""
    kind = kind_of(file)
    for number, row in read_rows(file, kind):
        tally.rows += 1
        try:
            if isinstance(row, Fault):
                raise row
            check_text(row)
            group, form = _group(row, f"{name.with_suffix('').as_posix()}:{number}", root, tally)
            _check_image(group.example.image, tally)
            group = _own_id(group, form, f"row {number} of {name}", tally)
        except Fault as fault:
            tally.problems.append(fault.at(str(name), number))
            continue
        if embedded is not None and isinstance(group.example.image, BytesImage):
            image = embedded.image(number, group.example.image.key)
            group = replace(group, example=replace(group.example, image=image))
        tally.good += 1
        tally.forms[f"{kind}, {form}"] += 1
        yield group


def _group(row: Mapping[str, Any], name: str, root: Path, tally: _Tally) -> tuple[Group, str]:
    """The row as a Group, and the name of its form. Raises Fault."""
    if is_ours(row):
        return _ours(row), "mllm-align form"
    if is_povid(row):
        pair = povid(row)
        return _pair(pair, povid_image(pair.image, root), name, tally), "POVID form"
    pair = standard(row)
    plain = isinstance(row["chosen"], str)
    form = "standard form, plain" if plain else "standard form, conversational"
    return _pair(pair, image_ref(pair.image, root), name, tally), form


def _ours(row: Mapping[str, Any]) -> Group:
    try:
        (image,) = row["images"]
        group = from_row(row, BytesImage(image["bytes"], image["path"]))
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise Fault(None, f"is not as mllm-align writes it ({error})", "Write the file again") from None
    # The base model of this run may have another tokenizer than the one that sampled them.
    return replace(group, responses=tuple(replace(r, token_ids=None) for r in group.responses))


def _pair(pair: Pair, image: Image, name: str, tally: _Tally) -> Group:
    if pair.chosen == pair.rejected:
        raise Fault("rejected", "equals chosen", "Remove the row: it prefers nothing")
    tally.notes.update(pair.notes)
    example = Example(pair.id or name, image, pair.prompt, pair.reference, _json_only(pair.rest))
    return Group(example, (Response(pair.chosen), Response(pair.rejected)), (Preference(0, 1),))


def _json_only(rest: Mapping[str, Any]) -> dict[str, Any]:
    """Extra fields travel along as `meta`; what JSON can't hold (bytes, dates) as its text."""
    return json.loads(json.dumps({str(key): value for key, value in rest.items()}, default=_words))


def _words(value: Any) -> str:
    return (
        f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}"
        if isinstance(value, bytes)
        else str(value)
    )


def _own_id(group: Group, form: str, where: str, tally: _Tally) -> Group:
    """Ids are unique: every draw is seeded by them. POVID's name the image, so repeats get a number there."""
    name = group.example.id
    if name in tally.ids:
        if form != "POVID form":
            raise Fault(
                "id",
                f"'{name}' is also that of {tally.ids[name]}",
                "Give each row its own, or remove the field",
            )
        number = 2
        while f"{name}#{number}" in tally.ids:
            number += 1
        name = f"{name}#{number}"
        tally.notes["ids that repeat (an image's name), numbered"] += 1
        example = group.example
        group = Group(
            Example(name, example.image, example.prompt, example.reference, example.meta),
            group.responses,
            group.preferences,
        )
    tally.ids[name] = where
    return group


def _check_image(image: Any, tally: _Tally) -> None:
    """Each file once, however many rows show it."""
    if isinstance(image, BytesImage):
        check(image)
        return
    if image.key not in tally.checked:
        try:
            check(image)
            tally.checked[image.key] = None
        except Fault as fault:
            tally.checked[image.key] = fault
    known = tally.checked[image.key]
    if known is not None:
        raise known

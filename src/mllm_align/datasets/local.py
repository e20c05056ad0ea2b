"""A person's own preference data: `dataset=local dataset.path=...`.

JSON, JSONL or Parquet, told apart by content; rows in TRL's standard vision preference form (plain,
conversational or with an implicit prompt), in POVID's own format, or as `write_groups` writes them. Every
row and every image is checked before anything is trained. What is wrong stops the run with a list of file,
row, field and remedy; `on_bad_row="skip"` leaves those rows out and the report says which.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mllm_align.datasets.embedded import Embedded, too_many
from mllm_align.datasets.errors import Fault, Problem
from mllm_align.datasets.fields import Pair, answer, check_text, image_ref, question, standard, text_of
from mllm_align.datasets.images import BytesImage, FileImage, check, from_bytes
from mllm_align.datasets.parquet import from_row, is_ours
from mllm_align.datasets.povid import is_povid, povid, povid_image
from mllm_align.datasets.reading import Tally, check_size, draw, judge, numbered, one_of, say_skipped
from mllm_align.datasets.rows import find, image_roots, kind_of, names_of, read_rows
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
    path: str,
    image_root: str | None = None,
    on_bad_row: str = "stop",
    size: int | None = None,
    seed: int = 0,
    offers: str = "pairs",
) -> tuple[list[Group], dict[str, Any]]:
    """What `read_local` gives, the report as plain data for the record; it also goes to the log."""
    local = read_local(path, image_root, on_bad_row, size, seed, offers)
    log.info("%s", local.report)
    say_skipped(local.report.skipped)
    return local.groups, local.report.to_json()


def load_local(path: str, image_root: str | None = None, **options: Any) -> list[Group]:
    """The Groups of `read_local`, for use from Python."""
    return build(path, image_root, **options)[0]


def read_local(
    path: str,
    image_root: str | None = None,
    on_bad_row: str = "stop",
    size: int | None = None,
    seed: int = 0,
    offers: str = "pairs",
) -> Local:
    """Reads and checks every row.

    `path`: a file, a folder or a pattern, here or on the hub (hub://owner/name/file). `image_root`: where relative
    image paths start, by default the folder that `path` names, or that of each file. `size`: draws so many of the good
    rows, the same ones for the same `seed` whatever their order; a smaller draw is part of a larger one. `offers`:
    where it is not pairs, rows that `mllm-align sample` wrote need none. Raises BadDataError.
    """
    one_of("on_bad_row", on_bad_row, "stop", "skip")
    check_size(size)
    files, folder = find(path)
    roots = image_roots(image_root, files, folder)
    seen = _Seen(offers=offers, base=_shared(roots))
    many = too_many(files)
    found = [
        group
        for file, root, names in zip(files, roots, names_of(files), strict=True)
        for group in _read(file, names, root, seen, many.get(file))
    ]
    tally = seen.tally
    groups = numbered(found, tally)
    judge(tally, path, on_bad_row)
    drawn = draw(groups, size, seed, tally, path)
    report = Report(
        tuple(str(file) for file in files), dict(tally.forms), tally.rows, tally.good, len(drawn),
        tuple(tally.problems), dict(tally.notes),
    )  # fmt: skip
    return Local(drawn, report)


@dataclass
class _Seen:
    """What is known while rows go by. `base`: the folder that all image roots are below, where there are several."""

    offers: str
    base: Path | None
    tally: Tally = field(default_factory=Tally)
    ids: dict[str, str] = field(default_factory=dict)
    checked: dict[Any, Fault | None] = field(default_factory=dict)
    pictures: dict[str, Any] = field(default_factory=dict)


def _shared(roots: Sequence[Path]) -> Path | None:
    whole = {root.resolve() for root in roots}
    return Path(os.path.commonpath(whole)) if len(whole) > 1 else None


def _read(
    file: Path, names: tuple[str, str], root: Path, seen: _Seen, embedded: Embedded | None
) -> Iterator[Group]:
    """The good rows of a file; their images stay in it where it is `embedded`."""
    kind = kind_of(file)
    shown, called = names
    tally = seen.tally
    for number, row in read_rows(file, kind):
        tally.rows += 1
        try:
            if isinstance(row, Fault):
                raise row
            check_text(row)
            group, form = _group(row, f"{called}:{number}", root, seen)
            _check_image(group.example.image, seen)
            _check_id(group, form, f"row {number} of {shown}", seen)
            image = _own_name(group.example.image, seen)
        except Fault as fault:
            tally.problems.append(fault.at(shown, number))
            continue
        if embedded is not None and isinstance(image, BytesImage):
            image = embedded.image(number, image.key)
        tally.good += 1
        tally.forms[f"{kind}, {form}"] += 1
        yield replace(group, example=replace(group.example, image=image))


def _group(row: Mapping[str, Any], name: str, root: Path, seen: _Seen) -> tuple[Group, str]:
    """The row as a Group, and the name of its form. Raises Fault."""
    if is_ours(row):
        return _ours(row, seen.offers), "mllm-align form"
    if is_povid(row):
        pair = povid(row)
        return _pair(pair, povid_image(pair.image, root), name, root, seen), "POVID form"
    pair = standard(row)
    plain = isinstance(row["chosen"], str)
    form = "standard form, plain" if plain else "standard form, conversational"
    return _pair(pair, image_ref(pair.image, root), name, root, seen), form


def _ours(row: Mapping[str, Any], offers: str) -> Group:
    if row.get("place"):
        # It may name any file of this machine, and the file of rows may come from anyone.
        raise Fault(
            "place",
            "says where the image lies",
            "Name the file that `mllm-align sample` writes: it holds its images",
        )
    try:
        (image,) = row["images"]
        held = BytesImage(image["bytes"], image["path"])
        group = from_row(row, held)
        pairs = [(p.chosen, p.rejected) for p in group.preferences]
        wrong = [n for pair in pairs for n in pair if not 0 <= n < len(group.responses)]
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise Fault(None, f"is not as mllm-align writes it ({error})", "Write the file again") from None
    if not isinstance(held.data, bytes):
        raise Fault("images", "holds no image", "Write the file again")
    if wrong:
        raise Fault("preferences", f"names response {wrong[0]} of {len(group.responses)}", "Write it again")
    question([("user", text_of(group.example.prompt, "prompt"))], "prompt")
    for pair in pairs:
        good, bad = (
            answer([("assistant", text_of(group.responses[n].text, "responses"))], "responses") for n in pair
        )
        if good == bad:
            raise Fault(
                "preferences", "the two responses of a pair are equal", "Remove the row: it prefers nothing"
            )
    if not pairs and offers == "pairs":
        raise Fault(
            "preferences",
            "has no pair",
            "Name a file with pairs, or set dataset.offers=answers for a sampler that makes the rejected ones",
        )
    # The base model of this run may have another tokenizer than the one that sampled them.
    return replace(group, responses=tuple(replace(r, token_ids=None) for r in group.responses))


def _pair(pair: Pair, image: Image, name: str, root: Path, seen: _Seen) -> Group:
    if pair.chosen == pair.rejected:
        raise Fault("rejected", "equals chosen", "Remove the row: it prefers nothing")
    seen.tally.notes.update(pair.notes)
    if not pair.id:
        seen.tally.unnamed.add(name)
    if seen.base is not None and isinstance(image, FileImage):  # two folders may have images of one name
        below = root.resolve().relative_to(seen.base)
        image = FileImage(str(seen.base), (below / image.path).as_posix())
    example = Example(pair.id or name, image, pair.prompt, pair.reference, _json_only(pair.rest))
    return Group(example, (Response(pair.chosen), Response(pair.rejected)), (Preference(0, 1),))


def _json_only(rest: Mapping[str, Any]) -> dict[str, Any]:
    """Extra fields travel along as `meta`; what JSON can't hold as its text (bytes, dates) or null (NaN, infinity)."""
    text = json.dumps({str(key): value for key, value in rest.items()}, default=_words)
    return json.loads(text, parse_constant=lambda _: None)


def _words(value: Any) -> str:
    return (
        f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}"
        if isinstance(value, bytes)
        else str(value)
    )


def _check_id(group: Group, form: str, where: str, seen: _Seen) -> None:
    """An id is given once, but in POVID's form, where it names the image."""
    first = seen.ids.setdefault(group.example.id, where)
    if first != where and form != "POVID form":
        raise Fault(
            "id",
            f"'{group.example.id}' is also that of {first}",
            "Give each row its own, or remove the field",
        )


def _check_image(image: Any, seen: _Seen) -> None:
    """Each file once, however many rows show it."""
    if isinstance(image, BytesImage):
        check(image)
        return
    if image not in seen.checked:
        try:
            check(image if isinstance(image, FileImage) else BytesImage(image.encoded(), image.key))
            seen.checked[image] = None
        except Fault as fault:
            seen.checked[image] = fault
    known = seen.checked[image]
    if known is not None:
        raise known


def _own_name(image: Any, seen: _Seen) -> Any:
    """The image, under its content's hash where another one has its key: images are told apart by these."""
    known = hashlib.sha256(image.data).digest() if isinstance(image, BytesImage) else image
    return image if seen.pictures.setdefault(image.key, known) == known else from_bytes(image.encoded())

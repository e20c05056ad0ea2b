"""Preference sets as Parquet, in the standard vision form that TRL and `datasets` read.

`images` (list of {bytes, path}), `prompt`, `chosen` and `rejected` (lists of {role, content}; TRL puts the
image before the user's text) are what others train on: the first Preference of the Group. What the project
needs beyond them stands in columns of its own: `id`, `reference`, `meta` (JSON), `responses` (each with its
`provenance` as JSON) and `preferences`. `iteration`, `similarity`, `cuts` (characters of the chosen answer) and
`mask_seed` repeat, for whoever filters a table, what the first Preference's rejected response says of itself;
they are empty where a sampler does not say it. A Group comes back equal, but for the class of its image: the
encoded bytes under the same key (pixels that were never encoded become a PNG, without loss).

A set that stays on this machine (`refer=True`) names the images that lie on disk, in `place`, instead of holding
them. Images in the file itself are read when they are asked for where they are more than HELD bytes.
"""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mllm_align.datasets.errors import BadDataError
from mllm_align.datasets.images import BytesImage
from mllm_align.datasets.memory import uncollected
from mllm_align.datasets.places import RowImage, column_bytes, from_place
from mllm_align.records import Example, Group, ImageRef, Preference, Response

# Rows that are written, and read, at a time: bounds the memory that encoded photos take.
ROWS = 128
# Bytes of images in a file up to which they are held in memory.
HELD = 256 * 2**20

_IMAGES = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
_RESPONSES = pa.list_(
    pa.struct(
        {
            "text": pa.string(),
            "source": pa.string(),
            "token_ids": pa.list_(pa.int32()),
            "score": pa.float64(),
            "provenance": pa.string(),
        }
    )
)
_PREFERENCES = pa.list_(pa.struct({"chosen": pa.int32(), "rejected": pa.int32(), "weight": pa.float64()}))
_COLUMNS = {
    "images": _IMAGES,
    "prompt": _MESSAGES,
    "chosen": _MESSAGES,
    "rejected": _MESSAGES,
    "id": pa.string(),
    "reference": pa.string(),
    "meta": pa.string(),
    "responses": _RESPONSES,
    "preferences": _PREFERENCES,
}
# Of how the rejected response was made; files without them are read too.
_MADE = {
    "iteration": pa.int32(),
    "similarity": pa.float64(),
    "cuts": pa.list_(pa.int32()),
    "mask_seed": pa.int64(),
}
# What repeats other columns, for readers that know only these.
_REPEATED = {"chosen", "rejected", *_MADE}


def _feature(kind: pa.DataType) -> Any:
    """The type in the words of `datasets`, which needs them to see a column of images as images."""
    if kind.equals(_IMAGES):
        return [{"_type": "Image"}]
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        return {part.name: _feature(part.type) for part in kind}
    names = {pa.string(): "string", pa.int32(): "int32", pa.int64(): "int64", pa.float64(): "float64"}
    return {"dtype": names[kind], "_type": "Value"}


_FEATURES = {name: _feature(kind) for name, kind in {**_COLUMNS, **_MADE}.items()}
_SCHEMA = pa.schema(
    {**_COLUMNS, **_MADE}, metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})}
)
# Of a set that refers to its images: where each lies (JSON), null where the file holds it.
_PLACED = pa.schema({**_COLUMNS, **_MADE, "place": pa.string()})


def write_groups(path: str | Path, groups: Iterable[Group], *, refer: bool = False) -> None:
    """Writes all Groups or nothing: into a temporary file beside `path`, which then takes its name.

    `refer`: images that have a `place` on this machine are named and not copied.
    """
    path, schema = Path(path), _PLACED if refer else _SCHEMA
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                source = iter(groups)
                while rows := [to_row(group, refer) for group in islice(source, ROWS)]:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_groups(path: str | Path) -> list[Group]:
    """The Groups that `write_groups` wrote, in their order. Raises BadDataError for any other file."""
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise BadDataError(
                    f"{path} has no column {', '.join(missing)}: mllm-align did not write it. "
                    "Read it with dataset=local dataset.path=..."
                )
            held = sum(column_bytes(file, "images", g) for g in range(file.num_row_groups)) <= HELD
            with uncollected():
                return list(_groups(file) if held else _lazy_groups(file, str(path)))
    except pa.ArrowInvalid as error:
        raise BadDataError(f"{path} is not a whole Parquet file ({error}). Make it again.") from None


def is_ours(columns: Iterable[str]) -> bool:
    """Whether a file with these columns was written by `write_groups`."""
    return set(_COLUMNS) <= set(columns)


def to_row(group: Group, refer: bool = False) -> dict[str, Any]:
    """One row of the file; `chosen` and `rejected` are empty where nothing is preferred."""
    best = group.preferences[0] if group.preferences else None
    example = group.example
    place = getattr(example.image, "place", None) if refer else None
    return {
        "images": [{"bytes": None if place else encode(example.image), "path": example.image.key}],
        "place": _json(place) if place else None,
        "prompt": [{"role": "user", "content": example.prompt}],
        "chosen": _answer(group.responses[best.chosen]) if best else None,
        "rejected": _answer(group.responses[best.rejected]) if best else None,
        "id": example.id,
        "reference": example.reference,
        "meta": _json(example.meta),
        "responses": [
            {
                "text": r.text,
                "source": r.source,
                "token_ids": r.token_ids,
                "score": r.score,
                "provenance": None if r.provenance is None else _json(r.provenance),
            }
            for r in group.responses
        ],
        "preferences": [
            {"chosen": p.chosen, "rejected": p.rejected, "weight": p.weight} for p in group.preferences
        ],
        **_made(group.responses[best.rejected] if best else None),
    }


def _made(rejected: Response | None) -> dict[str, Any]:
    said = (rejected.provenance if rejected else None) or {}
    return {name: said.get(name) for name in _MADE}


def from_row(row: Mapping[str, Any], image: ImageRef) -> Group:
    """The inverse of `to_row`."""
    example = Example(
        row["id"], image, row["prompt"][0]["content"], row["reference"], json.loads(row["meta"] or "{}")
    )
    responses = tuple(
        Response(
            r["text"],
            r["source"],
            None if r["token_ids"] is None else tuple(r["token_ids"]),
            r["score"],
            json.loads(said) if (said := r.get("provenance")) is not None else None,
        )
        for r in row["responses"]
    )
    preferences = tuple(Preference(p["chosen"], p["rejected"], p["weight"]) for p in row["preferences"])
    return Group(example, responses, preferences)


def encode(image: ImageRef) -> bytes:
    """The image's own bytes where it has them, else a PNG of its pixels."""
    encoded = getattr(image, "encoded", None)
    if encoded is not None:
        return encoded()
    buffer = io.BytesIO()
    image.load().save(buffer, "PNG")
    return buffer.getvalue()


def _groups(file: pq.ParquetFile) -> Iterator[Group]:
    shared: dict[str, BytesImage] = {}  # many prompts may ask about one image: keep its bytes once
    columns = [name for name in file.schema_arrow.names if name not in _REPEATED]
    for batch in file.iter_batches(batch_size=ROWS, columns=columns):
        for row in batch.to_pylist():
            (picture,) = row["images"]
            if place := row.get("place"):
                yield from_row(row, from_place(json.loads(place)))
                continue
            image = BytesImage(picture["bytes"], picture["path"])
            known = shared.setdefault(image.key, image)
            yield from_row(row, known if known == image else image)


def _lazy_groups(file: pq.ParquetFile, path: str) -> Iterator[Group]:
    """Without the images' bytes, which each image reads from its row when it is loaded."""
    names = [file.schema.column(i).path for i in range(len(file.schema))]
    wanted = [
        name
        for name in names
        if name.split(".")[0] not in _REPEATED
        and not (name.startswith("images.") and name.endswith(".bytes"))
    ]
    for number in range(file.num_row_groups):
        rows = file.read_row_group(number, columns=wanted).to_pylist()
        for index, row in enumerate(rows):
            place, key = row.get("place"), row["images"][0]["path"]
            image = RowImage(path, "images", number, index, key, refer=False)
            yield from_row(row, from_place(json.loads(place)) if place else image)


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(dict(record), ensure_ascii=False, allow_nan=False)


def _answer(response: Response) -> Sequence[Mapping[str, str]]:
    return [{"role": "assistant", "content": response.text}]

"""Reads an offline W&B run: LevelDB log framing around protobuf records (W&B ships no reader for Python)."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # a record's header: checksum (4), length (2), kind (1); it never spans two blocks


@dataclass(frozen=True)
class OfflineRun:
    run: Any
    config: dict
    history: list[dict]
    summary: dict
    exit_code: int | None
    folder: Path
    artifact: dict[
        str, Path
    ]  # the files that a table's images went into: name -> where it waits for an upload

    def table(self, name: str) -> dict:
        """A logged table: {columns, data}."""
        path = next(row[name] for row in self.history if name in row)["path"]
        return json.loads((self.folder / "files" / path).read_text())


def frames(data: bytes) -> Iterator[bytes]:
    """The payloads; what was split is put together (kinds: 1 whole, 2 first, 3 middle, 4 last)."""
    at, parts = HEADER, b""  # the file's own header: ":W&B", magic, version
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            yield parts
            parts = b""


def read_offline(folder: Path) -> OfflineRun:
    """The only offline run of a run folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    records = []
    for payload in frames(path.read_bytes()):
        record = Record()
        record.ParseFromString(payload)
        records.append(record)
    summary: dict = {}
    for record in records:
        summary |= items(record.summary.update)
    return OfflineRun(
        run=next(record.run for record in records if record.WhichOneof("record_type") == "run"),
        config=next(items(record.run.config.update) for record in records if record.HasField("run")),
        history=[items(record.history.item) for record in records if record.HasField("history")],
        summary=summary,
        exit_code=next((record.exit.exit_code for record in records if record.HasField("exit")), None),
        folder=path.parent,
        artifact={
            entry.path: Path(entry.local_path)
            for record in records
            if record.HasField("artifact")
            for entry in record.artifact.manifest.contents
        },
    )


def items(pairs: Any) -> dict:
    found: dict = {}
    for pair in pairs:
        *path, last = [pair.key] if pair.key else pair.nested_key
        inner = found
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = json.loads(pair.value_json)
    return found

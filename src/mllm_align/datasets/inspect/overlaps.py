"""Images that a set shares with a benchmark: by COCO's number or file name, and by content where files are at hand.

A benchmark is a file of questions (JSON or JSON lines), a folder of images, or a folder with both. Names are what
looks like an image file in the questions, or COCO's number in `image_id`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mllm_align.datasets.images import SUFFIXES
from mllm_align.datasets.inspect.seen import Seen
from mllm_align.datasets.published.pictures import coco_id, picture_name
from mllm_align.records import Group

QUESTIONS = {".json", ".jsonl"}
ANNOTATION_BYTES = 64 * 2**20  # larger files are annotations of all of COCO and not a benchmark's questions


@dataclass
class Images:
    """A benchmark's images: file names, COCO numbers, and files whose contents can be compared."""

    names: set[str] = field(default_factory=set)
    coco: set[int] = field(default_factory=set)
    files: list[Path] = field(default_factory=list)

    def add(self, name: str) -> None:
        number = coco_id(name)
        if number is None:
            self.names.add(PurePosixPath(name).name)
        else:
            self.coco.add(number)


def benchmark_images(path: Path) -> Images | None:
    """The images of a benchmark at `path`; None where nothing is there."""
    if not path.exists():
        return None
    found = Images()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix.lower() in SUFFIXES:
            found.files.append(file)
            found.add(file.name)
        elif file.suffix.lower() in QUESTIONS and file.stat().st_size <= ANNOTATION_BYTES:
            for value in _values(file):
                _collect(value, found)
    return found


def overlaps(
    groups: Sequence[Group], seen: Mapping[str, Seen], benchmarks: Mapping[str, Images | None]
) -> dict[str, Any]:
    """For every benchmark the images shared by name and by content, and the rows about them; None: not at hand."""
    names = {group.example.image.key: picture_name(group.example) for group in groups}
    numbers = {key: coco_id(name) for key, name in names.items()}
    report: dict[str, Any] = {}
    for name, images in benchmarks.items():
        if images is None:
            report[name] = None
            continue
        named = {
            key
            for key in names
            if (numbers[key] in images.coco if numbers[key] is not None else names[key] in images.names)
        }
        digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in images.files}
        alike = {key for key, image in seen.items() if image.digest in digests}
        shared = named | alike
        report[name] = {
            "images": len(images.names | {str(number) for number in images.coco}),
            "shared by name": len(named),
            "shared by content": len(alike) if images.files else None,
            "rows": sum(group.example.image.key in shared for group in groups),
            "such as": sorted(shared)[:5],
        }
    return report


def _values(file: Path) -> Iterator[Any]:
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    try:
        yield json.loads(text)
    except ValueError:
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _collect(value: Any, found: Images, name: str = "") -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _collect(inner, found, str(key))
    elif isinstance(value, list):
        for inner in value:
            _collect(inner, found, name)
    elif isinstance(value, str) and PurePosixPath(value).suffix.lower() in SUFFIXES and len(value) < 300:
        found.add(value.rsplit("/", 1)[-1])
    elif isinstance(value, int) and not isinstance(value, bool) and name == "image_id":
        found.coco.add(value)

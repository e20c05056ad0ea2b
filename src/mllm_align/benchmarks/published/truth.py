"""Which COCO objects an image has, for the scorers that count objects in descriptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_align.benchmarks.base import Prediction
from mllm_align.benchmarks.published.answers import AnswerFileError, coco_id, read_text
from mllm_align.benchmarks.published.coco import Table

OBJECTS = "coco2014_chair_gt_objects.json"
PARTS = ("train2014", "val2014")


@dataclass(frozen=True)
class Truth:
    """COCO id -> classes, and in words where they come from."""

    objects: Mapping[str, Sequence[str]]
    source: str

    def of(self, image: str) -> list[str]:
        """The classes of an image, sorted. Raises AnswerFileError where nothing is known of it."""
        found = self.objects.get(coco_id(image))
        if found is None:
            raise AnswerFileError(
                f"no objects are known of image {image}: {self.source} does not have it. Only images of COCO 2014 "
                "(train and val) can be counted"
            )
        return sorted(found)


def truth_of(
    rows: Sequence[Prediction],
    *,
    objects: str | None,
    file: Path | None,
    file_first: bool,
    annotations: str | None,
    table: Table,
    tokens: Callable[[str], Iterable[str]],
) -> Truth:
    """The objects of the images of these rows, from the first of these that has them.

    `objects`, a file that is named; `file`, all of COCO in the original variant, if `file_first`; COCO's `annotations`,
    counted by `tokens`; what the answer file has in all its rows; `file` at last. Raises FileNotFoundError.
    """
    if objects is not None:
        return read_objects(Path(objects).expanduser())
    if file is not None and file_first:
        return read_objects(file)
    if annotations is not None:
        images = {coco_id(row["image"]) for row in rows}
        if (found := annotated_objects(Path(annotations).expanduser(), images, table, tokens)) is not None:
            return found
    if all(row.get("file_objects") is not None for row in rows):
        return Truth({coco_id(row["image"]): row["file_objects"] for row in rows}, "of the answer file")
    if file is not None:
        return read_objects(file)
    raise FileNotFoundError(
        f"the objects of the images are unknown: there is neither {OBJECTS}.gz in the benchmark's folder nor COCO "
        f"2014's instances_val2014.json and captions_val2014.json in {annotations}"
    )


def objects_file(folder: Path) -> Path | None:
    """The file of all of COCO 2014's objects as the original variant counts them, where the folder has it."""
    return next((folder / name for name in (f"{OBJECTS}.gz", OBJECTS) if (folder / name).is_file()), None)


def read_objects(file: Path) -> Truth:
    """Objects from a JSON file (.gz too): COCO id -> classes, or the result of a CHAIR script.

    Raises FileNotFoundError, and AnswerFileError for other contents.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.name} is not in {file.parent}: it should hold the objects of each image"
        )
    value = json.loads(read_text(file))
    if isinstance(value, dict) and isinstance(value.get("sentences"), list):
        value = {str(one["image_id"]): one.get("mscoco_gt_words") for one in value["sentences"]}
    if not isinstance(value, dict) or not all(isinstance(names, list) for names in value.values()):
        raise AnswerFileError(f"{file.name} should hold a list of classes for each image's number")
    return Truth(value, f"{file.name} (original variant)" if file.name.startswith(OBJECTS) else file.name)


def annotated_objects(
    annotations: Path, images: Collection[str], table: Table, tokens: Callable[[str], Iterable[str]]
) -> Truth | None:
    """Classes of COCO's instances, and those that its five captions name; None where the files are not there.

    `annotations` is COCO's folder with {instances,captions}_{train,val}2014.json, `tokens` what a caption is
    looked up by. Both parts that are there are read.
    """
    parts = [part for part in PARTS if (annotations / f"instances_{part}.json").is_file()]
    if not parts:
        return None
    found: dict[str, set[str]] = {image: set() for image in images}
    for part in parts:
        instances = _load(annotations / f"instances_{part}.json")
        names = {category["id"]: category["name"] for category in instances["categories"]}
        for one in instances["annotations"]:
            if (image := str(one["image_id"])) in found:
                found[image].add(table.classes[names[one["category_id"]]])
        for one in _load(annotations / f"captions_{part}.json")["annotations"]:
            if (image := str(one["image_id"])) in found:
                found[image] |= {name for _, name in table.named(list(tokens(one["caption"])))}
    objects = {image: sorted(names) for image, names in found.items() if names}
    return Truth(objects, f"COCO's instances and captions of {' and '.join(parts)}")


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file.name} is not in {file.parent}: it belongs to COCO 2014's annotations")
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise AnswerFileError(f"{file.name} is not JSON ({error}); download it again") from None

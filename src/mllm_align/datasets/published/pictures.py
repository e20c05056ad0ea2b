"""Finds the images that rows name, in folders and zip archives, by one listing each.

A published file may hold a bare name, a path that begins with a folder of its authors' machine, or COCO's name of
another year (COCO_train2014_000000000009.jpg and 000000000009.jpg are the same picture: all of train2014 is in
train2017). Tried are, in this order and each in every place: the path as it is, its bare name, COCO's other names.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mllm_align.datasets.errors import BadDataError, Fault
from mllm_align.datasets.fields import image_ref
from mllm_align.datasets.hub import HUB, resolve
from mllm_align.datasets.images import BytesImage, FileImage, check
from mllm_align.datasets.places import RowImage, ZipImage
from mllm_align.records import Example

COCO = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})(\.jpe?g)")
BARE_NAME = "images found by their bare name, without the folders that rows name"
OTHER_NAME = "images found under COCO's name of another year"
Picture = FileImage | ZipImage | RowImage | BytesImage


class Pictures:
    """The images of a set. `notes` counts those found under another name; `whole` has each looked at."""

    def __init__(self, places: Sequence[str], whole: bool = False) -> None:
        self.asked = list(places)
        self.places = [_Zip(p) if p.suffix == ".zip" else _Folder(p) for p in _there(places)]
        self.whole = whole
        self.notes: Counter[str] = Counter()
        self._known: dict[str, Picture | Fault] = {}
        self._bare: dict[Picture, str] = {}  # found by their bare name -> the name that was asked for

    def find(self, value: Any) -> Picture:
        """The image of a row's field: a name, a RowImage, bytes or a data URI. Raises Fault."""
        if isinstance(value, RowImage) or not isinstance(value, str) or value.startswith("data:"):
            given = value if isinstance(value, RowImage) else _held(value)
            self._look_at(given)
            return given
        if value not in self._known:
            try:
                image = self._named(value)
                self._look_at(image)
                self._known[value] = image
            except Fault as fault:
                self._known[value] = fault
        known = self._known[value]
        if isinstance(known, Fault):
            raise known
        return known

    def _named(self, value: str) -> FileImage | ZipImage:
        asked = value.replace("\\", "/")
        for name in candidates(value):
            for place in self.places:
                if (image := place.get(name)) is not None:
                    if _last(name) != _last(asked):
                        self.notes[OTHER_NAME] += 1
                    elif name != PurePosixPath(asked).as_posix():
                        self._without_folders(image, asked)
                    return image
        if not self.places:
            raise Fault(
                "image",
                f"{value} is not there: none of the places of the images is ({_list(self.asked)})",
                "Put the images there, or set dataset.images to the folders or zip files that hold them",
            )
        raise Fault(
            "image",
            f"{value} is not in {_list([str(place.path) for place in self.places])}",
            "Put the image there, or set dataset.images to the folders or zip files that hold them",
        )

    def _without_folders(self, image: FileImage | ZipImage, asked: str) -> None:
        """Counts an image that was found by its bare name. Raises Fault where that is another row's image, too."""
        self.notes[BARE_NAME] += 1
        first = self._bare.setdefault(image, asked)
        if PurePosixPath(first) != PurePosixPath(asked) and coco_id(asked) is None:
            raise Fault(
                "image",
                f"{asked} and {first} are both found as {image.key}: the folders in these names are not there",
                "Set dataset.images to the folder that the names start from",
            )

    def _look_at(self, image: Picture) -> None:
        if not self.whole:
            return
        check(BytesImage(image.encoded(), image.key) if isinstance(image, ZipImage | RowImage) else image)


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def candidates(value: str) -> Iterator[str]:
    """The names that an image may have below a place; the first is nearly always the one."""
    path = PurePosixPath(value.replace("\\", "/"))
    if not path.is_absolute() and ".." not in path.parts:
        yield path.as_posix()
    if path.name:
        yield path.name
    if coco := COCO.fullmatch(path.name):
        number, suffix = coco.groups()
        yield from (f"{year}{number}{suffix}" for year in ("", "COCO_train2014_", "COCO_val2014_"))


def picture_name(example: Example) -> str:
    """The file name of an Example's picture: of a picture that lies in a Parquet file, the one that its row gives."""
    return PurePosixPath(str(example.meta.get("image_path") or example.image.key)).name


def coco_id(name: str) -> int | None:
    """The COCO number in an image's name; None where it is no COCO name."""
    found = COCO.fullmatch(PurePosixPath(name.replace("\\", "/")).name)
    return int(found.group(1)) if found else None


class _Folder:
    """A folder; each folder below it is listed once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listed: dict[str, frozenset[str]] = {}

    def get(self, name: str) -> FileImage | None:
        below, _, last = name.rpartition("/")
        if below not in self._listed:
            try:
                names = frozenset(os.listdir(self.path / below))
            except OSError:
                names = frozenset()
            self._listed[below] = names
        return FileImage(str(self.path), name, refer=True) if last in self._listed[below] else None


class _Zip:
    """A zip archive; members are found by their path or, where it is the only one, by their bare name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = [name for name in archive.namelist() if not name.endswith("/")]
        except (OSError, zipfile.BadZipFile) as error:
            raise BadDataError(f"{path} is not a whole zip file ({error}). Get a whole copy of it.") from None
        members = [name for name in members if not name.startswith("__MACOSX/")]
        bare = Counter(name.rpartition("/")[2] for name in members)
        self._members = {name: name for name in members}
        for name in members:
            last = name.rpartition("/")[2]
            if bare[last] == 1:
                self._members.setdefault(last, name)

    def get(self, name: str) -> ZipImage | None:
        member = self._members.get(name)
        return None if member is None else ZipImage(str(self.path), member)


def _there(places: Sequence[str]) -> list[Path]:
    paths = [resolve(str(place), "dataset.images") for place in places]
    wrong = [path for path in paths if path.is_file() and path.suffix != ".zip"]
    if wrong:
        raise BadDataError(f"dataset.images: {wrong[0]} is neither a folder nor a .zip file.")
    return [path for path in paths if path.exists()]


def _held(value: Any) -> BytesImage:
    image = image_ref(value, Path())
    if not isinstance(image, BytesImage):
        raise Fault("image", "names a file in an object", "Give the name alone")
    return image


def _list(places: Sequence[str]) -> str:
    return ", ".join(places) or f"dataset.images is empty; it may name folders, zip files and {HUB} paths"

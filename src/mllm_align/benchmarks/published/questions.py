"""Where the images of questions are, and whether they are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mllm_align.benchmarks.published.answers import read_rows
from mllm_align.datasets.images import FileImage
from mllm_align.records import Example

SHOWN = 3


def image_in(folder: str, name: str) -> FileImage:
    """The image of this name below a folder; read when it is asked for."""
    return FileImage(str(Path(folder).expanduser()), name)


def check_images(examples: Iterable[Example]) -> None:
    """Raises FileNotFoundError that names the images which are not there, before a model is loaded for them."""
    missing: dict[str, str] = {}
    for example in examples:
        image = example.image
        if isinstance(image, FileImage) and not (Path(image.root) / image.path).is_file():
            missing.setdefault(image.path, image.root)
    if missing:
        names = ", ".join(list(missing)[:SHOWN])
        more = ", ..." if len(missing) > SHOWN else ""
        raise FileNotFoundError(
            f"{len(missing)} images of the questions are missing ({names}{more}); they "
            f"should be in {next(iter(missing.values()))}. Put them there, or set the benchmark's folder of images"
        )


def found(folder: str, names: Sequence[str], source: str) -> Path:
    """The first of these files that the folder has. Raises FileNotFoundError, saying where it comes from."""
    for name in names:
        file = Path(folder).expanduser() / name
        if file.is_file():
            return file
    raise FileNotFoundError(f"{' or '.join(names)} is not in {folder}: {source}")


def rows_of(folder: str, names: Sequence[str], source: str) -> list[dict[str, Any]]:
    """The rows of the first of these files. Raises FileNotFoundError, or AnswerFileError for a damaged one."""
    return read_rows(found(folder, names, source))

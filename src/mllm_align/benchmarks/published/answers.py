"""Answer files of others: whatever JSON they are, one `Answer` a row.

Read are JSON Lines (also where the name says .json), a JSON list, a JSON object of id -> answer, and the objects
that hold a list under "sentences", "data", "results", "answers" or "annotations". The names of fields differ from
project to project; the first one of ID, IMAGE, PROMPT and TEXT that a row has counts. A log of samples of
lmms-eval is read as the question in its "doc" and its filtered answer.
"""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

ID = ("question_id", "questionId", "id", "qid", "idx", "index")
IMAGE = (
    "image_id",
    "image",
    "img_id",
    "image_path",
    "img_path",
    "image_file",
    "file_name",
    "image_source",
    "imagename",
    "img",
)
PROMPT = ("prompt", "question", "query", "instruction", "input")
# The names that can only be a model's answer come first: some rows hold the true one as "answer" beside it.
TEXT = (
    "model_answer",
    "model_prediction",
    "prediction",
    "pred",
    "predict",
    "model_response",
    "response",
    "generated_text",
    "outputs",
    "output",
    "caption",
    "text",
    "answer",
)
LISTS = ("sentences", "data", "results", "answers", "annotations")


class AnswerFileError(ValueError):
    """An answer file that can't be scored; says the file, the row and the remedy."""


@dataclass(frozen=True)
class Answer:
    """One answer. `place` is the file and row for messages, `file` its name, `row` all that the row holds."""

    text: str
    place: str
    file: str
    id: str | None
    image: str | None
    prompt: str | None
    row: Mapping[str, Any]


def answer_files(predictions: str | Sequence[str]) -> list[Path]:
    """The files that `predictions` names: a path, a pattern (`run*.jsonl`), or a list of those, in order.

    Raises AnswerFileError for one that is not there.
    """
    named = [predictions] if isinstance(predictions, str) else list(predictions)
    found: list[Path] = []
    for name in named:
        path = Path(name).expanduser()
        matches = [path] if path.is_file() else [Path(match) for match in sorted(glob.glob(str(path)))]
        if not matches:
            raise AnswerFileError(
                f"{name}: no such answer file; predictions=... names a file, a pattern or a list"
            )
        found += matches
    return found


def read_answers(files: Iterable[Path]) -> list[Answer]:
    """Every row of the files that holds an answer, in order. Raises AnswerFileError."""
    return [
        as_answer(row, file.name, number) for file in files for number, row in enumerate(read_rows(file), 1)
    ]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSON or JSON Lines file (.gz too) as objects. Raises AnswerFileError naming file and row."""
    text = read_text(file)
    try:
        return _rows(json.loads(text), file)
    except json.JSONDecodeError:
        pass
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            rows.append(_row(_loads(line, file, number), file, number))
    if not rows:
        raise AnswerFileError(f"{file.name} is empty; it should hold one answer a row")
    return rows


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark; a name that ends in .gz is unpacked."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnswerFileError(f"{file.name} is not UTF-8 text ({error}); save it as UTF-8") from None


def as_answer(row: Mapping[str, Any], file: str, number: int) -> Answer:
    """The row with its fields named. Raises AnswerFileError where no field holds an answer."""
    row = _from_lmms_eval(row)
    place = f"{file}, row {number}"
    name = next((name for name in TEXT if row.get(name) is not None), None)
    if name is None:
        raise AnswerFileError(f"{place}: no answer; one of the fields {', '.join(TEXT)} should hold it")
    meta = row["metainfos"] if isinstance(row.get("metainfos"), Mapping) else {}
    image = first(row, IMAGE) or first(meta, IMAGE)
    prompt = first(row, PROMPT)
    return Answer(as_text(row[name], place), place, file, first(row, ID), image, prompt, row)


def as_text(value: Any, place: str) -> str:
    """An answer as a string: a list of one is unwrapped, a number is written out. Raises AnswerFileError."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise AnswerFileError(f"{place}: the answer is {json.dumps(value)[:60]}; it should be one text")


def first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of these fields that holds a string or a number, as a string."""
    for name in names:
        value = row.get(name)
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def stem(image: str) -> str:
    """The name of an image without folders and ending: "a/COCO_val2014_000000310196.jpg" -> "COCO_val..."."""
    return PurePosixPath(image.replace("\\", "/")).stem


def coco_id(image: str) -> str:
    """The number of a COCO image as COCO writes it: "COCO_val2014_000000310196.jpg" or 310196 -> "310196".

    Raises ValueError where the name ends in no number.
    """
    digits = stem(image).rpartition("_")[2]
    if not digits.isdecimal():
        raise ValueError(f"{image!r} does not name a COCO image: its name should end in the image's number")
    return str(int(digits))


def _rows(value: Any, file: Path) -> list[dict[str, Any]]:
    if isinstance(value, Mapping):
        for name in LISTS:
            if isinstance(value.get(name), list):
                return _rows(value[name], file)
        row = any(name in value for name in TEXT)  # a file of one line
        if value and not row and all(isinstance(one, str | Mapping) for one in value.values()):
            named = ((name, {"text": one} if isinstance(one, str) else one) for name, one in value.items())
            return [{"id": name, **one} for name, one in named]
        value = [value]
    if not isinstance(value, list):
        raise AnswerFileError(f"{file.name} holds {type(value).__name__}; it should hold a list of answers")
    if not value:
        raise AnswerFileError(f"{file.name} is empty; it should hold one answer a row")
    return [_row(one, file, number) for number, one in enumerate(value, 1)]


def _row(value: Any, file: Path, number: int) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, Mapping):
        raise AnswerFileError(f"{file.name}, row {number}: holds {type(value).__name__} instead of an object")
    return dict(value)


def _loads(line: str, file: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise AnswerFileError(
            f"{file.name}, line {number}: not JSON ({error}); repair or remove the line"
        ) from None


def _from_lmms_eval(row: Mapping[str, Any]) -> Mapping[str, Any]:
    doc, said = row.get("doc"), row.get("filtered_resps", row.get("resps"))
    if not isinstance(doc, Mapping) or said is None:
        return row
    asked = {name: value for name, value in doc.items() if name not in TEXT}
    return {**asked, "prediction": said}

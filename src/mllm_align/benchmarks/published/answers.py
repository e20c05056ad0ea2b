"""Answer files of others: whatever JSON they are, or a CSV or TSV table, one `Answer` a row.

Read are JSON Lines (also where the name says .json), a JSON list, a JSON object of id -> answer, and the objects
that hold one of these under a name of LISTS. The names of fields differ from project to project, and so does their
case; the first one of ID, IMAGE, PROMPT and TEXT that a row has counts. A log of samples of lmms-eval is read as its
filtered answer and what it tells of the question.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

ID = ("question_id", "questionid", "id", "qid", "idx", "index")
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
    "pred_answer",
    "predicted_answer",
    "model_response",
    "response",
    "model_output",
    "generated_text",
    "generated_answer",
    "outputs",
    "output",
    "caption",
    "text",
    "answer",
)
# These may be the question's or its true answer, where a field with a name like that of a model's answer is there, too.
UNSURE = ("caption", "text", "answer")
LIKE_AN_ANSWER = re.compile("predict|respon|output|generat|completion|hypothes")
LISTS = ("sentences", "data", "results", "answers", "annotations", "logs", "imgToEval")
SPACE = re.compile(r"\s*")
TABLES = {".csv": ",", ".tsv": "\t"}


class AnswerFileError(ValueError):
    """An answer file that can't be scored; says the file, the row and the remedy."""


@dataclass(frozen=True)
class Answer:
    """One answer. `place` is the file and row for messages, `file` its name, `row` all that the row holds.

    `field` is the row's field that holds the answer.
    """

    text: str
    field: str
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
        matches = [path] if path.is_file() else map(Path, sorted(glob.glob(str(path))))
        matches = [match for match in matches if match.is_file()]
        if not matches:
            raise AnswerFileError(
                f"{name}: {'a folder' if path.is_dir() else 'no such answer file'}; predictions=... names a file, a "
                "pattern (folder/*.jsonl) or a list"
            )
        found += matches
    return found


def read_answers(files: Iterable[Path]) -> list[Answer]:
    """Every row of the files that holds an answer, in order. Raises AnswerFileError."""
    answers: list[Answer] = []
    for file in files:
        own = [as_answer(row, file.name, number) for number, row in enumerate(read_rows(file), 1)]
        refuse_empty(own)
        answers += own
    return answers


def refuse_empty(answers: Sequence[Answer]) -> None:
    """Raises AnswerFileError where every answer of a file is empty: a template that was not filled in, say."""
    if answers and not any(answer.text.strip() for answer in answers):
        raise AnswerFileError(
            f"{answers[0].file}: the field {answers[0].field} is empty in all {len(answers)} rows; fill in the answers"
        )


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSON, JSON Lines, CSV or TSV file (.gz too), logs of samples of lmms-eval by their doc_id.

    Raises AnswerFileError naming file and row.
    """
    rows = _read(file)
    logged = all(isinstance(row.get("doc_id"), int) for row in rows)  # several processes wrote them in turn
    return sorted(rows, key=lambda row: row["doc_id"]) if logged else rows


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark; a name that ends in .gz is unpacked."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return data.decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise AnswerFileError(
            f"{file.name} is not UTF-8 text ({error}); save it as UTF-8, a spreadsheet as .csv"
        ) from None


def as_answer(row: Mapping[str, Any], file: str, number: int) -> Answer:
    """The row with its fields named. Raises AnswerFileError where no field holds an answer, or two may."""
    place = f"{file}, row {number}"
    fields = {**{name.lower(): value for name, value in row.items()}, **row}
    named = [name for name in TEXT if name in fields]
    field = next((name for name in named if fields[name] is not None), None)
    if not named:
        raise AnswerFileError(f"{place}: no answer; one of the fields {', '.join(TEXT)} should hold it")
    if field is None or (field in UNSURE and named[0] not in UNSURE):
        raise AnswerFileError(f"{place}: no answer; {named[0]} is null. Answer it, or take the row out")
    prompt = first(fields, PROMPT)
    if field == "text" and prompt is None and fields.get("answer") is not None and "?" in str(fields["text"]):
        field = "answer"  # the questions' own file, filled in
    if prompt is None and field != "text":
        prompt = first(fields, ("text",))
    alike = [n for n in row if LIKE_AN_ANSWER.search(n.lower()) and isinstance(row[n], str)]
    if field in UNSURE and alike:
        raise AnswerFileError(
            f"{place}: {field} or {' or '.join(alike)} may be the model's answer; name it prediction"
        )
    meta = fields["metainfos"] if isinstance(fields.get("metainfos"), Mapping) else {}
    image = first(fields, IMAGE) or first(meta, IMAGE)
    return Answer(as_text(fields[field], place), field, place, file, first(fields, ID), image, prompt, row)


def as_text(value: Any, place: str) -> str:
    """An answer as a string: a list of one is unwrapped, a number is written out. Raises AnswerFileError."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    raise AnswerFileError(f"{place}: the answer is {json.dumps(value)[:60]}; it should be one text")


def first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of these fields that holds a string or a number, as a string."""
    for name in names:
        value = row.get(name)
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        if (
            isinstance(value, float) and value.is_integer()
        ):  # a column of numbers with a gap, written by pandas
            value = int(value)
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


def _read(file: Path) -> list[dict[str, Any]]:
    text = read_text(file)
    named = file.with_suffix("") if file.suffix == ".gz" else file
    if delimiter := TABLES.get(named.suffix.lower()):
        return _table(text, delimiter, file)
    try:
        return _rows(json.loads(text), file)
    except json.JSONDecodeError:
        pass
    return _rows(list(_values(text, file)), file)


def _rows(value: Any, file: Path) -> list[dict[str, Any]]:
    if isinstance(value, Mapping):
        row = any(name in value for name in TEXT)  # a file of one line
        for name in LISTS:
            if not row and isinstance(value.get(name), list | Mapping):
                return _rows(value[name], file)
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
    return _from_lmms_eval(value)


def _table(text: str, delimiter: str, file: Path) -> list[dict[str, Any]]:
    """The rows of a table whose first line names the columns. Raises AnswerFileError."""
    lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        for row in lines:
            if None in row:
                raise csv.Error("more cells than columns: quote a text that holds the sign between cells")
            rows.append(dict(row))
    except csv.Error as error:
        raise AnswerFileError(
            f"{file.name}, row {len(rows) + 1}: not a row of the table ({error}); repair it, or drop columns of images"
        ) from None
    if not rows:
        raise AnswerFileError(
            f"{file.name} is empty; below the names of columns there should be a row an answer"
        )
    return rows


def _values(text: str, file: Path) -> Iterator[Any]:
    """JSON values one after the other: JSON Lines, also with line breaks inside an object."""
    at = len(text) - len(text.lstrip())
    while at < len(text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except json.JSONDecodeError as error:
            line = text.count("\n", 0, error.pos) + 1
            raise AnswerFileError(
                f"{file.name}, line {line}: not JSON ({error.msg}); repair or remove the line"
            ) from None
        yield value
        at = SPACE.match(text, end).end()  # type: ignore[union-attr]


def _from_lmms_eval(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of its log of samples with what it says of the question beside it.

    That is "doc" in older logs; later ones have the prompt as "input", and numbers in the objects of the metrics.
    """
    said = row.get("filtered_resps", row.get("resps"))
    if said is None or "doc_id" not in row:
        return dict(row)
    told: dict[str, Any] = {}
    for part in [row["doc"]] if isinstance(row.get("doc"), Mapping) else row.values():
        told |= part if isinstance(part, Mapping) else {}
    asked = {name: value for name, value in told.items() if name not in TEXT}
    return {"input": row.get("input"), **asked, "doc_id": row["doc_id"], "prediction": said}

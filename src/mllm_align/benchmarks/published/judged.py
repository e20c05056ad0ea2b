"""Files of a judged benchmark: answers, judgements of them, or both together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_align.benchmarks.published import result
from mllm_align.benchmarks.published.answers import TEXT, UNSURE, Answer, as_answer, read_rows, refuse_empty
from mllm_align.benchmarks.published.joining import Way, accept, by_order, join
from mllm_align.benchmarks.published.judge import Judgement
from mllm_align.records import Example

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """How judgements look: whether a row is one, what it says (a judgement for each run), and its name in messages.

    `in_order`: the n-th judgement is of the n-th question, whatever it says.
    """

    benchmark: str
    name: str
    is_one: Callable[[Row], bool]
    read: Callable[[Row, str], list[Judgement]]
    in_order: bool = False


def read(
    files: Sequence[Path], questions: Sequence[Example], ways: Sequence[Way], form: Format, partial: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Prediction rows in the order of the questions, and how each file was joined.

    A file of judgements is a run (or several) of the judge. Judgements leave the answers empty unless they, or another
    file, hold them. Rows that `mllm-align` wrote keep the judgements that they hold.
    """
    rows: dict[str, dict[str, Any]] = {}
    made: dict[str, list[Judgement]] = {}
    told: dict[str, Any] = {}
    for file in files:
        given = [_given(row, form, file.name, number) for number, row in enumerate(read_rows(file))]
        refuse_empty([one.answer for one in given if one.says])
        said = {one.answer.place: one for one in given}
        answers = [one.answer for one in given]
        all_ways = [*ways, by_order(questions, answers)]
        joined = accept(join(questions, answers, all_ways), partial, f"{form.benchmark}, {file.name}")
        report = joined.report()
        if not any(one.says for one in given):
            report.pop("answers in")
        told[file.name] = {"holds": _holds(given, form.name), **report}
        for number in sorted(joined.answers):
            question, one = questions[number], said[joined.answers[number].place]
            if one.says:
                rows[question.id] = result.row_of(question, one.answer.text)
            rows.setdefault(question.id, result.row_of(question, ""))
            made.setdefault(question.id, []).extend(one.judgements)
    kept = [rows[q.id] for q in questions if q.id in rows]
    return [{**row, "judgements": made[row["id"]]} if made.get(row["id"]) else row for row in kept], told


@dataclass(frozen=True)
class _Given:
    """A row of a file: its answer, whether that says anything, and the judgements of it."""

    answer: Answer
    says: bool
    judgements: list[Judgement]


def _given(row: Row, form: Format, file: str, number: int) -> _Given:
    """What a judgement calls `text` or `answer` are the judge's words or the truth."""
    judged = form.is_one(row)
    kept = {name: value for name, value in row.items() if not (judged and name in UNSURE)}
    says = any(kept.get(name) is not None for name in TEXT)
    place = {"id": number, "question_id": number} if judged and form.in_order else {}
    answer = as_answer({**kept, **({} if says or not judged else {"text": ""}), **place}, file, number + 1)
    return _Given(answer, says, form.read(row, answer.place) if judged else list(row.get("judgements") or ()))


def _holds(given: Sequence[_Given], name: str) -> str:
    parts = {"answers": any(one.says for one in given), name: any(one.judgements for one in given)}
    return " and ".join(part for part, there in parts.items() if there)

"""Files of a judged benchmark: answers, judgements of them, or both together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_align.benchmarks.published import result
from mllm_align.benchmarks.published.answers import as_answer, read_rows
from mllm_align.benchmarks.published.joining import Way, accept, join
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

    A file of judgements is a run (or several) of the judge. Judgements without a file of answers leave the answers
    empty. Rows that `mllm-align` wrote keep the judgements that they hold.
    """
    rows: dict[str, dict[str, Any]] = {}
    made: dict[str, list[Judgement]] = {}
    told: dict[str, Any] = {}
    for file in files:
        given = read_rows(file)
        judged = form.is_one(given[0])
        blank = (
            [_without_answer(row, n if form.in_order else None) for n, row in enumerate(given)]
            if judged
            else given
        )
        answers = [as_answer(row, file.name, number) for number, row in enumerate(blank, 1)]
        said = {answer.place: row for answer, row in zip(answers, given, strict=True)}
        joined = accept(join(questions, answers, ways), partial, f"{form.benchmark}, {file.name}")
        told[file.name] = {"holds": form.name if judged else "answers", **joined.report()}
        for number in sorted(joined.answers):
            question, answer = questions[number], joined.answers[number]
            if judged:
                rows.setdefault(question.id, result.row_of(question, ""))
                made.setdefault(question.id, []).extend(form.read(said[answer.place], answer.place))
            else:
                rows[question.id] = result.row_of(question, answer.text)
                made.setdefault(question.id, []).extend(answer.row.get("judgements") or [])
    kept = [rows[q.id] for q in questions if q.id in rows]
    return [{**row, "judgements": made[row["id"]]} if made.get(row["id"]) else row for row in kept], told


def _without_answer(row: Row, place: int | None) -> dict[str, Any]:
    """A judgement as a row that can be joined; `place` is its question where the order tells it."""
    told = {} if place is None else {"id": place, "question_id": place}
    return {**row, "text": "", **told}

"""The published formats, a function each: a row in, its Drafts or the reason why it gives none out.

Keys and their oddities are those of the released files; each function's docstring names them. Faults are named as
in `datasets.local`; the reader adds file and row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mllm_align.datasets import povid as own
from mllm_align.datasets.errors import Fault
from mllm_align.datasets.fields import answer, identity, image_of, need, question, text_of, turns
from mllm_align.datasets.published.draft import Draft, Row, kept, pair, parsed


def povid(row: Row) -> Iterator[Draft | str]:
    """POVID, CSR: `conversations` against `rejected_conversations`, of which the first round is used."""
    said = own.povid(row)
    yield pair(said.prompt, said.image, said.chosen, said.rejected, id=said.id, notes=said.notes)


def rlhf_v(row: Row) -> Iterator[Draft | str]:
    """`text` holds question, chosen and rejected (JSON in a string, in some exports an object)."""
    if "dataset_name" in row and "ds_name" not in row:
        raise Fault(
            "dataset_name",
            "is of RLHF-V's first release, which is not read",
            "Set dataset.path=hub://openbmb/RLHF-V-Dataset/RLHF-V-Dataset.parquet, or to a copy of that file",
        )
    text = parsed(need(row, "text"), "text")
    meta = kept(row, "ds_name", "origin_dataset", "image_path")
    if row.get("origin_split"):
        meta["origin_split"] = dict(parsed(row["origin_split"], "origin_split"))
    yield _compared(text, row, meta)


def rlaif_v(row: Row) -> Iterator[Draft | str]:
    """`question`, `chosen`, `rejected`; `idx` is a string."""
    yield _compared(row, row, kept(row, "ds_name", "origin_dataset", "origin_split", "image_path"))


def _compared(text: Row, row: Row, meta: dict[str, Any]) -> Draft | str:
    image = row["image"] if row.get("image") is not None else row.get("image_path")
    if image is None:
        need(row, "image")
    return pair(
        question(turns(need(text, "question"), "question", "user"), "question"),
        image,
        answer(turns(need(text, "chosen"), "chosen", "assistant"), "chosen"),
        answer(turns(need(text, "rejected"), "rejected", "assistant"), "rejected"),
        id=identity({"id": row.get("idx")}),
        meta=meta,
    )


def llava_rlhf(row: Row, history: str = "leave_out") -> Iterator[Draft | str]:
    """`output_1` and `output_2` answer the last question of `conversations`; `preference` is 1 or 2.

    The conversation ends with a placeholder for the answer, and may be wrapped in a list once more. Where there
    are rounds before the last: `leave_out` the row, or `drop` those rounds.
    """
    talk = need(row, "conversations")
    if isinstance(talk, list) and len(talk) == 1 and isinstance(talk[0], list):
        (talk,) = talk
    told = turns(talk, "conversations", "user")
    asked = told[:-1] if told[-1][0] == "assistant" else told
    if not asked:
        raise Fault("conversations", "has no question", "Add one, or remove the row")
    if len(asked) > 1 and history == "leave_out":
        yield "rounds before the question"
        return
    preferred = need(row, "preference")
    if preferred not in (1, 2):
        raise Fault("preference", f"is {preferred!r}", "Give 1 or 2")
    outputs = [answer([("assistant", _output(row, name))], name) for name in ("output_1", "output_2")]
    yield pair(
        question(asked[-1:], "conversations"),
        image_of(row),
        outputs[preferred - 1],
        outputs[2 - preferred],
        id=identity(row),
        meta=kept(row, "hallucination"),
        notes=("rounds before the question: dropped",) if len(asked) > 1 else (),
    )


def _output(row: Row, name: str) -> str:
    """The text of an output; who it is `from` is not used (some files name the model there)."""
    value = need(row, name)
    return text_of(value.get("value", value.get("content")) if isinstance(value, dict) else value, name)


def nlf(row: Row, rejected: str = "first") -> Iterator[Draft | str]:
    """`interaction`: answers that were refined after feedback. The last is chosen, the `first` or the `previous`
    one rejected, where it is rated lower."""
    rounds = need(row, "interaction")
    if not isinstance(rounds, list) or not all(isinstance(one, dict) for one in rounds) or not rounds:
        raise Fault("interaction", "is not a list of {user, model, rating}", "Get a whole copy of the file")
    if len(rounds) < 2:
        yield "a single answer"
        return
    last, other = rounds[-1], rounds[0 if rejected == "first" else -2]
    ratings = [rating(one.get("rating")) for one in (last, other)]
    if ratings[0] is None or ratings[1] is None:
        yield "no rating"
    elif ratings[0] <= ratings[1]:
        yield "the last answer is not rated higher"
    else:
        critique = other.get("critique NLF", other.get("critique_NLF"))
        yield pair(
            question([("user", text_of(need(rounds[0], "user"), "user"))], "user"),
            need(row, "image_id"),
            answer([("assistant", text_of(need(last, "model"), "model"))], "model"),
            answer([("assistant", text_of(need(other, "model"), "model"))], "model"),
            id=str(row["image_id"]).rsplit(".", 1)[0],
            meta={"ratings": ratings, "rounds": len(rounds), **kept({"critique": critique}, "critique")},
        )


def stic(row: Row) -> Iterator[Draft | str]:
    """`chosen` and `rejected` as [{role, content}], the question in both."""
    chosen, rejected = (turns(need(row, name), name, "assistant") for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise Fault("rejected", "asks another question than chosen", "Let both answer the same prompt")
    image = image_of(row)
    yield pair(
        question(chosen[:-1], "chosen"),
        image,
        answer(chosen, "chosen"),
        answer(rejected, "rejected"),
        id=str(image).rsplit("/", 1)[-1].rsplit(".", 1)[0],
        meta=kept(row, "image_corruption", "hallu_prompt"),
    )


def llava_instruct(row: Row, rounds: str = "first") -> Iterator[Draft | str]:
    """LLaVA's instruction data: the `first` question of `conversations` with its answer, or `each` by itself."""
    if not row.get("image"):
        yield "text only"
        return
    told = turns(need(row, "conversations"), "conversations", "user")
    if len(told) < 2:
        raise Fault("conversations", "has no answer (gpt) after the question (human)", "Remove the row")
    name = identity(row)
    for number, start in enumerate(range(0, len(told) - 1, 2), start=1):
        if number > 1 and rounds == "first":
            break
        yield Draft(
            question(told[start : start + 1], "conversations"),
            image_of(row),
            id=name if name is None or number == 1 else f"{name}/{number}",
            reference=answer(told[start : start + 2], "conversations"),
            notes=("several rounds: the first is used",) if rounds == "first" and len(told) > 2 else (),
        )


def rating(value: Any) -> float | None:
    """A rating as a number; None for "N/A" and what else is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number == number else None

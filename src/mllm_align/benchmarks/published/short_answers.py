"""TextVQA and GQA: short answers, compared with people's by the official rules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mllm_align.benchmarks import base
from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.published import result
from mllm_align.benchmarks.published.answers import (
    AnswerFileError,
    read_answers,
    read_rows,
    read_text,
    stem,
)
from mllm_align.benchmarks.published.joining import Way, accept, asked, by_id, by_order, by_text, join
from mllm_align.benchmarks.published.normalise import normal
from mllm_align.benchmarks.published.questions import check_images, found, image_in
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example

ASK = "\nAnswer the question using a single word or phrase."
COUNTED = ("score", "valid", "asked")


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the ten people of min(1, agreeing others / 3): 1 agreeing in all -> 0.3, 2 -> 0.6, 3 -> 0.9, 4 -> 1."""
    said = normal(prediction)
    agree = [normal(answer) == said for answer in answers]
    return sum(min(1.0, (sum(agree) - one) / 3) for one in agree) / len(agree)


@dataclass(frozen=True)
class TextVqa:
    """TextVQA's 5,000 validation questions (arXiv 1904.08920), by LLaVA's scorer, which is MMF's.

    `folder` has TextVQA_0.5.1_val.json and, where `ocr` is asked for (as LLaVA's published numbers are), LLaVA's
    prompts llava_textvqa_val_v051_ocr.jsonl. Ids of LLaVA's files are of images and not unique, so answers are
    joined by image and question.
    """

    folder: str
    images: str
    ocr: bool = True
    ask: str = ASK
    max_new_tokens: int = 128

    shown: ClassVar[tuple[Metric, ...]] = (
        Metric("accuracy", "TextVQA", +1, main=True),
        Metric("valid", "TextVQA valid", +1),
    )

    def ready(self) -> None:
        """Raises what asking would raise for files that are not there."""
        check_images(self.examples())

    def examples(self) -> list[Example]:
        prompts = self._prompts() if self.ocr else {}
        return [
            Example(
                id=str(row["question_id"]),
                image=image_in(self.images, f"{row['image_id']}.jpg"),
                prompt=prompts[key]
                if (key := _key(row)) in prompts
                else row["question"].capitalize() + self.ask,
                meta={"truth": list(row["answers"])},
            )
            for row in self._truth()
        ]

    def from_files(self, files: Sequence[Path], partial: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        questions, answers = self._questions(), read_answers(files)
        ways = [_by_image_and_question(), by_id(), by_order(questions, answers)]
        joined = accept(join(questions, answers, ways), partial, "TextVQA")
        return result.rows(questions, joined), joined.report()

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        return _counts(predictions, lambda row: soft_accuracy(row["prediction"], row["truth"]))

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        return _metrics(totals)

    def result(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        return _result(
            self, predictions, "TextVQA", "EvalAI normaliser, mean of leave-one-out min(1, agreeing / 3)"
        )

    def _truth(self) -> list[dict[str, Any]]:
        names = ("TextVQA_0.5.1_val.json", "TextVQA_0.5.1_val_with_gt.json")
        return read_rows(found(self.folder, names, "it is the ground truth, to be had from textvqa.org"))

    def _questions(self) -> list[Example]:
        """The questions by themselves: what was added to them in a prompt does not count in a join."""
        return [
            Example(
                str(row["question_id"]),
                image_in(self.images, f"{row['image_id']}.jpg"),
                row["question"],
                meta={"truth": list(row["answers"])},
            )
            for row in self._truth()
        ]

    def _prompts(self) -> dict[tuple[str, str], str]:
        source = "LLaVA's prompts with OCR tokens are in its eval.zip; or set ocr to false"
        file = found(self.folder, ("llava_textvqa_val_v051_ocr.jsonl",), source)
        return {(stem(row["image"]), question_of(row["text"])): row["text"] for row in read_rows(file)}


@dataclass(frozen=True)
class Gqa:
    """GQA's balanced test-dev questions (12,578; arXiv 1902.09506): an answer is right if it is the one, to the letter.

    Before, LLaVA's conversion cuts full stops off its end and takes it in lower case.
    """

    folder: str
    images: str
    ask: str = ASK
    max_new_tokens: int = 128

    shown: ClassVar[tuple[Metric, ...]] = (
        Metric("accuracy", "GQA", +1, main=True),
        Metric("valid", "GQA valid", +1),
    )

    def ready(self) -> None:
        """Raises what asking would raise for files that are not there."""
        check_images(self.examples())

    def examples(self) -> list[Example]:
        source = "it is in questions1.2.zip of GQA (cs.stanford.edu/people/dorarad/gqa)"
        file = found(self.folder, ("testdev_balanced_questions.json",), source)
        return [
            Example(
                id=name,
                image=image_in(self.images, f"{one['imageId']}.jpg"),
                prompt=one["question"] + self.ask,
                meta={"truth": one["answer"]},
            )
            for name, one in json.loads(read_text(file)).items()
        ]

    def from_files(self, files: Sequence[Path], partial: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        questions, answers = self.examples(), read_answers(files)
        ways = [by_id(), by_text(), by_order(questions, answers)]
        joined = accept(join(questions, answers, ways), partial, "GQA")
        return result.rows(questions, joined), joined.report()

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        return _counts(predictions, _exact)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        return _metrics(totals)

    def result(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        return _result(
            self, predictions, "GQA", "exact match after lower case and without full stops at the end (LLaVA)"
        )


def question_of(prompt: str) -> str:
    """The question in one of LLaVA's prompts, in lower case. Raises AnswerFileError for another form."""
    lines = prompt.replace("<image>", "").strip().split("\n")
    if prompt.startswith("OCR tokens: "):
        before, _, after = prompt.partition("Question: ")
        question, end, _ = after.partition(" Short answer:")
        if not (before and end):
            raise AnswerFileError(f"no question in the prompt {prompt[:60]!r}")
        return question.strip().lower()
    if lines[0].startswith("Reference OCR token:"):
        if len(lines) < 2:
            raise AnswerFileError(f"no question in the prompt {prompt[:60]!r}")
        return lines[1].strip().lower()
    return asked(prompt)


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row["image_id"]), row["question"].strip().lower()


def _by_image_and_question() -> Way:
    """LLaVA's answers name the image as question_id; others have it by name."""
    return Way(
        "image and question",
        lambda q: (stem(q.image.key), q.prompt.strip().lower()),
        lambda a: None if a.prompt is None else (stem(a.image or a.id or ""), question_of(a.prompt)),
    )


def _exact(row: Prediction) -> float:
    return float(row["prediction"].rstrip(".").lower() == row["truth"])


def _counts(predictions: Sequence[Prediction], right: Any) -> Counts:
    def counted() -> Iterator[tuple[str, dict[str, float]]]:
        for row in predictions:
            yield (
                row["image"],
                {"score": right(row), "valid": float(bool(row["prediction"].strip())), "asked": 1.0},
            )

    return sum_by_image(counted(), COUNTED)


def _metrics(totals: Mapping[str, Array]) -> dict[str, Array]:
    return {
        "accuracy": ratio(totals["score"], totals["asked"]),
        "valid": ratio(totals["valid"], totals["asked"]),
    }


def _result(scorer: TextVqa | Gqa, predictions: Sequence[Prediction], name: str, rule: str) -> dict[str, Any]:
    accuracy = base.score(scorer, predictions)["accuracy"]
    return result.told(scorer, predictions, {"accuracy": round(100 * accuracy, 2)}, benchmark=name, rule=rule)

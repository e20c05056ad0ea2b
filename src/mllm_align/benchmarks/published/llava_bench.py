"""LLaVA-Bench (In-the-Wild): 60 questions, a judge gives GPT-4's answer and the model's a number from 1 to 10 each.

The score is 100 times the ratio of the two means, each rounded to three decimals before, as the official summary
has it; several runs of the judge are averaged. A review without two numbers in its first line counts as [-1, -1].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mllm_align.api.client import Question
from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.published import judged, result
from mllm_align.benchmarks.published.answers import AnswerFileError, read_text
from mllm_align.benchmarks.published.joining import by_id, by_text
from mllm_align.benchmarks.published.judge import (
    UNNAMED,
    ApiJudge,
    Judgement,
    judge_rows,
    reply_text,
    runs_of,
    told,
    unjudged,
)
from mllm_align.benchmarks.published.questions import check_images, found, image_in, rows_of
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example

SOURCE = "it is in liuhaotian/llava-bench-in-the-wild of the Hugging Face hub"
CATEGORIES = ("conv", "detail", "complex")
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
FAILED = (-1.0, -1.0)


def scores_in(review: str) -> tuple[float, float]:
    """The two numbers of a review's first line, [-1, -1] where there are not exactly two."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = (float(part) for part in parts)
    except ValueError:
        return FAILED
    return first, second


@dataclass(frozen=True)
class LlavaBench:
    """`folder` has questions.jsonl, context.jsonl, answers_gpt4.jsonl and images/; rule.json is LLaVA's eval/table.

    The judge is asked `runs` times about each answer (the published scores are means of 3).
    """

    folder: str
    images: str
    judge: ApiJudge
    runs: int = 1
    max_new_tokens: int = 1024

    shown: ClassVar[tuple[Metric, ...]] = (
        Metric("relative", "LLaVA-W", +1, main=True),
        *(Metric(f"{name}_relative", f"LLaVA-W {name}", +1) for name in CATEGORIES),
        Metric("valid", "LLaVA-W valid", +1),
    )

    def ready(self) -> None:
        """Raises what asking and judging would raise for files that are not there."""
        check_images(self.examples())
        self._rule()

    def examples(self) -> list[Example]:
        contexts = {row["image"]: row["caption"] for row in rows_of(self.folder, ("context.jsonl",), SOURCE)}
        references = {
            row["question_id"]: row["text"] for row in rows_of(self.folder, ("answers_gpt4.jsonl",), SOURCE)
        }
        return [
            Example(
                id=str(row["question_id"]),
                image=image_in(self.images, row["image"]),
                prompt=row["text"],
                meta={
                    "category": row["category"],
                    "context": contexts[row["image"]],
                    "reference": references[row["question_id"]],
                },
            )
            for row in rows_of(self.folder, ("questions.jsonl",), SOURCE)
        ]

    def from_files(self, files: Sequence[Path], partial: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of an answer file, of reviews (a file a run), or of both; reviews alone leave the answers empty."""
        return judged.read(files, self.examples(), [by_id(), by_text()], REVIEWS, partial)

    def finish(self, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """The rows with the judge's reviews; it is asked about those that have none."""
        rules = self._rule() if unjudged(predictions) else {}
        return judge_rows(
            self.judge,
            predictions,
            lambda row, run, attempt: self._question(row, rules, run),
            lambda text: {"scores": list(scores_in(text))},
            self.runs,
        )

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        """Sums of both sides by run and category, so that a run's ratio can be taken before runs are averaged."""
        names = [
            f"{run}/{c}/{what}" for run in range(runs_of(predictions)) for c in CATEGORIES for what in PARTS
        ]
        return sum_by_image(((row["image"], _counted(row)) for row in predictions), names)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """`relative` as a fraction, GPT-4's and the model's mean (1 to 10), of all and by category; `valid`."""
        runs = sorted({name.split("/")[0] for name in totals})
        return {
            f"{category}_{name}" if category != "all" else name: np.mean(
                [_run_metrics(totals, run, category)[name] for run in runs], axis=0
            )
            for category in ("all", *CATEGORIES)
            for name in ("relative", "reference", "model", "valid")
        }

    def result(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """[relative score, GPT-4 x 10, model x 10] of each run and category as the summary has them, and the mean."""
        totals = self.counts(predictions).totals()
        official: dict[str, Any] = {}
        for run in range(runs_of(predictions)):
            official[f"run {run + 1}"] = {
                "all" if category == "all" else f"llava_bench_{category}": _printed(totals, run, category)
                for category in ("all", "complex", "conv", "detail")
            }
        relative = [run["all"][0] for run in official.values()]
        official["mean of all"] = round(float(np.mean(relative)), 2)
        return result.told(
            self,
            predictions,
            official,
            benchmark="LLaVA-Bench (In-the-Wild)",
            rule="official: means rounded to 3 decimals, model / GPT-4 x 100; failed reviews count as -1",
            judge=told(self.judge, predictions),
        )

    def _rule(self) -> dict[str, Any]:
        return json.loads(
            read_text(found(self.folder, ("rule.json",), "it is llava/eval/table/ of haotian-liu/LLaVA"))
        )

    def _question(self, row: Prediction, rules: Mapping[str, Any], run: int) -> Question:
        rule = rules[f"llava_bench_{row['category']}"]
        role = rule["role"]
        text = (
            f"[Context]\n{row['context']}\n\n[Question]\n{row['prompt']}\n\n"
            f"[{role} 1]\n{row['reference']}\n\n[End of {role} 1]\n\n"
            f"[{role} 2]\n{row['prediction']}\n\n[End of {role} 2]\n\n"
            f"[System]\n{rule['prompt']}\n\n"
        )
        return Question(text, name=f"LLaVA-Bench {row['id']}", system=SYSTEM, draw=run)


PARTS = ("reference", "model", "valid", "asked")


def _reviews(row: Mapping[str, Any], place: str) -> list[Judgement]:
    """A review of a file: its numbers as the file has them, else as they are read from its text."""
    text = reply_text(row)
    pair: Any = row.get("tuple") or row.get("scores") or (None if text is None else scores_in(text))
    try:
        reference, model = map(float, pair)
    except (TypeError, ValueError):
        raise AnswerFileError(f"{place}: a review has two numbers (tuple) or a text (content)") from None
    judge = next((row[name] for name in ("judge", "model", "eval_model") if row.get(name)), UNNAMED)
    return [{"judge": judge, "version": None, "text": text, "scores": [reference, model]}]


# lmms-eval names them "scores".
SIGNS = ("tuple", "answer2_id", "scores")
REVIEWS = judged.Format("LLaVA-Bench", "reviews", lambda row: any(name in row for name in SIGNS), _reviews)


def _counted(row: Prediction) -> dict[str, float]:
    counts: dict[str, float] = {}
    for run, one in enumerate(row["judgements"]):
        reference, model = one["scores"]
        values = (reference, model, float((reference, model) != FAILED), 1.0)
        counts |= {
            f"{run}/{row['category']}/{part}": value for part, value in zip(PARTS, values, strict=True)
        }
    return counts


def _sums(totals: Mapping[str, Array], run: str | int, category: str) -> dict[str, Array]:
    names = CATEGORIES if category == "all" else (category,)
    return {part: np.sum([totals[f"{run}/{name}/{part}"] for name in names], axis=0) for part in PARTS}


def _run_metrics(totals: Mapping[str, Array], run: str | int, category: str) -> dict[str, Array]:
    sums = _sums(totals, run, category)
    reference, model = (np.round(ratio(sums[side], sums["asked"]), 3) for side in ("reference", "model"))
    return {
        "relative": ratio(model, reference),
        "reference": reference,
        "model": model,
        "valid": ratio(sums["valid"], sums["asked"]),
    }


def _printed(totals: Mapping[str, Array], run: int, category: str) -> list[float]:
    found_ = _run_metrics(totals, run, category)
    reference, model = float(found_["reference"]), float(found_["model"])
    relative = round(model / reference * 100, 1) if reference else 0.0
    return [relative, round(reference * 10, 1), round(model * 10, 1)]

"""MM-Vet (arXiv 2308.02490): 218 open questions; a judge gives each answer a number from 0 to 1.

Total, and means over the questions that need a capability or exactly a set of capabilities, times 100; several runs
of the judge are averaged, with their standard deviation (population).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mllm_align.api.client import Question
from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.published import judged, result
from mllm_align.benchmarks.published.answers import AnswerFileError
from mllm_align.benchmarks.published.joining import Way, by_text
from mllm_align.benchmarks.published.judge import (
    UNNAMED,
    ApiJudge,
    Judgement,
    judge_rows,
    mean_of_runs,
    prompt_text,
    runs_of,
    told,
    unjudged,
)
from mllm_align.benchmarks.published.questions import check_images, image_in, rows_of
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example

SOURCE = "it is in mm-vet.zip of yuweihao/MM-Vet"
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
PROMPTS = ("mmvet_fewshot_prompt.txt", "mm-vet_evaluator.ipynb")
AGAIN = "\nPredict the correctness of the answer (digit): "
TRIES = 5
WARMER = 0.5  # degrees that are added at each new try


def score_in(reply: str) -> float | None:
    """The number that a reply begins with, None where it is none from 0 to 1."""
    try:
        value = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


@dataclass(frozen=True)
class MmVet:
    """`folder` has mm-vet.json and the judge's prompt, in MM-Vet's notebook or as a text.

    The prompt is also looked for in `prompts`. The judge is asked `runs` times about each answer (the paper has 5).
    """

    folder: str
    images: str
    prompts: str
    judge: ApiJudge
    runs: int = 1
    max_new_tokens: int = 1024

    @property
    def shown(self) -> tuple[Metric, ...]:
        return (
            Metric("total", "MM-Vet", +1, main=True),
            *(Metric(name, f"MM-Vet {name}", +1) for name in CAPABILITIES),
            Metric("valid", "MM-Vet valid", +1),
        )

    def ready(self) -> None:
        """Raises what asking and judging would raise for files that are not there."""
        check_images(self.examples())
        self._prompt()

    def examples(self) -> list[Example]:
        return [
            Example(
                id=row["id"],
                image=image_in(self.images, row["imagename"]),
                prompt=row["question"],
                meta={"truth": row["answer"], "capability": sorted(row["capability"])},
            )
            for row in rows_of(self.folder, ("mm-vet.json",), SOURCE)
        ]

    def from_files(self, files: Sequence[Path], partial: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of answers (id -> answer, or LLaVA's rows), of grades (id -> model, content, score), or of both."""
        return judged.read(files, self.examples(), [_by_id(), by_text()], GRADES, partial)

    def finish(self, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """The rows with the judge's grades. A reply without one is asked for again, warmer, and is 0 after 5 tries."""
        prompt = self._prompt() if unjudged(predictions) else ""
        return judge_rows(
            self.judge,
            predictions,
            lambda row, run, attempt: self._question(row, run, prompt, attempt),
            _read,
            self.runs,
            TRIES,
        )

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        names = [f"{name}/{part}" for name in ("total", *CAPABILITIES) for part in ("score", "asked")]
        return sum_by_image(((row["image"], _counted(row)) for row in predictions), [*names, "valid"])

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """The total and each capability's mean, as fractions; `valid`: grades that could be read."""
        means = {n: ratio(totals[f"{n}/score"], totals[f"{n}/asked"]) for n in ("total", *CAPABILITIES)}
        return {**means, "valid": ratio(totals["valid"], totals["total/asked"])}

    def result(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Runs, total, std, capabilities and their sets, in percent with a decimal, as the notebook's tables."""
        runs_of(predictions)  # as many of each
        scores = np.array(
            [[one["score"] for one in row["judgements"]] for row in predictions]
        )  # (items, runs)
        total = _by_run(scores)
        sets = ["_".join(row["capability"]) for row in predictions]
        needs = {name: [name in row["capability"] for row in predictions] for name in CAPABILITIES}
        official = {
            "runs": [round(float(value), 1) for value in total],
            "total": round(float(total.mean()), 1),
            "std": round(float(total.std()), 1),
            "capabilities": {name: _percent(scores[chosen]) for name, chosen in needs.items()},
            "capability sets": {
                name: _percent(scores[[one == name for one in sets]]) for name in sorted(set(sets))
            },
        }
        return result.told(
            self,
            predictions,
            official,
            benchmark="MM-Vet",
            rule="official: mean grade x 100, mean and population std over runs of the judge",
            judge=told(self.judge, predictions),
        )

    def _prompt(self) -> str:
        folders = [Path(self.folder).expanduser(), Path(self.prompts).expanduser()]
        return prompt_text(folders, PROMPTS, "prompt", "take the notebook from yuweihao/MM-Vet")

    def _question(self, row: Prediction, run: int, prompt: str, attempt: int) -> Question:
        truth = row["truth"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        text = prompt + "\n" + " | ".join([row["prompt"], truth, row["prediction"], ""])
        warmth = self.judge.settings.get("temperature", 0.0) + WARMER * attempt
        settings = {"temperature": warmth} if attempt else {}
        return Question(text + AGAIN * bool(attempt), name=f"MM-Vet {row['id']}", settings=settings, draw=run)


def _read(reply: str) -> dict[str, Any]:
    score = score_in(reply)
    return {"score": score or 0.0, "read": score is not None}


def _by_id() -> Way:
    """v1_0 and, in LLaVA's answer files, 0."""
    return Way(
        "id", lambda q: q.id.removeprefix("v1_"), lambda a: None if a.id is None else a.id.removeprefix("v1_")
    )


def _grades(row: Mapping[str, Any], place: str) -> list[Judgement]:
    """A judgement for each run of a grade file."""
    scores = row["score"] if isinstance(row["score"], list) else [row["score"]]
    models, contents = (
        value if isinstance(value, list) else [value] * len(scores)
        for value in (row.get("model", row.get("eval_model")), row.get("content"))
    )
    if not len(models) == len(contents) == len(scores):
        raise AnswerFileError(
            f"{place}: {len(scores)} scores, {len(models)} models and {len(contents)} contents; a run has one of each"
        )
    return [
        {
            "judge": model or UNNAMED,
            "version": None,
            "text": content,
            "score": _grade(score, place),
            "read": True,
        }
        for model, content, score in zip(models, contents, scores, strict=True)
    ]


def _grade(score: Any, place: str) -> float:
    """Raises AnswerFileError for what is no number from 0 to 1."""
    found = score_in(str(score))
    if found is None:
        raise AnswerFileError(f"{place}: the score is {score!r}; MM-Vet's are numbers from 0 to 1")
    return found


GRADES = judged.Format("MM-Vet", "grades", lambda row: row.get("score") is not None, _grades)


def _counted(row: Prediction) -> dict[str, float]:
    score = mean_of_runs(row, lambda one: one["score"])
    counts = {"valid": mean_of_runs(row, lambda one: float(one["read"]))}
    for name in ("total", *row["capability"]):
        counts |= {f"{name}/score": score, f"{name}/asked": 1.0}
    return counts


def _by_run(scores: Array) -> Array:
    """The mean of each run in percent, summed item by item as the notebook does (it shows in the rounding)."""
    return np.array([sum(run) for run in scores.T.tolist()]) / len(scores) * 100


def _percent(scores: Array) -> float:
    """Mean over runs, with a decimal; 0 where nothing asks for it."""
    return round(float(_by_run(scores).mean()), 1) if len(scores) else 0.0

"""POPE (arXiv 2305.10355): is there a ... in the image? Three splits of questions about COCO images.

The rule is the official one, which LLaVA's scorer shares: what precedes the first full stop, without commas, cut at
single spaces; with "No", "not" or "no" among the words it is a no, and anything else, the empty answer too, is a
yes. The splits are scored by themselves; the one number that papers quote is the mean of their F1 (LLaVA's).
`valid` is the share of answers whose first word is yes or no, which the rule does not ask for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mllm_align.benchmarks import base
from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.pope import SPLITS, yes_or_no
from mllm_align.benchmarks.published import result
from mllm_align.benchmarks.published.answers import Answer, AnswerFileError, read_answers, read_rows
from mllm_align.benchmarks.published.joining import Joined, Way, accept, asked, by_text, join
from mllm_align.benchmarks.published.questions import check_images, image_in
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example

ASK = "\nAnswer the question using a single word or phrase."
# LLaVA numbers the questions of all splits through: 1..., 10000001..., 20000001...
LLAVA = {0: "adversarial", 1: "random", 2: "popular"}
STEP = 10_000_000
OUTCOMES = ("tp", "fp", "tn", "fn")


def says_no(answer: str) -> bool:
    """The official reading of an answer."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return any(word in ("No", "not", "no") for word in words)


@dataclass(frozen=True)
class Pope:
    """`folder` has <source>_pope_{random,popular,adversarial}.json, `images` COCO's val2014.

    Two versions of the random split are about (2,910 questions in the one that LLaVA uses, 3,000 today): name the
    files apart (coco_pope_random.e3e3926.json, say), and an answer file is scored by those that it answers.
    """

    folder: str
    images: str
    source: str = "coco"
    ask: str = ASK
    max_new_tokens: int = 128

    shown: ClassVar[tuple[Metric, ...]] = (
        Metric("f1", "POPE F1", +1, main=True),
        Metric("accuracy", "POPE accuracy", +1),
        Metric("adversarial_f1", "POPE adv. F1", +1, main=True),
        Metric("yes_ratio", "predicted yes"),
        Metric("valid", "POPE valid", +1),
    )

    def ready(self) -> None:
        """Raises what asking would raise for files that are not there."""
        check_images(self.examples())

    def versions(self, split: str) -> list[Path]:
        """The question files of a split, the one without a version in its name first. Raises FileNotFoundError."""
        name = f"{self.source}_pope_{split}"
        found = sorted(
            Path(self.folder).glob(f"{name}*.json"), key=lambda file: (file.stem != name, file.name)
        )
        if not found:
            raise FileNotFoundError(
                f"{name}.json is not in {self.folder}: POPE's questions are output/coco/ of RUCAIBox/POPE; "
                "`mllm-align data fetch benchmark=published/pope` says where they go"
            )
        return found

    def examples(self) -> list[Example]:
        return [q for split in SPLITS for q in self.questions(self.versions(split)[0], split)]

    def questions(self, file: Path, split: str) -> list[Example]:
        """The questions of one file. A label that is not "no" is a yes, as in the official script."""
        return [
            Example(
                id=f"{split}/{row['question_id']}",
                image=image_in(self.images, row["image"]),
                prompt=row["text"] + self.ask,
                meta={
                    "truth": "no" if row["label"] == "no" else "yes",
                    "split": split,
                    "questions": file.name,
                },
            )
            for row in read_rows(file)
        ]

    def from_files(self, files: Sequence[Path], partial: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Prediction rows of an answer file, or of one a split, and how they were joined. Raises AnswerFileError."""
        rows: list[dict[str, Any]] = []
        told: dict[str, Any] = {}
        for split, answers in self._by_split(read_answers(files)).items():
            questions, joined = self._joined(split, answers)
            accept(joined, partial, f"POPE {split}")
            told[split] = joined.report()
            rows += result.rows(questions, joined)
        if left := [split for split in SPLITS if split not in told]:
            told["splits without answers"] = left
            if not partial:
                raise AnswerFileError(
                    f"POPE: no answers to the split {' and '.join(left)}; add its answer file to predictions=[...], or "
                    "predictions_partial=true to score the others alone"
                )
        return rows, told

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        names = [f"{split}/{name}" for split in SPLITS for name in (*OUTCOMES, "valid")]
        return sum_by_image(((row["image"], _counted(row)) for row in predictions), names)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """Each of `_split_metrics` as `<split>_<metric>`, and its mean over the splits that were asked."""
        by_split = {s: _split_metrics({o: totals[f"{s}/{o}"] for o in (*OUTCOMES, "valid")}) for s in SPLITS}
        there = [np.sum([totals[f"{s}/{o}"] for o in OUTCOMES], axis=0) > 0 for s in SPLITS]
        number = np.sum(there, axis=0)
        names = by_split[SPLITS[0]]
        means = {m: ratio(np.sum([by_split[s][m] for s in SPLITS], axis=0), number) for m in names}
        return means | {f"{s}_{m}": value for s in SPLITS for m, value in by_split[s].items()}

    def items(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return {row["id"]: float(_outcome(row) in ("tp", "tn")) for row in predictions}

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return base.score(self, predictions)

    def result(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """As the official script prints it, a split at a time, and the mean F1 in percent."""
        found, scores = self.counts(predictions).totals(), self.score(predictions)
        official: dict[str, Any] = {}
        for split in sorted({row["split"] for row in predictions}, key=SPLITS.index):
            numbers = {name: int(found[f"{split}/{name}"]) for name in OUTCOMES}
            names = ("f1", "accuracy", "precision", "recall", "yes_ratio", "valid")
            official[split] = {**numbers, "n": sum(numbers.values())}
            official[split] |= {name: round(scores[f"{split}_{name}"], 6) for name in names}
        official["mean F1"] = round(scores["f1"], 6)
        official["mean F1, percent"] = round(100 * scores["f1"], 1)
        return result.told(
            self,
            predictions,
            official,
            benchmark="POPE",
            rule="official (RUCAIBox/POPE, LLaVA): any answer without No, not or no is a yes; mean F1 of the splits",
            questions=sorted({row["questions"] for row in predictions}),
        )

    def _by_split(self, answers: Sequence[Answer]) -> dict[str, list[Answer]]:
        """The answers of each split, told by the row, by LLaVA's numbers, by the file's name, or by its questions."""
        numbers = [int(a.id) for a in answers if a.id is not None and a.id.isdecimal()]
        numbered = bool(numbers) and max(numbers) > STEP
        files: dict[str, list[Answer]] = defaultdict(list)
        found: dict[str, list[Answer]] = defaultdict(list)
        for answer in answers:
            if split := self._told_split(answer, numbered):
                found[split].append(answer)
            else:
                files[answer.file].append(answer)
        for file, unknown in files.items():
            for start, split in self._guessed(file, unknown):
                found[split] += start
        return dict(found)

    def _told_split(self, answer: Answer, numbered: bool) -> str | None:
        for name in ("category", "split", "pope_type"):
            if answer.row.get(name) in SPLITS:
                return str(answer.row[name])
        if numbered and answer.id is not None and answer.id.isdecimal():
            return LLAVA.get(int(answer.id) // STEP)
        named = [split for split in SPLITS if split in answer.file.lower()]
        return named[0] if len(named) == 1 else None

    def _guessed(self, file: str, answers: Sequence[Answer]) -> Iterable[tuple[list[Answer], str]]:
        """A file that says no split has the one whose questions it answers to the last. Raises AnswerFileError."""
        fitting = []
        for split in SPLITS:
            try:
                fitting += [split] if self._joined(split, answers)[1].whole else []
            except AnswerFileError:
                continue
        if len(fitting) != 1:
            raise AnswerFileError(
                f"{file}: cannot tell which POPE split it answers; put random, popular or adversarial into its name, "
                "or add a field category to its rows"
            )
        return [(list(answers), fitting[0])]

    def _joined(self, split: str, answers: Sequence[Answer]) -> tuple[list[Example], Joined]:
        """The version of the questions that the answers fit best, and the join."""
        tried = []
        for file in self.versions(split):
            questions = self.questions(file, split)
            try:
                tried.append((questions, _join(questions, answers)))
            except AnswerFileError as error:
                fault = error
        if not tried:
            raise fault
        return min(tried, key=lambda one: len(one[1].missing) + len(one[1].unknown) + len(one[1].repeated))


def plain(prompt: str) -> str:
    """The question without what was added to it, and without a slip of the old version."""
    return asked(prompt).replace("imange", "image")


def _by_number() -> Way:
    """Number within the split, where the answer's question is the same (or not told)."""
    return Way(
        "number and question",
        lambda q: (int(q.id.rpartition("/")[2]), plain(q.prompt)),
        lambda a: (int(a.id) % STEP, plain(a.prompt)) if a.id and a.id.isdecimal() and a.prompt else None,
    )


def _by_order(questions: Sequence[Example], answers: Sequence[Answer]) -> Way:
    """The n-th answer is to the n-th question, as the official script has it, where their questions are the same."""
    asked_at = {question.id: number for number, question in enumerate(questions)}
    said_at = {answer.place: number for number, answer in enumerate(answers)}
    return Way(
        "order and question",
        lambda q: (asked_at[q.id], plain(q.prompt)),
        lambda a: (said_at[a.place], plain(a.prompt)) if a.prompt else None,
    )


def _join(questions: Sequence[Example], answers: Sequence[Answer]) -> Joined:
    return join(questions, answers, [by_text(plain), _by_number(), _by_order(questions, answers)])


def _outcome(row: Prediction) -> str:
    no = says_no(row["prediction"])
    if row["truth"] == "yes":
        return "fn" if no else "tp"
    return "tn" if no else "fp"


def _counted(row: Prediction) -> dict[str, float]:
    split = row["split"]
    valid = yes_or_no(row["prediction"]) is not None
    return {f"{split}/{_outcome(row)}": 1.0, f"{split}/valid": float(valid)}


def _split_metrics(c: Mapping[str, Array]) -> dict[str, Array]:
    yes, no = c["tp"] + c["fn"], c["fp"] + c["tn"]
    said = c["tp"] + c["fp"]
    return {
        "f1": ratio(2 * c["tp"], said + yes),  # 2PR / (P + R)
        "accuracy": ratio(c["tp"] + c["tn"], yes + no),
        "precision": ratio(c["tp"], said),
        "recall": ratio(c["tp"], yes),
        "yes_ratio": ratio(said, yes + no),
        "valid": ratio(c["valid"], yes + no),
    }

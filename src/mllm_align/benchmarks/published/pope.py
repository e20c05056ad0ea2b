"""POPE (arXiv 2305.10355): is there a ... in the image? Three splits of questions about COCO images.

The rule is the official one, which LLaVA's scorer shares: what precedes the first full stop, without commas, cut at
single spaces; with "No", "not" or "no" among the words it is a no, and anything else, the empty answer too, is a
yes. The splits are scored by themselves; the one number that papers quote is the mean of their F1 (LLaVA's).
`valid` is the share of answers whose first word is yes or no, which the rule does not ask for.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mllm_align.benchmarks import base
from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.pope import SHOWN, SPLITS, yes_or_no
from mllm_align.benchmarks.published import result
from mllm_align.benchmarks.published.answers import Answer, AnswerFileError, read_answers, read_rows
from mllm_align.benchmarks.published.joining import Joined, Way, accept, asked, by_order, by_text, join
from mllm_align.benchmarks.published.questions import check_images, image_in
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example

ASK = "\nAnswer the question using a single word or phrase."
# LLaVA numbers the questions of all splits through: 1..., 10000001..., 20000001...
LLAVA = {0: "adversarial", 1: "random", 2: "popular"}
STEP = 10_000_000
# What some write for yes and no.
NO_WORDS = ("0", "1", "true", "false")
QUESTION = re.compile(r"is there [^?\n]*\?")
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

    shown: ClassVar[tuple[Metric, ...]] = SHOWN

    def ready(self) -> None:
        """Raises what asking would raise for files that are not there."""
        check_images(self.examples())

    def versions(self, split: str) -> list[Path]:
        """The question files of a split, the one without a version in its name first. Raises FileNotFoundError."""
        name = f"{self.source}_pope_{split}"
        # Of other images they have a word more: aokvqa_pope_seem_random.json.
        files = Path(self.folder).glob(f"{self.source}_pope*_{split}*.json")
        found = sorted(files, key=lambda file: (file.stem != name, file.name))
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
        given = read_answers(files)
        for answer in given:
            if answer.text.strip().lower() in NO_WORDS:
                raise AnswerFileError(
                    f"{answer.place}: the answer is {answer.text!r}, which the official rule would take for a yes; "
                    "write yes or no"
                )
        for split, answers in self._by_split(given).items():
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

    def result(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """As the official script prints it, a split at a time, and the mean F1 in percent."""
        found, scores = self.counts(predictions).totals(), base.score(self, predictions)
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
        name = answer.file.lower()
        named = [s for s in SPLITS if s in name or f"pope_{s[:3]}" in name]  # lmms-eval: pope_adv, pope_pop
        return named[0] if len(named) == 1 else None

    def _guessed(self, file: str, answers: Sequence[Answer]) -> Iterable[tuple[list[Answer], str]]:
        """A file, or a part of it, has the split whose questions it answers to the last. Raises AnswerFileError."""
        for parts in ([list(answers)], _parts(answers)):
            fitting = [(part, split) for part in parts for split in SPLITS if self._fits(split, part)]
            if len(fitting) == len(parts) == len({split for _, split in fitting}):
                return fitting
        raise AnswerFileError(
            f"{file}: cannot tell which POPE split it answers: its images and questions, or their order, are those of "
            "none. Put random, popular or adversarial into its name, or add a field category to its rows"
        )

    def _fits(self, split: str, answers: Sequence[Answer]) -> bool:
        try:
            return self._joined(split, answers)[1].whole
        except AnswerFileError:
            return False

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
    """The question without what stands around it, and without a slip of the old version."""
    found = QUESTION.search(prompt.lower())
    return (found.group() if found else asked(prompt)).replace("imange", "image")


def _parts(answers: Sequence[Answer]) -> list[list[Answer]]:
    """Cut where the numbers of the questions begin anew, as where splits follow each other in a file."""
    parts: list[list[Answer]] = []
    last = -1
    for answer in answers:
        number = int(answer.id) if answer.id is not None and answer.id.isdecimal() else last + 1
        if not parts or number <= last:
            parts.append([])
        parts[-1].append(answer)
        last = number
    return parts


def _by_number() -> Way:
    """Number within the split, where the answer's question is the same (or not told)."""
    return Way(
        "number and question",
        lambda q: (int(q.id.rpartition("/")[2]), plain(q.prompt)),
        lambda a: (int(a.id) % STEP, plain(a.prompt)) if a.id and a.id.isdecimal() and a.prompt else None,
    )


def _join(questions: Sequence[Example], answers: Sequence[Answer]) -> Joined:
    return join(questions, answers, [by_text(plain), _by_number(), by_order(questions, answers, plain)])


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

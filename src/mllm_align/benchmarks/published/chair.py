"""CHAIR and object recall of image descriptions (arXiv 1809.02156), in either public variant (see `coco`).

A mention is hallucinated if its class is not among the image's objects: COCO's instances and what its five human
captions name. CHAIRs = captions with a hallucinated mention / captions, CHAIRi = hallucinated mentions / mentions,
repetitions counted, Recall = named objects / objects, summed over images (not a mean of ratios). `words` are those
between spaces, `Len` is 0.01 times the tokens, as one family of scripts prints it. A description is valid if it
names an object. With the 300 images of Object HalBench this is the Recall_coco of arXiv 2407.02477.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mllm_align.benchmarks import base
from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.published import coco, lemmas, objhal_questions, result
from mllm_align.benchmarks.published.answers import Answer, AnswerFileError, coco_id, read_answers, stem
from mllm_align.benchmarks.published.joining import Joined, Way, accept, by_id, join
from mllm_align.benchmarks.published.questions import check_images, image_in
from mllm_align.benchmarks.published.truth import Truth, objects_file, truth_of
from mllm_align.benchmarks.recall import COUNTED, SHOWN, counted, rates
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chair:
    """Descriptions of `n` images of COCO val2014, drawn with `seed`, or of the images of `questions`.

    Attributes
    ----------
    folder : has synonyms.txt and, if it is at hand, coco2014_chair_gt_objects.json(.gz).
    annotations : COCO 2014's annotations, for images that this file does not cover and for the lemma variant.
    images : COCO's val2014 images.
    variant : original or lemma.
    objects : a file of the images' objects to use instead: COCO id -> classes, or the result of a CHAIR script.
    questions : Object HalBench's question file; None asks `ask` about images of COCO.
    """

    folder: str
    annotations: str
    images: str
    variant: str = "original"
    objects: str | None = None
    questions: str | None = None
    n: int = 500
    seed: int = 0
    ask: str = "Please describe this image in detail."
    max_new_tokens: int = 512

    shown: ClassVar[tuple[Metric, ...]] = SHOWN

    def __post_init__(self) -> None:
        if self.variant not in coco.VARIANTS:
            raise ValueError(f"CHAIR's variant is {self.variant!r}; choose {' or '.join(coco.VARIANTS)}")

    def ready(self) -> None:
        """Raises what asking and scoring would raise for files that are not there."""
        examples = self.examples()
        check_images(examples)
        self.finish([result.row_of(example, "a dog") for example in examples[:1]])

    def examples(self) -> list[Example]:
        if self.questions is not None:
            return objhal_questions.read(Path(self.questions))
        folder = Path(self.images).expanduser()
        names = sorted(file.name for file in folder.glob("COCO_val2014_*.jpg"))
        if len(names) < self.n:
            raise FileNotFoundError(
                f"{folder} has {len(names)} images named COCO_val2014_*.jpg, and {self.n} are asked for; put COCO's "
                "val2014 there, or set n"
            )
        drawn = np.random.default_rng(self.seed).choice(len(names), self.n, replace=False)
        return [
            Example(coco_id(names[i]), image_in(self.images, names[i]), self.ask)
            for i in sorted(map(int, drawn))
        ]

    def from_files(self, files: Sequence[Path], partial: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of a file of captions: any with an image and a text a row, results of a CHAIR script too."""
        rows, joined = self.joined(read_answers(files), partial)
        return rows, joined.report()

    def joined(self, answers: Sequence[Answer], partial: bool) -> tuple[list[dict[str, Any]], Joined]:
        """Prediction rows with their captions' own tokens and objects, and the join that they come from."""
        joined = accept(self._joined(answers), partial, "CHAIR")
        return [_row(joined.answers[number]) for number in sorted(joined.answers)], joined

    def finish(self, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """The rows with mentions (classes, in order), objects of the image, and the number of tokens."""
        table = coco.read_table(Path(self.folder).expanduser() / coco.SYNONYMS)
        truth = self._truth(predictions, table)
        tokens, source = self._tokens(predictions, table)
        done = []
        for row, found in zip(predictions, tokens, strict=True):
            mentions = [name for _, name in table.named(found)]
            kept = {name: value for name, value in row.items() if not name.startswith("file_")}
            own = {"own_truth": sorted(row["file_objects"])} if row.get("file_objects") is not None else {}
            done.append(
                {
                    **kept,
                    "mentions": mentions,
                    "truth": truth.of(row["image"]),
                    "tokens": len(found),
                    "variant": self.variant,
                    "truth_from": truth.source,
                    "tokens_from": source,
                    **own,
                }
            )
        return done

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        return sum_by_image(((row["image"], _counted(row)) for row in predictions), (*COUNTED, "tokens"))

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        return {**rates(totals), "len": 0.01 * ratio(totals["tokens"], totals["descriptions"])}

    def result(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """CHAIRs, CHAIRi, Recall and Len as fractions and in percent, with what they are fractions of."""
        totals, scores = self.counts(predictions).totals(), base.score(self, predictions)
        values = {name: scores[key] for name, key in NAMES.items()}
        official = {
            "counts": {name.replace("_", " "): int(totals[name]) for name in COUNTED[:6]},
            "fractions": {**values, "Len": scores["len"]},
            "percent": {name: round(100 * value, 1) for name, value in values.items()},
            "words": round(scores["words"], 1),
        }
        differ = [row["id"] for row in predictions if row.get("own_truth", row["truth"]) != row["truth"]]
        variants = {"original": "pattern's singular", "lemma": "WordNet's lemma by part of speech"}
        return result.told(
            self,
            predictions,
            official,
            benchmark="CHAIR" if self.questions is None else "CHAIR on the images of Object HalBench",
            rule=f"{self.variant} variant ({variants[self.variant]}); mentions are counted with repetitions",
            **{
                "ground truth": sorted({row["truth_from"] for row in predictions}),
                "tokens": sorted({row["tokens_from"] for row in predictions}),
                "images whose objects the answer file has otherwise": len(differ),
            },
        )

    def _joined(self, answers: Sequence[Answer]) -> Joined:
        """To Object HalBench's questions where they are at hand; else each image has one answer."""
        if self.questions is not None and Path(self.questions).expanduser().is_file():
            return join(self.examples(), answers, [by_coco_id(), by_id()])
        if self.questions is not None:
            log.warning(
                "%s is not there: whether all of it is answered is not checked", objhal_questions.FILE
            )
        images = {question.id: question for question in map(_question, answers)}
        return join(list(images.values()), answers, [by_coco_id()])

    def _tokens(self, rows: Sequence[Prediction], table: coco.Table) -> tuple[list[list[str]], str]:
        """Tokens of the captions; those that the answer file has where they can't be made here."""
        if self.variant == "lemma" and not lemmas.available() and all(row.get("file_words") for row in rows):
            log.warning("without NLTK and its data, the answer file's own tokens are counted")
            return [list(row["file_words"]) for row in rows], "of the answer file"
        return [coco.tokens_of(row["prediction"], self.variant, table) for row in rows], "counted here"

    def _truth(self, rows: Sequence[Prediction], table: coco.Table) -> Truth:
        """The images' objects in this variant; those of the answer file save tagging them where NLTK is missing."""
        return truth_of(
            rows,
            objects=self.objects,
            file=objects_file(Path(self.folder).expanduser()),
            file_first=self.variant == "original",
            annotations=None if self._untaggable(rows) else self.annotations,
            table=table,
            tokens=lambda caption: coco.tokens_of(caption, self.variant, table),
        )

    def _untaggable(self, rows: Sequence[Prediction]) -> bool:
        own = all(row.get("file_objects") is not None for row in rows)
        return self.variant == "lemma" and own and not lemmas.available()


NAMES = {"CHAIRs": "chair_s", "CHAIRi": "chair_i", "Recall": "recall"}


def by_coco_id() -> Way:
    """The number of the COCO image, by its name or, without one, by the answer's id."""
    return Way("COCO image", lambda q: coco_id(q.image.key), lambda a: _number(a.image) or _number(a.id))


def _counted(row: Prediction) -> dict[str, float]:
    return {**counted(row["prediction"], row["mentions"], row["truth"]), "tokens": float(row["tokens"])}


def _number(image: str | None) -> str | None:
    try:
        return None if image is None else coco_id(image)
    except ValueError:
        return None


def _question(answer: Answer) -> Example:
    """The image of an answer as a question. Raises AnswerFileError where the row names no COCO image."""
    number = _number(answer.image) or _number(answer.id)
    if number is None:
        raise AnswerFileError(
            f"{answer.place}: no COCO image is named; image_id or image should hold its number or name"
        )
    return Example(number, image_in("", answer.image or number), answer.prompt or "")


def _row(answer: Answer) -> dict[str, Any]:
    question = _question(answer)
    words, objects = answer.row.get("words"), answer.row.get("mscoco_gt_words")
    return {
        **result.row_of(question, answer.text),
        "image": stem(question.image.key),
        "file_words": words if isinstance(words, list) else None,
        "file_objects": objects if isinstance(objects, list) else None,
    }

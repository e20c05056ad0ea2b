"""Object HalBench (RLHF-V, arXiv 2312.00849): objects that a language model extracts from 300 descriptions.

Every answer of more than three words is given to the extractor; each of its objects is reduced to a COCO word by
spaCy, and counted once a description by that word ("man" and "woman" are two). Response hallucination: descriptions
with a hallucinated object among those that name one; object hallucination: hallucinated ones among the objects;
recall: classes named / classes there, summed over images. Without an extractor see `chair` with the lemma variant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from mllm_align.api.client import Question
from mllm_align.benchmarks import base
from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.published import coco, objhal_questions, result
from mllm_align.benchmarks.published.answers import read_answers
from mllm_align.benchmarks.published.chair import Chair, by_coco_id
from mllm_align.benchmarks.published.joining import accept, by_id, join
from mllm_align.benchmarks.published.judge import ApiJudge, Judgement, judge_rows, prompt_text, told
from mllm_align.benchmarks.published.truth import objects_file, truth_of
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example

TABLE = "synonyms_refine.txt"
PROMPTS = ("objhalbench_extraction_prompt.txt", "eval_gpt_obj_halbench.py")
SHORT = 3  # words; such an answer is not given to the extractor
TRIES = 10  # the official script has 100
NOUNS = ("NN", "NNS", "NNP", "NNPS")
COUNTED = (
    "hallucinated", "with_objects", "descriptions", "false_objects", "objects", "named", "present", "words", "valid",
)  # fmt: skip


def objects_in(reply: str) -> list[str] | None:
    """The JSON list of a reply, or of its last line where the reply has a list of texts; None where neither is one."""
    for text in [reply] + ([reply.split("\n")[-1]] if '["' in reply else []):
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(found, list):
            return [one for one in found if isinstance(one, str)]
    return None


@dataclass(frozen=True)
class SpacyWords:
    """The words of an object by a spaCy pipeline: known pairs in its lemmas, else its runs of nouns."""

    model: str = "en_core_web_trf"

    def __call__(self, name: str, pairs: Sequence[str]) -> list[str]:
        """Raises ValueError where spaCy or the pipeline is not installed."""
        lemmas: list[str] = []
        runs: list[str] = []
        last = False
        for token in _spacy(self.model)(f"a {name}"):
            lemmas.append(token.lemma_)
            noun = token.tag_ in NOUNS
            if noun and last:
                runs[-1] += f" {token.lemma_}"
            elif noun:
                runs.append(token.lemma_)
            last = noun
        whole = " ".join(lemmas)
        return [pair for pair in pairs if pair in whole] or runs


@dataclass(frozen=True)
class ObjectHalBench:
    """`folder` has the question file, synonyms_refine.txt and the extractor's prompt (also looked for in `prompts`).

    `objects` and `annotations` as in `chair.Chair`; `words` turns an object into its words.
    """

    folder: str
    annotations: str
    prompts: str
    judge: ApiJudge
    objects: str | None = None
    words: Callable[[str, Sequence[str]], list[str]] = SpacyWords()
    max_new_tokens: int = 1024

    shown: ClassVar[tuple[Metric, ...]] = (
        Metric("response_hall", "OHB response", -1, main=True),
        Metric("object_hall", "OHB object", -1, main=True),
        Metric("recall", "OHB recall", +1, main=True),
        Metric("words", "words", main=True, percent=False),
        Metric("valid", "OHB valid", +1),
    )

    @property
    def _questions(self) -> Path:
        return Path(self.folder).expanduser() / objhal_questions.FILE

    def ready(self) -> None:
        """Raises what asking and extracting would raise for files that are not there."""
        self.examples()
        self._prompt()
        self.words("cup", ())

    def examples(self) -> list[Example]:
        return objhal_questions.read(self._questions)

    def from_files(self, files: Sequence[Path], partial: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows of answers, of a result of the official script (its words are taken), or of our own predictions."""
        answers = read_answers(files)
        if self._questions.is_file():
            questions = self.examples()
            joined = accept(join(questions, answers, [by_coco_id(), by_id()]), partial, "Object HalBench")
            rows = result.rows(questions, joined)
        else:
            plain = Chair(self.folder, self.annotations, "", "lemma", questions=str(self._questions))
            rows, joined = plain.joined(answers, partial)
        known = [_known(joined.answers[number].row) for number in sorted(joined.answers)]
        return [{**_said(row), **own} for row, own in zip(rows, known, strict=True)], joined.report()

    def finish(self, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """The rows with extracted objects, their COCO words and the image's objects."""
        table = coco.read_table(Path(self.folder).expanduser() / TABLE, strip=True)
        truth = truth_of(
            predictions,
            objects=self.objects,
            file=objects_file(Path(self.folder).expanduser()),
            file_first=False,
            annotations=self.annotations,
            table=table,
            tokens=lambda caption: coco.noun_tokens_of(caption, table),
        )
        made = self._extracted(
            [row for row in predictions if "judgements" not in row and "file_named" not in row]
        )
        done = []
        for row in predictions:
            judgements = row.get("judgements") or made.get(row["id"]) or []
            named = row.get("file_named")
            if named is None:
                named = self._named(judgements[-1]["objects"] if judgements else [], table)
            kept = {name: value for name, value in row.items() if not name.startswith("file_")}
            more = {
                "judgements": judgements,
                "named": named,
                "truth": truth.of(row["image"]),
                "truth_from": truth.source,
            }
            done.append({**kept, **more})
        return done

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        return sum_by_image(((row["image"], _counted(row)) for row in predictions), COUNTED)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        return {
            "response_hall": ratio(totals["hallucinated"], totals["with_objects"]),
            "object_hall": ratio(totals["false_objects"], totals["objects"]),
            "recall": ratio(totals["named"], totals["present"]),
            "chair_s": ratio(totals["hallucinated"], totals["descriptions"]),
            "words": ratio(totals["words"], totals["descriptions"]),
            "valid": ratio(totals["valid"], totals["descriptions"]),
        }

    def result(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """In percent with two decimals, under the official summary's names."""
        s = base.score(self, predictions)
        values = {
            "CHAIRs": s["chair_s"],
            "CHAIRs_refine": s["response_hall"],
            "CHAIRi": s["object_hall"],
            "obj_rec": s["recall"],
            "correct_rate": 1 - s["response_hall"],
            "object_correct_rate": 1 - s["object_hall"],
        }
        official = {name: round(100 * value, 2) for name, value in values.items()}
        return result.told(
            self,
            predictions,
            {**official, "avg_word_len": round(s["words"], 2)},
            benchmark="Object HalBench",
            rule="official (RLHF-V): extracted objects, each word once a description",
            judge=told_or_none(self.judge, predictions),
            **{"ground truth": sorted({row["truth_from"] for row in predictions})},
        )

    def _named(self, objects: Sequence[str], table: coco.Table) -> list[list[str]]:
        """(word, class) of the objects, each word once, in order."""
        pairs = tuple(table.pairs)
        words = [word for name in objects for word in self.words(name, pairs)]
        return [list(one) for one in table.named(list(dict.fromkeys(words)))]

    def _extracted(self, rows: Sequence[Prediction]) -> dict[str, list[Judgement]]:
        """What the extractor made of each answer, asked again where its reply holds no list."""
        todo = [row for row in rows if len(row["prediction"].split()) > SHORT]
        prompt = self._prompt() if todo else ""
        judged = judge_rows(
            self.judge, todo, lambda row, run, attempt: _question(row, prompt, attempt), _read, tries=TRIES
        )
        return {row["id"]: row["judgements"] for row in judged}

    def _prompt(self) -> str:
        folders = [Path(self.folder).expanduser(), Path(self.prompts).expanduser()]
        return prompt_text(folders, PROMPTS, "prompt_template", "the script is eval/ of RLHF-V/RLHF-V")


def told_or_none(judge: ApiJudge, rows: Sequence[Prediction]) -> dict[str, Any] | None:
    """Short answers, and words of a result file, have not been given to the extractor."""
    judged = [row for row in rows if row["judgements"]]
    return told(judge, judged) if judged else None


def _read(reply: str) -> dict[str, Any]:
    objects = objects_in(reply)
    return {"objects": objects or [], "read": objects is not None}


def _question(row: Prediction, prompt: str, attempt: int) -> Question:
    text = prompt.replace("{question}", row["prompt"]).replace("{answer}", row["prediction"])
    return Question(text, name=f"Object HalBench {row['id']}", role="system", draw=attempt)


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the name of the speaker in its answer, as the official script reads it."""
    return {**row, "prediction": row["prediction"].replace("Assistant:", "").strip()}


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row brings with it: judgements of ours, or the words and objects of the official script."""
    known: dict[str, Any] = {}
    if isinstance(row.get("judgements"), list):
        known["judgements"] = row["judgements"]
    elif isinstance(row.get("mscoco_generated_words"), list):
        known["file_named"] = [[word, word] for word in row["mscoco_generated_words"]]
    if isinstance(row.get("mscoco_gt_words"), list):
        known["file_objects"] = row["mscoco_gt_words"]
    return known


def _counted(row: Prediction) -> dict[str, float]:
    truth, named = set(row["truth"]), [name for _, name in row["named"]]
    false = [name for name in named if name not in truth]
    return {
        "hallucinated": float(bool(false)),
        "with_objects": float(bool(named)),
        "descriptions": 1.0,
        "false_objects": float(len(false)),
        "objects": float(len(named)),
        "named": float(len(truth & set(named))),
        "present": float(len(truth)),
        "words": float(len(row["prediction"].split())),
        "valid": float(all(one["read"] for one in row["judgements"])),
    }


@cache
def _spacy(model: str) -> Any:
    try:
        import spacy

        return spacy.load(model)
    except (ImportError, OSError):
        raise ValueError(
            f"this scorer needs spaCy with the pipeline {model}; install them with: pip install "
            f"'mllm-align[evaluation]' && python -m spacy download {model}"
        ) from None

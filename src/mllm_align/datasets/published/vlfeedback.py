"""VLFeedback: several models' answers to a prompt, each rated by GPT-4V from 1 to 5 in three aspects.

An answer's score is the mean of its ratings, as in Silkie (arXiv 2312.10665); one with a rating that is no number,
or without text, takes no part. Silkie trains on all pairs of unequal score; the pairing behind the 5,000 pairs of
arXiv 2407.02477 is not published, and one pair a prompt, the best against the worst, is taken by default. Ties for
best or worst are broken by the prompt's id, so that a set does not depend on the order of the answers.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_align.datasets.errors import BadDataError, Fault
from mllm_align.datasets.fields import PLACEHOLDER, identity, need, question, turns
from mllm_align.datasets.published.draft import Draft, Row
from mllm_align.datasets.published.forms import rating
from mllm_align.records import Preference, Response

ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
RULES = ("best_worst", "random", "all", "best")


@dataclass
class VLFeedback:
    """The form of its rows, see `forms`. With `all` the pairs of a prompt share a weight of 1; `best` gives the best
    answer alone, as its Draft's one response.

    `prompts` and `chosen_by` are regular expressions for a prompt's id and the chosen answer's model. What rows
    had instead is counted, for the message where nothing matches.
    """

    pairs: str = "best_worst"
    aspects: Sequence[str] = ASPECTS
    min_margin: float = 0.0
    prompts: str | None = None
    chosen_by: str | None = None
    collections: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.pairs not in RULES:
            raise BadDataError(f"dataset.pairs={self.pairs} is not known. Use best_worst, random or all.")
        for name in ("prompts", "chosen_by"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise BadDataError(
                    f"dataset.{name}={getattr(self, name)} is no regular expression ({error})."
                ) from None

    def __call__(self, row: Row) -> Iterator[Draft | str]:
        name = identity(row) or str(need(row, "id"))
        self.collections[re.split(r"[-_]", name, maxsplit=1)[0]] += 1
        if self.prompts and not re.search(self.prompts, name):
            yield "another collection of prompts"
            return
        prompt = question(turns(need(row, "prompt"), "prompt", "user"), "prompt")
        rated, notes = self._rated(row)
        self.models.update(response.source for response in rated)
        best = [r for r in rated if not self.chosen_by or re.search(self.chosen_by, r.source)]
        found = self._choose(name, best, rated)
        if isinstance(found, str):
            yield found
            return
        image = row["image"] if row.get("image") is not None else row.get("img_path") or f"{name}.jpg"
        yield Draft(prompt, image, *found, id=name, notes=notes)

    def hint(self) -> str:
        """What the ids and models were, for whoever asked for others."""
        collections = ", ".join(f"{name} ({count:,})" for name, count in self.collections.most_common(20))
        models = ", ".join(f"{name} ({count:,})" for name, count in self.models.most_common(20))
        return (
            f"Ids begin with {collections or 'nothing'}; dataset.prompts={self.prompts}. "
            f"Models: {models or 'none'}; dataset.chosen_by={self.chosen_by}."
        )

    def _rated(self, row: Row) -> tuple[list[Response], tuple[str, ...]]:
        found, notes = [], set()
        for one in _completions(need(row, "completions")):
            text, score = one.get("response"), self._score(one.get("annotations"))
            if not isinstance(text, str) or not text.strip() or PLACEHOLDER in text:
                notes.add("prompts with an empty answer, which is left out")
            elif score is None:
                notes.add("prompts with an answer without a rating (N/A), which is left out")
            else:
                found.append(Response(text.strip(), str(one.get("model") or "dataset"), score=score))
        return found, tuple(sorted(notes))

    def _score(self, annotations: Any) -> float | None:
        """The mean of the ratings; None where one is no number."""
        if not isinstance(annotations, dict):
            return None
        total = 0.0
        for aspect in self.aspects:
            one = annotations.get(aspect)
            number = rating(one.get("Rating")) if isinstance(one, dict) else None
            if number is None:
                return None
            total += number
        return total / len(self.aspects)

    def _choose(
        self, name: str, best: list[Response], rated: list[Response]
    ) -> tuple[tuple[Response, ...], tuple[Preference, ...]] | str:
        if self.pairs == "best":
            return ((_first(best, name),), ()) if best else "no rated answer of the chosen models"
        pairs = [
            (good, bad)
            for good in best
            for bad in rated
            if _score_of(good) > _score_of(bad)
            and _score_of(good) - _score_of(bad) >= self.min_margin
            and good.text != bad.text
        ]
        if not pairs:
            return (
                "no two answers of unequal rating" if self.min_margin == 0 else "no two answers so far apart"
            )
        if self.pairs == "all":
            places = {id(response): place for place, response in enumerate(rated)}
            weight = 1 / len(pairs)  # a prompt counts once, however many pairs it has
            return tuple(rated), tuple(Preference(places[id(g)], places[id(b)], weight) for g, b in pairs)
        if self.pairs == "random":
            return min(pairs, key=lambda two: _rank(name, two[0].text, two[1].text)), (Preference(0, 1),)
        widest = max(_score_of(good) - _score_of(bad) for good, bad in pairs)
        ends = [(g, b) for g, b in pairs if _score_of(g) - _score_of(b) == widest]
        return min(ends, key=lambda two: _rank(name, two[0].text, two[1].text)), (Preference(0, 1),)


def _completions(value: Any) -> list[dict[str, Any]]:
    """One {annotations, model, response} an answer; `datasets` turns the list into an object of lists."""
    if isinstance(value, Mapping):
        names = ("annotations", "model", "response")
        columns = [column for name in names if isinstance(column := value.get(name), list)]
        if len(columns) != 3 or len({len(column) for column in columns}) != 1:
            raise Fault("completions", "has lists of unequal length", "Get a whole copy of the file")
        return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise Fault(
            "completions", "is not a list of {annotations, model, response}", "Get a whole copy of the file"
        )
    return [dict(one) for one in value]


def _first(responses: Sequence[Response], name: str) -> Response:
    top = max(_score_of(response) for response in responses)
    return min((r for r in responses if _score_of(r) == top), key=lambda response: _rank(name, response.text))


def _score_of(response: Response) -> float:
    return response.score if response.score is not None else float("-inf")


def _rank(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).digest()

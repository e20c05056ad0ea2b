"""A page of a dataset's rows in pictures: image, prompt, and every answer with what is known of it.

One file that needs no other; text reaches it through a template that escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mllm_align.records import Group
from mllm_align.store import write_text
from mllm_align.tables.page import render_page
from mllm_align.tables.samples import data_uri


@dataclass(frozen=True)
class Answer:
    """A response; `kind` is chosen, rejected, both, none, or reference."""

    kind: str
    source: str
    score: float | None
    text: str


@dataclass(frozen=True)
class Row:
    id: str
    image: str
    caption: str
    prompt: str
    answers: tuple[Answer, ...]


def write_page(
    groups: Sequence[Group],
    out: str | Path,
    title: str,
    lines: Sequence[str] = (),
    number: int = 10,
    seed: int = 0,
) -> Path:
    """The page of `number` Groups drawn at random, with `lines` about the set above them. -> its path"""
    drawn = np.random.default_rng(seed).permutation(len(groups))[:number]
    page = render_page(
        "dataset.html",
        title=title,
        total=len(groups),
        seed=seed,
        lines=lines,
        rows=[show(groups[i]) for i in drawn],
    )
    write_text(Path(out), page)
    return Path(out)


def show(group: Group) -> Row:
    example = group.example
    chosen = {preference.chosen for preference in group.preferences}
    rejected = {preference.rejected for preference in group.preferences}
    answers = [
        Answer(_kind(place in chosen, place in rejected), response.source, response.score, response.text)
        for place, response in enumerate(group.responses)
    ]
    if example.reference is not None:
        answers.append(Answer("reference", "", None, example.reference))
    return Row(example.id, data_uri(example.image), example.image.key, example.prompt, tuple(answers))


def _kind(chosen: bool, rejected: bool) -> str:
    if chosen and rejected:
        return "both"
    return "chosen" if chosen else "rejected" if rejected else "none"

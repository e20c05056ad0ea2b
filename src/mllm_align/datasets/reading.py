"""What readers of rows have in common: their options, what they count and say, unique ids, and draws."""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mllm_align.datasets.errors import SHOWN, BadDataError, Problem
from mllm_align.records import Group

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What is counted while rows go by.

    `forms` are the kinds of rows that are used, `pairless` rows without a pair by the reason, `unnamed` the ids of
    rows that have none of their own.
    """

    rows: int = 0
    good: int = 0
    files: list[str] = field(default_factory=list)
    forms: Counter[str] = field(default_factory=Counter)
    pairless: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    unnamed: set[str] = field(default_factory=set)

    def report(self, used: int) -> dict[str, Any]:
        """Plain data for the record."""
        return {
            "files": self.files,
            "rows": self.rows,
            "good": self.good,
            "used": used,
            "without_a_pair": dict(self.pairless),
            "skipped": [str(problem) for problem in self.problems],
            "notes": dict(self.notes),
        }


def one_of(name: str, value: str, *options: str) -> None:
    """Raises BadDataError for a setting of the dataset that is none of these."""
    if value not in options:
        raise BadDataError(f"dataset.{name}={value} is not known. Use {' or '.join(options)}.")


def check_size(size: int | None) -> None:
    if size is not None and size < 1:
        raise BadDataError(f"dataset.size={size} leaves nothing. Give a number from 1, or null for all rows.")


def judge(tally: Tally, path: str, on_bad_row: str, hint: Callable[[], str] | None = None) -> None:
    """Raises BadDataError where rows can't be used, or none is of use; `hint` then says what they had."""
    if tally.problems and on_bad_row == "stop":
        raise BadDataError(
            f"{len(tally.problems):,} of {tally.rows:,} rows of {path} can't be used; nothing was trained.",
            tally.problems,
            "Correct them, or set dataset.on_bad_row=skip to train on the other rows.",
        )
    if not tally.good:
        reasons = "".join(f"; {reason}: {count:,}" for reason, count in tally.pairless.items())
        raise BadDataError(
            f"{path} has nothing that can be used (of {tally.rows:,} rows{reasons}).",
            tally.problems,
            hint() if hint else "",
        )


def say_skipped(problems: Sequence[Problem]) -> None:
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN])
        more = len(problems) - SHOWN
        log.warning("Skipped:\n%s%s", shown, f"\n  ... and {more:,} more." if more > 0 else "")


# --- ids and draws ------------------------------------------------------------------------------------------


def numbered(groups: Sequence[Group], tally: Tally) -> list[Group]:
    """With unique ids, since draws are seeded by them: a name that repeats (an image's, say) gets a number.

    What the rows say decides who gets which, not their order.
    """
    sharing: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        sharing[group.example.id].append(place)
    named = list(groups)
    for name, places in sharing.items():
        number = 1
        for place in sorted(places, key=lambda place: _content(groups[place]))[1:] if len(places) > 1 else ():
            number += 1
            while f"{name}#{number}" in sharing:
                number += 1
            example = replace(groups[place].example, id=f"{name}#{number}")
            named[place] = replace(groups[place], example=example)
            tally.notes["ids that repeat, numbered"] += 1
    return named


def draw(groups: list[Group], size: int | None, seed: int, tally: Tally, path: str) -> list[Group]:
    """The `size` Groups of lowest rank, in their order: the same whatever that is, and part of a larger draw.

    All of them where `size` is None. Raises BadDataError where there are fewer.
    """
    if size is None:
        return groups
    if len(groups) < size:
        raise too_few(size, len(groups), path)
    ranks = [rank(group, seed, tally) for group in groups]
    return [groups[place] for place in sorted(heapq.nsmallest(size, range(len(groups)), ranks.__getitem__))]


def rank(group: Group, seed: int, tally: Tally) -> bytes:
    """By its id or, where its row has none, by what the row says."""
    name = group.example.id
    return _digest(str(seed), _content(group) if name in tally.unnamed else name)


def _content(group: Group) -> str:
    example = group.example
    texts = (example.prompt, example.image.key, *(response.text for response in group.responses))
    return _digest(*texts, example.reference or "").hex()


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).digest()


def too_few(size: int, good: int, path: str) -> BadDataError:
    return BadDataError(
        f"dataset.size={size:,}, but {path} gives only {good:,}. Set dataset.size={good} or dataset.size=null."
    )

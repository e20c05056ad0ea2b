"""What a row of a published file says, before its image is found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mllm_align.datasets.errors import Fault
from mllm_align.records import Preference, Response

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Draft:
    """A Group to be. `image` is as the row has it, `meta` JSON-able, `notes` are counted in the report.

    `id` names it within its set and need not be unique; None: the file's name and the row's number.
    """

    prompt: str
    image: Any
    responses: tuple[Response, ...] = ()
    preferences: tuple[Preference, ...] = ()
    id: str | None = None
    reference: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


# A row in; what it gives: Drafts, and reasons (a few words, counted) where it has no pair to give. Raises Fault.
Form = Callable[[Row], Iterable[Draft | str]]


def pair(
    prompt: str,
    image: Any,
    chosen: str | Response,
    rejected: str | Response,
    *,
    id: str | None = None,
    meta: Mapping[str, Any] | None = None,
    notes: tuple[str, ...] = (),
) -> Draft | str:
    """The Draft of one pair, chosen first; a reason where the two are the same text."""
    good, bad = (r if isinstance(r, Response) else Response(r) for r in (chosen, rejected))
    if good.text == bad.text:
        return "equal answers"
    return Draft(prompt, image, (good, bad), (Preference(0, 1),), id, None, meta or {}, notes)


def parsed(value: Any, name: str) -> Mapping[str, Any]:
    """An object that a file may hold as such or as the text of its JSON, once or twice over. Raises Fault."""
    for _ in range(2):
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise Fault(name, f"is not whole JSON ({error})", "Get a whole copy of the file") from None
    if not isinstance(value, Mapping):
        raise Fault(name, f"is {type(value).__name__} and not an object", "Get a whole copy of the file")
    return value


def kept(row: Row, *names: str) -> dict[str, Any]:
    """The fields of these names that the row has and JSON can hold: what travels along as `meta`."""
    found = {name: row[name] for name in names if row.get(name) not in (None, "")}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, str | int | bool) or (isinstance(value, float) and math.isfinite(value))
    }

"""One row to one preference pair: the standard form of TRL (plain, conversational, implicit prompt).

Every function here raises Fault with the field's name; `local.py` adds file and row.
"""

from __future__ import annotations

import base64
import binascii
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm_align.datasets.errors import Fault
from mllm_align.datasets.images import BytesImage, FileImage, from_bytes, inside

PLACEHOLDER = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_USUAL = {
    "prompt": ("question", "query", "instruction", "input"),
    "chosen": ("preferred", "accepted", "positive", "winner", "win", "better"),
    "rejected": ("dispreferred", "negative", "loser", "lose", "worse"),
    "images": ("image_path", "img", "img_path", "file_name", "photo", "picture"),
}


@dataclass(frozen=True)
class Pair:
    """What a row says. `image` is still as it stands in the row; `rest` is what no field above used."""

    prompt: str
    chosen: str
    rejected: str
    image: Any
    id: str | None = None
    reference: str | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def standard(row: Mapping[str, Any]) -> Pair:
    """`images`/`image`, `chosen`, `rejected` and `prompt`, which conversations may hold themselves."""
    chosen = turns(need(row, "chosen"), "chosen", "assistant")
    rejected = turns(need(row, "rejected"), "rejected", "assistant")
    asked = _asked(row, chosen, rejected)
    used = {"images", "image", "prompt", "chosen", "rejected", "id", "reference"}
    return Pair(
        prompt=question(asked, "prompt"),
        chosen=answer(chosen, "chosen"),
        rejected=answer(rejected, "rejected"),
        image=image_of(row),
        id=identity(row),
        reference=row["reference"] if isinstance(row.get("reference"), str) else None,
        rest={key: value for key, value in row.items() if key not in used},
    )


Turns = list[tuple[str, str]]


def _asked(row: Mapping[str, Any], chosen: Turns, rejected: Turns) -> Turns:
    """The turns before the answer: from `prompt`, or those that both conversations begin with."""
    if row.get("prompt") is None:
        if not chosen[:-1] and not rejected[:-1]:
            need(row, "prompt")
        if chosen[:-1] != rejected[:-1]:
            raise Fault("rejected", "asks another question than chosen", "Let both answer the same prompt")
        return chosen[:-1]
    asked = turns(row["prompt"], "prompt", "user")
    for name, told in (("chosen", chosen), ("rejected", rejected)):
        if told[:-1] and told[:-1] != asked:
            raise Fault(
                name, "begins with another prompt than the field 'prompt'", "Let both answer the same prompt"
            )
    return asked


def need(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field that must be there; else a Fault with the nearest key that the row has."""
    if row.get(name) is not None:
        return row[name]
    if name in row:
        raise Fault(name, "is null", "Fill it, or remove the row")
    usual = [key for key in row if str(key).lower() in _USUAL.get(name, ())]
    near = difflib.get_close_matches(name, [str(key) for key in row], n=1, cutoff=0.6) or usual
    if near:
        raise Fault(name, f"is missing; the row has '{near[0]}'", f"Rename '{near[0]}' to '{name}'")
    raise Fault(name, f"is missing; the row has {', '.join(map(str, row)) or 'nothing'}", f"Add '{name}'")


def turns(value: Any, name: str, speaker: str) -> Turns:
    """(role, text) for every message. Text alone is one turn of `speaker`."""
    if isinstance(value, str):
        return [(speaker, text_of(value, name))]
    messages = [value] if isinstance(value, Mapping) else value
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise Fault(name, f"is {_a(value)}", "Give text, or a list of {role, content}")
    if not messages:
        raise Fault(name, "is an empty list", "Add a message, or remove the row")
    return [_turn(message, name) for message in messages]


def _turn(message: Mapping[str, Any], name: str) -> tuple[str, str]:
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise Fault(name, f"has a message with the role {role!r}", "Use user and assistant")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "\n".join(part for block in content if (part := _block(block, name)))
    return ROLES[role], text_of(content, name)


def _block(block: Any, name: str) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind == "text":
        return text_of(block.get("text"), name)
    if kind == "image":
        return PLACEHOLDER
    raise Fault(name, f"has a part of the type {kind!r}", "Use parts of the types text and image")


def text_of(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Fault(name, f"is {_a(value)}", "Give text")
    return value


def question(asked: Turns, name: str) -> str:
    """The prompt's text without its image placeholder: the chat template puts the image first."""
    if [role for role, _ in asked] != ["user"]:
        said = ", ".join(role for role, _ in asked)
        raise Fault(
            name,
            f"has the turns {said}; one turn of the user is what can be trained on",
            "Put the text into one turn",
        )
    text = asked[0][1]
    if text.count(PLACEHOLDER) > 1:
        raise Fault(name, f"has {text.count(PLACEHOLDER)} times {PLACEHOLDER}", "Keep one image a row")
    text = text.replace(PLACEHOLDER, "").strip()
    if not text:
        raise Fault(name, "is empty", "Write the question, or remove the row")
    return text


def answer(told: Turns, name: str) -> str:
    """The text of the last turn, which must be the assistant's."""
    role, text = told[-1]
    if role != "assistant":
        raise Fault(name, f"ends with a turn of the {role}", "End it with the assistant's answer")
    if PLACEHOLDER in text:
        raise Fault(name, f"has {PLACEHOLDER} in the answer", "Remove it there")
    if not text.strip():
        raise Fault(name, "is empty", "Write the response, or remove the row")
    return text.strip()


def identity(row: Mapping[str, Any]) -> str | None:
    value = row.get("id")
    if value is None:
        return None
    if isinstance(value, bool | float) or not isinstance(value, str | int) or value == "":
        raise Fault("id", f"is {_a(value)}", "Give text or a whole number, or leave the field out")
    return str(value)


def image_of(row: Mapping[str, Any]) -> Any:
    """The one image of a row, as it stands there: a path, {bytes, path}, bytes or a data URI."""
    given = {name: row[name] for name in ("images", "image") if row.get(name) not in (None, [], "")}
    if not given:
        if "images" not in row and "image" not in row:
            need(row, "images")
        raise Fault(
            "images" if "images" in row else "image", "the row has no image", "Add one, or remove the row"
        )
    if len(given) == 2:
        raise Fault("images", "stands beside 'image'", "Keep one of the two")
    (name, value), *_ = given.items()
    if isinstance(value, list):
        if len(value) != 1:
            raise Fault(name, f"has {len(value)} images", "Keep one image a row")
        value = value[0]
    return value


def image_ref(value: Any, root: Path) -> FileImage | BytesImage:
    """The image that a row names. Raises Fault when it is not there or not below `root`."""
    if isinstance(value, Mapping):
        data = value.get("bytes")
        value = data if data is not None else value.get("path")
    if isinstance(value, bytes):
        return from_bytes(value)
    if not isinstance(value, str) or not value:
        raise Fault("images", f"is {_a(value)}", "Give a path, {bytes, path} or a data URI")
    if value.startswith("data:"):
        return from_bytes(_data_uri(value))
    if "://" in value[:12]:
        raise Fault("images", f"is a web address ({value[:60]})", "Download the image and give its path")
    return FileImage(str(root), inside(root, value).relative_to(root.resolve()).as_posix())


def _data_uri(value: str) -> bytes:
    head, comma, body = value.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("not base64")
        return base64.b64decode("".join(body.split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise Fault(
            "images", f"is a damaged data URI ({error})", "Encode it as data:image/...;base64,..."
        ) from None


def strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(top field, text) for every text in a row, at any depth."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from strings(key, name or key)
            yield from strings(inner, name or key)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, name)


def check_text(row: Mapping[str, Any]) -> None:
    """Raises Fault where text of the row was not UTF-8, or can't be written as UTF-8."""
    for name, text in strings(row):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            near = text[max(0, error.start - 20) : error.start].encode(errors="replace").decode()
            where = f" after '{near}'" if near.strip() else ""
            raise Fault(
                name.encode(errors="replace").decode(), f"is not valid UTF-8{where}", "Save it as UTF-8"
            ) from None


def _a(value: Any) -> str:
    names = {
        type(None): "null",
        str: "text" if value else "empty text",
        list: "a list",
        dict: "an object",
        bool: "true or false",
    }
    return names.get(type(value), f"{type(value).__name__} {value!r}"[:40])

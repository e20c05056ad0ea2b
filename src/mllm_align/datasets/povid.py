"""POVID's own format (arXiv 2402.11411): `image`, `conversations`, `rejected_conversations`.

As in its released trainer the first round is the prompt and its answer; `<image>` may stand anywhere in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_align.datasets.errors import Fault
from mllm_align.datasets.fields import Pair, answer, identity, image_of, image_ref, need, question, turns
from mllm_align.datasets.images import BytesImage, FileImage


def is_povid(row: Mapping[str, Any]) -> bool:
    return "chosen" not in row and ("conversations" in row or "rejected_conversations" in row)


def povid(row: Mapping[str, Any]) -> Pair:
    """Raises Fault."""
    chosen = turns(need(row, "conversations"), "conversations", "user")
    rejected = turns(need(row, "rejected_conversations"), "rejected_conversations", "user")
    for name, told in (("conversations", chosen), ("rejected_conversations", rejected)):
        if len(told) < 2:
            raise Fault(
                name, "has no answer (gpt) after the question (human)", "Add the answer, or remove the row"
            )
    prompt = question(chosen[:1], "conversations")
    if question(rejected[:1], "rejected_conversations") != prompt:
        raise Fault(
            "rejected_conversations",
            "asks another question than conversations",
            "Let both answer the same prompt",
        )
    several = len(chosen) > 2 or len(rejected) > 2
    used = {"id", "image", "images", "conversations", "rejected_conversations"}
    return Pair(
        prompt=prompt,
        chosen=answer(chosen[:2], "conversations"),
        rejected=answer(rejected[:2], "rejected_conversations"),
        image=image_of(row),
        id=identity(row),
        rest={key: value for key, value in row.items() if key not in used},
        notes=("several rounds: the first is used",) if several else (),
    )


def povid_image(value: Any, root: Path) -> FileImage | BytesImage:
    """As the row says, below `root`; else by bare name, for the published paths begin with `./data/coco/`."""
    try:
        return image_ref(value, root)
    except Fault:
        name = Path(value).name if isinstance(value, str) else ""
        if ".." in Path(str(value)).parts or not name or not (root / name).is_file():
            raise
        return image_ref(name, root)

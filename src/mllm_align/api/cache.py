"""Paid answers on disk: one JSON file an answer, named by the hash of what was asked.

    <folder>/<first two digits>/<key>.json    question (images as SHA-256 of the pixels), answer, tokens
    <folder>/spent.jsonl                      a line for each paid answer; see spending.py
    <folder>/locks                            so that processes that ask the same at once pay once

Any number of processes may use a folder at once: a file appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock

log = logging.getLogger(__name__)


def path(folder: Path, key: str) -> Path:
    """Where the answer of this key lies, or would lie."""
    return folder / key[:2] / f"{key}.json"


def read(folder: Path, key: str) -> dict[str, Any] | None:
    """The entry, or None where there is none; a damaged file is reported and counts as none."""
    file = path(folder, key)
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("%s is damaged (%s); the question will be asked again", file, error)
        return None
    return entry


def write(folder: Path, key: str, entry: dict[str, Any]) -> None:
    """Atomic and durable, also with several machines on one file system: the temporary name is unique."""
    file = path(folder, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("x", encoding="utf-8") as opened:
        json.dump(entry, opened, indent=1, ensure_ascii=False)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(temporary, file)


def asking(folder: Path, key: str) -> FileLock:
    """Held while a question is asked. One of 256 locks, so that the folder does not fill with them."""
    file = folder / "locks" / f"{key[:2]}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file)

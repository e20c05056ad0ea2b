"""`mllm-align data fetch dataset=... base_model=...`: download what a run needs, or say what to copy where."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mllm_align.datafetch.catalogue import Item, items_of
from mllm_align.datafetch.download import Hub, HuggingFace, Refused, Unreachable, Wrong, fetch, in_words

SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
AXES = ("dataset", "base_model", "benchmark", "similarity")
# What this wrote where; hidden, so that it is no part of what a folder's content is keyed by.
NOTE = ".fetched.json"
USAGE = """usage: mllm-align data fetch [dataset=NAME] [base_model=NAME] [benchmark=NAME]
                             [similarity=sentence_transformers] [data=FOLDER] [models=FOLDER]
                             [plan=true] [accept=true]

  NAME is an option of the published world, as in dataset=published/povid; several with commas between.
  data and models default to the environment's MLLM_ALIGN_DATA and MLLM_ALIGN_MODELS, or to ./data and ./models.
  plan=true shows what would be fetched. accept=true accepts the terms of non-commercial licences that were shown."""


def main() -> int:
    return run(sys.argv[1:])


def run(arguments: Sequence[str], hub: Hub | None = None, tell: Callable[[str], None] = print) -> int:
    """0 when all is there, 2 for a wrong argument or terms that were not accepted, 1 where something is missing."""
    if not arguments or {"-h", "--help"} & {*arguments}:
        tell(USAGE)
        return 0
    try:
        options = read(arguments)
        wanted = [
            found
            for axis in AXES
            for option in options.get(axis, "").split(",")
            if option
            for found in items_of(axis, option)
        ]
        if not wanted:
            raise ValueError(f"nothing to fetch; give {', '.join(f'{axis}=...' for axis in AXES)}")
    except ValueError as error:
        print(f"mllm-align: {error}", file=sys.stderr)
        return 2
    items = [(roots(options)[root] / item.into, item) for root, item in dict.fromkeys(wanted)]
    if options.get("plan") == "true":
        for folder, item in items:
            tell(instruction(folder, item))
        return 0
    if unaccepted(items, options, tell):
        return 2
    return get(items, hub or HuggingFace(), tell)


def read(arguments: Sequence[str]) -> dict[str, str]:
    """name=value arguments. Raises ValueError for others, naming them."""
    known = {*AXES, "data", "models", "plan", "accept"}
    options = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name not in known:
            raise ValueError(
                f"data fetch does not know {argument!r}; it takes {', '.join(f'{n}=...' for n in known)}"
            )
        options[name] = value
    return options


def roots(options: Mapping[str, str]) -> dict[str, Path]:
    """Where data and models go, as the configs of the published world read them."""
    return {
        "data": Path(options.get("data") or os.environ.get("MLLM_ALIGN_DATA") or "data").expanduser(),
        "models": Path(options.get("models") or os.environ.get("MLLM_ALIGN_MODELS") or "models").expanduser(),
    }


def unaccepted(
    items: Sequence[tuple[Path, Item]], options: Mapping[str, str], tell: Callable[[str], None]
) -> bool:
    """Say every licence; whether one asks for more than was accepted."""
    for folder, item in items:
        tell(f"{folder.name}: licence {item.licence}" + (f"; {item.terms}" if item.terms else ""))
    bound = [folder.name for folder, item in items if item.non_commercial]
    if bound and options.get("accept") != "true":
        tell(
            f"{', '.join(bound)}: for non-commercial use only. Nothing was fetched; add accept=true if you accept the "
            "terms above."
        )
        return True
    return False


def get(items: Sequence[tuple[Path, Item]], hub: Hub, tell: Callable[[str], None]) -> int:
    """Fetch one after the other; what cannot be had is told at the end, with what to copy where."""
    missing: list[tuple[Path, Item, str]] = []
    cut_off = ""
    for folder, item in items:
        if item.by_hand:
            if not (item.unpacked and (folder / item.unpacked).exists()):
                missing.append((folder, item, "no program may fetch it"))
            continue
        if present(folder, item):
            tell(f"there already: {folder}")
            continue
        if cut_off and not copied(folder, item):
            missing.append((folder, item, cut_off))
            continue
        try:
            files = fetch(item, folder, hub, tell)
        except Unreachable as error:
            cut_off = str(error)
            if copied(folder, item):
                tell(f"there, but not compared with what is published: {folder}")
            else:
                missing.append((folder, item, cut_off))
        except (Refused, Wrong, OSError) as error:  # of this item alone: a page that is gone, a full disk
            missing.append((folder, item, str(error)))
        else:
            note(folder, item, files)
            tell(
                f"put into {folder}: {', '.join(file.name for file in files[:6])}{' ...' if len(files) > 6 else ''}"
            )
    if not missing:
        return 0
    print("mllm-align: not all of it is there.", file=sys.stderr)
    for folder, item, why in missing:
        print(f"{instruction(folder, item)}\n    ({why})", file=sys.stderr)
    print(
        "Fetched on another machine with the same command, the folders can be copied as they are.",
        file=sys.stderr,
    )
    return 1


def present(folder: Path, item: Item) -> bool:
    """Whether the item can be read without asking anyone: unpacked, or all that it names, or fetched whole before.

    Of a pattern nobody can say without the hub how many files it stands for.
    """
    if item.unpacked or item.kind == "model":
        return copied(folder, item)
    return copied(folder, item) and (
        not any("*" in name for name in item.files) or item.source in noted(folder)
    )


def copied(folder: Path, item: Item) -> bool:
    """Whether something of all that the item names is there."""
    if item.unpacked:
        return (folder / item.unpacked).exists()
    if item.kind == "model":
        return (folder / "config.json").is_file() and whole_weights(folder) and reads(folder, item)
    return all(any(folder.glob(name)) for name in item.names)


def noted(folder: Path) -> list[str]:
    """The sources of what was fetched into the folder."""
    target = folder / NOTE
    return [entry["source"] for entry in json.loads(target.read_text("utf-8"))] if target.is_file() else []


def whole_weights(folder: Path) -> bool:
    """Whether every file of weights is there that the index or the others' names (1-of-3) tell of, or the only one."""
    files = {file.name for file in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    wanted = set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.is_file() else set()
    for start, count in (found.groups() for name in files if (found := SHARD.fullmatch(name))):
        wanted |= {f"{start}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1)}
    return bool(files) and wanted <= files


def reads(folder: Path, item: Item) -> bool:
    """Whether the tokenizer is there and, of a model that sees, what prepares its images."""
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
    wanted = [("tokenizer_config.json",), tokenizers]
    if "*.jinja" in item.files:  # a vision-language model: an embedding of sentences has no chat template
        wanted.append(("processor_config.json", "preprocessor_config.json"))
    return all(any((folder / name).is_file() for name in names) for names in wanted)


def instruction(folder: Path, item: Item) -> str:
    """What to copy where, for a person."""
    if item.by_hand:
        return f"  {folder / (item.unpacked or '')}\n    {item.by_hand}"
    target = folder / item.unpacked if item.unpacked else folder
    names = ", ".join(item.files)
    unpacked = ", unpacked" if item.unpacked else ""
    where = f"{item.source}: " if item.hub else ""
    return f"  {target}\n    {where}{names}{unpacked} ({in_words(item.size)}; {item.licence})"


def note(folder: Path, item: Item, files: Sequence[Path]) -> None:
    """Write what came, when and from where."""
    found = {str(file.relative_to(folder)): file.stat().st_size for file in files if file.is_file()}
    entry = {
        "source": item.source if item.hub else list(item.files),
        "licence": item.licence,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "bytes": found,
    }
    target = folder / NOTE
    known = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else []
    target.write_text(json.dumps([*known, entry], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

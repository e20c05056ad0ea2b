"""What keys are made of: canonical JSON, the content of files, the source of code. Nothing is imported.

Functions
    digest      SHA-256 of a plain value's canonical JSON
    content     SHA-256 of a file or a folder
    source      SHA-256 of what a dotted name is defined as, comments and docstrings left out
    keyed       a config as it enters a key: paths replaced by what they hold
    targets     every `_target_` of a config
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ASSET = "asset://"
ASSETS = Path(__file__).parent / "assets"
OWN_PACKAGE = __name__.partition(".")[0]
REMEMBER_FROM = 64 * 2**20  # bytes; smaller files are hashed faster than looked up


def digest(value: Any) -> str:
    """SHA-256 (64 hex) of the canonical JSON of `value`: sorted keys, no spaces, no NaN."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any, where: str = "config") -> Any:
    """`value` with mappings, sequences and paths as JSON knows them.

    Raises TypeError or ValueError that names the place of what JSON cannot hold.
    """
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"{where}: key {wrong[0]!r} is not a string; quote it in the YAML file")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} cannot be part of a key; use null or a finite number")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{where}: {type(value).__name__} is not plain data (null, text, number, list, mapping)")


# --- files -------------------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's relative names and their bytes (hidden files left out)."""
    if path.is_file():
        return _remembered_sha256(path.resolve())
    names = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    return digest({name: _remembered_sha256((path / name).resolve()) for name in names})


def _remembered_sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _sha256_of(path: str, size: int, mtime_ns: int, ctime_ns: int) -> str:
    """The digest of a file in this state; also kept on disk for a large one: a 14 GB model takes a minute."""
    if size < REMEMBER_FROM:
        return file_sha256(Path(path))
    note = cache_folder() / "fingerprints" / digest([path, size, mtime_ns, ctime_ns])
    if note.is_file() and len(known := note.read_text()) == 64:
        return known
    value = file_sha256(Path(path))
    note.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as file:
        file.write(value)
    os.replace(file.name, note)
    return value


def cache_folder() -> Path:
    """MLLM_ALIGN_CACHE, else XDG_CACHE_HOME/mllm_align, else ~/.cache/mllm_align."""
    own = os.environ.get("MLLM_ALIGN_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(shared) / "mllm_align"


# --- configs -----------------------------------------------------------------------------------------------


def keyed(config: Any, name: str = "") -> Any:
    """`config` as it enters a key.

    `asset://...`, and an existing file or folder under a key `path` or `*_path`, count by what they hold and
    not by where they lie: a model copied to another disk keeps its stages, one trained again does not.
    """
    if isinstance(config, Mapping):
        return {key: keyed(value, key) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [keyed(value, name) for value in config]
    place = _place(config, name)
    return config if place is None else {"content": content(place)}


def _place(value: Any, name: str) -> Path | None:
    if isinstance(value, str) and value.startswith(ASSET):
        place = ASSETS / value.removeprefix(ASSET)
    elif isinstance(value, str | Path) and value and (name == "path" or name.endswith("_path")):
        place = Path(value).expanduser()
    else:
        return None
    return place if place.exists() else None


def targets(config: Any) -> Iterator[str]:
    """Every `_target_` in a nested config."""
    if isinstance(config, Mapping):
        if isinstance(target := config.get("_target_"), str):
            yield target
        for value in config.values():
            yield from targets(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from targets(value)


# --- code --------------------------------------------------------------------------------------------------


@cache
def source(dotted: str) -> str:
    """SHA-256 of the definition of `dotted` and of all that it uses of its own module, docstrings left out.

    The module is found and parsed, never imported. A name that its module only re-exports, as libraries do,
    counts by the library's version. What the definition imports from elsewhere does not count: a stage whose
    meaning changes there takes a new `version`.

    Raises ValueError where the module does not exist, or where a module of this package lacks the name.
    """
    file, names = _locate(dotted)
    if file is None:
        return digest([dotted, _version(dotted)])
    definitions = _definitions(file)
    if names and names[0] not in definitions:
        if dotted.split(".")[0] == OWN_PACKAGE:
            raise ValueError(f"{dotted}: {file.name} defines no {names[0]!r}; is the name misspelt?")
        return digest([dotted, _version(dotted)])
    wanted = _closure(definitions, names[:1] or tuple(definitions))
    return digest([dotted, [definitions[name][0] for name in sorted(wanted)]])


def _locate(dotted: str) -> tuple[Path | None, tuple[str, ...]]:
    """The file of the longest module in `dotted`, and the names that remain; None for what has no source."""
    top, *rest = dotted.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__ and the like carry no spec
        return None, tuple(rest)
    if spec is None:
        raise ValueError(f"{dotted}: no module {top!r}; is it installed, and on the Python path?")
    file = Path(spec.origin) if spec.origin else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    while rest and (step := _submodule(folders, rest[0])):
        file, folders = step
        rest = rest[1:]
    return (file if file is not None and file.suffix == ".py" else None), tuple(rest)


def _submodule(folders: list[Path], name: str) -> tuple[Path | None, list[Path]] | None:
    for folder in folders:
        if (folder / name / "__init__.py").is_file():
            return folder / name / "__init__.py", [folder / name]
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py", []
        if (folder / name).is_dir():
            return None, [folder / name]
    return None


def _version(dotted: str) -> str | None:
    try:
        return importlib.metadata.version(dotted.split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _definitions(file: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Top-level name -> (its source in normal form, the names it uses)."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for node in ast.parse(file.read_bytes()).body:
        uses = frozenset(part.id for part in ast.walk(node) if isinstance(part, ast.Name))
        for name in _bound(node):
            text = found[name][0] if name in found else ""
            found[name] = (text + ast.unparse(_without_docstrings(node)) + "\n", uses)
    return found


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    return [
        part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    ]


def _without_docstrings(node: ast.stmt) -> ast.stmt:
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = part.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                part.body = part.body[1:] or [ast.Pass()]
    return node


def _closure(definitions: Mapping[str, tuple[str, frozenset[str]]], start: tuple[str, ...]) -> set[str]:
    wanted: set[str] = set()
    pending = list(start)
    while pending:
        name = pending.pop()
        if name in definitions and name not in wanted:
            wanted.add(name)
            pending.extend(definitions[name][1])
    return wanted

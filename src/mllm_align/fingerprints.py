"""What keys are made of: canonical JSON, the content of files, the source of code. Nothing is imported.

Functions
    digest      SHA-256 of a plain value's canonical JSON
    content     SHA-256 of a file or a folder
    source      SHA-256 of what a dotted name is defined as, comments and docstrings left out
    deciding    a config less the settings that change no answer
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
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ASSET = "asset://"
ASSETS = Path(__file__).parent / "assets"
OWN_PACKAGE = __name__.partition(".")[0]
MARKS = "*?["  # what makes a path a pattern
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


def deciding(config: Any) -> Any:
    """`config` less every `terms`: how an endpoint is asked (its key, budget, cache and pace), and not what."""
    if isinstance(config, Mapping):
        kept = {
            key: value for key, value in config.items() if key != "terms" or not isinstance(value, Mapping)
        }
        return {key: deciding(value) for key, value in kept.items()}
    if isinstance(config, list | tuple):
        return [deciding(value) for value in config]
    return config


def keyed(config: Any, name: str = "") -> Any:
    """`config` as it enters a key.

    `asset://...`, and an existing file or folder, or the files that a pattern stands for, under a key `path` or
    `*_path`, count by what they hold and not by where they lie: a model copied to another disk keeps its stages, one
    trained again does not.
    """
    if isinstance(config, Mapping):
        return {key: keyed(value, key) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [keyed(value, name) for value in config]
    place = _place(config, name)
    if place is None:
        return config
    if place.exists():
        return {"content": content(place)}
    base, files = matches(place)
    found = {
        file.relative_to(base).as_posix(): _remembered_sha256(file.resolve())
        for file in files
        if file.is_file()
    }
    return {"content": digest(found)} if found else config


def _place(value: Any, name: str) -> Path | None:
    if isinstance(value, str) and value.startswith(ASSET):
        return ASSETS / value.removeprefix(ASSET)
    if isinstance(value, str | Path) and value and (name == "path" or name.endswith("_path")):
        return Path(value).expanduser()
    return None


def matches(pattern: Path) -> tuple[Path, list[Path]]:
    """The folder that a pattern such as data/train-*.parquet starts from, and what it stands for, in order.

    A folder that is there is taken by its name, whatever is in it.
    """
    base, rest = Path(pattern.anchor), list(pattern.relative_to(pattern.anchor).parts)
    while len(rest) > 1 and (base / rest[0]).is_dir():
        base /= rest.pop(0)
    wanted = "/".join(rest)
    return base, sorted(base.glob(wanted)) if any(mark in wanted for mark in MARKS) else []


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

    The modules are found and parsed, never imported. What the definition imports from modules of your own counts
    too; what it imports from libraries and from this package does not (`Stage.version`). A name that a library's
    module only re-exports counts by the library's version.

    Raises ValueError where the module does not exist, or where a module of this package or of your own lacks the name.
    """
    found: dict[str, Any] = {}
    pending = [dotted]
    while pending:
        name = pending.pop()
        if name not in found:
            found[name], imported = _definition(name)
            pending += [other for other in imported if _is_own(other)]
    return digest([dotted, found])


def _definition(dotted: str) -> tuple[Any, set[str]]:
    """What `dotted` is defined as, and the dotted names that the definition imports."""
    file, names = _locate(dotted)
    if file is None:
        return _version(dotted), set()
    known = _definitions(file)
    if names and names[0] not in known and not {"*", "__getattr__"} & known.keys():
        if _is_own(dotted) or dotted.split(".")[0] == OWN_PACKAGE:
            raise ValueError(f"{dotted}: {file.name} defines no {names[0]!r}; is the name misspelt?")
        return _version(dotted), set()
    wanted = sorted(_closure(known, (*names[:1], "*") if names else tuple(known)))
    module = dotted.split(".")[: dotted.count(".") + 1 - len(names)]
    package = module if file.name == "__init__.py" else module[:-1]
    imports = {found for name in wanted for found in known[name].imports}
    return [known[name].text for name in wanted], set(_absolute(imports, package))


def _is_own(dotted: str) -> bool:
    """Whether a module of the user's own is meant, and found: no library, and not this package."""
    if (top := dotted.split(".")[0]) in sys.stdlib_module_names or top == OWN_PACKAGE:
        return False
    try:
        file, _ = _locate(dotted)
    except ValueError:  # an import that the code can do without
        return False
    return file is not None and not {"site-packages", "dist-packages"} & set(file.parts)


def _absolute(imports: Iterable[tuple[int, str]], package: list[str]) -> Iterator[str]:
    """The full names of imports that are `level` dots away from a module of `package`."""
    for level, name in imports:
        if level <= len(package):
            start = package[: len(package) - level + 1] if level else []
            yield ".".join([*start, name])


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
    if file is None and rest and folders and not any(any(f.glob(f"{rest[0]}.*")) for f in folders):
        raise ValueError(f"{dotted}: no module {rest[0]!r} in {folders[0]}; is the name misspelt?")
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


class _Definition(NamedTuple):
    """A top-level name's source in normal form, the names it uses, and what it imports: (dots, name)."""

    text: str = ""
    uses: frozenset[str] = frozenset()
    imports: frozenset[tuple[int, str]] = frozenset()


@cache
def _definitions(file: Path) -> dict[str, _Definition]:
    """The top-level names of a module; "*" stands for what it takes over from others as a whole."""
    found: dict[str, _Definition] = {}
    for node in ast.parse(file.read_bytes()).body:
        uses = frozenset(part.id for part in ast.walk(node) if isinstance(part, ast.Name))
        imports = frozenset(_imports(node))
        text = ast.unparse(_without_docstrings(node)) + "\n"
        for name in _bound(node):
            before = found.get(name, _Definition())
            found[name] = _Definition(before.text + text, before.uses | uses, before.imports | imports)
    return found


def _imports(node: ast.stmt) -> Iterator[tuple[int, str]]:
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from ((0, alias.name) for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            start = [part.module] if part.module else []
            names = [[] if alias.name == "*" else [alias.name] for alias in part.names]
            yield from ((part.level, ".".join([*start, *name])) for name in names)


def _bound(node: ast.stmt) -> set[str]:
    """The names that a top-level statement defines, also inside its `if`, `try` and the like."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    names: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(part.name)
        elif isinstance(part, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in part.names}
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            names.add(part.id)
    return names


def _without_docstrings(node: ast.stmt) -> ast.stmt:
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = part.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                part.body = part.body[1:] or [ast.Pass()]
    return node


def _closure(definitions: Mapping[str, _Definition], start: tuple[str, ...]) -> set[str]:
    wanted: set[str] = set()
    pending = list(start)
    while pending:
        name = pending.pop()
        if name in definitions and name not in wanted:
            wanted.add(name)
            pending.extend(definitions[name].uses)
    return wanted

"""Getting an item: from the Hugging Face hub or an address, resumed, with its size and checksum looked at."""

from __future__ import annotations

import fnmatch
import hashlib
import lzma
import os
import queue
import shutil
import socket
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlparse

from mllm_align.datafetch.catalogue import Item

PART = ".part"
TAG = ".part.tag"  # beside it: the ETag or time of the file that the part is of
PIECE = 2**20
PATIENCE = 10.0  # seconds to wait for a server


class Unreachable(OSError):
    """There is no way to any source from here, or the connection broke."""


class Refused(ValueError):
    """The source is reached and does not give this file: it is gone, or wants terms accepted."""


class Wrong(ValueError):
    """What came is not what was published."""


@dataclass(frozen=True)
class Remote:
    """A file of a hub repository, with what the hub says of it."""

    name: str
    size: int | None
    sha256: str | None


class Hub(Protocol):
    """The two things that are wanted of the Hugging Face hub."""

    def files(self, repository: str, kind: str) -> list[Remote]: ...

    def download(self, repository: str, kind: str, name: str, into: Path) -> None: ...


class HuggingFace:
    """The hub itself, by its own client, which resumes, shows progress and takes HF_TOKEN and HF_ENDPOINT."""

    def files(self, repository: str, kind: str) -> list[Remote]:
        from huggingface_hub import HfApi

        reachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
        found: Any = HfApi().repo_info(repository, repo_type=kind, files_metadata=True, timeout=PATIENCE)
        return [
            Remote(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None)
            for file in found.siblings
        ]

    def download(self, repository: str, kind: str, name: str, into: Path) -> None:
        from huggingface_hub import hf_hub_download

        hf_hub_download(repository, name, repo_type=kind, local_dir=into)


def reachable(address: str) -> None:
    """Raises Unreachable at once where there is no network, and not after minutes of attempts."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false"):
        raise Unreachable("HF_HUB_OFFLINE is set")
    if urllib.request.getproxies():
        return  # the proxy knows the way
    target = urlparse(address)
    port = target.port or (443 if target.scheme == "https" else 80)
    found: queue.Queue[OSError | None] = queue.Queue()
    # in a thread, because looking up a name knows no time limit
    threading.Thread(target=_knock, args=(target.hostname or "", port, found), daemon=True).start()
    try:
        problem = found.get(timeout=PATIENCE)
    except queue.Empty:
        problem = TimeoutError(f"no answer in {PATIENCE:.0f} seconds")
    if problem is not None:
        raise Unreachable(f"{target.hostname} cannot be reached ({problem})")


def _knock(host: str, port: int, found: queue.Queue[OSError | None]) -> None:
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
        found.put(None)
    except OSError as error:
        found.put(error)


def fetch(item: Item, folder: Path, hub: Hub, tell: Callable[[str], None] = print) -> list[Path]:
    """Bring the item into `folder`; what is there already stays. -> its files

    Raises Unreachable without a network, Refused where the source does not give it, Wrong for a file of another size or
    checksum than published, OSError where it can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return (
        _from_hub(item, folder, hub, tell)
        if item.hub
        else [_from_web(item, a, folder, tell) for a in item.files]
    )


def _from_hub(item: Item, folder: Path, hub: Hub, tell: Callable[[str], None]) -> list[Path]:
    assert item.hub is not None
    with _asking(item):
        offered = hub.files(item.hub, item.kind)
    wanted = list(_matching(offered, item.files))
    optional = {"*.jinja", "tokenizer.model", "*.txt"}
    for pattern in item.files:
        if pattern not in optional and not any(fnmatch.fnmatch(file.name, pattern) for file in wanted):
            raise Wrong(
                f"{item.source} has no file {pattern} any more; look there for an earlier revision that has, and copy "
                f"it to {folder}"
            )
    for file in wanted:
        target = folder / file.name
        if target.is_file() and (file.size is None or target.stat().st_size == file.size):
            tell(f"there already: {target}")
        else:
            with _asking(item):
                hub.download(item.hub, item.kind, file.name, folder)
        check(target, file.size, file.sha256)
    return [folder / file.name for file in wanted]


@contextmanager
def _asking(item: Item) -> Iterator[None]:
    """Errors of the hub's client in our words; its own are of several libraries, and some are OSErrors."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except (LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise Unreachable(f"{item.source} cannot be reached ({_said(error)})") from error
    except (HfHubHTTPError, EntryNotFoundError, RuntimeError) as error:
        raise Refused(
            f"{item.source} does not give it: {type(error).__name__}: {_said(error)}; where it is gated, accept its "
            "terms there and log in (HF_TOKEN)"
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "requests", "httpcore")):
            raise
        raise Unreachable(f"{item.source} cannot be reached ({_said(error)})") from error


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _matching(offered: Sequence[Remote], patterns: Sequence[str]) -> Iterator[Remote]:
    """Files that a pattern names, none of them twice and none that leaves the folder."""
    for file in offered:
        inside = ".." not in PurePosixPath(file.name).parts and not PurePosixPath(file.name).is_absolute()
        # a pattern without a folder means the top of the repository
        fits = any(
            fnmatch.fnmatch(file.name, pattern) and file.name.count("/") == pattern.count("/")
            for pattern in patterns
        )
        if fits and inside:
            yield file


def _from_web(item: Item, address: str, folder: Path, tell: Callable[[str], None]) -> Path:
    made = folder / item.unpacked if item.unpacked else folder / PurePosixPath(urlparse(address).path).name
    if made.exists():
        tell(f"there already: {made}")
        if not item.unpacked:
            check(made, None, item.sha256)
        return made
    archive = folder / PurePosixPath(urlparse(address).path).name
    if not archive.is_file():
        reachable(address)
        download(address, archive, tell)
    check(archive, None, item.sha256)
    if item.unpacked:
        tell(f"unpacking {archive}")
        unpack(archive, folder, made)
        archive.unlink()
    return made


def download(address: str, target: Path, tell: Callable[[str], None] = print) -> None:
    """Into target, by way of target.part, which a later call continues where the file is still the same.

    Raises Unreachable where the connection breaks, Refused for what the server has not, OSError where the disk does not
    take it.
    """
    part, tag = (target.with_name(target.name + ending) for ending in (PART, TAG))
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and tag.is_file():  # a server whose file is another one sends all of it
        headers["If-Range"] = tag.read_text("utf-8")
    try:
        with _open(urllib.request.Request(address, headers=headers)) as answer:
            continued = answer.status == 206
            start = have if continued else 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length else None
            tell(f"{'continuing' if continued else 'downloading'} {address} ({in_words(total)})")
            _note_state(answer.headers, tag)
            with part.open("ab" if continued else "wb") as file:
                for piece in _pieces(answer):
                    file.write(piece)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise Refused(f"{address}: the server answers {error.code} ({error.reason})") from error
        if error.headers.get("Content-Range", "").rpartition("/")[2] != str(have):
            part.unlink()  # of another file: all of it anew
            return download(address, target, tell)
        total = have  # the part is the whole already
    if total is not None and part.stat().st_size != total:
        raise Unreachable(
            f"{address}: the connection ended early; the same command continues where it stopped"
        )
    part.replace(target)
    tag.unlink(missing_ok=True)


def _open(request: urllib.request.Request) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError:
        raise
    except (OSError, HTTPException) as error:
        raise Unreachable(f"{request.full_url}: {error}") from error


def _pieces(answer: Any) -> Iterator[bytes]:
    """Only what reading raises is of the connection, and not what writing does."""
    while True:
        try:
            piece = answer.read(PIECE)
        except (OSError, HTTPException) as error:
            raise Unreachable(
                f"{answer.url}: {error}; the same command continues where it stopped"
            ) from error
        if not piece:
            return
        yield piece


def _note_state(headers: Any, tag: Path) -> None:
    """Keeps what names this state of the file, for the call that may have to go on."""
    strong = headers.get("ETag", "") if not headers.get("ETag", "").startswith("W/") else ""
    state = strong or headers.get("Last-Modified", "")
    if state:
        tag.write_text(state, "utf-8")
    else:
        tag.unlink(missing_ok=True)


def check(file: Path, size: int | None, sha256: str | None) -> None:
    """Raises Wrong for another size or checksum; the file is moved out of the way."""
    problem = None
    if size is not None and file.stat().st_size != size:
        problem = f"has {file.stat().st_size} bytes and not the {size} that are published"
    elif sha256 is not None and checksum(file) != sha256:
        problem = f"has another SHA-256 than the published {sha256}"
    if problem:
        raise _aside(file, problem)


def _aside(file: Path, problem: str) -> Wrong:
    """Moves the file out of the way, so that the next call fetches it again."""
    wrong = file.with_name(f"{file.name}.wrong")
    file.replace(wrong)
    return Wrong(f"{file} {problem}; it was moved to {wrong.name}: fetch it again")


def checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def unpack(archive: Path, folder: Path, made: Path) -> None:
    """A zip archive into `folder`, so that `made` is there at the end: a folder of the archive, or files at its top.

    It is unpacked beside that first, and `made` comes last, so that it is whole once it is there. Where the archive has
    one folder at its top with what is wanted inside, that folder is left out. Raises Wrong for what is no zip archive
    (it is moved aside), for a member that would leave the folder, and where `made` does not come of it.
    """
    wanted = made.relative_to(folder).parts[0]
    beside = folder / f".{archive.name}.unpacking"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _extract(archive, beside, wanted)
        for entry in sorted(beside.iterdir(), key=lambda entry: entry.name == wanted):
            _move(entry, folder / entry.name)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise _aside(archive, f"is no whole zip archive ({error})") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if not made.exists():
        raise Wrong(
            f"{archive} was unpacked, and there is no {made}; its layout has changed: put it there by hand"
        )


def _extract(archive: Path, into: Path, wanted: str) -> None:
    into.mkdir()
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if not name.startswith("__MACOSX/")]
        for name in names:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise Wrong(f"{archive}: member {name!r} would be written outside of {into.parent}")
        tops = {PurePosixPath(name).parts[0] for name in names}
        lead = next(iter(tops)) if len(tops) == 1 and wanted not in tops else ""
        for name in names:
            target = into / (PurePosixPath(name).relative_to(lead) if lead else name)
            if name.endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(name) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, PIECE)


def _move(entry: Path, target: Path) -> None:
    """Into its place; into a folder that is there already, what is in it."""
    if entry.is_dir() and target.is_dir():
        for inner in list(entry.iterdir()):
            _move(inner, target / inner.name)
    else:
        entry.replace(target)


def in_words(size: int | None) -> str:
    """`1.2 GB`; `size not stated`."""
    if size is None:
        return "size not stated"
    for unit, number in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= number:
            return f"{size / number:.1f} {unit}"
    return f"{size} bytes"

"""Files of the Hugging Face hub by name: hub://owner/name/file, hub://owner/name@revision/folder, or a pattern."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mllm_align.datasets.errors import BadDataError
from mllm_align.fingerprints import MARKS

HUB = "hub://"
_NAMED = 8  # files that an error names


@dataclass(frozen=True)
class Address:
    """A hub path in its parts. `inner` is a file, a folder or a pattern; empty: the whole dataset."""

    path: str
    repository: str
    revision: str | None
    inner: str

    @property
    def pattern(self) -> bool:
        return any(mark in self.inner for mark in MARKS)


def is_hub(path: str | Path) -> bool:
    return str(path).startswith(HUB)


def resolve(path: str, key: str = "dataset.path") -> Path:
    """A local path as it is; the local copy of a hub path, downloaded into the hub's own cache where it is missing.

    Of a pattern only what matches is downloaded, and what comes back is a pattern again. `key` is the setting that an
    error names. Raises BadDataError that says what the dataset has, or what to copy where when there is no network.
    """
    if not is_hub(path):
        return Path(path).expanduser()
    address = _parsed(path, key)
    if not address.inner:
        wanted = None
    elif address.pattern:
        wanted = _matching(address, key)
    else:
        wanted = [address.inner, f"{address.inner}/*"]
    folder = _download(address, wanted, key)
    place = folder / address.inner
    if not (next(folder.glob(address.inner), None) if address.pattern else place.exists()):
        raise _absent(address, _files(address) or list(_below(folder)), key)
    return place


def _parsed(path: str, key: str) -> Address:
    parts = path.removeprefix(HUB).strip("/").split("/")
    owner, (name, _, revision) = parts[0], (parts[1] if len(parts) > 1 else "").partition("@")
    if not owner or not name or ".." in parts:
        raise BadDataError(
            f"{key}={path} names no dataset. Give hub://owner/name, hub://owner/name/file or "
            "hub://owner/name/data/train-*.parquet."
        )
    return Address(path, f"{owner}/{name}", revision or None, "/".join(parts[2:]))


def _matching(address: Address, key: str) -> list[str]:
    """The names that the pattern stands for, or the pattern itself where the hub can't be asked."""
    names = _files(address)
    if names is None:
        return [address.inner]
    # The hub's client lets * stand for folders, too, and would download more.
    found = [name for name in names if _fits(name, address.inner)]
    if not found:
        raise _absent(address, names, key)
    return [glob.escape(name) for name in found]


def _fits(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and PurePosixPath(name).match(pattern)


def _files(address: Address) -> list[str] | None:
    """Every file of the dataset; None where the hub can't be asked."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(address.repository, repo_type="dataset", revision=address.revision)
    except Exception:  # its errors come from several libraries; `_download` meets the same one, and says it
        return None


def _download(address: Address, wanted: Sequence[str] | None, key: str) -> Path:
    from huggingface_hub import is_offline_mode, snapshot_download

    try:
        return Path(
            snapshot_download(
                address.repository,
                repo_type="dataset",
                revision=address.revision,
                allow_patterns=None if wanted is None else list(wanted),
            )
        )
    except Exception as error:  # network, HTTP, hub
        offline = " (HF_HUB_OFFLINE is set)" if is_offline_mode() else ""
        said = (str(error).splitlines() or [""])[0][:200]
        raise BadDataError(
            f"{address.path} can't be downloaded{offline}: {type(error).__name__}: {said}. Correct {key}, or log in "
            "(HF_TOKEN) if the dataset is gated or private. Without a network copy "
            f"{address.inner or 'the files'} of the dataset {address.repository} here and set {key} to it."
        ) from None


def _absent(address: Address, names: Sequence[str], key: str) -> BadDataError:
    what = f"no file that matches {address.inner}" if address.pattern else f"no {address.inner}"
    shown = sorted(names, key=lambda name: (name.startswith("."), name))[:_NAMED]
    more = f" and {len(names) - len(shown):,} more" if len(names) > len(shown) else ""
    return BadDataError(
        f"{address.path}: the dataset {address.repository} has {what}. It has {', '.join(shown) or 'no files'}{more}. "
        f"Correct {key}."
    )


def _below(folder: Path) -> Iterator[str]:
    return (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())

"""Files of the Hugging Face hub by name: hub://owner/name/file, hub://owner/name@revision/folder."""

from __future__ import annotations

import os
from pathlib import Path

from mllm_align.datasets.errors import BadDataError

HUB = "hub://"


def resolve(path: str) -> Path:
    """A local path as it is; the local copy of a hub path, downloaded into the hub's own cache where it is missing.

    Raises BadDataError that says what to copy where when there is no network.
    """
    if not path.startswith(HUB):
        return Path(path).expanduser()
    parts = path.removeprefix(HUB).strip("/").split("/")
    if len(parts) < 2:
        raise BadDataError(f"{path} names no dataset. Give hub://owner/name, or hub://owner/name/file.")
    owner, (name, _, revision), inner = parts[0], parts[1].partition("@"), "/".join(parts[2:])
    repository = f"{owner}/{name}"
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=[inner, f"{inner}/*"] if inner else None,
            )
        )
    except Exception as error:  # its errors come from several libraries: network, HTTP, hub
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        said = (str(error).splitlines() or [""])[0][:200]
        raise BadDataError(
            f"{path} can't be downloaded{offline}: {type(error).__name__}: {said}. Without a network copy "
            f"{inner or 'the files'} of the dataset {repository} here and set dataset.path to it."
        ) from None
    found = folder / inner
    if not found.exists():
        raise BadDataError(f"{path}: the dataset {repository} has no {inner}. Correct dataset.path.")
    return found

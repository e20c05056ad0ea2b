"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests never ask a network for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> dict[str, Path]:
    """Folders of the two tiny models, by kind: llava and llava_next."""
    from tiny import make_tiny

    root = tmp_path_factory.mktemp("tiny")
    return {kind: make_tiny(kind, root / kind) for kind in ("llava", "llava_next")}


@pytest.fixture(params=["llava", "llava_next"])
def tiny_folder(request, tiny_folders) -> Path:
    """Each of the two tiny models in turn."""
    return tiny_folders[request.param]


@pytest.fixture
def tiny_policy(tiny_folder):
    """Each of the two tiny models, loaded afresh."""
    from mllm_align.models.load import load_policy

    return load_policy(tiny_folder)

"""The compute tests run on every family of models."""

from __future__ import annotations

import pytest

from tiny import KINDS, make_tiny


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory):
    """Folders of tiny models, by kind."""
    root = tmp_path_factory.mktemp("families")
    return {kind: make_tiny(kind, root / kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tiny_folder(request, family_folders):
    """The tiny model of each family in turn."""
    return family_folders[request.param]

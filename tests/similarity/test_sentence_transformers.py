"""Sentence embeddings with the package missing, and with one in its place."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from mllm_align.similarity import sentences
from mllm_align.similarity.sentences import SentenceTransformers

VECTORS = {"a": [1.0, 0.0], "b": [0.6, 0.8], "c": [-1.0, 0.0]}


class Fake:
    """What we use of `SentenceTransformer`."""

    loaded: list[tuple] = []  # noqa: RUF012

    def __init__(self, path, device, model_kwargs):
        if path == "absent":
            raise OSError("no such model")
        self.loaded.append((path, device))
        self.encoded: list[str] = []
        assert model_kwargs == {"use_safetensors": True}

    def encode(self, texts, batch_size, normalize_embeddings, show_progress_bar):
        assert normalize_embeddings
        self.encoded += texts
        return np.array([VECTORS[text] for text in texts], dtype=np.float32)


@pytest.fixture(autouse=True)
def fresh():
    sentences._load.cache_clear()
    yield
    sentences._load.cache_clear()


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = Fake
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    Fake.loaded.clear()


def test_cosines_in_order_and_one_model_for_all(package) -> None:
    similarity = SentenceTransformers("folder")
    assert similarity(["a", "a", "b"], ["b", "c", "b"]) == pytest.approx([0.6, -1.0, 1.0])
    assert SentenceTransformers("folder")(["a"], ["a"]) == [1.0]
    assert similarity([], []) == []
    assert Fake.loaded == [("folder", "cpu")]
    assert sentences._load("folder", "cpu").encoded == ["a", "b", "c", "a"]  # each text once a call


def test_unequal_lists_are_refused(package) -> None:
    with pytest.raises(ValueError, match="2 and 1 texts"):
        SentenceTransformers("folder")(["a", "b"], ["a"])


def test_a_missing_package_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'mllm-align\[bdhs\]'"):
        SentenceTransformers()(["a"], ["b"])


def test_a_missing_model_is_named(package) -> None:
    with pytest.raises(FileNotFoundError, match="model absent cannot be loaded"):
        SentenceTransformers("absent")(["a"], ["b"])

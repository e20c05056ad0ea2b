"""Cosine of sentence embeddings by a sentence-transformers model: the paper's measure, with all-mpnet-base-v2."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SentenceTransformers:
    """`path` is a local folder, or a name on the Hugging Face hub (`sentence-transformers/all-mpnet-base-v2`).

    The model is loaded at the first use, once for all samplers with the same path and device.
    """

    path: str = "sentence-transformers/all-mpnet-base-v2"
    device: str = "cpu"
    batch_size: int = 64

    def __call__(self, texts_a: Sequence[str], texts_b: Sequence[str]) -> list[float]:
        if len(texts_a) != len(texts_b):
            raise ValueError(f"{len(texts_a)} and {len(texts_b)} texts cannot be paired")
        if not texts_a:
            return []
        both = list(dict.fromkeys([*texts_a, *texts_b]))
        model = _load(self.path, self.device)
        vectors = model.encode(
            both, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        of = dict(zip(both, vectors, strict=True))
        return [min(1.0, float(of[a] @ of[b])) for a, b in zip(texts_a, texts_b, strict=True)]


@functools.lru_cache(maxsize=2)
def _load(path: str, device: str) -> Any:
    """Raises ValueError and FileNotFoundError with what to do."""
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        if error.name != "sentence_transformers":
            raise
        raise ValueError(
            "similarity=sentence_transformers needs a package that is not installed: "
            "pip install 'mllm-align[bdhs]' (texts about scenes need none: similarity=scenes)"
        ) from None
    try:
        # pickled weights are refused
        return SentenceTransformer(path, device=device, model_kwargs={"use_safetensors": True})
    except OSError as error:
        raise FileNotFoundError(
            f"the sentence-transformers model {path} cannot be loaded ({error}); give the path of a downloaded "
            "folder, or a name on the hub where it can be reached"
        ) from error

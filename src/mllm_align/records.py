"""The vocabulary of the project: plain frozen records, no logic and no torch.

An `Example` is an image with a prompt, a `Group` is an Example with k `Response`s, and a `Preference`
says which of them is preferred to which. An offline pair is a Group of 2, averaged DPO a Group of 3,
RLOO a Group of k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageRef(Protocol):
    """Where an image is; the pixels are read only by `load`."""

    @property
    def key(self) -> str:
        """A stable, unique name: a path below the image root, a content hash, or a scene id."""

    def load(self) -> Image:
        """The image in RGB."""


@dataclass(frozen=True)
class Example:
    """An image with a prompt: what a policy is asked.

    `meta` is JSON-able. In the scenes world `meta["scene"]` is the scene's exact description.
    """

    id: str
    image: ImageRef
    prompt: str
    reference: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """An answer, and the name of what wrote it (`dataset`, `policy`, `bdhs_attn`, a model's name, ...).

    `provenance` is JSON-able: how a sampler made it (its iteration, similarity, cuts, mask seed, ...). `image`
    is the image that its probability is asked under, where that is not the Example's (mDPO).
    """

    text: str
    source: str = "dataset"
    token_ids: tuple[int, ...] | None = None
    score: float | None = None
    provenance: Mapping[str, Any] | None = None
    image: ImageRef | None = None


@dataclass(frozen=True)
class Preference:
    """Indices into a Group's responses, and the weight of the pair in the loss."""

    chosen: int
    rejected: int
    weight: float = 1.0


@dataclass(frozen=True)
class Group:
    """An Example with k Responses and the Preferences among them (none before annotation, or for a tie)."""

    example: Example
    responses: tuple[Response, ...]
    preferences: tuple[Preference, ...] = ()

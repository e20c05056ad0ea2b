"""The pieces of a LLaVA model that the fast paths drive one by one, whatever wraps them (PEFT, DDP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from mllm_align.compute import attention

if TYPE_CHECKING:
    from mllm_align.compute.packing import Batch, Prompts


HasPrompts: TypeAlias = "Prompts | Batch"


def unwrap(model: Any) -> Any:
    """The LLaVA model itself; LoRA layers and the trained projector stay inside it."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def language_model(model: Any) -> Any:
    """The decoder below the LM head, with "shared_prefix" attention installed."""
    llava = unwrap(model)
    decoder = getattr(llava, "model", llava).language_model
    attention.install(decoder)
    return decoder


def lm_head(model: Any) -> Any:
    """The layer from hidden states to logits."""
    return unwrap(model).get_output_embeddings()


def image_features(model: Any, prompts: HasPrompts) -> tuple[torch.Tensor, ...]:
    """What the language model sees of each image: (tokens, hidden) an image, through vision tower and
    projector once.
    """
    llava = unwrap(model)
    pixels = prompts.pixel_values.to(lm_head(model).weight.dtype)
    # LLaVA-1.5 takes image_sizes too, but means something else by it.
    sizes = {} if prompts.image_sizes is None else {"image_sizes": prompts.image_sizes}
    output = llava.get_image_features(pixel_values=pixels, **sizes)
    # transformers returned the features themselves before it returned an output object.
    features = getattr(output, "pooler_output", output)
    return tuple(features)


def embed_prompts(
    model: Any, prompts: HasPrompts, features: tuple[torch.Tensor, ...] | None = None
) -> torch.Tensor:
    """Embeddings of the prompt tokens with the image features in place of the image tokens: (B, P,
    hidden).
    """
    features = image_features(model, prompts) if features is None else features
    here = prompts.prompt_ids == unwrap(model).config.image_token_id  # (B, P)
    rows = [features[i] for i in prompts.image_index.tolist()]
    check_image_tokens(here.sum(1).tolist(), [len(f) for f in rows])
    embeds = embed_tokens(model, prompts.prompt_ids)
    return embeds.masked_scatter(here[..., None], torch.cat(rows).to(embeds.device, embeds.dtype))


def check_image_tokens(written: Sequence[int], made: Sequence[int]) -> None:
    """Raises ValueError unless processor and model agree on the number of image tokens of every row."""
    for row, (want, have) in enumerate(zip(written, made, strict=True)):
        if have != want:
            raise ValueError(
                f"row {row}: the processor wrote {want} image tokens but the model made {have} image "
                "features; do they come from the same folder (patch size, grid, feature strategy)?"
            )


def embed_tokens(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Embeddings of text tokens."""
    return unwrap(model).get_input_embeddings()(ids)

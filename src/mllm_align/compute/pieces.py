"""The pieces of a vision-language model that the fast paths drive one by one, whatever wraps them (PEFT, DDP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from mllm_align.compute import attention
from mllm_align.models.families import Pixels, of_model, unwrap

if TYPE_CHECKING:
    from mllm_align.compute.packing import Batch, Prompts


HasPrompts: TypeAlias = "Prompts | Batch"


def language_model(model: Any) -> Any:
    """The decoder below the LM head, with "shared_prefix" attention installed."""
    whole = unwrap(model)
    decoder = getattr(getattr(whole, "model", whole), of_model(model).decoder)
    attention.install(decoder)
    return decoder


def decode(
    model: Any, embeds: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, **layout: Any
) -> torch.Tensor:
    """Hidden states (B, L, hidden) of embeddings (B, L, hidden) at position ids (B, L) or (B, 3, L).

    `mask` is a 4D mask as it reaches `attention.attend`, `layout` the keywords that it takes.
    """
    return (
        language_model(model)(
            inputs_embeds=embeds,
            position_ids=positions if positions.ndim == 2 else positions.transpose(0, 1),
            attention_mask=mask,
            use_cache=False,
            **layout,
        )
    ).last_hidden_state


def lm_head(model: Any) -> Any:
    """The layer from hidden states to logits."""
    return unwrap(model).get_output_embeddings()


def image_features(model: Any, prompts: HasPrompts) -> tuple[torch.Tensor, ...]:
    """What the language model sees of each image: (tokens, hidden) an image, through vision tower and
    projector once.
    """
    pixels = Pixels(prompts.pixel_values.to(lm_head(model).weight.dtype), prompts.image_sizes)
    return tuple(of_model(model).features(unwrap(model), pixels))


def embed_prompts(model: Any, prompts: HasPrompts) -> torch.Tensor:
    """Embeddings of the prompt tokens with the image features in place of the image tokens: (B, P,
    hidden).
    """
    features = image_features(model, prompts)
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

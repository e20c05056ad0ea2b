"""Fresh models of the scenes family: real LLaVA-NeXT and LLaVA-1.5 classes of small sizes, with their processors.

LLaVA-NeXT (`base`, `large`): AnyRes tiles of 32 x 32 pixels with patches of 16. A 96 x 96 scene is 3 x 3 tiles, one per
cell of the scene's grid, so an image is 4 tokens of the whole view, 36 of the tiles and 6 line ends: 46 tokens.
LLaVA-1.5 (`weak`): one view of 48 x 48 pixels with patches of 8, 36 tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TILE, TILE_PATCH = 32, 16
VIEW, VIEW_PATCH = 48, 8
# (height, width): the world's own 96 x 96, and the other shapes of photos people bring.
PINPOINTS = ((96, 96), (64, 96), (96, 64), (32, 96), (96, 32), (64, 64))
MEAN_STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Size:
    """Widths and depths of vision tower and language model."""

    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    text_mlp: int
    head_width: int = 32


@dataclass(frozen=True)
class Built:
    """A LlavaForConditionalGeneration or LlavaNextForConditionalGeneration and its processor."""

    model: Any
    processor: Any


def _vision_config(size: Size, image_size: int, patch_size: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=3 * size.vision_width,
        projection_dim=size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_width // size.head_width,
        image_size=image_size,
        patch_size=patch_size,
        hidden_act="gelu",
    )


def _text_config(size: Size, tokenizer: PreTrainedTokenizerFast) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=-(-len(tokenizer) // 16) * 16,
        hidden_size=size.text_width,
        intermediate_size=size.text_mlp,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_width // size.head_width,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _common(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": True,
    }


def _finish(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    generation.bos_token_id = None
    return model.eval()


def build_next(size: Size, tokenizer: PreTrainedTokenizerFast) -> Built:
    """A LLaVA-NeXT with random weights and its processor."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    config = LlavaNextConfig(
        vision_config=_vision_config(size, TILE, TILE_PATCH),
        text_config=_text_config(size, tokenizer),
        image_grid_pinpoints=[list(p) for p in PINPOINTS],
        image_seq_length=(TILE // TILE_PATCH) ** 2,
        **_common(tokenizer),
    )
    images = LlavaNextImageProcessor(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=[list(p) for p in PINPOINTS],
        image_mean=list(MEAN_STD),
        image_std=list(MEAN_STD),
    )
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=TILE_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" drops again
        chat_template=tokenizer.chat_template,
    )
    return Built(_finish(LlavaNextForConditionalGeneration(config), tokenizer), processor)


def build_llava(size: Size, tokenizer: PreTrainedTokenizerFast) -> Built:
    """A LLaVA-1.5 with random weights and its processor."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    config = LlavaConfig(
        vision_config=_vision_config(size, VIEW, VIEW_PATCH),
        text_config=_text_config(size, tokenizer),
        image_seq_length=(VIEW // VIEW_PATCH) ** 2,
        **_common(tokenizer),
    )
    images = CLIPImageProcessor(
        size={"shortest_edge": VIEW},
        crop_size={"height": VIEW, "width": VIEW},
        image_mean=list(MEAN_STD),
        image_std=list(MEAN_STD),
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=VIEW_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return Built(_finish(LlavaForConditionalGeneration(config), tokenizer), processor)


def save(built: Built, folder: str) -> None:
    """Model, tokenizer, processor and chat template in the Hugging Face format (safetensors)."""
    built.model.save_pretrained(folder)
    built.processor.save_pretrained(folder)
    Path(folder, "model.safetensors").chmod(0o644)  # safetensors leaves it readable by its owner alone


def world_words() -> Iterable[str]:
    from mllm_align.scenes.text import corpus_words

    return corpus_words()

"""What the DPO benchmark runs on: a random LLaVA-NeXT of LLaVA-1.6's image geometry, and preference pairs of
noise.

336-pixel tiles of 14-pixel patches and LLaVA-1.6's five grids, so a photo takes 2,340 to 2,928 image tokens.
Only widths and depths are a preset's. The text is real enough to be tokenised; nothing depends on what it
says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mllm_align.models.families import VICUNA_TEMPLATE
from mllm_align.records import Example, Group, Preference, Response

TILE, PATCH = 336, 14
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
# Width and height: 2,340 image tokens for photos, 2,928 for a square.
SHAPES = [(640, 480), (600, 600), (480, 640)]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "cup",
    "dog",
    "table",
    "window",
    "left",
    "right",
    "two",
    "is",
    "on",
    "near",
]


@dataclass(frozen=True)
class Preset:
    """Sizes of a model, and how it is trained."""

    text_width: int
    text_layers: int
    text_heads: int
    text_inner: int
    vocabulary: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_inner: int
    lora_rank: int
    dtype: str


PRESETS = {
    # A small vocabulary keeps the LM head at 7B's share of the work (2%): with 32,064 words it would be more than half
    # at this width, and whoever skips logits would win by that alone.
    "small": Preset(256, 6, 8, 688, 512, 64, 6, 4, 256, 16, "float32"),
    "7b": Preset(4096, 32, 32, 11008, 32064, 1024, 24, 16, 4096, 128, "bfloat16"),
    # For testing the benchmark itself.
    "tiny": Preset(32, 2, 4, 64, 512, 16, 2, 2, 32, 4, "float32"),
}


@dataclass(frozen=True)
class Noise:
    """An image of seeded noise."""

    key: str
    width: int
    height: int
    seed: int

    def load(self) -> Image.Image:
        pixels = np.random.default_rng(self.seed).integers(
            0, 256, (self.height, self.width, 3), dtype=np.uint8
        )
        return Image.fromarray(pixels)


def make_pairs(count: int, words: int = 100) -> list[Group]:
    """Groups of a chosen and a rejected response of about `words` tokens; the images go through `SHAPES`."""
    rng = np.random.default_rng(0)
    groups = []
    for i in range(count):
        width, height = SHAPES[i % len(SHAPES)]
        example = Example(f"pair{i}", Noise(f"noise{i}", width, height, i), "Describe the image in detail.")
        texts = [" ".join(rng.choice(WORDS, words - int(rng.integers(0, 8)))) for _ in range(2)]
        groups.append(Group(example, tuple(Response(t) for t in texts), (Preference(0, 1),)))
    return groups


def make_folder(preset: Preset, folder: Path) -> Path:
    """Write model and processor in the Hugging Face format."""
    import torch

    torch.manual_seed(0)
    processor = _processor()
    # On the GPU a 7B model is filled in seconds, on a CPU in minutes.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = _model(preset, getattr(torch, preset.dtype))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _processor() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" " + " ".join(WORDS)] * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    size = {"height": TILE, "width": TILE}
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(size=size, crop_size=size, image_grid_pinpoints=GRIDS),
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=VICUNA_TEMPLATE,
        num_additional_image_tokens=1,
    )


def _model(preset: Preset, dtype: Any) -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=preset.vision_width,
        intermediate_size=preset.vision_inner,
        num_hidden_layers=preset.vision_layers,
        num_attention_heads=preset.vision_heads,
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=preset.vision_width,
    )
    text = LlamaConfig(
        vocab_size=preset.vocabulary,
        hidden_size=preset.text_width,
        intermediate_size=preset.text_inner,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=preset.text_heads,
        num_key_value_heads=preset.text_heads,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=SPECIAL.index("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=GRIDS,
    )
    return LlavaNextForConditionalGeneration(config).to(dtype)

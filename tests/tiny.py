"""Tiny random models made on the spot: real classes, real processor, real tokenizer, nothing learned.

`make_tiny` writes a Hugging Face folder. LLaVA's geometry is AnyRes with five pinpoints of 28-pixel tiles (16
image tokens each), so images of different shape take different numbers of tokens; the other
families are in `tiny_families`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import tiny_families
from mllm_align.models.families import VICUNA_TEMPLATE
from mllm_align.records import Example, Group, Preference, Response

KINDS = ("llava", "llava_next", *tiny_families.SPECIAL)

TILE, PATCH = 28, 7
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
CORPUS = [
    "USER: What is in the picture? ASSISTANT: There is a red cup on the table and a dog on the left.",
    "USER: Is there a cat? ASSISTANT: yes no A B two blue chairs under the window.",
]


@dataclass(frozen=True)
class ArrayImage:
    """An image of noise in a size of one's choice."""

    key: str
    width: int = 48
    height: int = 32

    def load(self) -> Image.Image:
        seed = np.frombuffer(self.key.encode(), dtype=np.uint8).tolist()
        pixels = np.random.default_rng(seed).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def spell(special: list[str]) -> Tokenizer:
    """Byte-level BPE with a few merges, and these special tokens first: it spells any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 315,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def make_tokenizer() -> PreTrainedTokenizerFast:
    """LLaVA's."""
    return PreTrainedTokenizerFast(
        tokenizer_object=spell(SPECIAL),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def make_processor(kind: str):
    """A processor of any kind in `KINDS`."""
    if kind in tiny_families.SPECIAL:
        return tiny_families.make_processor(kind, spell)
    size = {"height": TILE, "width": TILE}
    shared = {
        "tokenizer": make_tokenizer(),
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "chat_template": VICUNA_TEMPLATE,
        "num_additional_image_tokens": 1,
    }
    if kind == "llava":
        return LlavaProcessor(image_processor=CLIPImageProcessor(size=size, crop_size=size), **shared)
    images = LlavaNextImageProcessor(size=size, crop_size=size, image_grid_pinpoints=PINPOINTS)
    return LlavaNextProcessor(image_processor=images, **shared)


def make_model(kind: str, vocab_size: int, seed: int = 0):
    """Two decoder layers of width 32 with grouped-query attention; weights large enough that its answers
    differ.
    """
    if kind in tiny_families.SPECIAL:
        return tiny_families.seeded(kind, vocab_size, seed)
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=16,
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    shared = {
        "vision_config": vision,
        "text_config": text,
        "image_token_id": SPECIAL.index("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    if kind == "llava":
        return LlavaForConditionalGeneration(LlavaConfig(image_seq_length=16, **shared)).eval()
    return LlavaNextForConditionalGeneration(LlavaNextConfig(image_grid_pinpoints=PINPOINTS, **shared)).eval()


def make_tiny(kind: str = "llava_next", out_dir: str | Path = ".", seed: int = 0) -> Path:
    """Write a tiny model folder of a kind in `KINDS` and return its path."""
    folder = Path(out_dir)
    processor = make_processor(kind)
    make_model(kind, len(processor.tokenizer), seed).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_examples(count: int = 3) -> list[Example]:
    """Examples whose images differ in shape, so that they take different numbers of image tokens."""
    sizes = [(48, 32), (28, 84), (56, 56), (90, 30), (33, 77)]
    prompts = ["What is in the picture?", "Is there a cat on the table?", "Where is it?"]
    return [
        Example(f"e{i}", ArrayImage(f"image{i}", *sizes[i % len(sizes)]), prompts[i % len(prompts)])
        for i in range(count)
    ]


def make_groups(count: int = 3, responses: int = 2) -> list[Group]:
    texts = [
        "There is a red cup.",
        "a dog on the left and two blue chairs under the window",
        "no",
        "yes, two.",
    ]
    groups = []
    for i, example in enumerate(make_examples(count)):
        answers = tuple(Response(texts[(i + j) % len(texts)] + "!" * j) for j in range(responses))
        groups.append(Group(example, answers, (Preference(0, 1),) if responses > 1 else ()))
    return groups

"""Tiny random models of the families beside LLaVA, in the form of `tiny`: 16 or fewer image tokens a tile."""

from __future__ import annotations

import torch
from transformers import (
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
CHATML = (
    "<|im_start|>system\nYou answer.<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{{ IMAGE if c['type'] == 'image' else c['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TILES = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
# Pad, start, end and unknown token lead each list; the image token is the fifth.
SPECIAL = {
    "qwen2_5_vl": [
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unk|>", "<|image_pad|>", "<|video_pad|>"),
        *("<|vision_start|>", "<|vision_end|>"),
    ],
    "idefics3": [
        *("<|pad|>", "<|begin|>", "<|end|>", "<|unk|>", "<image>", "<fake_token_around_image>"),
        *("<end_of_utterance>", "<global-img>", *TILES),
    ],
    "internvl": [
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unk|>", "<IMG_CONTEXT>", "<img>", "</img>"),
        "<video>",
    ],
}
TEMPLATES = {
    "qwen2_5_vl": CHATML.replace("IMAGE", "'<|vision_start|><|image_pad|><|vision_end|>'"),
    "idefics3": (
        "<|begin|>{% for m in messages %}{{ m['role'].capitalize() }}:{% for c in m['content'] %}"
        "{{ '<image>' if c['type'] == 'image' else (' ' if m['role'] == 'assistant' else '') + c['text'] }}"
        "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "internvl": CHATML.replace("IMAGE", "'<IMG_CONTEXT>\n'"),
}
NAMED = {
    "qwen2_5_vl": {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    "idefics3": {"image_token": "<image>"},
    "internvl": {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    },
}


def make_tokenizer(kind: str, spell) -> PreTrainedTokenizerFast:
    """`spell(special)` is a tokenizer with these special tokens first."""
    pad, start, end, unknown = SPECIAL[kind][:4]
    return PreTrainedTokenizerFast(
        tokenizer_object=spell(SPECIAL[kind]),
        bos_token=start if kind == "idefics3" else None,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
        extra_special_tokens=NAMED[kind],
    )


def make_processor(kind: str, spell):
    """The family's own processor, with tiles of 28 pixels."""
    shared = {"tokenizer": make_tokenizer(kind, spell), "chat_template": TEMPLATES[kind]}
    if kind == "qwen2_5_vl":
        patches = {"patch_size": 7, "temporal_patch_size": 2, "merge_size": 2}
        edges = {"shortest_edge": 28 * 28, "longest_edge": 84 * 84}
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=edges, **patches),
            video_processor=Qwen2VLVideoProcessor(**patches),
            **shared,
        )
    if kind == "idefics3":
        images = Idefics3ImageProcessor(size={"longest_edge": 84}, max_image_size={"longest_edge": 28})
        return Idefics3Processor(image_processor=images, image_seq_len=4, **shared)
    size = {"height": 28, "width": 28}
    images = GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4)
    return InternVLProcessor(
        image_processor=images,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=4,
        **shared,
    )


def make_model(kind: str, vocab_size: int):
    """Two decoder layers of width 32 with grouped-query attention, as `tiny.make_model`."""
    text = {**TEXT, "vocab_size": vocab_size}
    if kind == "qwen2_5_vl":
        return _qwen(text)
    if kind == "idefics3":
        vision = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        return Idefics3ForConditionalGeneration(
            Idefics3Config(
                text_config=LlamaConfig(**text),
                vision_config={**vision, "image_size": 28, "patch_size": 7},
                image_token_id=SPECIAL[kind].index("<image>"),
                scale_factor=2,
            )
        )
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return InternVLForConditionalGeneration(
        InternVLConfig(
            text_config=Qwen2Config(**text),
            vision_config={**vision, "image_size": 28, "patch_size": 7},
            image_token_id=SPECIAL[kind].index("<IMG_CONTEXT>"),
            image_seq_length=4,
            tie_word_embeddings=False,
        )
    )


def _qwen(text: dict):
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    names = SPECIAL["qwen2_5_vl"]
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rotary},
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_heads": 2,
                "patch_size": 7,
                "window_size": 28,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1],
            },
            image_token_id=names.index("<|image_pad|>"),
            video_token_id=names.index("<|video_pad|>"),
            vision_start_token_id=names.index("<|vision_start|>"),
            vision_end_token_id=names.index("<|vision_end|>"),
            tie_word_embeddings=False,
        )
    )


def seeded(kind: str, vocab_size: int, seed: int):
    """`make_model` with weights drawn from `seed`, large enough that its answers differ."""
    torch.manual_seed(seed)
    return make_model(kind, vocab_size).eval()

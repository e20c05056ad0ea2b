"""Weights in 4 bits (QLoRA, arXiv 2305.14314): NF4 with double quantisation, through bitsandbytes."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import torch

from mllm_align.models.families import Family


def four_bit_config(family: Family, dtype: str, device: str) -> Any:
    """What transformers' `from_pretrained` is told: linear layers of the language model in 4 bits, `dtype` arithmetic.

    Vision part, projector and LM head stay as they are: the projector is trained in full, and the rest is small.
    Raises ImportError where bitsandbytes is missing, RuntimeError on a CUDA device that is not there, and ValueError
    for float32 arithmetic on it.
    """
    if not installed():
        raise ImportError(
            "base_model.four_bit=true needs bitsandbytes, which is not installed: pip install 'mllm-align[quantise]', "
            "or set base_model.four_bit=false"
        )
    if not device.startswith("cuda"):
        raise RuntimeError(
            f"base_model.four_bit=true needs an NVIDIA GPU and the device is {device!r}; choose trainer=gpu, or set "
            "base_model.four_bit=false"
        )
    if not torch.cuda.is_available():
        raise RuntimeError(
            "base_model.four_bit=true needs an NVIDIA GPU and torch sees none; set base_model.four_bit=false and "
            "trainer=cpu, or install torch for CUDA"
        )
    return _config(family, dtype)


def installed() -> bool:
    """Whether bitsandbytes is."""
    return importlib.util.find_spec("bitsandbytes") is not None


def _config(family: Family, dtype: str) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=left_out(family),
    )


def left_out(family: Family) -> list[str]:
    """Patterns of the names of modules that keep their precision; transformers matches them from a name's start."""
    return [rf".*{re.escape(name)}" for name in (*family.vision, family.projector, "lm_head")]

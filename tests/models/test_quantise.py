"""4-bit loading: what is said where it cannot be, what is left out, and on a GPU that it works."""

from __future__ import annotations

import pytest
import torch
from transformers.quantizers.quantizers_utils import should_convert_module

from mllm_align.models import quantise
from mllm_align.models.families import by_model_type, of_model
from mllm_align.models.load import load_policy
from tiny import KINDS, make_model, make_tiny

LLAVA = by_model_type("llava_next")


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(quantise, "installed", lambda: False)
    with pytest.raises(
        ImportError, match="needs bitsandbytes, which is not installed; `pip install bitsandb"
    ):
        load_policy(make_tiny("llava", tmp_path), four_bit=True)


def test_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(quantise, "installed", lambda: True)
    with pytest.raises(RuntimeError, match="the device is 'cpu'; choose trainer=gpu"):
        quantise.four_bit_config(LLAVA, "bfloat16", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="torch sees none"):
        quantise.four_bit_config(LLAVA, "bfloat16", "cuda")


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_and_nothing_else_is_stored_in_four_bits(kind):
    model = make_model(kind, 400)
    family = of_model(model)
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    converted = [name for name in linears if should_convert_module(name, quantise.left_out(family))]
    assert converted == [name for name in linears if f"model.{family.decoder}." in name]
    assert len(converted) == 2 * 7


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or not quantise.installed(), reason="needs a GPU and bitsandbytes"
)
def test_a_model_loads_and_answers(tmp_path):
    from mllm_align.compute.decoding import generate
    from tiny import make_examples

    policy = load_policy(make_tiny("llava_next", tmp_path), dtype="bfloat16", device="cuda", four_bit=True)
    layer = policy.model.model.language_model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == "Linear4bit"
    assert len(generate(policy, make_examples(2), max_new_tokens=3)) == 2

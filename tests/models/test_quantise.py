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
    with pytest.raises(ImportError, match=r"not installed: pip install 'mllm-align\[quantise\]'"):
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


def dense_twin(policy, folder):
    """The same model in plain matrices: each holds what its 4 bits stand for."""
    from bitsandbytes.functional import dequantize_4bit

    twin = load_policy(folder)
    for name, module in policy.model.named_modules():
        if type(module).__name__ == "Linear4bit":
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            twin.model.get_submodule(name).weight.data.copy_(weight)
    return twin


@pytest.mark.skipif(not quantise.installed(), reason="needs bitsandbytes")
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_gradients_and_answers_are_those_of_the_same_weights_in_full(kind, tmp_path, monkeypatch):
    """On a CPU, where bitsandbytes can compute too; with the adapter on, that is, QLoRA."""
    from bitsandbytes.nn import Linear4bit

    from mllm_align.compute.decoding import generate
    from mllm_align.compute.logprobs import response_logprobs
    from mllm_align.compute.packing import collate
    from mllm_align.models.load import add_lora
    from tiny import make_examples, make_groups

    monkeypatch.setattr(
        "mllm_align.models.load.four_bit_config", lambda family, dtype, _: quantise._config(family, dtype)
    )
    folder = make_tiny(kind, tmp_path)
    policy = load_policy(folder, four_bit=True)
    for module in policy.model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # weights packed for it have no gradient
    twin = dense_twin(policy, folder)
    found = []
    for each in (policy, twin):
        each = add_lora(each, 4, 8, seed=3)
        for name, parameter in each.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.02)
        answers = [r.token_ids for (r,) in generate(each, make_examples(3), max_new_tokens=6)]
        batch = collate(make_groups(3, 2), each.processor)
        values = response_logprobs(each.model, batch)
        (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
        trained = {n: p.grad for n, p in each.model.named_parameters() if p.grad is not None}
        found.append((answers, values.detach(), trained))
    (answers, values, gradients), (want_answers, want_values, want_gradients) = found
    assert answers == want_answers
    torch.testing.assert_close(values, want_values, atol=1e-4, rtol=1e-4)
    assert gradients.keys() == want_gradients.keys()
    for name, gradient in want_gradients.items():
        assert (gradients[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


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

"""Which kernel the prompt's own attention takes: the causal one, without a mask."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mllm_align.compute import attention
from mllm_align.compute.attention import causal
from mllm_align.compute.decoding import generate
from mllm_align.compute.logprobs import response_logprobs
from mllm_align.compute.packing import collate
from tiny import make_examples, make_groups


class Spy:
    """Stands in for SDPA and keeps (queries, keys, mask or None, causal) of each call."""

    def __init__(self, monkeypatch) -> None:
        self.calls: list[tuple] = []
        real = attention.scaled_dot_product_attention

        def call(query, key, value, attn_mask=None, is_causal=False, **options):
            self.calls.append((query.shape[2], key.shape[2], attn_mask is not None, is_causal))
            return real(query, key, value, attn_mask=attn_mask, is_causal=is_causal, **options)

        monkeypatch.setattr(attention, "scaled_dot_product_attention", call)


def test_the_prompt_is_causal_without_a_mask_and_the_mask_has_response_rows_only(tiny_policy, monkeypatch):
    spy = Spy(monkeypatch)
    batch = collate(make_groups(2, 3), tiny_policy.processor)
    response_logprobs(tiny_policy.model, batch)
    prompt, fed = batch.prompt_ids.shape[1], 3 * (batch.response_ids.shape[2] - 1)
    assert spy.calls == [(prompt, prompt, False, True), (fed, prompt + fed, True, False)] * 2


def test_a_prefill_takes_no_mask_at_all(tiny_policy, monkeypatch):
    spy = Spy(monkeypatch)
    generate(tiny_policy, make_examples(3), max_new_tokens=2)
    assert spy.calls
    assert all((masked, is_causal) == (False, True) for _, _, masked, is_causal in spy.calls)


def test_the_fast_kernel_takes_it():
    """FlashAttention refuses masks; it is the kernel that CUDA takes for this call in bfloat16."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 50, 16) for _ in range(3))
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        fast = causal(query, key, value)
    with sdpa_kernel([SDPBackend.MATH]):
        plain = causal(query, key, value)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)

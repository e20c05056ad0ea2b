"""The shared-prefix forward against its plain twin: values to 1e-5, gradients to 1e-4 relative, in
float32.
"""

from __future__ import annotations

import pytest
import torch
from plain import plain_logprobs

from mllm_align.compute import logprobs
from mllm_align.compute.attention import NAME
from mllm_align.compute.logprobs import response_logprobs, token_logprobs
from mllm_align.compute.packing import collate
from mllm_align.compute.pieces import language_model
from mllm_align.models.families import of_model
from mllm_align.models.load import add_lora
from mllm_align.records import Example, Group, Response
from tiny import ArrayImage, make_groups


def with_lora(policy):
    """LoRA whose B is not zero, so that it changes the output and A has a gradient."""
    policy = add_lora(policy, 4, 8)
    torch.manual_seed(1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return policy


def gradients(model, values, weights):
    model.zero_grad()
    sum((v * w).sum() for v, w in zip(values, weights, strict=True)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def tower(policy):
    """The module that sees the pixels."""
    return getattr(policy.model.model, of_model(policy.model).vision[0])


def weights_for(values):
    """A different weight a token, so that an error in one cannot hide behind another's."""
    return [torch.linspace(0.5, -1.0, len(v)) + i for i, v in enumerate(values)]


@pytest.mark.parametrize("responses", [1, 2, 3, 4])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_twin(tiny_policy, responses, lora, checkpointing):
    policy = with_lora(tiny_policy) if lora else tiny_policy
    model = policy.model
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    groups = make_groups(4, responses)  # images of four different shapes
    plain = [row for group in plain_logprobs(model, groups, policy.processor) for row in group]
    weights = weights_for(plain)
    want = gradients(model, plain, weights)

    batch = collate(groups, policy.processor)
    result = response_logprobs(model, batch)
    packed = [
        result[b, i][batch.response_mask[b, i]]
        for b, group in enumerate(groups)
        for i in range(len(group.responses))
    ]
    for ours, theirs in zip(packed, plain, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    # A checkpointed layer runs again in `backward`, after the forward call: it must still see the layout.
    have = gradients(model, packed, weights)
    assert want.keys() == have.keys()
    assert any(g.norm() > 0 for g in want.values())
    total = sum(g.norm() ** 2 for g in want.values()) ** 0.5
    for name, gradient in want.items():
        # A bias on keys moves all scores of a query alike: its gradient is zero but for rounding.
        zero = 1e-6 * total if name.endswith("k_proj.bias") else 0.0
        assert (have[name] - gradient).norm() <= 1e-4 * gradient.norm() + zero, name
    assert (result[~batch.response_mask] == 0).all()


def test_checkpointing_was_on(tiny_policy, monkeypatch):
    """The twin test with checkpointing means something only if layers do run twice."""
    model = tiny_policy.model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    layer = language_model(model).layers[0].self_attn
    layer.register_forward_hook(lambda *_: calls.append(1))
    batch = collate(make_groups(2), tiny_policy.processor)
    response_logprobs(model, batch).sum().backward()
    assert len(calls) == 2


def test_responses_do_not_see_each_other(tiny_policy):
    groups = make_groups(1, 2)
    changed = [Group(groups[0].example, (groups[0].responses[0], Response("a quite different answer")))]
    a = response_logprobs(tiny_policy.model, collate(groups, tiny_policy.processor))
    b = response_logprobs(tiny_policy.model, collate(changed, tiny_policy.processor))
    width = min(a.shape[2], b.shape[2])
    torch.testing.assert_close(a[0, 0, :width], b[0, 0, :width], atol=1e-5, rtol=0)
    assert not torch.allclose(a[0, 1, :5], b[0, 1, :5], atol=1e-2)


def test_responses_see_the_image(tiny_policy):
    group = make_groups(1, 2)[0]
    other = Group(Example("x", ArrayImage("another"), group.example.prompt), group.responses)
    same_size = Group(Example("y", ArrayImage("image0"), group.example.prompt), group.responses)
    a, b, c = (
        response_logprobs(tiny_policy.model, collate([g], tiny_policy.processor))
        for g in (group, other, same_size)
    )
    assert not torch.allclose(a, b, atol=1e-3)
    assert torch.equal(a, c)


def test_groups_of_different_size_in_one_batch(tiny_policy):
    groups = [make_groups(3, 4)[0], make_groups(3, 1)[1], make_groups(3, 2)[2]]
    batch = collate(groups, tiny_policy.processor)
    together = response_logprobs(tiny_policy.model, batch)
    assert batch.response_mask.any(2).sum(1).tolist() == [4, 1, 2]
    for row, group in enumerate(groups):
        alone = response_logprobs(tiny_policy.model, collate([group], tiny_policy.processor))[0]
        k, width = alone.shape
        torch.testing.assert_close(together[row, :k, :width], alone, atol=1e-5, rtol=1e-5)
        assert (together[row, k:] == 0).all()


def test_one_image_for_two_rows_is_encoded_once(tiny_policy):
    one, two = make_groups(2)
    two = Group(Example("same image", one.example.image, "Is it red?"), two.responses)
    batch = collate([one, two], tiny_policy.processor)
    assert len(batch.pixel_values) == 1
    assert batch.image_index.tolist() == [0, 0]
    together = response_logprobs(tiny_policy.model, batch)
    alone = response_logprobs(tiny_policy.model, collate([two], tiny_policy.processor))
    torch.testing.assert_close(together[1, :, : alone.shape[2]], alone[0], atol=1e-5, rtol=1e-5)


def test_plain_calls_are_untouched_afterwards(tiny_policy):
    model, processor = tiny_policy.model, tiny_policy.processor
    groups = make_groups(3, 2)
    with torch.no_grad():
        before = plain_logprobs(model, groups, processor)
        response_logprobs(model, collate(groups, processor))
        assert language_model(model).config._attn_implementation == NAME
        after = plain_logprobs(model, groups, processor)
    for row, (a, b) in enumerate(zip(before, after, strict=True)):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), row


def test_installed_attention_is_not_saved(tiny_policy, tmp_path):
    response_logprobs(tiny_policy.model, collate(make_groups(1), tiny_policy.processor))
    tiny_policy.model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


def test_scores_in_pieces_are_the_same(monkeypatch):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    states, targets = torch.randn(23, 8, requires_grad=True), torch.randint(50, (23,))
    whole = token_logprobs(head, states, targets)
    (want,) = torch.autograd.grad(whole.sum(), states)
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 50 * 4)
    pieces = token_logprobs(head, states, targets)
    (have,) = torch.autograd.grad(pieces.sum(), states)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(have, want)


def test_score_by_hand():
    head = torch.nn.Linear(2, 3, bias=False)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    # logits (ln 2, ln 3, 0): p = (2, 3, 1) / 6
    state = torch.tensor([[2.0, 3.0]]).log()
    for token, p in enumerate([2 / 6, 3 / 6, 1 / 6]):
        value = token_logprobs(head, state, torch.tensor([token]))
        assert value.item() == pytest.approx(torch.tensor(p).log().item(), abs=1e-6)

"""The policy sampler: k seeded draws a prompt, whatever the batch."""

from __future__ import annotations

from mllm_align.models.load import end_token, load_policy
from mllm_align.records import Response
from mllm_align.samplers import policy
from mllm_align.samplers.dataset import DatasetSampler
from mllm_align.samplers.policy import PolicySampler
from tiny import make_groups, make_tiny


def texts(groups) -> list[list[str]]:
    return [[r.text for r in g.responses] for g in groups]


def test_k_draws_a_prompt_in_order(tiny_policy) -> None:
    given = make_groups(3)
    groups = PolicySampler(k=3, max_new_tokens=8).sample(tiny_policy, given, seed=0)
    assert [g.example for g in groups] == [g.example for g in given]
    assert all(len(g.responses) == 3 and g.preferences == () for g in groups)
    assert all(0 < len(r.token_ids) <= 8 for g in groups for r in g.responses)
    assert len({r.token_ids for g in groups for r in g.responses}) > 3


def test_draws_depend_on_the_seed_and_not_on_the_batch(tiny_policy) -> None:
    groups = make_groups(3)
    together = PolicySampler(max_new_tokens=8, batch_size=3).sample(tiny_policy, groups, seed=1)
    alone = [PolicySampler(max_new_tokens=8).sample(tiny_policy, [g], seed=1)[0] for g in groups]
    other = PolicySampler(max_new_tokens=8).sample(tiny_policy, groups, seed=2)
    assert texts(together) == texts(alone)
    assert texts(together) != texts(other)


def test_a_drawn_image_token_ends_the_response(tiny_policy, monkeypatch) -> None:
    """A model that was never trained may draw it, and then no response could be scored."""
    word, image, end = 40, 4, 2
    drawn = [(Response("x", "policy", (word, image, word)), Response("x", "policy", (image, end)))]
    monkeypatch.setattr(policy, "generate", lambda *_, **__: drawn)
    (group,) = PolicySampler().sample(tiny_policy, make_groups(1), seed=0)
    assert [r.token_ids for r in group.responses] == [(word,), (end,)]
    assert group.responses[0].text != "x"
    assert group.responses[1].text == ""


def test_an_empty_response_has_the_chat_template_s_end_token(tmp_path, monkeypatch) -> None:
    other = load_policy(make_tiny("idefics3", tmp_path))
    tokenizer = other.processor.tokenizer
    image = tokenizer.convert_tokens_to_ids(other.processor.image_token)
    monkeypatch.setattr(policy, "generate", lambda *_, **__: [(Response("x", "policy", (image,)),)])
    (group,) = PolicySampler().sample(other, make_groups(1), seed=0)
    assert group.responses[0].token_ids == (end_token(other.processor),) != (tokenizer.eos_token_id,)


def test_temperature_reaches_the_decoder(tiny_policy) -> None:
    (group,) = PolicySampler(k=2, temperature=0.0, max_new_tokens=8).sample(
        tiny_policy, make_groups(1), seed=0
    )
    assert group.responses[0].token_ids == group.responses[1].token_ids


def test_the_dataset_sampler_gives_back_what_it_gets() -> None:
    groups = make_groups(2)
    assert DatasetSampler().sample(None, groups, seed=0) == groups

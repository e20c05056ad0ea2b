"""Questions about one image from one prefill against the same questions one by one, on every family."""

from __future__ import annotations

import pytest
import torch

from mllm_align.compute import shared
from mllm_align.compute.decoding import generate, stop_tokens
from mllm_align.compute.shared import answers, common_prefix
from mllm_align.models.families import of_model
from mllm_align.models.load import add_lora
from mllm_align.records import Example
from tiny import ArrayImage, make_examples

ASKED = [
    "Is it red?",
    "How many cups are there on the table?",
    "What?",
    "Is there a cat under the window, or a dog?",
    "Is it read?",
]


def questions(images=3, alone=1):
    """Images of different shapes with 5, 4, 3 ... questions, and some with one only; not in the images' order."""
    sizes = [(48, 32), (28, 84), (56, 56), (90, 30)]
    made = [
        Example(f"q{i}/{n}", ArrayImage(f"picture{i}", *sizes[i % 4]), prompt)
        for i in range(images)
        for n, prompt in enumerate(ASKED[: 5 - i])
    ]
    return [*made[::2], *make_examples(alone), *made[1::2]]


def one_by_one(policy, examples, **options):
    return [generate(policy, [e], **options)[0][0].token_ids for e in examples]


@pytest.mark.parametrize("batch_size", [2, 8, 64])
def test_the_answers_are_those_one_by_one(tiny_policy, batch_size):
    examples = questions()
    said = one_by_one(tiny_policy, examples[:1], max_new_tokens=8, temperature=0)[0][-1]
    tiny_policy.model.generation_config.eos_token_id = [*stop_tokens(tiny_policy), said]
    options = {"max_new_tokens": 24, "temperature": 0}
    want = one_by_one(tiny_policy, examples, **options)
    assert len({len(tokens) for tokens in want}) > 1, "no answer ended by itself: no fork left the batch"
    have = answers(tiny_policy, examples, batch_size=batch_size, **options)
    assert [response.token_ids for response in have] == want
    assert {response.source for response in have} == {tiny_policy.name}


def test_draws_are_those_one_by_one(tiny_policy):
    examples = questions(2)
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    have = [response.token_ids for response in answers(tiny_policy, examples, **options)]
    assert have == one_by_one(tiny_policy, examples, **options)


def test_with_an_adapter(tiny_policy):
    policy = add_lora(tiny_policy, 4, 8)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    examples = questions(2)
    have = [r.token_ids for r in answers(policy, examples, max_new_tokens=8)]
    assert have == one_by_one(policy, examples, max_new_tokens=8, temperature=0)


def test_each_image_goes_through_the_model_once(tiny_policy):
    """Of the language model's first pass every row holds an image and all the questions about it."""
    examples = questions(1, alone=0)
    widths = []
    layer = getattr(tiny_policy.model.model, of_model(tiny_policy.model).decoder).layers[0]
    layer.register_forward_hook(lambda _, args, __: widths.append(tuple(args[0].shape[:2])))
    answers(tiny_policy, examples, max_new_tokens=2)
    packed = widths[0]
    widths.clear()
    generate(tiny_policy, examples, max_new_tokens=2, temperature=0)
    assert packed[0] == 1
    assert widths[0][0] == 5
    assert packed[1] < 5 * widths[0][1]


def test_text_before_the_image_is_answered_one_by_one(tiny_policy, monkeypatch):
    """A template that puts the question first has no image in the common part."""
    processor = tiny_policy.processor
    turn = "{% for m in messages %}{% for c in m['content']|reverse %}"
    turn += "{{ TOKEN if c['type'] == 'image' else c['text'] }}{% endfor %}{% endfor %} A:"
    processor.chat_template = turn.replace("TOKEN", repr(processor.image_token))
    examples = questions(2)
    monkeypatch.setattr(shared, "_answer", None)  # would fail when called
    have = [r.token_ids for r in answers(tiny_policy, examples, max_new_tokens=6)]
    assert have == one_by_one(tiny_policy, examples, max_new_tokens=6, temperature=0)


def test_common_prefix_by_hand():
    ids = torch.tensor([[1, 2, 3, 4, 0], [1, 2, 3, 5, 6], [1, 2, 9, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    assert common_prefix(ids, mask) == 2
    assert common_prefix(ids[:2], mask[:2]) == 3
    assert common_prefix(ids[[0, 0]], mask[[0, 0]]) == 3  # equal prompts: the last token is left to each


def test_no_examples_no_answers(tiny_policy):
    assert answers(tiny_policy, []) == []

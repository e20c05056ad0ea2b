"""Collation: token boundaries, padding, pairs, truncation, and the errors that name the row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plain import whole_text

from mllm_align.compute.packing import (
    answer_starts,
    collate,
    encode_prompts,
    predictors,
    response_tokens,
    text_of,
)
from mllm_align.records import Example, Group, Preference, Response
from tiny import KINDS, ArrayImage, make_examples, make_groups, make_model, make_processor


@pytest.fixture(scope="module", params=KINDS)
def processor(request):
    return make_processor(request.param)


def example(prompt="Is it red?", name="e"):
    return Example(name, ArrayImage("one"), prompt)


def test_tokens_are_those_of_the_whole_text(processor):
    """Prompt and response, tokenised apart, spell what the processor makes of the whole conversation."""
    groups = make_groups(3, 2)
    batch = collate(groups, processor)
    for row, group in enumerate(groups):
        for i, response in enumerate(group.responses):
            text = whole_text(processor, group.example.prompt, response.text)
            whole = processor(images=group.example.image.load(), text=text, return_tensors="pt")
            ours = torch.cat(
                [
                    batch.prompt_ids[row][batch.prompt_mask[row]],
                    batch.response_ids[row, i][batch.response_mask[row, i]],
                ]
            )
            assert ours.tolist() == whole["input_ids"][0].tolist()


def test_pixels_are_the_processors(processor):
    examples = make_examples(4)
    prompts = encode_prompts(examples, processor)
    want = processor(
        images=[[e.image.load()] for e in examples],
        text=[processor.image_token] * 4,
        return_tensors="pt",
        padding=True,
    )["pixel_values"]
    have = prompts.pixel_values
    if have.shape != want.shape:  # patches or tiles of all images in a row; no real one is all zeros
        have = have.flatten(0, 1)
        have = have[have.flatten(1).any(1)]
    assert torch.equal(have, want)
    sizes = {
        "LlavaProcessor": None,
        "LlavaNextProcessor": [[32, 48], [84, 28], [56, 56], [30, 90]],
        "Qwen2_5_VLProcessor": [[1, 4, 6], [1, 12, 4], [1, 8, 8], [1, 4, 12]],
        "Idefics3Processor": None,
        "InternVLProcessor": [[3], [4], [5], [4]],
    }[type(processor).__name__]
    assert (None if prompts.image_sizes is None else prompts.image_sizes.tolist()) == sizes


def test_three_axes_of_positions_are_those_of_transformers():
    processor = make_processor("qwen2_5_vl")
    model = make_model("qwen2_5_vl", len(processor.tokenizer)).model
    prompts = encode_prompts(make_examples(4), processor)
    want, deltas = model.get_rope_index(
        prompts.prompt_ids,
        mm_token_type_ids=(prompts.prompt_ids == processor.image_token_id).int(),
        image_grid_thw=prompts.image_sizes,
        attention_mask=prompts.prompt_mask,
    )
    real = prompts.prompt_mask[:, None].expand(-1, 3, -1)
    assert torch.equal(prompts.positions[real], want.transpose(0, 1)[real])
    lengths = prompts.prompt_mask.sum(1)
    assert answer_starts(prompts).tolist() == (lengths + deltas.squeeze(1)).tolist()


def test_anyres_shapes_take_different_numbers_of_tokens():
    processor = make_processor("llava_next")
    lengths = encode_prompts(make_examples(3), processor).prompt_ids.eq(processor.image_token_id).sum(1)
    assert len(set(lengths.tolist())) == 3


def test_sampled_tokens_are_used_as_they_are(processor):
    group = Group(example(), (Response("whatever", token_ids=(7, 8, 9)), Response("b", token_ids=(7, 2))))
    batch = collate([group], processor)
    assert batch.response_ids[0].tolist() == [[7, 8, 9], [7, 2, 0]]
    assert batch.response_mask[0].tolist() == [[True] * 3, [True, True, False]]


def test_answers_end_with_the_end_token(processor):
    (ids,) = response_tokens(["no"], processor)
    want = {
        "LlavaProcessor": " no</s>",
        "LlavaNextProcessor": " no</s>",
        "Qwen2_5_VLProcessor": "no<|im_end|>",
        "Idefics3Processor": " no<end_of_utterance>",
        "InternVLProcessor": "no<|im_end|>",
    }
    assert processor.tokenizer.decode(ids) == want[type(processor).__name__]


def test_chatml_answers_have_no_leading_space():
    processor = make_processor("llava_next")
    processor.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{% for c in m['content'] %}"
        "{{ '<image>\n' if c['type'] == 'image' else c['text'] }}{% endfor %}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    (ids,) = response_tokens(["no"], processor)
    assert processor.tokenizer.decode(ids[:-1]) == "no"


def test_start_token_written_by_the_template_is_not_doubled(processor):
    processor = make_processor("llava")
    processor.tokenizer.add_bos_token = True
    processor.chat_template = "<s>" + processor.chat_template
    ids = encode_prompts([example()], processor).prompt_ids[0].tolist()
    assert ids.count(processor.tokenizer.bos_token_id) == 1


def test_pairs_and_weights(processor):
    a, b, c = (Response(t) for t in ("one", "two", "three"))
    groups = [
        Group(example(name="x"), (a, b, c), (Preference(2, 0), Preference(1, 0, 0.5))),
        Group(example(name="tie"), (a, b)),
        Group(example(name="y"), (a, b), (Preference(0, 1, 2.0),)),
    ]
    batch = collate(groups, processor)
    assert batch.pairs.tolist() == [[0, 2, 0], [0, 1, 0], [2, 0, 1]]
    assert batch.pair_weights.tolist() == [1.0, 0.5, 2.0]
    assert batch.ids == ("x", "tie", "y")
    assert collate(groups[1:2], processor).pairs.shape == (0, 3)


def test_predictors_by_hand(processor):
    """Two prompts of 3 and 2 tokens in 3 slots, two responses of up to 3 tokens: each takes 2 slots after
    the prompt's 3.
    """
    batch = collate(
        [Group(example(), (Response("a", token_ids=(5, 6, 7)), Response("b", token_ids=(8,))))] * 2, processor
    )
    batch = replace(
        batch, prompt_ids=torch.zeros(2, 3), prompt_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    )
    assert predictors(batch).tolist() == [[[2, 3, 4], [2, 5, 6]], [[1, 3, 4], [1, 5, 6]]]


def test_truncation_cuts_responses_only_and_counts(processor):
    groups = make_groups(2, 2)
    whole = collate(groups, processor)
    lengths = whole.prompt_mask.sum(1)
    limit = int(lengths.max()) + 3
    cut = collate(groups, processor, max_length=limit)
    assert torch.equal(cut.prompt_ids, whole.prompt_ids)
    rooms = (limit - lengths).tolist()
    full = whole.response_mask.sum(2)
    assert cut.response_mask.sum(2).tolist() == [
        [min(n, room) for n in row] for row, room in zip(full.tolist(), rooms, strict=True)
    ]
    assert (
        cut.truncated
        == sum(n > room for row, room in zip(full.tolist(), rooms, strict=True) for n in row)
        > 0
    )
    assert whole.truncated == 0


def test_prompt_without_room_is_refused(processor):
    with pytest.raises(
        ValueError, match=r"example e0: the prompt with its image takes \d+ tokens and max_length is 20"
    ):
        collate(make_groups(2), processor, max_length=20)


@pytest.mark.parametrize(
    ("prompt", "responses", "message"),
    [
        ("see IMAGE here", [Response("a")], "example bad: .*contains the image token"),
        (
            "Is it red?",
            [Response("fine"), Response("an IMAGE")],
            "example bad: response 1 contains the image",
        ),
        ("Is it red?", [Response("x", token_ids=())], "example bad: response 0 is empty"),
        ("Is it red?", [], "example bad: the group has no responses"),
    ],
)
def test_bad_rows_are_named(processor, prompt, responses, message):
    token = processor.image_token
    texts = tuple(replace(r, text=r.text.replace("IMAGE", token)) for r in responses)
    group = Group(example(prompt.replace("IMAGE", token), "bad"), texts)
    with pytest.raises(ValueError, match=message):
        collate([make_groups(1)[0], group], processor)


def test_to_moves_every_tensor(processor):
    batch = collate(make_groups(2), processor).to("meta")
    assert {v.device.type for v in vars(batch).values() if isinstance(v, torch.Tensor)} == {"meta"}


def test_an_image_token_that_a_model_spells_is_no_part_of_its_answer(processor):
    """As a text it would stand for an image, and the answer could be neither judged nor trained on."""
    token = processor.image_token
    spelt = [
        i for letter in token for i in processor.tokenizer(letter, add_special_tokens=False)["input_ids"]
    ]
    cup = processor.tokenizer("cup", add_special_tokens=False)["input_ids"]
    assert token in processor.tokenizer.decode([*spelt, *cup], skip_special_tokens=True)
    assert text_of([*spelt, *cup], processor) == "cup"

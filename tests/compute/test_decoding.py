"""Decoding against transformers' own `generate`, and draws that depend on (seed, example, draw) only."""

from __future__ import annotations

import collections

import pytest
import torch

from mllm_align.compute.decoding import first_token_logprobs, generate, pick, stop_tokens
from mllm_align.compute.logprobs import response_logprobs
from mllm_align.compute.packing import collate
from mllm_align.models.families import of_model
from mllm_align.models.load import add_lora, answer_lead, prompt_text, reference
from mllm_align.records import Example, Group, Response
from tiny import ArrayImage, make_examples


def tokens(responses):
    return [[r.token_ids for r in row] for row in responses]


def hf_greedy(policy, example, length):
    inputs = policy.processor(
        images=example.image.load(), text=prompt_text(policy.processor, example.prompt), return_tensors="pt"
    )
    out = policy.model.generate(**inputs, do_sample=False, max_new_tokens=length)
    return tuple(out[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_greedy_is_transformers_generate(tiny_policy, batch_size):
    examples = make_examples(7)
    # A random model seldom says its end token, so a token that it does say ends its answers too.
    own = hf_greedy(tiny_policy, examples[0], 8)[-1]
    tiny_policy.model.generation_config.eos_token_id = [*stop_tokens(tiny_policy), own]
    want = [hf_greedy(tiny_policy, e, 40) for e in examples]
    assert len({len(w) for w in want}) > 1, "no answer ended by itself: the test would not see the stop rule"
    have = generate(tiny_policy, examples, k=2, max_new_tokens=40, temperature=0, batch_size=batch_size)
    assert tokens(have) == [[w, w] for w in want]


def test_greedy_with_an_adapter(tiny_policy):
    policy = add_lora(tiny_policy, 4, 8)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    examples = make_examples(3)
    want = [hf_greedy(policy, e, 12) for e in examples]
    assert tokens(generate(policy, examples, max_new_tokens=12, temperature=0)) == [[w] for w in want]


def test_draws_do_not_depend_on_batch_or_k(tiny_policy):
    examples = make_examples(6)
    settings = {"max_new_tokens": 15, "seed": 3}
    whole = tokens(generate(tiny_policy, examples, k=4, **settings))
    assert tokens(generate(tiny_policy, examples, k=4, batch_size=1, **settings)) == whole
    assert tokens(generate(tiny_policy, examples[::-1], k=4, batch_size=4, **settings))[::-1] == whole
    late = tokens(generate(tiny_policy, examples, k=2, first_draw=2, **settings))
    assert late == [row[2:] for row in whole]
    longer = tokens(generate(tiny_policy, examples, k=1, max_new_tokens=20, seed=3))
    assert [row[0][:15] for row in longer] == [row[0] for row in whole]
    other_seed = tokens(generate(tiny_policy, examples, k=4, max_new_tokens=15, seed=4))
    assert other_seed != whole
    assert len(set(whole[0])) == 4


def test_examples_that_share_an_image_are_the_same_together_and_alone(tiny_policy):
    image = ArrayImage("shared", 60, 40)
    examples = [
        Example(f"q{i}", image, p) for i, p in enumerate(["Is it red?", "What?", "How many cups are there?"])
    ]
    calls = []
    tower = getattr(tiny_policy.model.model, of_model(tiny_policy.model).vision[0])
    tower.register_forward_hook(
        lambda _, args, named, __: calls.append(len(args[0] if args else named["pixel_values"])),
        with_kwargs=True,
    )
    together = tokens(generate(tiny_policy, examples, max_new_tokens=10))
    tiles = calls.copy()
    alone = [tokens(generate(tiny_policy, [e], max_new_tokens=10))[0] for e in examples]
    assert together == alone
    assert tiles == [calls[-1]], "three prompts with one image take one pass of one image"


def test_responses_have_text_tokens_and_source(tiny_policy):
    (response,) = generate(tiny_policy, make_examples(1), max_new_tokens=6, temperature=0)[0]
    assert response.source == tiny_policy.name
    assert len(response.token_ids) <= 6
    assert (
        response.text
        == tiny_policy.processor.tokenizer.decode(response.token_ids, skip_special_tokens=True).strip()
    )


def test_sampled_distribution_is_the_models(tiny_policy):
    """First tokens of 4,000 draws against the model's probabilities (largest error expected about 0.02)."""
    example = make_examples(1)[0]
    draws = generate(tiny_policy, [example], k=4000, max_new_tokens=1)[0]
    counts = collections.Counter(r.token_ids[0] for r in draws)
    top = [t for t, _ in counts.most_common(5)]
    groups = [
        Group(example, tuple(r for r in {d.token_ids: d for d in draws}.values() if r.token_ids[0] in top))
    ]
    batch = collate(groups, tiny_policy.processor)
    with torch.no_grad():
        p = response_logprobs(tiny_policy.model, batch)[0, :, 0].exp()
    for response, probability in zip(groups[0].responses, p.tolist(), strict=True):
        assert counts[response.token_ids[0]] / 4000 == pytest.approx(probability, abs=0.03)


def test_logprobs_of_samples_follow_the_same_path(tiny_policy):
    """Teacher-forced log-probs of greedy tokens are the largest at every step: packing and decoding see
    the same model.
    """
    examples = make_examples(4)
    groups = [
        Group(e, r)
        for e, r in zip(
            examples, generate(tiny_policy, examples, max_new_tokens=8, temperature=0), strict=True
        )
    ]
    batch = collate(groups, tiny_policy.processor)
    with torch.no_grad():
        best = response_logprobs(tiny_policy.model, batch)[:, 0]
    assert (
        best[batch.response_mask[:, 0]] > -torch.tensor(330.0).log()
    ).all()  # above uniform over the vocabulary


def test_pick_by_hand():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    u = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.5999, 0.6001, 1 - 2**-53], dtype=torch.float64)
    assert pick(logits.expand(8, 4), u, 1.0, 1.0).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # top_p 0.5: tokens 3 and 2 stay (0.4, then 0.3 of the 0.7), likeliest first
    assert pick(logits.expand(3, 4), torch.tensor([0.0, 0.57, 0.58]), 1.0, 0.5).tolist() == [3, 3, 2]
    # top_p below the likeliest token's probability keeps that one
    assert pick(logits.expand(2, 4), torch.tensor([0.0, 0.999]), 1.0, 0.1).tolist() == [3, 3]
    # temperature 1/2 squares: 1, 4, 9, 16 of 30
    assert pick(logits.expand(3, 4), torch.tensor([0.03, 0.16, 0.17]), 0.5, 1.0).tolist() == [0, 1, 2]
    assert pick(logits.expand(2, 4), torch.tensor([0.0, 0.5]), 0.0, 1.0).tolist() == [3, 3]


def test_first_token_logprobs(tiny_policy):
    examples = [*make_examples(3), Example("again", make_examples(1)[0].image, "Is it red?")]
    scores = first_token_logprobs(tiny_policy, examples, ["yes", "no"], batch_size=2)
    groups = [
        Group(
            e,
            tuple(
                type(r)("", token_ids=(int(i),))
                for r, i in zip(generate(tiny_policy, [e], k=2, max_new_tokens=1)[0], starts, strict=True)
            ),
        )
        for e, starts in zip(examples, [first_tokens(tiny_policy.processor)] * 4, strict=True)
    ]
    with torch.no_grad():
        want = response_logprobs(tiny_policy.model, collate(groups, tiny_policy.processor))[:, :, 0]
    torch.testing.assert_close(scores, want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="do not differ"):
        first_token_logprobs(tiny_policy, examples, ["yes", "yes"])


def first_tokens(processor):
    return [
        processor.tokenizer(answer_lead(processor) + a, add_special_tokens=False)["input_ids"][0]
        for a in ("yes", "no")
    ]


@pytest.mark.parametrize("setting", [{"k": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}])
def test_impossible_settings_are_refused(tiny_policy, setting):
    with pytest.raises(ValueError, match="must be positive"):
        generate(tiny_policy, make_examples(1), **setting)


def test_training_mode_is_kept(tiny_policy):
    tiny_policy.model.train()
    generate(tiny_policy, make_examples(1), max_new_tokens=2)
    assert tiny_policy.model.training


@pytest.mark.parametrize("sample", [True, False])
def test_sampling_inside_an_autocast_step_leaves_its_gradients_alone(tiny_policy, sample):
    """A training step under bf16-mixed that samples first, as online DPO does, trains as one that does
    not.
    """
    policy = add_lora(tiny_policy, 4, 8)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.01)
    batch = collate([Group(make_examples(1)[0], (Response("a red cup"),))], policy.processor)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if sample:
            generate(policy, make_examples(2), max_new_tokens=3)
            with reference(policy) as model:
                response_logprobs(model, batch)
        response_logprobs(policy.model, batch).sum().backward()
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.norm() > 0 for p in trained)

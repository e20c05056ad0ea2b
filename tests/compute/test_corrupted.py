"""Decoding from partly hidden images against the plain way.

The plain twin takes one sentence at a time and runs the whole prompt, all image tokens in it, through
transformers' own forward for every new token: no cache, and a 4D mask that hides the hidden image tokens from
every other token.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mllm_align.compute.corrupted import (
    Attempt,
    Fork,
    answer,
    complete,
    forced_argmax,
    image_tokens,
    prepare,
)
from mllm_align.compute.decoding import generate, stop_tokens
from mllm_align.compute.pieces import language_model, lm_head
from mllm_align.models.families import of_model, unwrap
from mllm_align.models.load import Policy, add_lora, prompt_text
from mllm_align.records import Example
from mllm_align.samplers.sentences import cut, spell
from tiny import ArrayImage, make_examples

REFERENCE = (70, 81, 92, 103, 64, 75, 86, 97, 108, 119, 60, 71)
# Swapped words are put before the model: none, one, and more tokens than another fork's.
FORKS = (Fork(0), Fork(4, draw=1), Fork(7, (77,), draw=2), Fork(12, (55, 66, 88), draw=3), Fork(9, draw=4))
LENGTH = 7
# A model without training may say the image token, which transformers' forward would take for an image.
STOPS = (2, 4)


class Plain:
    """transformers' own forward of one prompt; `model` is a copy that the fast path has not touched."""

    def __init__(self, policy: Policy, example: Example, visible: np.ndarray | None, positions: str) -> None:
        self.model = policy.model
        text = prompt_text(policy.processor, example.prompt)
        self.inputs = dict(policy.processor(images=example.image.load(), text=text, return_tensors="pt"))
        self.prompt = self.inputs.pop("input_ids")[0]
        del self.inputs["attention_mask"]
        self.inputs.pop("mm_token_type_ids", None)
        image = policy.processor.tokenizer.convert_tokens_to_ids(policy.processor.image_token)
        self.image = self.prompt == image
        self.seen = torch.ones(len(self.prompt), dtype=torch.bool)
        if visible is not None:
            self.seen[self.image] = torch.from_numpy(visible)
        self.positions = positions

    @torch.no_grad()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Of the prompt and `tokens` behind it, (P + tokens, V)."""
        ids = torch.cat([self.prompt, torch.tensor(tokens, dtype=torch.long)])[None]
        seen = torch.cat([self.seen, torch.ones(len(tokens), dtype=torch.bool)])
        length = len(seen)
        looks = torch.ones(length, length, dtype=torch.bool).tril() & seen
        looks |= torch.eye(length, dtype=torch.bool)  # a row without any key would be NaN
        mask = torch.zeros(length, length).masked_fill(~looks, float("-inf"))[None, None]
        places = (seen.cumsum(0) - 1).clamp(min=0)[None] if self.positions != "keep" else self.kept(ids)
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, **self.inputs
        )
        return output.logits[0].float()

    def kept(self, ids: torch.Tensor) -> torch.Tensor:
        """Position ids of the whole sequence: (1, L), or (3, 1, L) where transformers computes three axes."""
        if not hasattr(unwrap(self.model).model, "get_rope_index"):
            return torch.arange(ids.shape[1])[None]
        types = torch.zeros_like(ids)
        types[0, : len(self.image)] = self.image.long()
        grid = self.inputs["image_grid_thw"]
        return unwrap(self.model).model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=grid)[0]

    def greedy(self, prefix: list[int], stops: tuple[int, ...], length: int = LENGTH) -> tuple[int, ...]:
        found: list[int] = []
        while len(found) < length and not (found and found[-1] in stops):
            found.append(int(self.logits([*prefix, *found])[-1].argmax()))
        return tuple(found)


def untouched(policy: Policy) -> Policy:
    """A copy for the plain twin: the fast path installs its attention in the model that it is given."""
    return replace(policy, model=copy.deepcopy(policy.model))


def mask_of(tokens: int, rho_th: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(tokens) >= rho_th


def stop_of(twin: Policy, examples: list[Example]) -> tuple[int, ...]:
    """The end token and some that a model without training does say: some sentences end early by them."""
    plain = Plain(twin, examples[0], None, "keep")
    return (*STOPS, *(plain.greedy(list(prefix), STOPS, 4)[-1] for prefix in ((), REFERENCE[:4])))


def attempts_of(prepared, rho_th: float) -> list[Attempt]:
    """One a prompt, of different length and with different forks."""
    return [
        Attempt(row, REFERENCE, FORKS[row % 2 :], mask_of(tokens, rho_th, row))
        for row, tokens in enumerate(image_tokens(prepared))
    ]


def check_complete(policy: Policy, twin: Policy, rho_th: float, positions: str) -> int:
    """Compare every token; the number of sentences that ended by themselves."""
    examples = make_examples(3)
    stops = stop_of(twin, examples)
    prepared = prepare(policy, examples)
    attempts = attempts_of(prepared, rho_th)
    have = complete(
        policy, prepared, attempts, stops=stops, seed=0, max_new_tokens=LENGTH, positions=positions
    )
    want = [
        [
            Plain(twin, examples[a.row], a.visible, positions).greedy(
                [*a.reference[: fork.start], *fork.forced], stops
            )
            for fork in a.forks
        ]
        for a in attempts
    ]
    assert have == want
    return sum(len(tokens) < LENGTH for row in want for tokens in row)


@pytest.mark.parametrize("positions", ["keep", "collapse"])
@pytest.mark.parametrize("rho_th", [0.0, 0.5, 0.99, 1.0])
def test_sentences_are_those_of_the_plain_way(tiny_policy, rho_th, positions) -> None:
    check_complete(tiny_policy, untouched(tiny_policy), rho_th, positions)


def test_some_sentences_of_these_tests_end_early(tiny_policy) -> None:
    """Else the tests above would not see what happens when forks leave the batch."""
    twin = untouched(tiny_policy)
    ended = sum(check_complete(tiny_policy, twin, rho_th, "keep") for rho_th in (0.3, 0.7))
    assert 0 < ended < 2 * 14


@pytest.mark.parametrize("positions", ["keep", "collapse"])
def test_with_an_adapter(tiny_policy, positions) -> None:
    policy = add_lora(tiny_policy, 4, 8)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    twin = untouched(policy)
    check_complete(policy, twin, 0.5, positions)
    examples = make_examples(2)
    visible = mask_of(image_tokens(prepare(policy, examples))[0], 0.5, 0)
    plain = Plain(twin, examples[0], visible, positions).logits([])[-1]
    with policy.model.disable_adapter(), torch.no_grad():
        base = Plain(untouched(policy), examples[0], visible, positions).logits([])[-1]
    assert (plain - base).abs().max() > 1e-3, "the adapter changes nothing: the test would not see it"


@pytest.mark.parametrize("swap", [0.0, 1.0])
def test_sentences_of_an_answer_with_and_without_the_swap(tiny_policy, swap) -> None:
    """The forks that BDHS makes of an answer whose sentences begin with yes and no."""
    twin, examples = untouched(tiny_policy), make_examples(2)
    text = "Yes, there is a red cup. A dog is there. No cat is on the left."
    (spelling,) = spell([text], tiny_policy.processor)
    rng = np.random.default_rng(0)
    cuts = [cut(text, spelling, rng, swap, tiny_policy.processor) for _ in examples]
    assert any(made.forced for made in cuts[0]) == (swap == 1.0)
    prepared = prepare(tiny_policy, examples)
    attempts = [
        Attempt(row, spelling.ids, tuple(Fork(c.start, c.forced, k) for k, c in enumerate(made)),
                mask_of(image_tokens(prepared)[row], 0.7, row))
        for row, made in enumerate(cuts)
    ]  # fmt: skip
    have = complete(tiny_policy, prepared, attempts, stops=STOPS, seed=0, max_new_tokens=LENGTH)
    for row, (attempt, own) in enumerate(zip(attempts, have, strict=True)):
        plain = Plain(twin, examples[row], attempt.visible, "keep")
        prefixes = [[*spelling.ids[: c.start], *c.forced] for c in cuts[row]]
        assert own == [plain.greedy(prefix, STOPS) for prefix in prefixes]


@pytest.mark.parametrize("positions", ["keep", "collapse"])
@pytest.mark.parametrize("rho_th", [0.0, 0.5, 1.0])
def test_whole_answers_are_those_of_the_plain_way(tiny_policy, rho_th, positions) -> None:
    twin, examples = untouched(tiny_policy), make_examples(3)
    tiny_policy.model.generation_config.eos_token_id = list(STOPS)
    prepared = prepare(tiny_policy, examples)
    visible = [mask_of(tokens, rho_th, row) for row, tokens in enumerate(image_tokens(prepared))]
    options = {"seed": 0, "max_new_tokens": LENGTH, "positions": positions}
    have = answer(tiny_policy, prepared, range(3), visible=visible, **options)
    twins = [Plain(twin, e, seen, positions) for e, seen in zip(examples, visible, strict=True)]
    assert have == [plain.greedy([], stop_tokens(tiny_policy)) for plain in twins]


def test_forced_argmax_is_one_plain_pass(tiny_policy) -> None:
    twin, examples = untouched(tiny_policy), make_examples(4)
    tokens = [REFERENCE[: 3 * n + 1] for n in range(4)]
    have = forced_argmax(tiny_policy, prepare(tiny_policy, examples), [3, 1, 0, 2], tokens)
    for row, ids, own in zip([3, 1, 0, 2], tokens, have, strict=True):
        plain = Plain(twin, examples[row], None, "keep")
        logits = plain.logits(list(ids))[len(plain.prompt) - 1 : -1]
        assert own == tuple(logits.argmax(-1).tolist())
    assert forced_argmax(tiny_policy, prepare(tiny_policy, examples), [], []) == []


@pytest.mark.parametrize("positions", ["keep", "collapse"])
@pytest.mark.parametrize("rho_th", [0.0, 0.5, 0.99])
def test_the_logits_are_the_plain_ones(tiny_policy, rho_th, positions) -> None:
    """Those at the start of every fork and after one token more."""
    twin, example = untouched(tiny_policy), make_examples(2)[1]
    prepared = prepare(tiny_policy, [example])
    visible = mask_of(image_tokens(prepared)[0], rho_th, 3)
    forks = tuple(Fork(start, (77,), draw=start) for start in (0, 5, 12))
    seen: list[torch.Tensor] = []
    hook = lm_head(tiny_policy.model).register_forward_hook(lambda *args: seen.append(args[2][0].clone()))
    complete(tiny_policy, prepared, [Attempt(0, REFERENCE, forks, visible)], stops=(2,), seed=0,
             max_new_tokens=1, positions=positions)  # fmt: skip
    hook.remove()
    plain = Plain(twin, example, visible, positions)
    for step in (0, 1):
        want = torch.stack([plain.logits([*REFERENCE[: f.start], *[77] * step])[-1] for f in forks])
        assert (seen[step] - want).abs().max() < 1e-4


def test_prompts_may_be_read_some_at_a_time(tiny_policy, monkeypatch) -> None:
    prepared = prepare(tiny_policy, make_examples(5))
    attempts = attempts_of(prepared, 0.5)
    options = {"stops": STOPS, "seed": 0, "max_new_tokens": LENGTH}
    whole = complete(tiny_policy, prepared, attempts, **options)
    written = [(77, 78, 79)[: n % 3 + 1] for n in range(5)]
    forced = forced_argmax(tiny_policy, prepared, range(5), written)
    drawn = generate(tiny_policy, make_examples(5), k=2, max_new_tokens=LENGTH)
    passes: list[int] = []
    language_model(tiny_policy.model).layers[0].register_forward_hook(
        lambda _, args, __: passes.append(len(args[0]))
    )
    monkeypatch.setattr("mllm_align.compute.decoding.TOKENS_AT_ONCE", 1)
    assert complete(tiny_policy, prepared, attempts, **options) == whole
    assert passes[:5] == [1] * 5
    passes.clear()
    assert forced_argmax(tiny_policy, prepared, range(5), written) == forced
    assert passes == [1] * 5
    passes.clear()
    assert generate(tiny_policy, make_examples(5), k=2, max_new_tokens=LENGTH) == drawn
    assert passes[:5] == [1] * 5


def test_no_mask_is_the_mask_that_hides_nothing(tiny_policy) -> None:
    prepared = prepare(tiny_policy, make_examples(3))
    shown = attempts_of(prepared, 0.0)
    options = {"stops": (2,), "seed": 0, "max_new_tokens": LENGTH}
    assert complete(tiny_policy, prepared, shown, **options) == complete(
        tiny_policy, prepared, [replace(a, visible=None) for a in shown], **options
    )
    whole = answer(tiny_policy, prepared, range(3), visible=[None] * 3, seed=0, max_new_tokens=LENGTH)
    own = generate(tiny_policy, make_examples(3), max_new_tokens=LENGTH, temperature=0)
    assert whole == [row[0].token_ids for row in own]


def test_hidden_image_tokens_are_not_computed_and_images_only_once(tiny_policy) -> None:
    image = ArrayImage("shared", 60, 40)
    examples = [Example(f"q{i}", image, "Is it red?") for i in range(2)]
    tower, widths = [], []
    inner, family = tiny_policy.model.model, of_model(tiny_policy.model)
    getattr(inner, family.vision[0]).register_forward_hook(lambda *_: tower.append(1))
    layer = getattr(inner, family.decoder).layers[0]
    layer.register_forward_hook(lambda _, args, __: widths.append(args[0].shape))
    prepared = prepare(tiny_policy, examples)
    assert len(prepared.features) == 1
    tokens = image_tokens(prepared)[0]
    visible = mask_of(tokens, 0.8, 1)
    attempts = [Attempt(row, REFERENCE, (Fork(12), Fork(3, draw=1)), visible) for row in range(2)]
    complete(tiny_policy, prepared, attempts, stops=(2,), seed=0, max_new_tokens=2)
    hidden = tokens - int(visible.sum())
    assert hidden > 0
    assert len(tower) == 1
    assert tuple(widths[0][:2]) == (2, len(prepared.prompts[0]) - hidden + len(REFERENCE))


def test_a_hidden_token_s_content_and_another_s_do_and_do_not_matter(tiny_policy) -> None:
    example = make_examples(1)[0]
    prepared = prepare(tiny_policy, [example])
    visible = mask_of(image_tokens(prepared)[0], 0.5, 0)
    changed = prepared.features[0].clone()
    changed[~torch.from_numpy(visible)] += 5.0
    attempts = [Attempt(0, REFERENCE, FORKS, visible)]
    options = {"stops": (2,), "seed": 0, "max_new_tokens": LENGTH}
    first = complete(tiny_policy, prepared, attempts, **options)
    assert complete(tiny_policy, replace(prepared, features=(changed,)), attempts, **options) == first
    seen_too = replace(prepared, features=(changed + 5.0,))
    assert complete(tiny_policy, seen_too, attempts, **options) != first


@pytest.mark.parametrize("positions", ["keep", "collapse"])
def test_draws_depend_on_the_seed_the_example_and_the_fork_alone(tiny_policy, positions) -> None:
    examples = make_examples(5)
    prepared = prepare(tiny_policy, examples)
    attempts = attempts_of(prepared, 0.6)
    options = {
        "stops": (2, 5),
        "max_new_tokens": 12,
        "temperature": 1.0,
        "top_p": 0.9,
        "positions": positions,
    }
    whole = complete(tiny_policy, prepared, attempts, seed=4, **options)
    for size in (1, 2):
        assert complete(tiny_policy, prepared, attempts, seed=4, batch_size=size, **options) == whole
    alone = [
        complete(tiny_policy, prepare(tiny_policy, [e]), [replace(a, row=0)], seed=4, **options)[0]
        for e, a in zip(examples, attempts, strict=True)
    ]
    assert alone == whole
    few = [replace(a, forks=a.forks[1:3]) for a in attempts[::-1]]
    assert complete(tiny_policy, prepared, few, seed=4, **options) == [row[1:3] for row in whole[::-1]]
    assert complete(tiny_policy, prepared, attempts, seed=5, **options) != whole
    other = [replace(a, forks=tuple(replace(f, draw=f.draw + 9) for f in a.forks)) for a in attempts]
    assert complete(tiny_policy, prepared, other, seed=4, **options) != whole


def test_attempts_without_forks_and_none_at_all_give_nothing(tiny_policy) -> None:
    prepared = prepare(tiny_policy, make_examples(2))
    options = {"stops": (2,), "seed": 0, "max_new_tokens": 2}
    first, second = complete(
        tiny_policy, prepared, [Attempt(0, REFERENCE, ()), Attempt(1, (), (Fork(0),))], **options
    )
    assert (first, len(second)) == ([], 1)
    assert complete(tiny_policy, prepared, [], **options) == []


def test_the_model_is_left_as_it_was(tiny_policy) -> None:
    tiny_policy.model.train()
    prepared = prepare(tiny_policy, make_examples(1))
    complete(tiny_policy, prepared, [Attempt(0, REFERENCE, FORKS)], stops=(2,), seed=0, max_new_tokens=1)
    assert tiny_policy.model.training
    assert not prepared.features[0].requires_grad


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"positions": "shift"}, "positions='shift'; choose keep or collapse"),
    ],
)
def test_options_out_of_range_are_refused(tiny_policy, options, match) -> None:
    prepared = prepare(tiny_policy, make_examples(1))
    with pytest.raises(ValueError, match=match):
        complete(
            tiny_policy, prepared, [Attempt(0, REFERENCE, FORKS)], **{"stops": (2,), "seed": 0, **options}
        )


def test_masks_and_forks_that_do_not_fit_are_refused(tiny_policy) -> None:
    prepared = prepare(tiny_policy, make_examples(1))
    tokens = image_tokens(prepared)[0]
    short = Attempt(0, REFERENCE, FORKS, np.ones(tokens - 1, dtype=bool))
    with pytest.raises(ValueError, match=rf"example e0: the mask has {tokens - 1} entries .* {tokens} image"):
        complete(tiny_policy, prepared, [short], stops=(2,), seed=0)
    for start in (13, -1):
        with pytest.raises(ValueError, match=rf"example e0: a fork starts at token {start} .*choose 0 to 12"):
            complete(tiny_policy, prepared, [Attempt(0, REFERENCE, (Fork(start),))], stops=(2,), seed=0)

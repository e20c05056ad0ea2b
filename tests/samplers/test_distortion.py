"""POVID-style distortion: one word for every word of the reference, from a noised image."""

from __future__ import annotations

import pytest

from mllm_align.compute.packing import response_tokens
from mllm_align.noise import NoisedImage
from mllm_align.records import Preference
from mllm_align.samplers import corruption, distortion
from mllm_align.samplers.corruption import ImageNoise
from mllm_align.samplers.distortion import PovidDistortion, scorable
from tiny import make_groups


def test_every_token_is_predicted_from_the_true_prefix(tiny_policy) -> None:
    groups = make_groups(3)
    made = PovidDistortion(ImageNoise(500)).sample(tiny_policy, groups, 0)
    image = tiny_policy.processor.tokenizer.convert_tokens_to_ids(tiny_policy.processor.image_token)
    for out, given in zip(made, groups, strict=True):
        (ids,) = response_tokens([given.responses[0].text], tiny_policy.processor)
        response = out.responses[1]
        assert out.responses[0] == given.responses[0]
        assert len(response.token_ids) <= len(ids)
        assert image not in response.token_ids
        assert response.source == "povid_distortion"
        assert {"steps": 500, "wrap": False}.items() <= response.provenance.items()


def test_batches_change_nothing_and_the_seed_does(tiny_policy) -> None:
    groups = make_groups(3)
    together = PovidDistortion(ImageNoise(800)).sample(tiny_policy, groups, 0)
    alone = PovidDistortion(ImageNoise(800), batch_size=1).sample(tiny_policy, groups[::-1], 0)[::-1]
    other = PovidDistortion(ImageNoise(800)).sample(tiny_policy, groups, 1)
    assert together == alone
    assert [g.responses[1].provenance for g in together] != [g.responses[1].provenance for g in other]


@pytest.fixture
def scripted(monkeypatch):
    def play(predicted):
        seen = {}
        monkeypatch.setattr(
            corruption, "prepare", lambda policy, examples: seen.setdefault("examples", examples)
        )
        monkeypatch.setattr(
            distortion, "forced_argmax", lambda *args: seen.setdefault("asked", args) and predicted(args[3])
        )
        return seen

    return play


def test_the_model_sees_the_noised_image_and_the_tokens_of_the_reference(tiny_policy, scripted) -> None:
    seen = scripted(lambda references: [tuple(ids) for ids in references])
    groups = make_groups(2)
    made = PovidDistortion(ImageNoise(100, wrap=True)).sample(tiny_policy, groups, 0)
    assert all(
        isinstance(e.image, NoisedImage) and (e.image.steps, e.image.wrap) == (100, True)
        for e in seen["examples"]
    )
    expected = response_tokens([g.responses[0].text for g in groups], tiny_policy.processor)
    assert [list(ids) for ids in seen["asked"][3]] == expected
    assert [g.preferences for g in made] == [(), ()]  # nothing was changed
    assert [g.responses[1].text for g in made] == [g.responses[0].text for g in made]


def test_end_tokens_stay_and_image_tokens_go(tiny_policy, scripted) -> None:
    tokenizer = tiny_policy.processor.tokenizer
    end, image = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(tiny_policy.processor.image_token)
    assert scorable((7, end, image, 8), tiny_policy.processor) == (7, end, 8)
    scripted(lambda references: [(image,), (40, end, 41)])
    first, second = PovidDistortion(ImageNoise(500)).sample(tiny_policy, make_groups(2), 0)
    assert first.preferences == ()
    assert second.preferences == (Preference(0, 1),)
    assert second.responses[1].token_ids == (40, end, 41)

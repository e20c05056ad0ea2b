"""mDPO's image preference: crops, the Groups that have them, and one loss an example."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mllm_align.losses import anchored_dpo, dpo
from mllm_align.modules.extend import CroppedImage, crop_box, image_preference
from mllm_align.records import Group, Preference, Response
from tiny import ArrayImage, make_groups


class Halves:
    """Left half black, right half white."""

    key = "halves"

    def load(self) -> Image.Image:
        pixels = np.zeros((20, 40, 3), dtype=np.uint8)
        pixels[:, 20:] = 255
        return Image.fromarray(pixels)


def test_a_crop_has_the_size_of_the_whole_and_shows_a_part() -> None:
    whites = []
    for seed in range(40):
        crop = CroppedImage(Halves(), 0.04, seed).load()  # a fifth of either side: 8 by 4 pixels
        assert crop.size == (40, 20)
        whites.append(np.asarray(crop).mean() / 255)
    assert min(whites) < 0.01  # some crops lie in the black half,
    assert max(whites) > 0.99  # some in the white
    assert CroppedImage(Halves(), 0.04, 1).key != CroppedImage(Halves(), 0.04, 2).key


@pytest.mark.parametrize(("share", "side"), [(0.25, 0.5), (1.0, 1.0), (0.0, 1 / 20)])
def test_a_crop_lies_in_the_image_with_its_share_of_the_area(share, side) -> None:
    for seed in range(20):
        left, top, right, bottom = crop_box(40, 20, share, seed)
        assert (right - left, bottom - top) == pytest.approx((40 * side, 20 * side))
        assert left >= 0
        assert top >= 0
        assert right <= 40 + 1e-9
        assert bottom <= 20 + 1e-9


def test_the_chosen_response_comes_again_under_a_crop() -> None:
    (group,) = make_groups(1)
    wide = image_preference(group, most=0.2, seed=0)
    spoilt = wide.responses[2]
    assert wide.responses[:2] == group.responses
    assert spoilt.text == group.responses[0].text
    assert spoilt.image.image == group.example.image
    assert 0 < spoilt.image.share < 0.2
    assert wide.preferences == (Preference(0, 1), Preference(0, 2))
    assert wide == image_preference(group, most=0.2, seed=0)
    assert wide != image_preference(group, most=0.2, seed=1)


def test_crops_differ_between_examples() -> None:
    shares = [image_preference(g, most=0.2, seed=0).responses[2].image.share for g in make_groups(20)]
    assert len(set(shares)) == 20
    assert 0.05 < sum(shares) / 20 < 0.15


def test_a_chosen_response_in_several_pairs_comes_once_with_their_weight() -> None:
    (group,) = make_groups(1, 3)
    group = replace(
        group, preferences=(Preference(0, 1, 0.25), Preference(0, 2, 0.5), Preference(1, 2, 0.125))
    )
    wide = image_preference(group, most=0.2, seed=0)
    assert wide.preferences[3:] == (Preference(0, 3, 0.75), Preference(1, 4, 0.125))
    assert [r.text for r in wide.responses[3:]] == [r.text for r in group.responses[:2]]


@pytest.mark.parametrize("most", [0.0, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(most) -> None:
    with pytest.raises(ValueError, match="share of the image"):
        image_preference(make_groups(1)[0], most=most, seed=0)


def test_the_two_pairs_of_an_example_are_mdpo_s_three_terms() -> None:
    """Log-ratios: y+ 2, y- -1, y+ under the crop 0.5; beta 0.1, delta 0.3."""
    chosen, rejected, spoilt = (torch.tensor([v], dtype=torch.float64) for v in (2.0, -1.0, 0.5))
    zero = torch.zeros(1, dtype=torch.float64)
    loss = partial(anchored_dpo, beta=0.1, delta=0.3, anchor=0.5)
    both = loss(chosen, rejected, zero, zero) + loss(chosen, spoilt, zero, zero)
    # log(1 + e^-0.3) + log(1 + e^-0.15) + log(1 + e^-(0.2 - 0.3)) = 0.5543552 + 0.6209569 + 0.7443967
    assert both.item() == pytest.approx(0.5543552 + 0.6209569 + 0.7443967, abs=1e-6)


def test_an_anchor_of_nothing_is_dpo() -> None:
    values = [torch.randn(5, dtype=torch.float64) for _ in range(4)]
    anchored = anchored_dpo(*values, beta=0.3, delta=1.0, anchor=0.0)
    torch.testing.assert_close(anchored, dpo(*values, beta=0.3))


# --- through the model ---------------------------------------------------------------------------------------


def two_images(count: int = 3) -> list[Group]:
    """Groups whose third response is asked under another image; the second of them has none such."""
    groups = []
    for i, group in enumerate(make_groups(count)):
        other = ArrayImage(f"other{i}", 56, 30)
        extra = () if i == 1 else (replace(group.responses[0], image=other),)
        pairs = (Preference(0, 1), *((Preference(0, 2),) if extra else ()))
        groups.append(Group(group.example, (*group.responses, *extra), pairs))
    return groups


def test_a_group_with_two_images_is_two_rows(tiny_policy) -> None:
    from mllm_align.compute.logprobs import response_logprobs
    from mllm_align.compute.packing import by_group, collate

    groups = two_images()
    batch = collate(groups, tiny_policy.processor)
    assert len(batch.prompt_ids) == 5
    assert batch.slots.tolist() == [[0, 1, 2], [4, 5, -1], [6, 7, 8]]
    assert batch.ids == ("e0", "e1", "e2")
    together = by_group(batch, response_logprobs(tiny_policy.model, batch))
    for row, group in enumerate(groups):
        for place, response in enumerate(group.responses):
            example = replace(group.example, image=response.image or group.example.image)
            alone = collate([Group(example, (replace(response, image=None),))], tiny_policy.processor)
            values = response_logprobs(tiny_policy.model, alone)[0, 0]
            torch.testing.assert_close(together[row, place, : len(values)], values, atol=1e-5, rtol=1e-5)
            assert (together[row, place, len(values) :] == 0).all()
    assert (together[1, 2] == 0).all()  # the response that the second group lacks
    assert not torch.allclose(together[0, 0], together[0, 2], atol=1e-3)  # the image matters


def test_the_reference_of_two_images_is_stored_and_found_by_group(tiny_policy) -> None:
    from mllm_align.compute.packing import collate
    from mllm_align.modules.reference import frozen_logprobs, look_up, reference_logprobs

    groups = two_images()
    table = reference_logprobs(tiny_policy, groups, batch_size=2)
    assert [len(table[f"e{i}"]) for i in range(3)] == [3, 2, 3]
    batch = collate(groups[::-1], tiny_policy.processor)
    torch.testing.assert_close(
        look_up(table, batch), frozen_logprobs(tiny_policy, batch), atol=1e-5, rtol=1e-5
    )


def test_cut_responses_are_counted_under_each_image(tiny_policy) -> None:
    from mllm_align.compute.packing import collate

    groups = two_images(1)
    whole = collate(groups, tiny_policy.processor)
    limit = int(whole.prompt_mask.sum(1).max()) + 2
    cut = collate(groups, tiny_policy.processor, max_length=limit)
    rooms = limit - whole.prompt_mask.sum(1)  # (rows,)
    assert torch.equal(cut.response_mask.sum(-1), whole.response_mask.sum(-1).clamp(max=rooms[:, None]))
    assert cut.truncated == int((whole.response_mask.sum(-1) > rooms[:, None]).sum()) > 0


def test_mdpo_learns_to_look_at_the_image(tiny_folders, tmp_path) -> None:
    from mllm_align.models.load import add_lora, load_policy
    from mllm_align.modules.fit import fit
    from mllm_align.modules.optimise import Optimise
    from mllm_align.modules.preference import PreferenceModule
    from mllm_align.modules.reference import reference_logprobs

    groups = [image_preference(g, most=0.2, seed=0) for g in make_groups(4)]
    policy = add_lora(load_policy(tiny_folders["llava_next"]), r=4, alpha=8)
    module = PreferenceModule(
        policy,
        reference=reference_logprobs(policy, groups, batch_size=4),
        loss=partial(anchored_dpo, beta=0.1, delta=0.0, anchor=0.5),
        optimise=Optimise(lr=1e-2, projector_lr=1e-3),
    )
    told: list[dict[str, float]] = []
    fit(module, groups, tmp_path, epochs=6, batch_size=4, seed=0, scalars=lambda _, v: told.append(v))
    # Two pairs of log 2 and half an anchor of log 2 each.
    assert told[0]["loss"] == pytest.approx(1.5 * 0.6931472, abs=1e-4)
    assert told[-1]["loss"] < told[0]["loss"] - 0.1
    assert told[-1]["accuracy"] > 0.8


def test_a_response_without_an_image_of_its_own_is_one_row(tiny_policy) -> None:
    from mllm_align.compute.packing import collate

    (group,) = make_groups(1)
    same = replace(group, responses=(*group.responses, Response("x", image=group.example.image)))
    assert collate([same], tiny_policy.processor).slots is None

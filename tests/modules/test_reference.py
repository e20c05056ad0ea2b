"""The stored reference: by token, the same whatever the method, and refused where it belongs to something else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mllm_align.compute.logprobs import response_logprobs
from mllm_align.compute.packing import collate
from mllm_align.modules.reference import check_table, look_up, reference_logprobs
from tiny import make_groups


def test_the_table_has_every_token_and_is_found_again(tiny_policy) -> None:
    groups = [make_groups(3, 4)[0], *make_groups(3, 2)[1:]]
    table = reference_logprobs(tiny_policy, groups, batch_size=1)
    lengths = [collate([g], tiny_policy.processor).response_ids.shape[1:] for g in groups]
    assert [tuple(v.shape) for v in table.values()] == [tuple(shape) for shape in lengths]
    batch = collate([groups[2], groups[0]], tiny_policy.processor)
    found = look_up(table, batch)
    assert found.shape == batch.response_ids.shape
    torch.testing.assert_close(found, response_logprobs(tiny_policy.model, batch), atol=1e-5, rtol=1e-5)
    assert (found[~batch.response_mask] == 0).all()


def test_the_adapter_does_not_change_it(tiny_folders) -> None:
    from mllm_align.models.load import add_lora, load_policy

    groups = make_groups(2)
    before = reference_logprobs(load_policy(tiny_folders["llava"]), groups, batch_size=2)
    policy = add_lora(load_policy(tiny_folders["llava"]), r=2, alpha=4)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1)
    after = reference_logprobs(policy, groups, batch_size=2)
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_a_table_of_another_max_length_is_refused(tiny_policy) -> None:
    groups = make_groups(1)
    whole = collate(groups, tiny_policy.processor)
    limit = int(whole.prompt_mask.sum()) + 2
    table = reference_logprobs(tiny_policy, groups, batch_size=1, max_length=limit)
    cut = collate(groups, tiny_policy.processor, max_length=limit)
    assert look_up(table, cut).shape == (1, 2, 2)
    with pytest.raises(ValueError, match=r"example .e0. has 2 responses of up to 2 tokens.*same max_length"):
        look_up(table, whole)


def test_a_table_of_other_groups_is_refused_before_training(tiny_policy) -> None:
    groups = make_groups(2)
    table = reference_logprobs(tiny_policy, groups, batch_size=2)
    check_table(table, groups)
    with pytest.raises(ValueError, match="example 'e2' is missing"):
        check_table(table, make_groups(3))
    more = replace(groups[1], responses=(*groups[1].responses, groups[1].responses[0]))
    with pytest.raises(ValueError, match="example 'e1' has 2 rows, its group has 3 responses"):
        check_table(table, [more])

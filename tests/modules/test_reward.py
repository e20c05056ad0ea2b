"""A reward model: its loss by hand, what it learns, and the same scores from its folder as in training."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from annotating import annotated
from mllm_align.annotators.reward import RewardAnnotator, reward_model
from mllm_align.compute.logprobs import final_states
from mllm_align.compute.packing import collate
from mllm_align.models.heads import (
    REWARD_HEAD,
    add_head,
    head,
    load_head,
    read,
    reward_scores,
    rewards,
    save_head,
)
from mllm_align.models.load import add_lora, load_policy
from mllm_align.modules.figures import means
from mllm_align.modules.fit import fit
from mllm_align.modules.optimise import Optimise
from mllm_align.modules.reward import RewardModule, pairwise
from mllm_align.records import Preference, Response
from tiny import make_groups


def make_module(folder: Path, lr: float = 1e-2) -> RewardModule:
    policy = add_lora(load_policy(folder), r=4, alpha=8, seed=0)
    return RewardModule(policy, seed=0, optimise=Optimise(lr=lr, projector_lr=1e-3))


def preferred(count: int = 6):
    """Groups in which the answer that says yes is the better one, in either place."""
    texts = ("yes a red cup", "no a red cup")
    return [
        replace(
            group,
            responses=tuple(Response(t) for t in (texts if i % 2 else texts[::-1])),
            preferences=(Preference(1 - i % 2, i % 2),),
        )
        for i, group in enumerate(make_groups(count))
    ]


def test_the_loss_by_hand(tiny_policy) -> None:
    groups = make_groups(2)  # each prefers its first response
    batch = collate([replace(g, preferences=(Preference(0, 1, 0.5),)) for g in groups], tiny_policy.processor)
    total, figures = pairwise(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), batch)
    by_hand = [math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(3.0))]
    assert total.item() == pytest.approx(0.5 * sum(by_hand), rel=1e-6)
    found = means(figures)
    assert found["loss"] == pytest.approx(sum(by_hand) / 2, rel=1e-6)
    assert (found["accuracy"], found["margin"]) == (0.5, -1.0)
    assert (found["reward_chosen"], found["reward_rejected"]) == (1.0, 2.0)


def test_a_head_keeps_its_precision_under_autocast(tiny_policy) -> None:
    """A bfloat16 near 3 is a multiple of 1/64, so that answers of nearly the same reward would tie."""
    add_head(tiny_policy, REWARD_HEAD, 0)
    states = torch.randn(20, head(tiny_policy, REWARD_HEAD).in_features).bfloat16()
    with torch.no_grad():
        head(tiny_policy, REWARD_HEAD).bias.fill_(3.0)
        plain = read(tiny_policy, REWARD_HEAD, states)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(read(tiny_policy, REWARD_HEAD, states), plain)
            scores = reward_scores(tiny_policy, make_groups(5), 5)
    found = torch.tensor(scores)
    assert (found != found.bfloat16()).any()


def test_a_reward_reads_the_last_token_and_all_before_it(tiny_policy) -> None:
    add_head(tiny_policy, REWARD_HEAD, 0)
    groups = make_groups(3)
    batch = collate(groups, tiny_policy.processor)
    with torch.no_grad():
        values = rewards(tiny_policy, batch)
        layer = head(tiny_policy, REWARD_HEAD)
        states = final_states(tiny_policy.model, batch)
    assert torch.allclose(values, (states @ layer.weight[0] + layer.bias), atol=1e-5)
    for i, group in enumerate(groups):
        for k, response in enumerate(group.responses):
            alone = replace(group, responses=(response,), preferences=())
            (score,) = reward_scores(tiny_policy, [alone], 1)[0]
            assert score == pytest.approx(values[i, k].item(), abs=1e-5)


def test_it_learns_which_answers_are_preferred_and_keeps_it_in_its_folder(tiny_folder, tmp_path) -> None:
    told: list[dict[str, float]] = []
    module = make_module(tiny_folder)
    fit(module, preferred(), tmp_path, epochs=15, batch_size=6, seed=0, scalars=lambda _, v: told.append(v))
    assert told[0]["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert told[-1]["accuracy"] == 1.0
    assert told[-1]["loss"] < 0.2
    assert {p.name for p in (tmp_path / "adapter").iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "reward_head.safetensors",
    }  # fmt: skip
    assert not any("reward_head" in n for n in load_file(tmp_path / "adapter/adapter_model.safetensors"))
    judge = reward_model(load_policy(tiny_folder), path=str(tmp_path), base=str(tiny_folder))
    groups = preferred()
    kept = [j.scores for j in judge.judge(groups)]
    assert kept == [pytest.approx(s, abs=1e-5) for s in reward_scores(module.policy, groups, 8)]
    bare = [replace(g, preferences=()) for g in groups]
    assert [g.preferences for g in annotated(judge, bare)] == [g.preferences for g in groups]


def test_training_the_policy_leaves_its_judge_as_it_is(tiny_folder, tmp_path) -> None:
    fit(make_module(tiny_folder), preferred(2), tmp_path, epochs=1, batch_size=2, seed=0)
    policy = add_lora(load_policy(tiny_folder), r=2, alpha=4)
    judge = reward_model(policy, path=str(tmp_path / "adapter"), base=str(tiny_folder))
    before = judge.judge(preferred(2))
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(0.1)
    assert judge.judge(preferred(2)) == before


def test_equal_texts_tie_exactly_and_batches_do_not_matter(tiny_policy) -> None:
    add_head(tiny_policy, REWARD_HEAD, 1)
    groups = [replace(g, responses=(*g.responses, g.responses[0])) for g in make_groups(3)]
    judge = RewardAnnotator(tiny_policy, batch_size=2)
    for whole, single in zip(judge.judge(groups), map(lambda g: judge.judge([g])[0], groups), strict=True):
        assert whole.scores[0] == whole.scores[-1]
        assert whole.scores == pytest.approx(single.scores, abs=1e-5)


def test_pairs_are_needed(tiny_folder) -> None:
    with pytest.raises(ValueError, match=r"'e0' has no preference.*annotate the set"):
        make_module(tiny_folder).check([replace(make_groups(1)[0], preferences=())])


# --- heads


def test_a_head_follows_its_seed_and_starts_small(tiny_folder) -> None:
    one, two, other = (
        head(add_head(load_policy(tiny_folder), REWARD_HEAD, s), REWARD_HEAD) for s in (0, 0, 1)
    )
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, other.weight)
    assert one.weight.abs().max() < 5 / one.weight.shape[1]
    assert one.bias.item() == 0.0


def test_a_second_head_of_a_name_is_refused(tiny_policy) -> None:
    add_head(tiny_policy, REWARD_HEAD, 0)
    with pytest.raises(ValueError, match="has a reward_head already"):
        add_head(tiny_policy, REWARD_HEAD, 0)


def test_a_folder_without_a_head_is_no_reward_model(tiny_policy, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no reward model; train one with .*alignment=reward_model"):
        load_head(tiny_policy, REWARD_HEAD, tmp_path)
    with pytest.raises(ValueError, match="has no reward head"):
        reward_scores(tiny_policy, make_groups(1), 1)


def test_a_head_of_another_width_is_refused(tiny_policy, tmp_path) -> None:
    from safetensors.torch import save_file

    add_head(tiny_policy, REWARD_HEAD, 0)
    save_head(tiny_policy, REWARD_HEAD, tmp_path)
    tensors = load_file(tmp_path / "reward_head.safetensors")
    save_file({**tensors, "weight": torch.zeros(1, 3)}, tmp_path / "reward_head.safetensors")
    delattr(tiny_policy.model, REWARD_HEAD)
    with pytest.raises(ValueError, match="for 3 hidden units"):
        load_head(tiny_policy, REWARD_HEAD, tmp_path)


# --- the held-out accuracy


def test_accuracy_ties_and_liking_for_length_by_hand() -> None:
    from mllm_align.benchmarks.base import score
    from mllm_align.benchmarks.reward import RewardAccuracy

    def row(rewards, words, image):
        return {"id": image, "image": image, "rewards": rewards, "words": words}

    rows = [
        row([2.0, 1.0], [5, 3], "a"),  # right, and the longer
        row([1.0, 2.0], [5, 3], "b"),  # wrong, and the shorter
        row([1.0, 1.0], [5, 3], "c"),  # a tie
        row([3.0, 1.0], [4, 4], "d"),  # right, as long
    ]
    found = score(RewardAccuracy("POVID", {}), rows)
    assert (found["accuracy"], found["ties"], found["longer"]) == (0.5, 0.25, 0.5)


def test_predictions_hold_both_rewards_and_the_text_that_wins(tiny_policy, tmp_path) -> None:
    from mllm_align.benchmarks.base import run
    from mllm_align.benchmarks.reward import PAIRS, RewardAccuracy
    from mllm_align.datasets.parquet import write_groups

    add_head(tiny_policy, REWARD_HEAD, 0)
    groups = preferred(3)
    write_groups(tmp_path / PAIRS, groups)
    rows = run(tiny_policy, RewardAccuracy("mine", {}, str(tmp_path)), tmp_path / "out.jsonl", 2)
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows
    scores = reward_scores(tiny_policy, groups, 3)
    for row, group, found in zip(rows, groups, scores, strict=True):
        pair = group.preferences[0]
        assert row["rewards"] == pytest.approx([found[pair.chosen], found[pair.rejected]], abs=1e-5)
        assert row["prediction"] == group.responses[max(range(2), key=lambda i: found[i])].text

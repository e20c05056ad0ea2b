"""Online-DPO: fresh draws, ties, agreement with the oracle, and the same exactness as offline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean

import pytest
import torch
from safetensors.torch import load_file

from mllm_align.annotators.base import Comparison, Judgement, fill
from mllm_align.annotators.oracle import OracleAnnotator
from mllm_align.annotators.pairs import all_pairs, best_worst
from mllm_align.losses import anchored_dpo, dpo, simpo
from mllm_align.models.load import add_lora, load_policy
from mllm_align.modules.draws import Drawn, sampled
from mllm_align.modules.extend import image_preference
from mllm_align.modules.figures import means
from mllm_align.modules.fit import TrainerOptions, fit
from mllm_align.modules.online import OnlinePreferenceModule, drawing_figures
from mllm_align.modules.optimise import Optimise
from mllm_align.records import Group, Preference, Response
from mllm_align.samplers.policy import PolicySampler
from scene_groups import scene_groups
from tiny import make_groups


def even(response: Response) -> float:
    """Share of the tokens whose number is even."""
    return sum(t % 2 == 0 for t in response.token_ids) / len(response.token_ids)


@dataclass(frozen=True)
class EvenAnnotator:
    """Likes tokens with an even number: something that a random model can learn."""

    pairs: object = best_worst
    seen: list[Group] = field(default_factory=list)

    def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        self.seen.extend(groups)
        return [Judgement(tuple(even(r) for r in g.responses)) for g in groups]


@pytest.fixture
def folder(tiny_folders) -> Path:
    return tiny_folders["llava_next"]


def make_module(
    folder: Path, annotator=None, dropout: float = 0.0, k: int = 2, max_new_tokens: int = 12, **options
) -> OnlinePreferenceModule:
    torch.manual_seed(0)
    policy = add_lora(load_policy(folder), r=4, alpha=8, dropout=dropout)
    return OnlinePreferenceModule(
        policy,
        sampler=PolicySampler(k=k, max_new_tokens=max_new_tokens),
        annotator=annotator or EvenAnnotator(),
        loss=partial(dpo, beta=0.1),
        optimise=Optimise(lr=1e-2, projector_lr=1e-3),
        **({"seed": 0} | options),
    )


def run(module, groups, out, **options) -> list[dict[str, float]]:
    told: list[dict[str, float]] = []
    options = {"epochs": 1, "batch_size": 2, "seed": 0, "scalars": lambda _, v: told.append(v)} | options
    fit(module, groups, out, **options)
    return told


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def drawn_texts(annotator: EvenAnnotator) -> list[tuple[str, tuple[str, ...]]]:
    return [(g.example.id, tuple(r.text for r in g.responses)) for g in annotator.seen]


def test_it_learns_what_the_annotator_likes(folder, tmp_path) -> None:
    annotator = EvenAnnotator()
    module = make_module(folder, annotator, k=8, max_new_tokens=3)
    module.optimise = Optimise(lr=3e-2, projector_lr=3e-3)
    told = run(module, make_groups(8), tmp_path, epochs=16, batch_size=8)
    assert told[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # the policy is the reference at first
    assert told[0]["kl_policy"] == pytest.approx(0, abs=1e-4)
    assert all(0 < t["response_tokens"] <= 3 for t in told)
    shares = [even(r) for g in annotator.seen for r in g.responses]  # 64 a step
    assert mean(shares[:320]) == pytest.approx(0.5, abs=0.05)
    assert mean(shares[-320:]) > 0.65
    assert told[-1]["kl_policy"] > 1
    assert told[-1]["kl"] > 1


def test_a_prompt_is_drawn_anew_in_every_epoch(folder, tmp_path) -> None:
    annotator = EvenAnnotator()
    module = make_module(folder, annotator)
    module.optimise = Optimise(lr=0.0, projector_lr=0.0)  # the policy stays, so that only the seed changes
    run(module, make_groups(3), tmp_path, epochs=3, batch_size=3)
    by_id: dict[str, set[tuple[str, ...]]] = {}
    for name, texts in drawn_texts(annotator):
        by_id.setdefault(name, set()).add(texts)
    assert {name: len(found) for name, found in by_id.items()} == {"e0": 3, "e1": 3, "e2": 3}


def test_draws_depend_on_the_run_s_seed(folder, tmp_path) -> None:
    found = []
    for seed in (0, 0, 1):
        annotator = EvenAnnotator()
        run(make_module(folder, annotator, seed=seed), make_groups(2), tmp_path / str(len(found)))
        found.append(sorted(drawn_texts(annotator)))
    assert found[0] == found[1] != found[2]


def test_a_prompt_that_is_too_long_is_named_before_the_first_step(folder, tmp_path) -> None:
    groups = make_groups(40)
    long = replace(groups[33].example, prompt="very long " * 30)
    groups[33] = replace(groups[33], example=long)
    annotator = EvenAnnotator()
    with pytest.raises(ValueError, match=r"example e33: the prompt .* and max_length is 200"):
        run(make_module(folder, annotator, max_length=200), groups, tmp_path)
    assert not annotator.seen
    make_module(folder, annotator, max_length=200).check(make_groups(40))


def test_nothing_but_ties_is_counted_and_changes_nothing(folder, tmp_path) -> None:
    module = make_module(folder, EvenAnnotator(partial(best_worst, threshold=1000)))
    before = {n: p.clone() for n, p in module.model.named_parameters() if p.requires_grad}
    (step,) = run(module, make_groups(2), tmp_path)
    assert step["ties"] == 1.0
    assert step["grad_norm"] == 0.0
    assert "loss" not in step  # no pair, so there is no mean to tell
    assert all(torch.equal(p, before[n]) for n, p in module.model.named_parameters() if p.requires_grad)


@dataclass(frozen=True)
class FirstTies(EvenAnnotator):
    """Every Group but e1 ties."""

    def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        return [Judgement((1.0, 0.0) if g.example.id == "e1" else (0.0, 0.0)) for g in groups]


def test_ties_take_no_part_in_the_loss_but_count_as_prompts(folder, tmp_path) -> None:
    """One pair among four prompts has a quarter of the gradient it has alone."""
    groups = make_groups(4)
    (among,) = run(make_module(folder, FirstTies()), groups, tmp_path / "among", batch_size=4)
    (alone,) = run(make_module(folder, FirstTies()), groups[1:2], tmp_path / "alone", batch_size=1)
    assert (among["ties"], alone["ties"]) == (0.75, 0.0)
    assert among["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert among["grad_norm"] == pytest.approx(alone["grad_norm"] / 4, rel=1e-3)


def test_accumulation_changes_nothing_online_either(folder, tmp_path) -> None:
    groups, found = make_groups(6), {}
    for name, size, accumulate in (("whole", 4, 1), ("parts", 1, 4), ("other", 3, 1)):
        annotator = EvenAnnotator()
        told = run(
            make_module(folder, annotator), groups, tmp_path / name, batch_size=size, accumulate=accumulate
        )
        found[name] = (drawn_texts(annotator), [t["grad_norm"] for t in told], adapter(tmp_path / name))
    (texts, norms, weights), (part_texts, part_norms, part_weights), (_, _, others) = found.values()
    assert texts == part_texts
    assert norms == pytest.approx(part_norms, rel=1e-4)
    # Adam turns a gradient that is nearly zero into a step of a size of its own, so the weights differ a
    # little.
    assert all(torch.allclose(weights[n], part_weights[n], atol=5e-4) for n in weights)
    assert not all(torch.allclose(weights[n], others[n], atol=5e-4) for n in weights)


class Killed(RuntimeError):
    pass


def test_a_killed_online_run_ends_with_the_same_bits(folder, tmp_path) -> None:
    groups = make_groups(5)
    options = {"epochs": 2, "trainer": TrainerOptions(checkpoint_every_steps=2)}
    whole = run(make_module(folder, dropout=0.2), groups, tmp_path / "whole", **options)

    def kill(step: int, values: dict[str, float]) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        run(make_module(folder, dropout=0.2), groups, tmp_path / "parts", **options, scalars=kill)
    parts = run(make_module(folder, dropout=0.2), groups, tmp_path / "parts", **options)
    assert [v.get("loss") for v in parts] == [v.get("loss") for v in whole[4:]]
    one, other = adapter(tmp_path / "whole"), adapter(tmp_path / "parts")
    assert [n for n in one if not torch.equal(one[n], other[n])] == []


def test_the_oracle_agrees_with_itself(folder, tmp_path) -> None:
    """A random model says nothing that the oracle can read: sentences that it can take their place."""

    def said(policy, groups, seed, sampler, annotator) -> Drawn:
        texts = ["There is a dog.", "There is a cat and a tree."]
        drawn = [Group(g.example, tuple(Response(t) for t in texts)) for g in groups]
        judgements = annotator.judge(drawn)
        judged = fill(drawn, judgements, annotator.pairs)
        return Drawn(judged, judgements, judged)

    module = make_module(folder, OracleAnnotator(), draw=said)
    told = run(module, scene_groups(6), tmp_path, batch_size=6)
    assert told[0]["agreement"] == 1.0
    assert -1 < told[0]["oracle_score"] < 1


def test_figures_of_drawing_by_hand() -> None:
    """Scores of responses 0, 1, 2 under the oracle: little, negative, much."""
    groups = scene_groups(4)
    chosen = [(0, 1), (1, 0), None, (2, 0)]  # right, wrong, a tie, right
    groups = [
        replace(g, preferences=(Preference(*c),) if c else ()) for g, c in zip(groups, chosen, strict=True)
    ]
    comparisons = (Comparison(0, 1, 2.0, 1.0), Comparison(0, 2, 2.0, -1.0))  # the first conflicts
    judgements = [Judgement((0.0, 0.0, 0.0), comparisons), *[Judgement((0.0, 0.0, 0.0))] * 3]
    found = means(drawing_figures(Drawn(groups, judgements, groups)))
    assert found["ties"] == 0.25
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["conflicting"] == 0.5
    assert "response_tokens" not in found  # these were not sampled


def test_a_group_that_nobody_judged_is_trained_on_and_not_counted() -> None:
    """Mixed-DPO takes some pairs from the dataset."""
    groups = [replace(g, preferences=(Preference(0, 1),)) for g in scene_groups(2)]
    found = means(drawing_figures(Drawn(groups, [None, Judgement((1.0, 0.0, 0.0))], [None, groups[1]])))
    assert (found["ties"], found["agreement"]) == (0.0, 1.0)


def test_images_that_are_no_scenes_have_no_agreement() -> None:
    groups = [replace(g, preferences=(Preference(0, 1),)) for g in make_groups(2)]
    found = means(drawing_figures(Drawn(groups, [Judgement((1.0, 0.0))] * 2, groups)))
    assert found == {"ties": 0.0}


def test_all_pairs_train_too(folder, tmp_path) -> None:
    module = make_module(folder, EvenAnnotator(pairs=all_pairs), k=4)
    (step,) = run(module, make_groups(2), tmp_path)
    assert step["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_nothing_of_the_reference_is_computed_where_the_loss_has_no_use_for_it(
    folder, tmp_path, monkeypatch
) -> None:
    def forbidden(*_):
        raise AssertionError("the reference was asked")

    monkeypatch.setattr("mllm_align.modules.online.frozen_logprobs", forbidden)
    module = make_module(folder, reference_free=True, logprobs="mean")
    module.loss = partial(simpo, beta=2.0, gamma=1.0)
    (step,) = run(module, make_groups(2), tmp_path)
    assert step["loss"] > 0
    assert step["grad_norm"] > 0
    assert not {"kl", "kl_policy"} & step.keys()


def test_what_a_method_adds_is_added_to_what_was_drawn(folder, tmp_path) -> None:
    module = make_module(folder, extend=partial(image_preference, most=0.2, seed=0))
    module.loss = partial(anchored_dpo, beta=0.1, delta=0.0, anchor=0.5)
    (step,) = run(module, make_groups(2), tmp_path)
    assert step["loss"] == pytest.approx(1.5 * math.log(2), abs=1e-4)  # a mean over pairs, two an example
    (alone,) = run(make_module(folder), make_groups(2), tmp_path / "dpo")
    assert step["response_tokens"] == alone["response_tokens"]  # the same draws
    assert step["logp_chosen"] == pytest.approx(alone["logp_chosen"], abs=1e-4)


def test_token_weights_are_asked_for_the_drawn_pairs(folder, tmp_path) -> None:
    asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def even_only(chosen, rejected):
        asked.append((tuple(chosen), tuple(rejected)))
        return [1.0] * len(chosen), [0.0] * len(rejected)

    annotator = EvenAnnotator()
    module = make_module(folder, annotator, token_weights=even_only)
    (step,) = run(module, make_groups(2), tmp_path)
    drawn = {r.token_ids for g in annotator.seen for r in g.responses}
    assert len(asked) == round(2 * (1 - step["ties"]))
    assert {ids for pair in asked for ids in pair} <= drawn


def test_online_draws_every_prompt_and_keeps_the_order(folder) -> None:
    policy = load_policy(folder)
    groups = make_groups(3)
    drawn = sampled(policy, groups, 7, PolicySampler(max_new_tokens=6), EvenAnnotator())
    assert [g.example for g in drawn.groups] == [g.example for g in groups]
    assert len(drawn.judgements) == 3

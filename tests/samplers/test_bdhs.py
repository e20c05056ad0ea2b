"""BDHS: what is kept and completed, what is repeated, what is recorded; then with real models."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from script import TOKENS, Script

from mllm_align.models.load import end_token, load_policy, load_processor
from mllm_align.noise import NoisedImage
from mllm_align.records import Example, Group, Preference, Response
from mllm_align.samplers.bdhs import BDHS
from mllm_align.samplers.corruption import AttentionMask, ImageNoise, mask
from mllm_align.samplers.policy import PolicySampler
from mllm_align.samplers.sentences import full_stops, spell
from mllm_align.samplers.statistics import statistics
from tiny import ArrayImage, make_groups, make_tiny

FIRST = "A red cup is here. Two dogs run on the left."
SECOND = "Yes, it is a cat."


@dataclass
class Given:
    """Similarities in the order of their asking."""

    values: list[float]
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, a, b) -> list[float]:
        self.asked += list(zip(a, b, strict=True))
        return [self.values.pop(0) for _ in a]


def group(name: str, text: str) -> Group:
    example = Example(name, ArrayImage(name), "What is it?")
    return Group(example, (Response("bad"), Response(text)), (Preference(1, 0),))


GROUPS = [group("a", FIRST), group("b", SECOND)]


@pytest.fixture
def script(tiny_folders, monkeypatch) -> Script:
    return Script(load_processor(tiny_folders["llava"]), lambda name, call, k: f" tail {k} of {call}.").play(
        monkeypatch
    )


def sampler(similarity, **options) -> BDHS:
    return BDHS(
        **{"corruption": AttentionMask(0.7), "similarity": similarity, "eps_s": 0.9, "swap": 0.0, **options}
    )


def provenance(group: Group) -> dict:
    return dict(group.responses[1].provenance)


def test_heads_and_completions_make_the_rejected_answer(script) -> None:
    similarity = Given([0.5, 0.4])
    made = sampler(similarity).sample(script.policy, GROUPS, 0)
    assert [g.example for g in made] == [g.example for g in GROUPS]
    assert [g.responses[0].text for g in made] == [FIRST, SECOND]
    assert all(g.preferences == (Preference(0, 1),) for g in made)
    for out, given in zip(made, [FIRST, SECOND], strict=True):
        text, about = out.responses[1].text, provenance(out)
        rebuilt = ""
        for place, part in enumerate(about["sentences"]):
            head, tail = text[slice(*part["head"])], text[slice(*part["completion"])]
            assert given[: part["cut"]].endswith(head.rstrip() if head.strip() else "")
            assert tail.strip() == f"tail {place} of 1."
            assert tail.startswith(" ") == bool(head.strip())
            rebuilt += head + tail
        assert rebuilt == text
        assert about["cuts"] == [part["cut"] for part in about["sentences"]]
        assert out.responses[1].source == "bdhs_attn"
    assert similarity.asked == [(g.responses[1].text, g.responses[0].text) for g in made]


def test_only_what_is_still_alike_is_drawn_again_with_new_masks_and_cuts(script) -> None:
    made = sampler(Given([0.95, 0.5, 0.9, 0.2])).sample(script.policy, GROUPS, 0)
    calls = [[name for name, _ in attempts] for attempts, _ in script.completed]
    assert calls == [["a", "b"], ["a"], ["a"]]
    assert [provenance(g)["iteration"] for g in made] == [3, 1]
    assert [provenance(g)["similarity"] for g in made] == [0.2, 0.5]
    masks = [attempts[0][1].visible.tolist() for attempts, _ in script.completed]
    assert len({tuple(m) for m in masks}) == 3
    about = provenance(made[0])
    assert masks[2] == mask(TOKENS, 0.7, about["mask_seed"]).tolist()
    assert about["visible"] == sum(masks[2])
    assert about["image_tokens"] == TOKENS
    assert len({tuple(f.start for f in attempts[0][1].forks) for attempts, _ in script.completed}) > 1
    assert len(script.prepared) == 1  # the images are encoded once
    assert script.answered == []


def test_the_last_of_several_iterations_is_without_guidance_and_final(script) -> None:
    made = sampler(Given([0.95, 0.95, 0.91, 0.92, 0.99, 0.98]), iterations=3).sample(script.policy, GROUPS, 0)
    assert [r.text for r in (g.responses[1] for g in made)] == ["Whole.", "Whole."]
    assert len(script.completed) == 2
    ((names, options),) = script.answered
    assert names == ["a", "b"]
    assert [seen.shape for seen in options["visible"]] == [(TOKENS,), (TOKENS,)]
    for out in made:
        about = provenance(out)
        assert (about["guided"], about["iteration"], about["cuts"]) == (False, 3, [])
        assert about["sentences"] == [{"head": [0, 0], "completion": [0, 6], "cut": None, "swapped": False}]
        assert out.preferences == (Preference(0, 1),)


def test_a_single_iteration_is_guided_and_taken_as_it_is(script) -> None:
    made = sampler(Given([0.99, 0.99]), iterations=1).sample(script.policy, GROUPS, 0)
    assert script.answered == []
    assert all(g.preferences and provenance(g)["guided"] for g in made)


def test_the_reference_itself_and_nothing_at_all_give_no_preference(script) -> None:
    script.whole = {"a": FIRST.replace(" here", "  here"), "b": ""}.__getitem__
    made = sampler(Given([1.0, 0.0] * 2), iterations=2, guided=False, eps_s=-1.0).sample(
        script.policy, GROUPS, 0
    )
    assert [g.preferences for g in made] == [(), ()]
    assert len(made) == 2
    assert statistics(made)["without a preference"] == 2


def test_a_model_that_says_nothing_leaves_the_heads(script) -> None:
    script.tail = lambda name, call, k: ""
    made = sampler(Given([0.0, 0.0])).sample(script.policy, GROUPS, 3)
    for out in made:
        text, parts = out.responses[1].text, provenance(out)["sentences"]
        assert text == "".join(text[slice(*part["head"])] for part in parts)


def test_without_guidance_nothing_is_cut(script) -> None:
    made = sampler(Given([0.95, 0.1, 0.3]), guided=False).sample(script.policy, GROUPS, 0)
    assert script.completed == []
    assert [names for names, _ in script.answered] == [["a", "b"], ["a"]]
    assert [provenance(g)["iteration"] for g in made] == [2, 1]


def test_swapped_words_are_put_before_the_model(script) -> None:
    (made,) = sampler(Given([0.0]), swap=1.0).sample(script.policy, GROUPS[1:], 0)
    text, (part,) = made.responses[1].text, provenance(made)["sentences"]
    assert text.startswith("No,")
    assert part["swapped"]
    (((_, attempt),), _) = script.completed[0]
    fork = attempt.forks[0]
    ids = [*attempt.reference[: fork.start], *fork.forced]
    assert script.processor.tokenizer.decode(ids).strip() == text[slice(*part["head"])]
    assert statistics([made])["swapped"] == 1


def test_every_draw_has_a_stream_of_its_own(script) -> None:
    sampler(Given([0.95] * 3), iterations=3, temperature=1.0, top_p=0.5, positions="collapse").sample(
        script.policy, GROUPS[:1], 9
    )
    draws = [fork.draw for attempts, _ in script.completed for _, a in attempts for fork in a.forks]
    draws += [options["draw"] for _, options in script.answered]
    assert len(set(draws)) == len(draws) == 5
    told = {
        "temperature": 1.0,
        "top_p": 0.5,
        "positions": "collapse",
        "seed": 9,
        "max_new_tokens": 128,
        "batch_size": 32,
    }
    for _, options in [*script.completed, *script.answered]:
        assert told.items() <= options.items()
    assert script.completed[0][1]["stops"] == full_stops(script.policy)


def test_noise_is_new_in_every_iteration(script) -> None:
    made = sampler(Given([0.95, 0.5, 0.2]), corruption=ImageNoise(300)).sample(script.policy, GROUPS, 0)
    both, again = script.prepared
    images = [example.image for example in (*both, *again)]
    assert all(isinstance(image, NoisedImage) and image.steps == 300 for image in images)
    assert len({image.seed for image in images}) == 3
    assert [example.id for example in again] == ["a"]
    assert again[0].image.seed == provenance(made[0])["mask_seed"]
    assert all(a.visible is None for attempts, _ in script.completed for _, a in attempts)
    assert made[0].example.image == GROUPS[0].example.image  # the pair shows the clean image
    assert provenance(made[0])["visible"] == TOKENS


@pytest.mark.parametrize(("rho_th", "low", "high"), [(0.0, 1000, 1000), (1.0, 0, 0), (0.9, 60, 140)])
def test_masks_leave_the_share_they_should(rho_th, low, high) -> None:
    seen = mask(1000, rho_th, 5)
    assert low <= int(seen.sum()) <= high
    np.testing.assert_array_equal(seen, mask(1000, rho_th, 5))


def test_wrong_options_are_refused(script) -> None:
    for options in ({"iterations": 0}, {"positions": "shift"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            sampler(Given([]), **options)
    with pytest.raises(ValueError, match="rho_th"):
        AttentionMask(1.5)
    with pytest.raises(ValueError, match="0 to 1000"):
        ImageNoise(1001)


def test_the_example_s_own_answer_is_a_reference_and_none_is_refused(script) -> None:
    example = Example("own", ArrayImage("own"), "What is it?", reference=SECOND)
    (made,) = sampler(Given([0.0])).sample(script.policy, [Group(example, ())], 0)
    assert made.responses[0].text == SECOND
    with pytest.raises(ValueError, match=r"example bare: .*neither a preference nor a reference"):
        sampler(Given([])).sample(script.policy, [Group(Example("bare", ArrayImage("x"), "?"), ())], 0)


def test_figure_10_by_hand() -> None:
    def made(iteration: int, similarity: float) -> Group:
        about = {
            "iteration": iteration,
            "iterations": 3,
            "eps_s": 0.9,
            "similarity": similarity,
            "guided": iteration < 3,
        }
        response = Response("x", provenance={**about, "sentences": []})
        return Group(GROUPS[0].example, (Response("y"), response), (Preference(0, 1),))

    found = statistics([made(1, 0.1), made(1, 0.5), made(2, 0.3), made(3, 0.99)])
    assert found["below eps_s"] == {"1": 0.5, "2": 0.75, "3": 0.75}
    assert (found["answers"], found["unguided"], found["mean similarity"]) == (4, 1, 0.4725)
    assert statistics(GROUPS) == {}
    assert statistics([]) == {}


# --- real models -------------------------------------------------------------------------------------------

CORRUPTIONS = [AttentionMask(0.5), ImageNoise(500)]


def words(a, b) -> list[float]:
    """The share of equal words: enough of a similarity for models that were never trained."""
    return [
        len({*x.split()} & {*y.split()}) / max(1, len({*x.split()} | {*y.split()}))
        for x, y in zip(a, b, strict=True)
    ]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("guided", [True, False])
def test_batches_change_nothing(tiny_policy, corruption, guided) -> None:
    groups = make_groups(3)
    options = {"corruption": corruption, "guided": guided, "eps_s": 0.3, "iterations": 3, "max_new_tokens": 6,
               "temperature": 1.0}  # fmt: skip
    together = sampler(words, **options).sample(tiny_policy, groups, 1)
    alone = [sampler(words, **options, batch_size=1).sample(tiny_policy, [g], 1)[0] for g in groups]
    other = sampler(words, **options).sample(tiny_policy, groups, 2)
    assert together == alone
    assert [g.responses[1].text for g in together] != [g.responses[1].text for g in other]
    assert [g.responses[0].text for g in together] == [g.responses[0].text for g in groups]


def test_with_the_whole_image_an_unguided_answer_is_the_policy_s_own(tiny_policy) -> None:
    groups = make_groups(3)
    options = {"guided": False, "iterations": 1, "max_new_tokens": 8}
    drawn = sampler(words, corruption=AttentionMask(0.0), **options).sample(tiny_policy, groups, 0)
    own = PolicySampler(k=1, temperature=0.0, max_new_tokens=8).sample(tiny_policy, groups, 0)
    assert [g.responses[1].text for g in drawn] == [g.responses[0].text for g in own]


def test_a_completion_ends_with_the_chat_template_s_end_token(tmp_path) -> None:
    """In this family it is not the tokenizer's; what a model writes behind it is no part of the answer."""
    policy = load_policy(make_tiny("idefics3", tmp_path))
    end, more = end_token(policy.processor), spell(["cup"], policy.processor)[0].ids[0]
    assert end != policy.processor.tokenizer.eos_token_id
    calls: list[int] = []

    def end_first(module, args, logits):
        calls.append(1)
        logits[..., end if len(calls) == 1 else more] = 1e4

    policy.model.get_output_embeddings().register_forward_hook(end_first)
    sampler(words, iterations=1, max_new_tokens=5).sample(policy, make_groups(1), 0)
    assert len(calls) == 1


def test_on_scenes_a_blinded_model_makes_things_up() -> None:
    from mllm_align.datasets.scenes import examples, scene_of
    from mllm_align.scenes.oracle import check
    from mllm_align.similarity.scenes import SceneClaims

    policy = load_policy("asset://scenes/base")
    groups = [Group(example, ()) for example in examples("validation", 6, tasks=["describe"])]
    blind = BDHS(AttentionMask(0.9), SceneClaims(), 0.97, max_new_tokens=96)
    made = blind.sample(policy, groups, 0)
    false = [
        [truth for _, truth in check(g.responses[1].text, scene_of(g.example), g.example.prompt)].count(False)
        for g in made
    ]
    assert sum(count > 0 for count in false) >= 5
    assert all(provenance(g)["similarity"] < 0.97 for g in made)
    assert statistics(made)["below eps_s"]["1"] > 0.5

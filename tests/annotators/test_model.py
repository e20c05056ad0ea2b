"""The model annotator: both orders asked, position bias told apart from preference."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from annotating import annotated
from mllm_align.annotators import model as annotators
from mllm_align.annotators.agreement import agreement
from mllm_align.annotators.model import ModelAnnotator, other, own
from mllm_align.annotators.pairs import all_pairs, best_worst
from mllm_align.models.load import add_lora, load_policy
from mllm_align.records import Group, Preference, Response
from tiny import make_examples

# A policy that is not asked: its answers are made up.
ANY = SimpleNamespace(processor=SimpleNamespace(image_token="<image>"))
TEMPLATE = "Which is better? {question} A: {a} B: {b}"


def group(*texts: str, preferences: tuple[Preference, ...] = ()) -> Group:
    return Group(make_examples(1)[0], tuple(Response(t) for t in texts), preferences)


def biased(monkeypatch, quality: dict[str, float], lean: float) -> list[str]:
    """A judge whose log-odds for A are quality(a) - quality(b) + lean; what it was asked is collected."""
    asked: list[str] = []

    def first_token_logprobs(policy, examples, answers, *, batch_size):
        assert tuple(answers) == ("A", "B")
        asked.extend(e.prompt for e in examples)
        odds = []
        for e in examples:
            a, b = e.prompt.split(" A: ")[1].split(" B: ")
            odds.append(quality[a] - quality[b] + lean)
        odds = torch.tensor(odds)
        return torch.stack(
            [torch.nn.functional.logsigmoid(odds), torch.nn.functional.logsigmoid(-odds)], dim=1
        )

    monkeypatch.setattr(annotators, "first_token_logprobs", first_token_logprobs)
    return asked


def test_two_responses_are_asked_in_both_orders(monkeypatch) -> None:
    asked = biased(monkeypatch, {"cat": 1.0, "dog": 0.0}, lean=0.0)
    example = group("cat", "dog").example
    ModelAnnotator(ANY, TEMPLATE).judge([group("cat", "dog")])
    assert asked == [
        f"Which is better? {example.prompt} A: cat B: dog",
        f"Which is better? {example.prompt} A: dog B: cat",
    ]


def test_the_gap_of_two_scores_is_the_mean_log_odds_and_the_lean_cancels(monkeypatch) -> None:
    biased(monkeypatch, {"cat": 1.0, "dog": 0.0}, lean=5.0)
    (judgement,) = ModelAnnotator(ANY, TEMPLATE).judge([group("cat", "dog")])
    (comparison,) = judgement.comparisons
    # A: cat gives 1 + 5, A: dog gives -1 + 5: preference (6 - 4) / 2, lean (6 + 4) / 2, and A won twice.
    assert (comparison.forward, comparison.backward) == pytest.approx((6.0, 4.0), abs=1e-4)
    assert comparison.preference == pytest.approx(1.0, abs=1e-4)
    assert comparison.lean == pytest.approx(5.0, abs=1e-4)
    assert comparison.conflicting
    assert judgement.scores == pytest.approx((0.5, -0.5), abs=1e-4)


def test_several_scores_are_the_qualities_less_their_mean(monkeypatch) -> None:
    biased(monkeypatch, {"a cat": 1.0, "a dog": 3.0, "a cup": 2.0}, lean=0.5)
    (judgement,) = ModelAnnotator(ANY, TEMPLATE).judge([group("a cat", "a dog", "a cup")])
    assert judgement.scores == pytest.approx((-1.0, 1.0, 0.0), abs=1e-5)
    assert [c.conflicting for c in judgement.comparisons] == [False, False, False]


def test_scores_and_preferences_are_filled_scores_and_preferences_by_the_rule_it_is_given(
    monkeypatch,
) -> None:
    biased(monkeypatch, {"a cat": 1.0, "a dog": 3.0, "a cup": 2.0}, lean=0.0)
    asked = group("a cat", "a dog", "a cup")
    (best,) = annotated(ModelAnnotator(ANY, TEMPLATE, best_worst), [asked])
    (every,) = annotated(ModelAnnotator(ANY, TEMPLATE, partial(all_pairs, threshold=1.5)), [asked])
    assert best.preferences == every.preferences == (Preference(1, 0),)
    assert [r.score for r in best.responses] == pytest.approx([-1.0, 1.0, 0.0], abs=1e-5)
    assert [r.text for r in best.responses] == ["a cat", "a dog", "a cup"]


def test_an_answer_that_spells_the_image_token_is_asked_about_without_it(tiny_policy) -> None:
    token = tiny_policy.processor.image_token
    spelt, plain = (
        ModelAnnotator(tiny_policy, TEMPLATE).judge([group(text, "no")])
        for text in (f"a {token}cat", "a cat")
    )
    assert spelt == plain


def test_equal_texts_tie_without_a_question(monkeypatch) -> None:
    asked = biased(monkeypatch, {"cat": 1.0, "dog": 0.0}, lean=2.0)
    same, different = annotated(ModelAnnotator(ANY, TEMPLATE), [group("cat", "cat"), group("dog", "cat")])
    assert (same.preferences, different.preferences) == ((), (Preference(1, 0),))
    assert [r.score for r in same.responses] == [0.0, 0.0]
    assert len(asked) == 2


def test_braces_in_an_answer_are_only_text(monkeypatch) -> None:
    asked = biased(monkeypatch, {"{a}": 1.0, "{question}": 0.0}, lean=0.0)
    ModelAnnotator(ANY, TEMPLATE).judge([group("{a}", "{question}")])
    assert asked[0].endswith("A: {a} B: {question}")


def test_agreement_counts_accuracy_ties_and_position_bias(monkeypatch) -> None:
    biased(monkeypatch, {"cat": 1.0, "dog": 0.0, "cup": 0.5}, lean=0.75)
    groups = [
        group("cat", "dog", preferences=(Preference(0, 1),)),  # right; log-odds 1.75 and -0.25: no conflict
        group("cat", "cup", preferences=(Preference(1, 0),)),  # wrong; 1.25 and 0.25: conflict
        group("dog", "dog", preferences=(Preference(1, 0),)),  # tie, not asked
        group("cup", "dog", preferences=(Preference(0, 1),)),  # right; 1.25 and 0.25: conflict
    ]
    found = agreement(ModelAnnotator(ANY, TEMPLATE), groups)
    assert (found.pairs, found.ties, found.comparisons) == (4, 1, 3)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.conflicting == pytest.approx(2 / 3)
    assert found.lean == pytest.approx(0.75, abs=1e-5)


def test_self_judges_as_before_training_and_large_by_its_own_weights(tiny_folders) -> None:
    policy = add_lora(load_policy(tiny_folders["llava_next"]), r=4, alpha=8)
    asked = [group("There is a red cup.", "no", "a dog on the left")]
    before = own(policy, template=TEMPLATE).judge(asked)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    assert own(policy, template=TEMPLATE).judge(asked) == before
    assert other(policy, path=str(tiny_folders["llava_next"]), template=TEMPLATE).judge(asked) == before
    changed = ModelAnnotator(policy, TEMPLATE).judge(asked)
    assert changed[0].scores != pytest.approx(before[0].scores, abs=1e-3)
    assert other(policy, path=str(tiny_folders["llava"]), template=TEMPLATE).judge(asked) != before


def test_exchanging_the_responses_exchanges_the_scores(tiny_policy) -> None:
    one, two = "There is a red cup.", "no"
    (there,), (back,) = (
        own(tiny_policy, template=TEMPLATE).judge([group(*t)]) for t in ((one, two), (two, one))
    )
    assert there.scores == pytest.approx(back.scores[::-1], abs=1e-5)
    assert there.scores[0] == -there.scores[1] != 0

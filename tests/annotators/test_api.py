"""The API annotator against a server that the test starts: what is sent, paid, kept, refused and never told."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from api_server import Endpoint, serving
from PIL import Image

from annotating import annotated
from mllm_align.annotators.agreement import agreement
from mllm_align.annotators.api import ApiAnnotator, Verdict, api, log_odds, verdict
from mllm_align.api.client import ApiError, Client, Question, Reply, Terms, Token
from mllm_align.api.spending import Budget, SpendingCapReached
from mllm_align.record import RunRecord
from mllm_align.records import Example, Group, Preference, Response

pytest.importorskip("openai", reason="pip install 'mllm-align[api]'")

SECRET = "sk-test-0123456789abcdef"
TEMPLATE = "{question} A: {a} B: {b}"
SETTINGS = {"temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 20}
QUALITY = {"cat": 1.0, "dog": 0.0, "cup": 0.5, "fog": -2.0}


@pytest.fixture(autouse=True)
def environment(monkeypatch) -> None:
    monkeypatch.setenv("TEST_API_KEY", SECRET)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Noise:
    """An image of noise."""

    def __init__(self, key: str, side: int = 12) -> None:
        self.key, self.side = key, side

    def load(self) -> Image.Image:
        seed = np.frombuffer(self.key.encode(), dtype=np.uint8).tolist()
        pixels = np.random.default_rng(seed).integers(0, 256, (self.side, self.side + 1, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def group(*texts: str, image: str = "one", preferences: tuple[Preference, ...] = ()) -> Group:
    example = Example(f"example {image}", Noise(image), "What is it?")
    return Group(example, tuple(Response(text) for text in texts), preferences)


def sides(text: str) -> tuple[float, float]:
    a, b = text.split(" A: ")[1].split(" B: ")
    return QUALITY[a], QUALITY[b]


def by_quality(text: str) -> str:
    a, b = sides(text)
    return "A" if a > b else "B"


def odds_with(lean: float) -> Callable[[str], float]:
    return lambda text: sides(text)[0] - sides(text)[1] + lean


def annotator(endpoint: Endpoint, folder: Path, budget: Budget | None = None, **changes: Any) -> ApiAnnotator:
    terms = {"api_key_env": "TEST_API_KEY", "timeout": 10.0, "retries": 3, "concurrency": 2}
    terms |= {name: changes.pop(name) for name in list(changes) if name in terms}
    given = {"base_url": endpoint.url, "model": "judge", "template": TEMPLATE, "settings": SETTINGS} | changes
    return api(None, terms=Terms(str(folder), budget=budget or Budget(), **terms), **given)


# --- judging -----------------------------------------------------------------------------------------------


def test_both_orders_are_asked_with_the_image_attached(tmp_path) -> None:
    with serving(by_quality) as endpoint:
        annotator(endpoint, tmp_path).judge([group("cat", "dog")])
    assert sorted(endpoint.texts) == ["What is it? A: cat B: dog", "What is it? A: dog B: cat"]
    for image in endpoint.images:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), np.asarray(Noise("one").load()))
    assert {name: endpoint.bodies[0][name] for name in SETTINGS} == SETTINGS
    assert endpoint.bodies[0]["model"] == "judge"
    assert endpoint.keys == [f"Bearer {SECRET}"] * 2


def test_jpeg_is_sent_as_jpeg(tmp_path) -> None:
    with serving(by_quality) as endpoint:
        annotator(endpoint, tmp_path, image_format="jpeg").judge([group("cat", "dog")])
    assert [image.format for image in endpoint.images] == ["JPEG", "JPEG"]
    assert endpoint.images[0].size == (13, 12)


def test_log_odds_in_nats_and_the_lean_cancels(tmp_path) -> None:
    with serving(lambda text: "A", log_odds=odds_with(lean=5.0)) as endpoint:
        judge = annotator(endpoint, tmp_path)
        (judgement,) = judge.judge([group("cat", "dog")])
    (comparison,) = judgement.comparisons
    # A: cat gives 1 + 5, A: dog gives -1 + 5: preference (6 - 4) / 2, lean (6 + 4) / 2, and A won twice.
    assert (comparison.forward, comparison.backward) == pytest.approx((6.0, 4.0))
    assert (comparison.preference, comparison.lean, comparison.conflicting) == pytest.approx((1.0, 5.0, True))
    assert judgement.scores == pytest.approx((0.5, -0.5))
    assert judge.report()["comparisons in log-odds"] == 1


def test_without_log_probabilities_an_answer_is_a_vote(tmp_path) -> None:
    with serving(by_quality) as endpoint:
        judge = annotator(endpoint, tmp_path)
        (judgement,) = judge.judge([group("cat", "dog", "cup")])
    assert [(c.forward, c.backward) for c in judgement.comparisons] == [(1, -1), (1, -1), (-1, 1)]
    # cat beats both: (1 + 1) / 3; dog loses to both; cup has one of each.
    assert judgement.scores == pytest.approx((2 / 3, -2 / 3, 0.0))
    assert judge.report()["comparisons in votes"] == 3


def test_a_judge_that_always_says_a_decides_nothing_and_its_bias_is_measured(tmp_path) -> None:
    with serving(lambda text: "A") as endpoint:
        found = agreement(
            annotator(endpoint, tmp_path),
            [group("cat", "dog", preferences=(Preference(0, 1),)), group("cup", "dog", image="two")],
        )
    assert (found.comparisons, found.conflicting, found.lean, found.ties) == (2, 1.0, 1.0, 1)


def test_accuracy_and_position_bias_of_a_judge_that_leans(tmp_path) -> None:
    groups = [
        group("cat", "dog", preferences=(Preference(0, 1),)),  # right; log-odds 1.75 and -0.25: no conflict
        group("cat", "cup", preferences=(Preference(1, 0),)),  # wrong; 1.25 and 0.25: conflict
        group("dog", "dog", preferences=(Preference(1, 0),)),  # tie, not asked
    ]
    with serving(lambda text: "A", log_odds=odds_with(lean=0.75)) as endpoint:
        found = agreement(annotator(endpoint, tmp_path), groups)
    assert (found.pairs, found.ties, found.comparisons) == (3, 1, 2)
    assert (found.accuracy, found.conflicting, found.lean) == pytest.approx((0.5, 0.5, 0.75))
    assert len(endpoint.bodies) == 4


def test_annotate_fills_scores_and_preferences(tmp_path) -> None:
    with serving(by_quality) as endpoint:
        same, different = annotated(annotator(endpoint, tmp_path), [group("cat", "cat"), group("dog", "cat")])
    assert (same.preferences, different.preferences) == ((), (Preference(1, 0),))
    assert [r.score for r in different.responses] == [-0.5, 0.5]


def test_an_answer_that_is_neither_a_nor_b_is_undecided_and_counted(tmp_path, caplog) -> None:
    def rule(text: str) -> str:
        # One order answered with nonsense, the other with A.
        return "Both are fine." if text.endswith("B: dog") else "A"

    with serving(rule) as endpoint, caplog.at_level(logging.WARNING):
        judge = annotator(endpoint, tmp_path)
        undecided, _ = annotated(judge, [group("cat", "dog"), group("cup", "cat", image="two")])
    assert undecided.preferences == ()
    assert [r.score for r in undecided.responses] == [0.0, 0.0]
    report = judge.report()
    assert (report["comparisons undecided"], report["answers undecided"]) == (1, 1)
    assert report["comparisons in votes"] == 1
    assert "1 of 4 answers name neither A nor B" in caplog.text
    assert "Both are fine." in caplog.text


def test_one_group_is_judged_in_one_unit() -> None:
    votes_only, both = Reply("A"), Reply("A", (Token("A", -0.1, (("A", -0.1), ("B", -2.1))),))

    class Mixed:
        model = "mixed"

        def ask(self, questions):
            return [votes_only if "dog" in q.text else both for q in questions]

    (mixed, pure) = ApiAnnotator(Mixed(), TEMPLATE).judge([group("cat", "cup", "dog"), group("cat", "cup")])
    assert {c.forward for c in mixed.comparisons} == {1.0}
    assert pure.comparisons[0].forward == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("A", 1), ("B.", -1), (" (B)\n", -1), ("**A**", 1), ("Answer: B", -1), ("The better answer is A.", 1),
        ("Response B is better", -1), ("A\nIt names the cup.", 1), ("b", -1),
        ("", 0), ("A cat sits there.", 0), ("A or B", 0), ("AB", 0), ("Neither.", 0), ("C", 0), ("Bananas", 0),
        ("Answer A is worse", 0), ("I think\nA", 0),
    ],
)  # fmt: skip
def test_what_an_answer_says(text, vote) -> None:
    assert verdict(Reply(text)) == Verdict(vote)


def test_log_odds_by_hand() -> None:
    # p(A) = 0.5 + 0.1 in two spellings, p(B) = 0.2
    listed = (("A", math.log(0.5)), (" A", math.log(0.1)), ("B", math.log(0.2)), ("The", math.log(0.1)))
    assert log_odds(Token("A", math.log(0.5), listed)) == pytest.approx(math.log(3))
    # B is not listed: it has at most the 0.1 of the least that is
    assert log_odds(Token("A", math.log(0.5), (listed[0], listed[3]))) == pytest.approx(math.log(5))
    # nothing but the letter itself is listed: no odds, a vote
    assert log_odds(Token("A", math.log(0.5), listed[:1])) is None
    assert log_odds(Token("A", math.log(0.5))) is None
    # endpoints write a probability of 0 as -9999
    assert log_odds(Token("B", 0.0, (("B", 0.0), ("A", -9999.0)))) == -20.0


def test_the_letter_is_found_behind_words() -> None:
    tokens = (
        Token("Answer", -0.1, (("Answer", -0.1), ("A", -3.0))),
        Token(":", 0.0),
        Token(" B", -0.5, ((" B", -0.5), (" A", -1.5))),
    )
    assert verdict(Reply("Answer: B", tokens)) == Verdict(-1, pytest.approx(-1.0))


def test_the_odds_are_those_of_the_letter_that_was_read() -> None:
    """Another token may be the letter too: a piece of a word, or one of a line that is not looked at."""
    pieces = (
        Token("A", 0.0, (("A", 0.0), ("B", -4.0))),
        Token("nswer", 0.0),
        Token(":", 0.0),
        Token(" B", -0.5, ((" B", -0.5), (" A", -1.5))),
    )
    assert verdict(Reply("Answer: B", pieces)) == Verdict(-1, pytest.approx(-1.0))
    lower = Token("b", -0.1, (("b", -0.1), ("a", -3.0)))
    later = (lower, Token("\n", 0.0), Token("A", 0.0, (("A", 0.0), ("B", -6.0))), Token(" is wrong.", 0.0))
    assert verdict(Reply("b\nA is wrong.", later)) == Verdict(-1)
    marked = (Token("▁", 0.0), Token("A", -0.5, (("A", -0.5), ("B", -1.5))), Token("</s>", 0.0))
    assert verdict(Reply("A", marked)) == Verdict(1, pytest.approx(1.0))
    assert verdict(Reply("B", (Token("A", 0.0, (("A", 0.0), ("B", -4.0))),))) == Verdict(-1)


# --- the cache ---------------------------------------------------------------------------------------------


def test_a_second_annotator_asks_nothing_and_pays_nothing(tmp_path) -> None:
    with serving(lambda text: "A", log_odds=odds_with(lean=0.5)) as endpoint:
        first = annotator(endpoint, tmp_path)
        judged = first.judge([group("cat", "dog")])
        second = annotator(endpoint, tmp_path)
        assert second.judge([group("cat", "dog")]) == judged
    assert len(endpoint.bodies) == 2
    assert (first.report()["requests"], first.report()["cached"]) == (2, 0)
    assert (second.report()["requests"], second.report()["cached"]) == (0, 2)
    assert (first.report()["prompt tokens"], second.report()["prompt tokens"]) == (180, 0)


@pytest.mark.parametrize(
    "change", ["image", "text", "model", "settings", "template", "image_format", "endpoint"]
)
def test_what_decides_an_answer_is_in_the_key(tmp_path, change) -> None:
    changes = {
        "model": {"model": "other"},
        "settings": {"settings": {**SETTINGS, "temperature": 1}},
        "template": {"template": "Well? " + TEMPLATE},
        "image_format": {"image_format": "jpeg"},
    }
    asked = group("cat", "dog", image="two" if change == "image" else "one")
    asked = group("cat", "cup") if change == "text" else asked
    with serving(by_quality) as endpoint, serving(by_quality) as other:
        annotator(endpoint, tmp_path).judge([group("cat", "dog")])
        there = other if change == "endpoint" else endpoint
        again = annotator(there, tmp_path, **changes.get(change, {}))
        again.judge([asked])
    assert again.report()["requests"] == 2


def test_how_it_is_asked_is_not_in_the_key(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    with serving(by_quality) as endpoint:
        annotator(endpoint, tmp_path).judge([group("cat", "dog")])
        again = annotator(
            endpoint, tmp_path, Budget(max_total_tokens=0), api_key_env="OTHER_KEY", timeout=3.0
        )
        again.judge([group("cat", "dog")])
    assert again.report()["requests"] == 0


def test_the_same_question_twice_in_a_batch_is_paid_once(tmp_path) -> None:
    with serving(by_quality, delay=0.05) as endpoint:
        judge = annotator(endpoint, tmp_path, concurrency=4)
        one, two = judge.judge([group("cat", "dog"), group("cat", "dog")])
    assert one == two
    assert len(endpoint.bodies) == 2


def test_a_damaged_entry_is_asked_again_and_mended(tmp_path, caplog) -> None:
    with serving(by_quality) as endpoint:
        judged = annotator(endpoint, tmp_path).judge([group("cat", "dog")])
        for file in entries(tmp_path):
            file.write_text(file.read_text()[:20])
        assert annotator(endpoint, tmp_path).judge([group("cat", "dog")]) == judged
        assert annotator(endpoint, tmp_path).judge([group("cat", "dog")]) == judged
    assert len(endpoint.bodies) == 4
    assert "is damaged" in caplog.text


def entries(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*.json") if len(file.stem) == 64]


def judge_in_process(url: str, folder: Path, out: Any) -> None:
    judge = annotator(Endpoint(by_quality, url=url), folder)
    judge.judge([group("cat", "dog", image=str(i)) for i in range(8)])
    out.put(judge.report()["requests"])


def test_processes_that_ask_the_same_at_once_pay_once(tmp_path) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    with serving(by_quality, delay=0.02) as endpoint:
        workers = [
            context.Process(target=judge_in_process, args=(endpoint.url, tmp_path, told)) for _ in range(2)
        ]
        for worker in workers:
            worker.start()
        requests = [told.get(timeout=120) for _ in workers]
        for worker in workers:
            worker.join()
    assert sum(requests) == len(endpoint.bodies) == len(entries(tmp_path)) == 16
    assert not list(tmp_path.rglob("*.tmp"))
    lines = (tmp_path / "spent.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["prompt_tokens"] for line in lines) == 16 * 90


# --- money -------------------------------------------------------------------------------------------------

# 90 prompt tokens at 10 a million and 10 answer tokens at 30 a million: 0.0012 an answer
PRICES = {"price_prompt": 10.0, "price_answer": 30.0}


def test_what_it_costs(tmp_path) -> None:
    with serving(by_quality) as endpoint:
        judge = annotator(endpoint, tmp_path, Budget(max_spend=1.0, **PRICES))
        judge.judge([group("cat", "dog")])
        other = annotator(endpoint, tmp_path, Budget(max_spend=1.0, **PRICES))
        other.judge([group("cat", "cup")])
    report = other.report()
    assert (report["prompt tokens"], report["answer tokens"]) == (180, 20)
    assert report["money"] == pytest.approx(0.0024)
    assert (report["tokens in all"], report["money in all"]) == (400, pytest.approx(0.0048))


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(max_spend=0.005, **PRICES), "0.0048 of max_spend=0.005"),
        (Budget(max_total_tokens=450), "400 of max_total_tokens=450 tokens"),
    ],
)
def test_the_cap_stops_before_it_is_passed_says_so_and_can_be_raised(tmp_path, budget, said) -> None:
    groups = [group("cat", "dog", image=str(i)) for i in range(4)]  # 8 questions, of which 4 are covered
    with serving(by_quality) as endpoint:
        judge = annotator(endpoint, tmp_path, budget, concurrency=1)
        with pytest.raises(SpendingCapReached, match=said) as stopped:
            judge.judge(groups)
        assert len(endpoint.bodies) == 4
        assert "raise the cap" in str(stopped.value)
        assert str(tmp_path) in str(stopped.value)
        # The same cap in another process or run: nothing more is asked.
        with pytest.raises(SpendingCapReached):
            annotator(endpoint, tmp_path, budget, concurrency=1).judge(groups)
        assert len(endpoint.bodies) == 4
        annotator(endpoint, tmp_path, replace(budget, max_spend=None, max_total_tokens=800)).judge(groups)
    assert len(endpoint.bodies) == 8


def test_several_at_once_do_not_pass_the_cap(tmp_path) -> None:
    with serving(by_quality, delay=0.02) as endpoint:
        annotator(endpoint, tmp_path).judge(
            [group("cat", "dog", image="first")]
        )  # 200 tokens, and the cost is known
        judge = annotator(endpoint, tmp_path, Budget(max_total_tokens=750), concurrency=8)
        with pytest.raises(SpendingCapReached):
            judge.judge([group("cat", "dog", image=str(i)) for i in range(20)])
        assert judge.report()["tokens in all"] <= 700


def test_a_cap_on_money_needs_prices() -> None:
    with pytest.raises(ValueError, match="price_prompt and price_answer"):
        Budget(max_spend=1.0)
    with pytest.raises(ValueError, match="belong together"):
        Budget(price_prompt=1.0)


def test_an_endpoint_that_does_not_count_cannot_be_capped(tmp_path) -> None:
    with serving(by_quality, usage=False) as endpoint:
        with pytest.raises(ApiError, match="no cap can be kept"):
            annotator(endpoint, tmp_path / "capped", Budget(max_total_tokens=1000)).judge(
                [group("cat", "dog")]
            )
        free = annotator(endpoint, tmp_path / "free")
        free.judge([group("cat", "dog")])
    assert free.report()["money"] is None


# --- failures ----------------------------------------------------------------------------------------------


def test_busy_and_broken_servers_are_tried_again(tmp_path) -> None:
    failures = [
        (429, {"error": {"message": "slow down"}}),
        (500, {"error": {"message": "oops"}}),
        (503, "busy"),
    ]
    with serving(by_quality, failures=failures) as endpoint:
        (judgement,) = annotator(endpoint, tmp_path, concurrency=1).judge([group("cat", "dog")])
    assert judgement.scores == (0.5, -0.5)
    assert len(endpoint.bodies) == 5


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(400, "settings"), (401, "TEST_API_KEY"), (403, "TEST_API_KEY"), (404, "base_url"), (413, "jpeg"),
     (422, "settings"), (429, "concurrency"), (500, "later")],
)  # fmt: skip
def test_a_refusal_names_endpoint_example_and_remedy(tmp_path, status, remedy) -> None:
    body = {"error": {"message": f"no, {SECRET} and sk-te**cdef", "code": "x"}}
    with serving(by_quality, failures=[(status, body)] * 9) as endpoint:
        with pytest.raises(ApiError, match=remedy) as refused:
            annotator(endpoint, tmp_path, concurrency=1, retries=1).judge([group("cat", "dog")])
        assert endpoint.url in str(refused.value)
    assert "judge" in str(refused.value)
    assert "example one" in str(refused.value)
    assert f"HTTP {status}" in str(refused.value)
    assert len(endpoint.bodies) == (2 if status in (429, 500) else 1)
    assert not entries(tmp_path)
    told = "".join(traceback.format_exception(refused.value))
    assert SECRET not in told
    assert status != 401 or "sk-te**" not in told  # servers quote a part of the key that they refuse
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None


def test_a_refused_image_does_not_end_the_run(tmp_path) -> None:
    failures = [(400, {"error": {"message": "unsafe", "code": "content_filter"}})]
    with serving(by_quality, failures=failures) as endpoint:
        judge = annotator(endpoint, tmp_path, concurrency=1)
        one, two = judge.judge([group("cat", "dog"), group("cat", "cup", image="two")])
        again = annotator(endpoint, tmp_path)
        assert again.judge([group("cat", "dog")]) == [one]
    assert (one.scores, two.scores) == ((0.0, 0.0), (0.5, -0.5))
    assert (judge.report()["refused"], judge.report()["comparisons undecided"]) == (1, 1)
    assert again.report()["requests"] == 0


@pytest.mark.parametrize("garbage", ["<html>hello</html>", {"error": {"message": "later"}}, {"choices": []}])
def test_an_answer_that_is_no_completion_is_named_and_not_kept(tmp_path, garbage) -> None:
    with serving(by_quality, failures=[(200, garbage)]) as endpoint:
        judge = annotator(endpoint, tmp_path, concurrency=1)
        with pytest.raises(ApiError, match=r"not a chat completion.*base_url"):
            judge.judge([group("cat", "dog")])
    assert not entries(tmp_path)


def test_a_slow_server_runs_into_the_time_limit(tmp_path) -> None:
    with serving(by_quality, delay=1.0) as endpoint, pytest.raises(ApiError, match=r"no answer in 0\.1 s"):
        annotator(endpoint, tmp_path, timeout=0.1, retries=0).judge([group("cat", "dog")])


def test_nobody_there(tmp_path) -> None:
    with serving(by_quality) as endpoint:
        gone = endpoint
    with pytest.raises(ApiError, match=r"cannot be reached.*network"):
        annotator(gone, tmp_path, retries=0).judge([group("cat", "dog")])


def test_a_few_are_asked_at_once_and_no_more(tmp_path) -> None:
    with serving(by_quality, delay=0.03) as endpoint:
        annotator(endpoint, tmp_path, concurrency=3).judge(
            [group("cat", "dog", image=str(i)) for i in range(12)]
        )
    assert endpoint.together == 3


def test_what_was_answered_before_a_failure_is_kept_and_nothing_is_asked_after_it(tmp_path) -> None:
    with serving(by_quality) as endpoint:
        judge = annotator(endpoint, tmp_path, concurrency=1)
        judge.judge([group("cat", "dog")])
        endpoint.failures = [(401, {"error": {"message": "no"}})] * 9
        with pytest.raises(ApiError):
            judge.judge([group("cat", "dog"), group("cat", "cup"), group("cup", "dog")])
    assert len(entries(tmp_path)) == 2
    assert len(endpoint.bodies) == 3


# --- the key -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_is_said_before_anything_is_asked(tmp_path, monkeypatch, value) -> None:
    monkeypatch.delenv("TEST_API_KEY")
    if value is not None:
        monkeypatch.setenv("TEST_API_KEY", value)
    endpoint = Endpoint(by_quality, url="https://someone:pass@judge.example/v1?code=hidden")
    with pytest.raises(ApiError, match="export TEST_API_KEY=") as missing:
        annotator(endpoint, tmp_path)
    assert "https://judge.example/v1" in str(missing.value)
    assert "pass" not in str(missing.value)
    assert "hidden" not in str(missing.value)


def test_a_key_given_instead_of_a_variable_is_refused_without_repeating_it(tmp_path) -> None:
    with pytest.raises(ApiError, match="NAME of an environment variable") as refused:
        annotator(Endpoint(by_quality, url="http://127.0.0.1/v1"), tmp_path, api_key_env=SECRET)
    assert SECRET not in str(refused.value)


def test_a_key_with_a_line_break_is_mended_and_one_with_odd_signs_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TEST_API_KEY", SECRET + "\n")
    with serving(by_quality) as endpoint:
        annotator(endpoint, tmp_path).judge([group("cat", "dog")])
    assert set(endpoint.keys) == {f"Bearer {SECRET}"}
    monkeypatch.setenv("TEST_API_KEY", f"{SECRET}\n{SECRET}")
    with pytest.raises(ApiError, match="TEST_API_KEY holds") as refused:
        annotator(endpoint, tmp_path)
    assert SECRET not in str(refused.value)


def test_without_a_key_no_other_key_is_sent(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(by_quality) as endpoint:
        annotator(endpoint, tmp_path, api_key_env=None).judge([group("cat", "dog")])
    assert not [key for key in endpoint.keys if SECRET in (key or "")]


def test_the_key_is_in_no_file_and_no_log(tmp_path, caplog) -> None:
    with caplog.at_level(logging.DEBUG), serving(by_quality, failures=[(500, "oops")]) as endpoint:
        judge = annotator(endpoint, tmp_path)
        judge.judge([group("cat", "dog")])
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(entries(tmp_path)) == 2
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert SECRET not in caplog.text
    assert SECRET not in repr(judge) + repr(judge.report())


def test_a_run_s_record_names_the_variable_and_never_a_key(tmp_path) -> None:
    conf = yaml.safe_load((Path(__file__).parents[2] / "conf" / "annotator" / "api.yaml").read_text())
    for given, kept in [("OPENAI_API_KEY", "OPENAI_API_KEY"), (SECRET, "[removed]")]:
        conf["build"]["terms"]["api_key_env"] = given
        override = f"annotator.build.terms.api_key_env={given}"
        with RunRecord.open(
            tmp_path,
            label="judged",
            seed=len(given),
            key="0" * 24,
            config={"annotator": conf},
            overrides=[override],
            axes={},
        ) as record:
            pass
        written = "".join(f.read_text() for f in record.folder.rglob("*") if f.is_file())
        assert f"api_key_env: '{kept}'" in written or f"api_key_env: {kept}" in written
        assert f"annotator.build.terms.api_key_env={kept}" in written
        assert SECRET not in written


# --- what may be built -------------------------------------------------------------------------------------


def test_a_question_without_an_image_is_text_alone(tmp_path) -> None:
    with serving(lambda text: text.upper()) as endpoint:
        client = Client(
            base_url=endpoint.url,
            model="m",
            settings={},
            terms=Terms(str(tmp_path), api_key_env="TEST_API_KEY"),
        )
        replies = client.ask([Question("yes"), Question("no")])
    assert replies == [Reply(text, model="m", finish="stop") for text in ("YES", "NO")]
    assert sorted(body["messages"][0]["content"] for body in endpoint.bodies) == ["no", "yes"]


def test_a_question_may_have_a_system_message_settings_and_draws_of_its_own(tmp_path) -> None:
    with serving(lambda text: text.upper()) as endpoint:
        client = Client(
            base_url=endpoint.url,
            model="m",
            settings={"temperature": 0, "max_tokens": 3},
            terms=Terms(str(tmp_path), api_key_env="TEST_API_KEY", concurrency=1),
        )
        asked = [
            Question("a", system="Be fair."),
            Question("b", role="system", settings={"temperature": 0.5}),
            Question("c"),
            Question("c", draw=1),
            Question("c", draw=1),
        ]
        replies = client.ask(asked)
    # The second draw of "c" is asked anew, the repetition of it is not.
    assert [reply.text for reply in replies] == ["A", "B", "C", "C", "C"]
    assert len(endpoint.bodies) == 4
    assert [m["role"] for m in endpoint.bodies[0]["messages"]] == ["system", "user"]
    assert [m["role"] for m in endpoint.bodies[1]["messages"]] == ["system"]
    assert [body["temperature"] for body in endpoint.bodies] == [0, 0.5, 0, 0]
    assert {body["max_tokens"] for body in endpoint.bodies} == {3}


def test_a_model_has_to_be_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="no model is named"):
        annotator(Endpoint(by_quality, url="http://127.0.0.1/v1"), tmp_path, model=None)


def test_terms_and_image_format_are_checked(tmp_path) -> None:
    with pytest.raises(ValueError, match="concurrency=0"):
        Terms("cache", None, concurrency=0)
    with pytest.raises(ValueError, match="choose png or jpeg"):
        annotator(Endpoint(by_quality, url="http://127.0.0.1/v1"), tmp_path, image_format="gif")


def test_the_missing_package_is_named_with_the_command(tmp_path, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ApiError, match=r"pip install 'mllm-align\[api\]'"):
        annotator(Endpoint(by_quality, url="http://127.0.0.1/v1"), tmp_path)


def test_the_configuration_builds_and_judges(tmp_path, monkeypatch) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    (tmp_path / "primary.yaml").write_text(
        "defaults: [annotator: api, _self_]\n"
        f"outputs: {tmp_path}/outputs\n"
        f"hydra: {{searchpath: ['file://{Path(__file__).parents[2] / 'conf'}']}}\n"
    )

    def rule(text: str) -> str:
        return "A" if "Answer A: cat" in text else "B"

    with serving(rule) as endpoint, initialize_config_dir(str(tmp_path), version_base=None):
        overrides = [f"annotator.build.base_url={endpoint.url}", "annotator.build.model=judge"]
        overrides += ["~annotator.build.settings.logprobs", "~annotator.build.settings.top_logprobs"]
        cfg = compose("primary", overrides=overrides)
        judge = instantiate(cfg.annotator.build)(None)
        (judged,) = annotated(judge, [group("dog", "cat")])
    assert judged.preferences == (Preference(1, 0),)
    assert "Question: What is it?" in endpoint.texts[0]
    assert "logprobs" not in endpoint.bodies[0]
    assert len(entries(tmp_path / "outputs" / "cache" / "api")) == 2

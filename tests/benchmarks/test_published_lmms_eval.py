"""The bridge to lmms-eval, against a stand-in of its interface: `simple_evaluate`, the model's class, its requests."""

import json
import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest
import stand_ins
from published_files import Evaluate

from mllm_align.benchmarks import base
from mllm_align.benchmarks.published import lmms_eval
from mllm_align.benchmarks.published.lmms_eval import LmmsEval, answer_requests


@dataclass
class Request:
    args: tuple


class Model:
    """As lmms-eval's base class."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


def figures(answers: list[str]) -> dict[str, Any]:
    return {
        "exact_match,none": sum(a == "yes" for a in answers) / len(answers),
        "exact_match_stderr,none": 0.1,
        "alias": "t",
    }


def simple_evaluate(
    model: Any, tasks: list[str], limit: int | None, batch_size: int, log_samples: bool
) -> dict[str, Any]:
    [task] = tasks
    docs = [{"image": stand_ins.picture(n), "q": f"Question {n}?"} for n in range(3)][:limit]
    model.task_dict[task] = {"test": docs}
    settings = {"max_new_tokens": 4, "until": ["\n\n"], "do_sample": False, "temperature": 0.7}
    requests = [
        Request((doc["q"], settings, lambda doc: [doc["image"]], n, task, "test"))
        for n, doc in enumerate(docs)
    ]
    said = model.generate_until(requests)
    samples = [
        {
            "doc_id": n,
            "target": "yes",
            "arguments": [(docs[n]["q"], settings)],
            "filtered_resps": [[text]],
            "exact_match": float(text == "yes"),
        }
        for n, text in enumerate(said)
    ]
    return {"results": {task: figures(said)}, "samples": {task: samples}, "versions": {task: 1.0}}


@pytest.fixture
def stand_in(monkeypatch):
    package, api, model, evaluator = (types.ModuleType(n) for n in ("lmms_eval", "api", "model", "evaluator"))
    evaluator.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    model.lmms = Model  # type: ignore[attr-defined]
    package.evaluator, package.api, api.model = evaluator, api, model  # type: ignore[attr-defined]
    for name, module in {"": package, ".api": api, ".api.model": model, ".evaluator": evaluator}.items():
        monkeypatch.setitem(sys.modules, f"lmms_eval{name}", module)


def test_a_task_is_asked_of_our_model_and_recorded(stand_in, tiny_policy, tmp_path):
    benchmark = LmmsEval("mytask", limit=2)
    rows = base.run(tiny_policy, benchmark, tmp_path / "p.jsonl", batch_size=2)
    assert [row["id"] for row in rows] == ["mytask/0", "mytask/1"]
    assert rows[0]["prompt"] == "Question 0?"
    scores = base.score(benchmark, rows)
    assert scores["score"] == scores["exact_match"]
    found = json.loads((tmp_path / "p.json").read_text())
    assert list(found["official"]) == ["exact_match"]
    assert found["n"] == 2
    assert "task version 1.0" in found["rule"]


def test_answers_come_in_order_and_by_their_settings():
    docs = {"t": {"test": ["a", "b", "c"]}}
    asked = []

    def answered(examples, tokens, temperature):
        asked.append(([example.prompt for example in examples], tokens, temperature))
        return [f"{example.prompt}! STOP more" for example in examples]

    def request(n, **settings):
        return Request((f"q{n}", settings, lambda doc: [], n, "t", "test"))

    requests = [
        request(0, max_new_tokens=5, until=["STOP"]),
        request(1, do_sample=True, temperature=0.5),
        request(2, max_new_tokens=5),
    ]
    assert answer_requests(requests, docs, answered, 9) == ["q0!", "q1! STOP more", "q2! STOP more"]
    assert asked == [(["q0", "q2"], 5, 0.0), (["q1"], 9, 0.5)]


def test_a_question_needs_one_image():
    two = lmms_eval.TaskImage("t/0", lambda: [stand_ins.picture(0)] * 2)
    with pytest.raises(ValueError, match="t/0 has 2 images"):
        two.load()
    assert lmms_eval.TaskImage("t/0", lambda: [stand_ins.picture(0)]).load().size == (48, 40)


def test_a_task_whose_samples_have_no_numbers_has_its_figure():
    sample = {
        "doc_id": 0,
        "filtered_resps": ["yes"],
        "target": "yes",
        "mme_score": {"question_id": 1, "score": 1.0},
    }
    row = lmms_eval._row("mme", sample, {"mme_score": 1500.0}, None)
    assert row["scores"] == {"score": 1500.0}
    assert base.score(LmmsEval("mme"), [row])["score"] == 1500.0


def test_without_lmms_eval_it_is_said_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    evaluate = Evaluate(tmp_path, capsys, monkeypatch)
    said = evaluate.fails("benchmark=lmms_eval", "benchmark.tasks=[mme,ai2d]")
    assert "pip install lmms-eval" in said

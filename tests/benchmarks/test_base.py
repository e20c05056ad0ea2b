"""Running a benchmark: the prediction file, and scores that are pure functions of it."""

import json

import numpy as np
import pytest

from mllm_align.benchmarks import base
from mllm_align.benchmarks.pope import Pope
from mllm_align.benchmarks.recall import Recall
from mllm_align.benchmarks.vqa import Vqa

SMALL = [Pope(n=2), Recall(n=2, max_new_tokens=6), Vqa(n=2, max_new_tokens=4)]


@pytest.mark.parametrize("benchmark", SMALL, ids=["pope", "recall", "vqa"])
def test_a_run_writes_a_line_an_item_that_scores_the_same_when_read_back(benchmark, tiny_policy, tmp_path):
    out = tmp_path / "deep" / "predictions.jsonl"
    rows = base.run(tiny_policy, benchmark, out, batch_size=4)
    examples = benchmark.examples()
    read = base.read_jsonl(out)
    assert [row["id"] for row in read] == [example.id for example in examples]
    assert [row["image"] for row in read] == [example.image.key for example in examples]
    assert [row["truth"] for row in read] == [example.meta["truth"] for example in examples]
    assert all(isinstance(row["prediction"], str) for row in read)
    assert base.score(benchmark, read) == base.score(benchmark, rows)
    assert list(out.parent.iterdir()) == [out]  # no temporary file is left


@pytest.mark.parametrize("benchmark", SMALL, ids=["pope", "recall", "vqa"])
def test_shown_metrics_exist_and_the_headline_is_a_main_one(benchmark):
    rows = [
        {**e.meta, "id": e.id, "image": e.image.key, "prompt": e.prompt, "prediction": "no"}
        for e in benchmark.examples()
    ]
    found = base.score(benchmark, rows)
    assert {metric.name for metric in benchmark.shown} <= set(found)
    assert benchmark.shown[0].main
    assert all(np.isfinite(value) for value in found.values())
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("benchmark", SMALL, ids=["pope", "recall", "vqa"])
def test_no_predictions_cannot_be_scored(benchmark):
    with pytest.raises(ValueError, match="no predictions"):
        base.score(benchmark, [])


def test_example_ids_are_unique_across_benchmarks():
    ids = [example.id for benchmark in SMALL for example in benchmark.examples()]
    assert len(ids) == len(set(ids))


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "pope.jsonl"
    file.write_text('{"id": 1}\n{"id": 2\n')
    with pytest.raises(ValueError, match=r"pope\.jsonl, line 2"):
        base.read_jsonl(file)
    file.write_text("[1]\n")
    with pytest.raises(ValueError, match="expected an object"):
        base.read_jsonl(file)


def test_line_separators_inside_a_prediction_survive(tmp_path):
    rows = [{"id": "a", "prediction": "one\u2028two\nthree\x85"}]
    base.write_jsonl(rows, tmp_path / "x.jsonl")
    assert base.read_jsonl(tmp_path / "x.jsonl") == rows


def test_ratio_of_nothing_is_zero():
    assert base.ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0])).tolist() == [0.5, 0.0]
    assert float(base.ratio(np.float64(3), np.float64(4))) == 0.75

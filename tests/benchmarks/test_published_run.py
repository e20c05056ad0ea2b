"""Every published benchmark on a small model: composed, asked, judged, recorded; and what needs no torch."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import stand_ins
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from published_files import Evaluate

from annotators.api_server import serving
from mllm_align.benchmarks import base
from mllm_align.benchmarks.published import lemmas
from mllm_align.paths import conf_dir

NAMES = (
    "pope",
    "chair",
    "recall",
    "object_halbench",
    "mmhal",
    "mmhal_v",
    "llava_w",
    "textvqa",
    "gqa",
    "mmvet",
    "amber",
)
JUDGED = {
    "object_halbench": '["dog"]',
    "mmhal": "Rating: 4",
    "mmhal_v": "Rating: 4",
    "llava_w": "8 6",
    "mmvet": "0.5",
}
# What needs data that is not installed here gets a small one of its own.
SMALL = {
    "chair": ["benchmark.tasks.chair.n=2"],
    "recall": ["benchmark.tasks.recall.variant=original"],
    "amber": ["benchmark.tasks.amber.similarity=null"],
}


@pytest.fixture
def root(tmp_path):
    return stand_ins.everything(tmp_path / "data")


def composed(monkeypatch, root, overrides):
    monkeypatch.setenv("MLLM_ALIGN_DATA", str(root))
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return compose("evaluate", overrides=overrides)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_asked_judged_and_recorded(name, tmp_path, root, monkeypatch, tiny_folders):
    from mllm_align.models.load import load_policy

    if name in JUDGED:
        pytest.importorskip("openai", reason="pip install 'mllm-align[api]'")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setattr(
        "mllm_align.benchmarks.published.objhal.SpacyWords.__call__", lambda self, name, pairs: [name]
    )
    monkeypatch.setattr(
        lemmas, "_nltk", lambda: (lambda words: [(w, "NN") for w in words], lambda word, kind: word)
    )
    monkeypatch.setattr(lemmas, "_tokens", lambda nltk, text: text.split())
    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace())
    with serving(lambda text: JUDGED.get(name, "")) as endpoint:
        overrides = [f"benchmark=published/{name}", f"outputs={tmp_path}", *SMALL.get(name, [])]
        if name in JUDGED:
            overrides.append(f"benchmark.tasks.{name}.judge.base_url={endpoint.url}")
        if name == "object_halbench":
            overrides.append(f"benchmark.tasks.{name}.objects={root}/objects.json")
        cfg = composed(monkeypatch, root, [*overrides, f"benchmark.tasks.{name}.max_new_tokens=3"])
        benchmark = instantiate(cfg.benchmark.tasks[name])
        benchmark.ready()
        rows = base.run(load_policy(tiny_folders["llava"]), benchmark, tmp_path / "p.jsonl", batch_size=4)
    assert [row["id"] for row in rows] == [example.id for example in benchmark.examples()]
    assert rows == base.read_jsonl(tmp_path / "p.jsonl")
    scores = base.score(benchmark, rows)
    assert {metric.name for metric in benchmark.shown} <= set(scores)
    assert benchmark.shown[0].main
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["n"] == len(rows)
    assert 0 <= found["valid"] <= 1
    assert found["metrics"] == scores
    assert found["decoding"] == {"method": "greedy", "max_new_tokens": 3}
    if name in ("mmhal", "mmhal_v", "llava_w", "mmvet"):
        assert found["judge"]["version"] == found["judge"]["model"]
        assert found["judge"]["cost"]["requests"] > 0


def test_the_default_set_is_that_of_the_paper(monkeypatch, root):
    cfg = composed(monkeypatch, root, ["benchmark=published"])
    expected = ["pope", "recall", "mmhal", "mmhal_v", "llava_w", "textvqa", "gqa", "mmvet"]
    assert list(cfg.benchmark.tasks) == expected


def test_an_answer_file_is_scored_without_torch(tmp_path, root):
    stand_ins.jsonl(
        tmp_path / "a.jsonl", [{"question_id": "201", "text": "no"}, {"question_id": "202", "text": "dog"}]
    )
    code = (
        "import sys; from mllm_align import cli; "
        f"cli.main(['evaluate', 'out={tmp_path}', 'benchmark=published/gqa', 'predictions={tmp_path}/a.jsonl', "
        f"'benchmark.root={root}']); "
        "print([m for m in ('torch', 'transformers', 'nltk', 'openai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "accuracy 50.0" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_predictions_of_the_scenes_world_are_scored_again(tmp_path, root, capsys, monkeypatch):
    row = {
        "id": "a",
        "image": "i",
        "prompt": "?",
        "prediction": "Yes",
        "truth": "yes",
        "splits": ["random"],
        "kind": "dog",
    }
    stand_ins.jsonl(tmp_path / "pope.jsonl", [row])
    evaluate = Evaluate(tmp_path, capsys, monkeypatch, root)
    evaluate.run("benchmark=scenes/pope", f"predictions={tmp_path / 'pope.jsonl'}")
    assert json.loads((tmp_path / "metrics.json").read_text())["pope"]["random_accuracy"] == 1.0

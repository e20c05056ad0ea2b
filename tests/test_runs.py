"""A run from its config to its record: what it is told, what a failure leaves, what another benchmark adds."""

import gc
import weakref

import pytest
from hydra import compose, initialize_config_dir

from mllm_align import runs
from mllm_align.entry import plain
from mllm_align.paths import conf_dir
from mllm_align.pipeline import plan_cell, run_cell
from mllm_align.record import read_record


@pytest.fixture
def composed(tmp_path, tiny_folders):
    def make(*overrides: str) -> dict:
        given = [
            f"outputs={tmp_path}",
            f"base_model.path={tiny_folders['llava']}",
            "base_model.lora.r=2",
            "base_model.max_new_tokens=2",
            "dataset.size=4",
            "logger=none",
            *(
                ()
                if any(o.startswith("benchmark=") for o in overrides)
                else ("benchmark=scenes/pope", "benchmark.n=2")
            ),
        ]
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            return plain(compose("train", overrides=[*given, *overrides]))

    return make


def record_of(config: dict) -> dict:
    cell = plan_cell(config)
    return read_record(cell.outputs / "runs" / cell.label / f"seed{cell.seed}")


def test_a_benchmark_without_its_files_leaves_a_finished_run_as_it_is(composed, tmp_path):
    run_cell(composed())
    with pytest.raises(FileNotFoundError, match="data fetch benchmark=published/pope"):
        run_cell(composed("benchmark=published/pope", f"benchmark.root={tmp_path / 'nothing'}"))
    assert record_of(composed())["status"] == "finished"
    assert record_of(composed())["attempt"] == 1


def test_what_training_held_is_let_go_before_the_benchmarks(composed, monkeypatch):
    """Else a GPU would hold the trained model beside the one that answers."""
    held, asked = [], []
    fitted, policy_of = runs.fitted, runs.policy_of
    monkeypatch.setattr(runs, "fitted", lambda *a, **k: held.append(weakref.ref(m := fitted(*a, **k))) or m)
    monkeypatch.setattr(runs, "policy_of", lambda *a: asked.append(held[0]()) or policy_of(*a))
    gc.disable()
    try:
        run_cell(composed())
    finally:
        gc.enable()
    assert asked == [None]


def test_the_logger_hears_of_the_sweep(composed):
    config = {**composed(), "sweep": {**composed()["sweep"], "id": "a1b2"}}
    with runs.RunRecord.open(
        config["outputs"], label="x", seed=0, key="k", config=config, axes={"dataset": "d", "sampler": "none"}
    ) as record:
        told = runs.about(plan_cell(config), record)
    assert told["group"] == "a1b2"
    assert told["tags"] == ["d"]

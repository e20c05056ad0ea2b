"""What a fork of a server with torch loaded can and cannot do."""

import os
import sys
from pathlib import Path

import pytest

from mllm_align.sweep import pool

HEAVY = (
    "torch",
    "transformers.models.llava.modeling_llava",
    "peft",
    "lightning",
)

CELLS = """
import os, sys, threading, time

def learn(config, overrides):
    started = time.perf_counter()
    import torch, lightning
    seconds = time.perf_counter() - started
    weight = torch.randn(300, 300, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for _ in range(5):
        (weight @ weight).tanh().sum().backward()
    data = torch.utils.data.DataLoader(range(8), num_workers=2, batch_size=4)
    return {
        "gradient": float(weight.grad.double().norm()),
        "threads": torch.get_num_threads(),
        "import_seconds": seconds,
        "data": float(sum(batch.sum() for batch in data)),
        "server_threads": len(os.listdir(f"/proc/{os.getppid()}/task")),
    }

def hang_after_answer(config, overrides):
    threading.Thread(target=time.sleep, args=(600,)).start()
    return {"answer": 42}

def big_words(config, overrides):
    raise ValueError("x" * 10_000_000)
"""


@pytest.fixture
def cells(tmp_path, monkeypatch):
    (tmp_path / "pool_cells.py").write_text(CELLS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(context, folder: Path, name: str, threads: int = 1) -> pool.Ending:
    order = pool.Order(f"pool_cells.{name}", {}, (), str(folder / f"{name}.log"), threads, name)
    one = pool.start(context, order)
    while (end := pool.ending(one)) is None:
        pool.wait([one], 0.5)
    return end


@pytest.fixture
def fresh_server():
    """The fork server lives as long as its process: each test that loads modules needs one of its own."""
    pool.multiprocessing.forkserver._forkserver._stop()
    yield
    pool.multiprocessing.forkserver._forkserver._stop()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_forks_of_a_server_with_torch_learn_with_their_own_threads_and_pay_no_imports(cells, fresh_server):
    with pool.fork_server(HEAVY, threads=2) as context:
        ends = [run(context, cells, "learn", threads) for threads in (2, 1, 2)]
    assert all(end.metrics for end in ends), [end.reason for end in ends]
    metrics = [end.metrics or {} for end in ends]
    assert [one["threads"] for one in metrics] == [2, 1, 2]
    assert metrics[0]["gradient"] == metrics[2]["gradient"] == pytest.approx(metrics[1]["gradient"], rel=1e-5)
    assert [one["data"] for one in metrics] == [28, 28, 28]
    assert [one["server_threads"] for one in metrics] == [1, 1, 1]  # nothing that a fork would lack
    assert max(one["import_seconds"] for one in metrics) < 0.5


def test_a_process_that_has_answered_but_cannot_leave_is_ended(cells, fresh_server, monkeypatch):
    monkeypatch.setattr(pool, "LINGER", 0.5)
    with pool.fork_server((), threads=1) as context:
        assert run(context, cells, "hang_after_answer") == pool.Ending({"answer": 42.0})


def test_a_long_message_is_cut_and_does_not_block(cells, fresh_server):
    with pool.fork_server((), threads=1) as context:
        end = run(context, cells, "big_words")
    assert end.metrics is None
    assert end.reason.startswith("ValueError: xxx")
    assert len(end.reason) <= 2000


def test_the_environment_is_as_before(fresh_server):
    before = dict(os.environ)
    with pool.fork_server(("json",), threads=1):
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert dict(os.environ) == before


def test_a_module_that_cannot_be_loaded_ahead_is_reported_not_fatal(cells, fresh_server, capfd):
    with pool.fork_server(("no_such_module",), threads=1) as context:
        end = run(context, cells, "big_words")
    assert end.reason.startswith("ValueError")
    assert "no_such_module could not be loaded ahead" in capfd.readouterr().err

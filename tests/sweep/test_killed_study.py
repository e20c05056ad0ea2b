"""A real study that is killed again and again ends with the same bits as one that is left alone."""

import hashlib
import sys
from pathlib import Path

import pytest
from harness import kill_and_restart, run

pytestmark = pytest.mark.slow

STUDY = [
    "alignment=dpo,online_dpo",
    "dataset.size=12",
    "alignment.epochs=2",
    "alignment.batch_size=4",
    "trainer.checkpoint_every_steps=1",
    "sweep.threads=1",
    "benchmark.n=3",
    "logger=none",
]


def command(workers: int) -> list[str]:
    return [sys.executable, "-m", "mllm_align", "train", "-m", *STUDY, f"sweep.workers={workers}"]


def results(folder: Path) -> dict[str, str]:
    """What each run has found: metrics, predictions, weights, and every figure of every step but its speed."""
    found = {}
    for pattern in (
        "metrics.json",
        "predictions/*.jsonl",
        "adapter/adapter_model.safetensors",
        "scalars.csv",
    ):
        for file in sorted(folder.glob(f"outputs/runs/*/seed*/{pattern}")):
            lines = [line for line in file.read_bytes().splitlines() if b"tokens_per_second" not in line]
            found[str(file.relative_to(folder))] = hashlib.sha256(b"\n".join(lines)).hexdigest()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, text = run(command(1), folder, timeout=500)
    assert code == 0, text
    return results(folder)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_started_again_gives_the_same_bits(undisturbed, tmp_path, workers):
    code, text = kill_and_restart(command(workers), tmp_path, kills=4, longest=25.0, seed=workers)
    assert code == 0, text
    assert results(tmp_path) == undisturbed
    assert len(undisturbed) == 2 * 6

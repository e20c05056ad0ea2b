"""A method of one's own: a function and a YAML file outside the package, as the README shows it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def own(tmp_path):
    """The README's two files, written where it says."""
    python, config = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", README.read_text(), re.S)
    for name, text in (python, config):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mllm_align", "train", "--config-dir", "my_conf", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={"PYTHONPATH": "."})


def test_composes(own):
    done = run(own, "alignment=robust_dpo", "--cfg", "job")
    assert "my_losses.robust_dpo" in done.stdout, done.stderr


@pytest.mark.slow
def test_trains(own):
    small = ["dataset.size=8", "alignment.epochs=1", "benchmark=none", "logger=none"]
    done = run(own, "alignment=robust_dpo", *small)
    assert done.returncode == 0, done.stderr
    assert list(own.glob("outputs/runs/robust_dpo-*/seed0/adapter/adapter_model.safetensors"))

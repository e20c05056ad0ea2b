"""The built wheel works outside a checkout: configs and the small base models travel inside it."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that no build folder is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A new environment that holds the wheel; third-party packages are borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # A plain path: .pth files in there, such as this checkout's own editable install, are not followed.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(python), "-I", "-m", "mllm_align", *arguments], capture_output=True, text=True, cwd=folder
    )


def test_the_wheel_holds_configs_and_models(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "mllm_align/conf/train.yaml" in names
    assert "mllm_align/conf/dataset/scenes/povid.yaml" in names
    assert any(name.startswith("hydra_plugins/") for name in names)
    assert "mllm_align/assets/scenes/base/model.safetensors" in names


def test_it_is_the_wheel_that_runs(installed, tmp_path):
    code = "import mllm_align; print(mllm_align.__file__)"
    done = subprocess.run([str(installed), "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert str(installed.parents[1]) in done.stdout


def test_composes_in_an_empty_folder(installed, tmp_path):
    done = run(installed, tmp_path, "train", "alignment=ipo", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "mllm_align.losses.ipo" in done.stdout
    assert not list(tmp_path.iterdir())


def test_trains_and_evaluates_in_an_empty_folder(installed, tmp_path):
    small = ["dataset.size=8", "alignment.epochs=1", "alignment.batch_size=4", "benchmark.n=4", "logger=csv"]
    done = run(installed, tmp_path, "train", *small)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("outputs/runs/*/seed0/adapter/adapter_model.safetensors"))
    assert list(tmp_path.glob("outputs/runs/*/seed0/predictions/pope.jsonl"))

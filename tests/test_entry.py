"""How errors are told: shortly where the message is enough, else with the traceback that says where."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mllm_align.checks import ImpossibleCell
from mllm_align.entry import plain, say_errors_shortly
from mllm_align.store import file_entry, load
from mllm_align.sweep.cells import read_rows


def test_an_error_of_this_package_is_one_message(capsys):
    assert say_errors_shortly(lambda: load("json.nothing_like_it")) == 2
    assert (
        capsys.readouterr().err
        == "mllm-align: ValueError: json.nothing_like_it: module json has no 'nothing_like_it'\n"
    )


def test_a_class_of_this_package_s_errors_is_one_message_wherever_it_is_raised():
    def refuse():
        raise ImpossibleCell("choose another")

    assert say_errors_shortly(refuse) == 2


def test_an_error_of_one_s_own_module_is_raised_on(tmp_path, monkeypatch):
    (tmp_path / "own_sampler.py").write_text("def sample():\n    raise ValueError('odd')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="odd"):
        say_errors_shortly(load("own_sampler.sample"))


def test_an_error_inside_a_library_is_raised_on():
    with pytest.raises(json.JSONDecodeError):
        say_errors_shortly(lambda: json.loads("{"))


def test_a_missing_file_is_named_shortly_but_not_out_of_one_s_own_module(tmp_path, capsys):
    with pytest.raises(FileNotFoundError):
        say_errors_shortly(lambda: Path(tmp_path / "none").read_text())

    assert say_errors_shortly(lambda: read_rows(tmp_path / "none")) == 2
    assert say_errors_shortly(lambda: file_entry(tmp_path / "none.bin")) == 2
    assert "none.bin" in capsys.readouterr().err


def test_a_value_that_is_missing_is_named_with_its_place():
    config = OmegaConf.create({"dataset": {"path": "???", "build": {"path": "${..path}"}}})
    with pytest.raises(ValueError, match=r"dataset\.path has no value; give dataset\.path=\.\.\."):
        plain(config)


def test_a_gpu_that_is_not_there_is_told_with_what_to_choose(monkeypatch):
    torch = pytest.importorskip("torch")
    from mllm_align.stages import device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device("cpu") == "cpu"
    with pytest.raises(ValueError, match="choose trainer=cpu"):
        device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device("gpu") == "cuda"


@pytest.mark.parametrize(
    ("command", "bad"), [("judge", "annotator"), ("evaluate", "benchmark"), ("sample", "sampler")]
)
def test_no_command_leaves_hydra_s_copy_of_the_settings(tmp_path, command, bad):
    words = [
        sys.executable,
        "-m",
        "mllm_align",
        command,
        "-m",
        f"{bad}=nothing_like_it,none",
        "+api_key=sk-1",
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert f"Could not find '{bad}/nothing_like_it'" in done.stderr
    assert not list(tmp_path.rglob("*"))

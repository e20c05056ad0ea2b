"""The commands as a user meets them: quick to start, and clear when something is wrong."""

import subprocess
import sys
import time

import pytest

from mllm_align.cli import COMMANDS, main
from mllm_align.paths import conf_dir


def run(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mllm_align", *arguments], capture_output=True, text=True, cwd=cwd
    )


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_unknown_command_says_what_there_is(capsys):
    assert main(["trian"]) == 2
    assert "choose from train" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "evaluate", "sample", "table", "judge"])
def test_every_command_composes(command):
    done = run(command, "--cfg", "job", "--resolve")
    assert done.returncode == 0, done.stderr


def test_composing_takes_no_torch(tmp_path):
    """Quick to start: nothing heavy is imported to print a config."""
    script = (
        "import sys; sys.argv = ['train', '--cfg', 'job']\n"
        "from mllm_align import train; train.main()\n"
        "heavy = [m for m in ('torch', 'transformers', 'lightning', 'wandb', 'pyarrow') if m in sys.modules]\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_method_chooses_its_sampler_and_the_command_line_still_wins():
    chosen = run("train", "alignment=online_dpo", "--cfg", "job").stdout
    assert "when: online" in chosen
    done = run("train", "alignment=online_dpo", "sampler=dataset", "plan=true")
    assert done.returncode == 2
    assert "or sampler=policy" in done.stderr


def test_a_sampler_that_nobody_judges_is_refused_before_loading():
    started = time.perf_counter()
    done = run("train", "alignment=dpo", "sampler=policy")
    assert done.returncode == 2
    assert "choose annotator=oracle" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.perf_counter() - started < 20  # it would take longer if a model had been loaded


def test_misspelt_key_and_option_are_named():
    assert "bta" in run("train", "alignment.loss.bta=1").stderr
    assert "Available options in 'alignment'" in run("train", "alignment=dop").stderr


def test_conf_dir_has_the_groups():
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    assert groups >= {
        "world",
        "dataset",
        "base_model",
        "alignment",
        "sampler",
        "annotator",
        "trainer",
        "logger",
        "benchmark",
    }

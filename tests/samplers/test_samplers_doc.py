"""The example of docs/samplers.md works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from mllm_align.datasets.parquet import read_groups
from mllm_align.samplers.sentences import split

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "samplers.md"


def test_a_sampler_of_one_s_own(tmp_path) -> None:
    for name, text in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", DOC.read_text(), re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    command = ["-m", "mllm_align", "sample", "--config-dir", "my_conf", "sampler=reversed", "dataset.size=4"]
    done = subprocess.run(
        [sys.executable, *command, "out=pairs.parquet"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    groups = read_groups(tmp_path / "pairs.parquet")
    assert groups
    for group in groups:
        chosen, rejected = group.responses
        sentences = [chosen.text[slice(*span)].strip() for span in split(chosen.text)]
        assert rejected.text == " ".join(sentences[::-1])
        assert rejected.source == "reversed"


def test_every_sampler_is_described() -> None:
    text = DOC.read_text()
    for path in (ROOT / "conf" / "sampler").glob("*.yaml"):
        assert f"`{path.stem}`" in text, path.name

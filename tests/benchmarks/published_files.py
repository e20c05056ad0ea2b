"""Where the real benchmark files are, and the command that scores an answer file, given as a person gives it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mllm_align import cli

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MLLM_ALIGN_SHARED", ROOT.parent / "shared")) / "benchmarks"
FILES = SHARED / "files"


@dataclass
class Evaluate:
    """`mllm-align evaluate` in this process (a start of Python each would take longer than the scoring)."""

    out: Path
    capsys: pytest.CaptureFixture
    monkeypatch: pytest.MonkeyPatch
    data: Path = FILES

    def fails(self, *overrides: str) -> str:
        """What it says, on its way out with status 2."""
        with pytest.raises(SystemExit) as stopped:
            self.run(*overrides)
        assert stopped.value.code == 2
        said = self.capsys.readouterr().err
        assert "Traceback" not in said
        return said

    def result(self, *overrides: str) -> dict[str, Any]:
        """The result that it writes."""
        self.run(*overrides)
        [file] = (self.out / "predictions").glob("*.json")
        return json.loads(file.read_text())

    def rows(self) -> list[dict[str, Any]]:
        """The predictions that it wrote."""
        [file] = (self.out / "predictions").glob("*.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    def run(self, *overrides: str) -> None:
        self.monkeypatch.setenv("MLLM_ALIGN_DATA", str(self.data))
        assert cli.main(["evaluate", f"out={self.out}", f"outputs={self.out}/outputs", *overrides]) == 0

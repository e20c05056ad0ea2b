"""Start, kill and compare multiruns as a shell would: of any program that uses the cells launcher."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
STUDY = Path(__file__).parent / "study"


def environment(*more: Path) -> dict[str, str]:
    paths = [str(REPOSITORY / "src"), *map(str, more)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "COLUMNS": "140"}


def command(*arguments: str) -> list[str]:
    """The fake study as a multirun, with the launcher's config of the real product."""
    conf = str(REPOSITORY / "conf")
    return [sys.executable, "-m", "fake_app", "--config-dir", conf, "-m", *arguments]


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment(STUDY),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(arguments: Sequence[str], folder: Path, timeout: float = 120) -> tuple[int, str]:
    """Exit code and all that was printed."""
    process = start(arguments, folder)
    text, _ = process.communicate(timeout=timeout)
    return process.returncode, text


def study(folder: Path, *arguments: str) -> tuple[int, str]:
    return run(command(*arguments), folder)


def summary(folder: Path) -> dict:
    (file,) = folder.glob("outputs/sweeps/*/summary.json")
    return json.loads(file.read_text())


def statuses(folder: Path) -> dict[str, str]:
    return {f"{cell['label']}/{cell['seed']}": cell["status"] for cell in summary(folder)["cells"]}


def results(outputs: Path, files: Sequence[str] = ("metrics.json", "scalars.csv")) -> Mapping[str, str]:
    """SHA-256 of what each run has found, by file: equal for bit-for-bit equal runs."""
    found = [file for name in files for file in outputs.glob(f"runs/*/seed*/{name}")]
    return {str(file.relative_to(outputs)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def kill_and_restart(
    arguments: Sequence[str], folder: Path, *, kills: int, longest: float, seed: int
) -> tuple[int, str]:
    """`kill -9` the multirun's own process at `kills` random moments within `longest` seconds of a start.

    Then let it run to its end: exit code and output of that last run. A multirun that ends before it is
    killed ends the killing.
    """
    moments = random.Random(seed)
    for _ in range(kills):
        process = start(arguments, folder)
        time.sleep(moments.uniform(0.0, longest))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()  # also waits for the cells that hold its output, if any survive
    return run(arguments, folder)

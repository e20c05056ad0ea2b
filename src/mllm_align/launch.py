"""More than one process for one run: which of them this one is, and starting the others on this machine.

A run's processes share a training step and nothing else: the first one (`rank` 0) keeps the record, builds what is
stored and answers the benchmarks; the others follow it through the training (`python -m mllm_align.follow`).

They are started by the first process itself, on one machine; by hand or by a scheduler on several, with NODE_RANK,
MASTER_ADDR and MASTER_PORT set; or one and all by torchrun or srun. docs/scaling.md has the commands.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

LINGER = 60.0  # seconds that a follower may take to leave after the training
TOLD = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Left out are "16-mixed", whose loss scaler has a state that no checkpoint here keeps, and "bf16-true": what
# is trained would be bfloat16, where small steps are lost. Frozen weights have the precision of `base_model.dtype`.
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Place:
    """One process among `processes`: its number in the run and on its machine.

    `by` is who starts processes: own (this module), torchrun or srun. `started` is true where nothing is left to
    start, so that this process must not do it.
    """

    rank: int
    local_rank: int
    processes: int
    by: str = "own"
    started: bool = False

    @property
    def leads(self) -> bool:
        return self.rank == 0


ALONE = Place(0, 0, 1)


def place(devices: int, nodes: int, environment: Mapping[str, str] | None = None) -> Place:
    """Which of `devices * nodes` processes this one is, by its environment variables.

    Raises ValueError where a launcher started another number of processes than that.
    """
    told = os.environ if environment is None else environment
    processes = devices * nodes
    if processes == 1:
        return ALONE
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= told.keys():
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        return _agreed("torchrun", [int(told[name]) for name in names], devices, nodes)
    if int(told.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in told:
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
        return _agreed("srun", [int(told[name]) for name in names], devices, nodes)
    local, node = int(told.get("LOCAL_RANK", 0)), int(told.get("NODE_RANK", 0))
    if nodes > 1 and (missing := {"NODE_RANK", "MASTER_ADDR", "MASTER_PORT"} - told.keys()):
        raise ValueError(
            f"trainer.nodes={nodes} needs {', '.join(sorted(missing))} in the environment of the command on every "
            "machine, or torchrun or srun to start it"
        )
    if not (0 <= node < nodes and 0 <= local < devices):
        raise ValueError(
            f"NODE_RANK is {node} and LOCAL_RANK {local}, but there are trainer.nodes={nodes} machines with "
            f"trainer.devices={devices} processes each"
        )
    return Place(node * devices + local, local, processes, started="LOCAL_RANK" in told)


def _agreed(by: str, numbers: Sequence[int], devices: int, nodes: int) -> Place:
    rank, local, processes = numbers
    if processes != devices * nodes:
        raise ValueError(
            f"{by} started {processes} processes, and trainer.devices={devices} times trainer.nodes={nodes} are "
            f"{devices * nodes}; make them agree"
        )
    return Place(rank, local, processes, by, started=True)


@contextmanager
def followers(here: Place, devices: int, config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, this machine's other processes of the run follow this one, unless somebody else has started them.

    `config` is handed to each. One that fails ends this process too, by SIGTERM: it would wait for it forever.
    """
    if here.processes == 1 or here.started:
        yield
        return
    before = {name: os.environ.get(name) for name in TOLD}
    address = {"MASTER_ADDR": before["MASTER_ADDR"] or "127.0.0.1"}
    address["MASTER_PORT"] = before["MASTER_PORT"] or str(_free_port())
    os.environ.update(address, LOCAL_RANK="0")
    path = os.pathsep.join(folder for folder in sys.path if folder)
    others = [
        _start(config, {**os.environ, "LOCAL_RANK": str(number), "PYTHONPATH": path})
        for number in range(1, devices)
    ]
    over = threading.Event()
    for number, other in enumerate(others, start=1):
        threading.Thread(target=_watch, args=(number, other, over), daemon=True).start()
    finished = False
    try:
        yield
        finished = True
    finally:
        over.set()
        _end(others, LINGER if finished else 0.0)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _start(config: Mapping[str, Any], environment: Mapping[str, str]) -> subprocess.Popen:
    """A follower; its input stays open as long as this process lives, and it ends when that is closed."""
    command = [sys.executable, "-m", "mllm_align.follow"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, text=True)
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has failed already, and `_watch` says so
        process.stdin.write(json.dumps(config) + "\n")
        process.stdin.flush()
    return process


def _watch(number: int, other: subprocess.Popen, over: threading.Event) -> None:
    code = other.wait()
    if code and not over.is_set():
        log.error("process %d of this machine ended with exit code %d: the run cannot go on", number, code)
        os.kill(os.getpid(), signal.SIGTERM)


def _end(others: Sequence[subprocess.Popen], linger: float) -> None:
    for other in others:
        with suppress(subprocess.TimeoutExpired):
            other.wait(linger)
        if other.poll() is None:
            other.kill()
            other.wait()
        assert other.stdin is not None
        with suppress(BrokenPipeError):
            other.stdin.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

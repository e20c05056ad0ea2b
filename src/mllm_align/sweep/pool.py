"""Processes for cells: start one, see how it ended, end it."""

import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from mllm_align.sweep.preload import VARIABLE
from mllm_align.sweep.worker import THREAD_VARIABLES, Order, work

PRELOADER = "mllm_align.sweep.preload"
LINGER = 60.0  # seconds that a process may take to leave after its answer
GRACE = 10.0  # seconds to leave after Ctrl-C


@dataclass(frozen=True)
class Ending:
    """How a cell's process ended: with metrics, or with a reason."""

    metrics: dict[str, float] | None
    reason: str = ""


@dataclass
class Running:
    """A cell's process. `answer` is what it sent so far."""

    process: ForkServerProcess
    pipe: connection.Connection
    started: float
    answer: dict[str, Any] = field(default_factory=dict)
    answered: float | None = None


@contextmanager
def fork_server(preload: Sequence[str], threads: int) -> Iterator[ForkServerContext]:
    """A context whose processes are forks of a server that has loaded `preload`, started now.

    The server inherits the thread counts, because numeric libraries read them when they are loaded, and it
    finds CUDA devices through NVML, because a fork of a process that has initialised CUDA cannot use it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADER])
    changes = dict.fromkeys(THREAD_VARIABLES, str(threads))
    changes |= {
        VARIABLE: " ".join(preload),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        multiprocessing.forkserver.ensure_running()
        yield context
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def start(context: ForkServerContext, order: Order) -> Running:
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(order, sending), name=order.title)
    process.start()
    sending.close()
    return Running(process, receiving, time.monotonic())


def wait(running: Sequence[Running], timeout: float) -> None:
    """Until a process has answered or ended, or `timeout` seconds."""
    handles: list[Any] = [one.process.sentinel for one in running]
    handles += [one.pipe for one in running if one.answered is None and not one.pipe.closed]
    connection.wait(handles, timeout)


def ending(one: Running) -> Ending | None:
    """How the process ended; None while it runs. What it leaves behind in its process group is ended too."""
    _receive(one)
    if one.process.is_alive():
        if one.answered is None or time.monotonic() - one.answered < LINGER:
            return None
        _signal(one, signal.SIGKILL)  # it has answered but cannot leave, for example a thread that hangs
        one.process.join()
    code = one.process.exitcode
    _receive(one)
    _signal(one, signal.SIGKILL)
    one.pipe.close()
    if "metrics" in one.answer:
        return Ending(one.answer["metrics"])
    return Ending(None, one.answer.get("error") or _code_text(code))


def stop(running: Sequence[Running]) -> None:
    """End processes as Ctrl-C would, those that do not leave by force."""
    for one in running:
        _signal(one, signal.SIGINT, group=False)
    deadline = time.monotonic() + GRACE
    try:
        for one in running:
            one.process.join(max(0.0, deadline - time.monotonic()))
    finally:  # also after a second Ctrl-C
        for one in running:
            _signal(one, signal.SIGKILL)
            one.process.join()


def _receive(one: Running) -> None:
    if one.answered is not None or one.pipe.closed or not one.pipe.poll():
        return
    try:
        one.answer = json.loads(one.pipe.recv_bytes())
    except (EOFError, OSError):
        one.pipe.close()  # it ended, or left by a way that sends no answer
        return
    one.answered = time.monotonic()


def _signal(one: Running, number: signal.Signals, group: bool = True) -> None:
    """To the process, or to the whole group that it leads from its first line on."""
    pid = one.process.pid
    if pid is None:
        return
    if group:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)
    if one.process.is_alive():
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _code_text(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (by hand, or by the system for want of memory)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"ended with exit code {code} before it had finished"

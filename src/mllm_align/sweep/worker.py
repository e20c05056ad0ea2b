"""One cell in a process of its own: a fork of a server that has the heavy modules loaded already.

So a cell pays no imports, and whatever ends it, an exception, `sys.exit`, a signal or a crash in native
code, ends it alone.
"""

import faulthandler
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mllm_align.record import describe_error
from mllm_align.redact import redact_overrides
from mllm_align.store import load

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
INTERRUPTED = 130  # the shell's exit code for Ctrl-C


@dataclass(frozen=True)
class Order:
    """What a worker is asked to do: `run(config, overrides) -> headline metrics`, printing into `log`."""

    run: str
    config: Mapping[str, Any]
    overrides: tuple[str, ...]
    log: str
    threads: int
    title: str


def work(order: Order, answer: Connection) -> None:
    """Run the order and send {"metrics"} or {"error"} as JSON; the exit code is 0 only with metrics."""
    os.setsid()  # a group of its own: its data loaders end with it, Ctrl-C reaches it through the sweep
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _print_into(Path(order.log))
    _set_threads(order.threads)
    print(f"--- {order.title}: {' '.join(redact_overrides(order.overrides))}", flush=True)
    try:
        metrics = load(order.run)(dict(order.config), list(order.overrides))
        message = {"metrics": _figures(metrics)}
    except BaseException as error:
        traceback.print_exc()
        answer.send_bytes(json.dumps({"error": _reason(error)}).encode())
        sys.exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)
    answer.send_bytes(json.dumps(message).encode())


def _end_with_parent() -> None:
    """A sweep that was killed must not leave cells behind that write where the next sweep writes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def _print_into(log: Path) -> None:
    """Both streams, and what native code prints, line by line into the cell's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    faulthandler.enable(file=sys.stderr)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, force=True, format="[%(asctime)s] %(levelname)s %(message)s"
    )


def _set_threads(threads: int) -> None:
    """Before the first tensor operation: a fork must not use a thread pool that its parent has started."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else repr(error.code)}) before it had finished"
    about = describe_error(error)
    return f"{about['type']}: {about['message']}"[:2000]


def _figures(metrics: Any) -> dict[str, float]:
    """Numbers only: what is shown beside a finished cell."""
    items = metrics.items() if isinstance(metrics, Mapping) else ()
    return {str(name): float(value) for name, value in items if isinstance(value, int | float)}

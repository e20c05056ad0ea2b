"""A process that takes part in another one's training: reads the run's config from its input, and ends with it."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="[%(asctime)s] %(levelname)s %(message)s")
    config = json.loads(sys.stdin.readline())
    # A loader's worker closes the input that it inherits, and would wait for the thread that reads it.
    leader, sys.stdin = os.dup(sys.stdin.fileno()), io.StringIO()
    threading.Thread(target=_end_with, args=(leader,), daemon=True).start()
    from mllm_align.pipeline import plan_cell
    from mllm_align.runs import follow

    follow(plan_cell(config))
    return 0


def _end_with(leader: int) -> None:
    """Nothing more is ever sent: the input ends when the process that started this one does."""
    while os.read(leader, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())

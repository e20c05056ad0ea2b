"""`mllm-align data check|fetch`: look at a dataset before training on it; download what a run needs."""

from __future__ import annotations

import importlib
import sys

ACTIONS = {
    "check": (
        "mllm_align.datacheck",
        "rows, images, lengths in tokens, duplicates and overlaps of a dataset, and a page of ten rows",
    ),
    "fetch": (
        "mllm_align.datafetch.command",
        "download a dataset, a base model or a benchmark, or say what to copy where",
    ),
}


def usage() -> str:
    actions = "\n".join(f"  {name:<8}{text}" for name, (_, text) in ACTIONS.items())
    return f"""usage: mllm-align data ACTION [group=option ...] [key=value ...]

{actions}

examples:
  mllm-align data check dataset=published/povid base_model=published/llava_1_6_7b
  mllm-align data check dataset=local dataset.path=pairs.jsonl
  mllm-align data fetch dataset=published/povid"""


def main() -> int:
    """Hands over to the action; the rest of the line is its own."""
    _, *arguments = sys.argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    action, *rest = arguments
    if action not in ACTIONS:
        print(f"mllm-align data: no action {action!r}; choose from {', '.join(ACTIONS)}", file=sys.stderr)
        return 2
    sys.argv = [f"mllm-align data {action}", *rest]
    return importlib.import_module(ACTIONS[action][0]).main() or 0


if __name__ == "__main__":
    sys.exit(main())

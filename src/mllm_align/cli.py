"""`mllm-align COMMAND ...`: finds the command and hands over; imports nothing that it does not need."""

from __future__ import annotations

import importlib
import os
import sys

COMMANDS = {
    "train": "train and evaluate one cell, or a grid of cells with -m",
    "sample": "build a preference set and write it as Parquet",
    "judge": "measure an annotator's accuracy and position bias on held-out pairs",
    "evaluate": "run benchmarks on a base model, on an adapter or on a served model",
    "export": "merge an adapter into its base model: one Hugging Face folder, for a server or for others",
    "data": "look at a dataset before training on it (check), or download what a run needs (fetch)",
    "table": "compare finished runs, or render a table of the study: terminal, Markdown, LaTeX, CSV, a page",
}


def usage() -> str:
    commands = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return f"""mllm-align: compose, run and compare alignment studies of multimodal language models

usage: mllm-align COMMAND [group=option ...] [key=value ...]

{commands}

examples:
  mllm-align train alignment=dpo dataset=scenes/povid
  mllm-align train -m alignment=dpo,ipo,slic,online_dpo dataset=scenes/povid,scenes/rlhf_v seed=0,1,2
  mllm-align train alignment=online_dpo annotator=large --cfg job     (print the composed configuration)
  mllm-align table

`mllm-align COMMAND --help` lists the groups, their options and every key."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit status. A reader that stops early (`| head`) is not an error."""
    try:
        status = dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"mllm-align {version('mllm-align')}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"mllm-align: no command {arguments[0]!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"mllm-align {arguments[0]}", *arguments[1:]]
    return importlib.import_module(f"mllm_align.{arguments[0]}").main() or 0


if __name__ == "__main__":
    sys.exit(main())

"""Pairs per second and peak memory of a DPO step: plain rows, shared prefix, stored reference, and TRL's DPOTrainer.

    python benchmarks/dpo_step.py                             # a model of width 256 on the CPU, about 4 minutes
    python benchmarks/dpo_step.py --preset 7b --device cuda   # LLaVA-1.6-7B's shape, random weights, bf16, LoRA 128

A step is forward, backward and AdamW on a ready batch; collating is not timed. Each variant runs in a process
of its own. On the CPU the variants take turns, step by step, so that a busy machine slows all alike; on a GPU
they run one after the other. Exits with 1 if a loss differs from TRL's (or from the plain one) by more than
--tolerance at any step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


@dataclass
class Worker:
    """A variant's process."""

    variant: str
    process: subprocess.Popen[str]
    loaded: float = 0.0
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: float = 0.0

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(
            f"{self.variant} ended early with status {self.process.wait()}; its errors are above"
        )

    def step(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self.read()
        self.seconds.append(answer["seconds"])
        self.losses.append(answer["loss"])
        self.peak = answer["peak"]

    def stop(self) -> None:
        self.process.communicate("stop\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="small", help="small, 7b or tiny (default: small)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--variants", nargs="+", default=["plain", "shared", "stored", "trl"])
    parser.add_argument("--pairs", type=int, default=1, help="pairs a step (default: 1)")
    parser.add_argument(
        "--batches", type=int, default=3, help="different batches (default: 3, one an image shape)"
    )
    parser.add_argument("--steps", type=int, default=9, help="measured steps (default: 9)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before measuring (default: 2)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads a process (default: 2)")
    parser.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing in every variant"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest difference of losses (default: 1e-4)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def launch(args: argparse.Namespace, variant: str, folder: Path) -> Worker:
    from dpo_variants import Setting, command

    setting = Setting(
        variant, args.preset, str(folder), args.device, args.pairs, args.batches, args.checkpointing
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(args.threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    process = subprocess.Popen(
        command(setting), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    return Worker(variant, process)


def measure(args: argparse.Namespace, folder: Path) -> list[Worker]:
    together = args.device == "cpu"
    rounds = [args.variants] if together else [[v] for v in args.variants]
    done = []
    for names in rounds:
        workers = []
        for name in names:
            worker = launch(args, name, folder)
            worker.loaded = worker.read()["loaded"]
            workers.append(worker)
        for _ in range(args.warmup + args.steps):
            for worker in workers:
                worker.step()
        for worker in workers:
            worker.stop()
        done += workers
    return done


def report(args: argparse.Namespace, workers: list[Worker]) -> dict[str, Any]:
    times = {w.variant: median(w.seconds[args.warmup :]) for w in workers}
    print(f"\n{args.preset} on {args.device}, {args.pairs} pairs a step, medians of {args.steps} steps")
    print(
        f"{args.threads} threads a process, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
    )
    rows = {}
    for w in workers:
        seconds = w.seconds[args.warmup :]
        rows[w.variant] = {
            "s/step": times[w.variant],
            "min": min(seconds),
            "max": max(seconds),
            "pairs/s": args.pairs / times[w.variant],
            "x plain": times.get("plain", float("nan")) / times[w.variant],
            "x TRL": times.get("trl", float("nan")) / times[w.variant],
            "peak MB": w.peak,
            # What the step adds to the loaded model and the libraries.
            "- loaded": w.peak - (w.loaded if args.device == "cpu" else 0.0),
        }
    print(f"{'variant':8}" + "".join(f"{name:>10}" for name in next(iter(rows.values()))))
    for variant, row in rows.items():
        print(f"{variant:8}" + "".join(f"{v:10.0f}" if v > 99 else f"{v:10.2f}" for v in row.values()))
    return {v: {**row, "losses": w.losses} for (v, row), w in zip(rows.items(), workers, strict=True)}


def losses_agree(args: argparse.Namespace, workers: list[Worker]) -> bool:
    standard = next((w for name in ("trl", "plain") for w in workers if w.variant == name), workers[0])
    print(f"\nlosses of {standard.variant}: " + " ".join(f"{x:.5f}" for x in standard.losses))
    worst = 0.0
    for worker in workers:
        difference = max(abs(a - b) for a, b in zip(worker.losses, standard.losses, strict=True))
        print(f"largest difference, {worker.variant:8} {difference:.1e}")
        worst = max(worst, difference)
    return worst <= args.tolerance


def main() -> int:
    args = parse()
    from dpo_model import PRESETS, make_folder

    with tempfile.TemporaryDirectory() as folder:
        make_folder(PRESETS[args.preset], Path(folder))
        workers = measure(args, Path(folder))
    rows = report(args, workers)
    agree = losses_agree(args, workers)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if not agree:
        print(f"\nlosses differ by more than {args.tolerance}", file=sys.stderr)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())

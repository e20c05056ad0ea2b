"""POPE-style questions about scenes with one prefill an image, and one prefill a question.

    python benchmarks/shared_prefill.py --images 84 --model asset://scenes/base

    python benchmarks/shared_prefill.py --preset small --images 4     # 2,900 image tokens, random weights
    python benchmarks/shared_prefill.py --preset 7b --device cuda     # LLaVA-1.6-7B's shape

prints, for both ways in turn, seconds per 1,000 questions (median of the repeats), and how many answers differ; exits
with 1 where any does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dpo_model import PRESETS, Noise, make_folder

from mllm_align.benchmarks.pope import Pope
from mllm_align.compute.decoding import generate
from mllm_align.compute.shared import answers
from mllm_align.models.load import load_policy

SIDE = 600  # pixels: 2,928 image tokens


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="asset://scenes/base", help="a model folder")
    parser.add_argument("--preset", choices=list(PRESETS), help="instead of a model: a random LLaVA-NeXT")
    parser.add_argument("--images", type=int, default=84, help="scenes; about 12 questions each")
    parser.add_argument("--batch-size", type=int, default=64, help="questions decoded together")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "process"], help="process: processor time"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make_folder(PRESETS[options.preset], Path(folder)) if options.preset else options.model
        dtype = PRESETS[options.preset].dtype if options.preset else options.dtype
        policy = load_policy(path, device=options.device, dtype=dtype)
    examples = Pope(n=options.images).examples()
    if options.preset:  # pictures of a square, which take all tiles
        examples = [replace(e, image=Noise(e.image.key, SIDE, SIDE, 0)) for e in examples]
    decoding = {
        "max_new_tokens": options.max_new_tokens,
        "temperature": 0.0,
        "batch_size": options.batch_size,
    }
    ways: dict[str, Callable[[], list[str]]] = {
        "one prefill a question": lambda: [row[0].text for row in generate(policy, examples, **decoding)],
        "one prefill an image": lambda: [response.text for response in answers(policy, examples, **decoding)],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[str]] = {}
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = clock()
            texts[name] = way()
            times[name].append(clock() - start)
    plain, shared = texts.values()
    differ = sum(a != b for a, b in zip(plain, shared, strict=True))
    print(
        f"{len(examples)} questions about {options.images} images, {options.preset or options.model}, {dtype}"
    )
    for name, own in times.items():
        print(f"{name:24} {1000 * statistics.median(own) / len(examples):8.2f} s per 1,000 questions")
    print(f"answers that differ: {differ}")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())

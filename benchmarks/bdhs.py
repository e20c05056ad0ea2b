"""Time for 100 BDHS pairs: our sampler against `model.generate`, sentence by sentence, on the masked full prompt.

    python benchmarks/bdhs.py                                  # a model of width 256 on the CPU, about 7 minutes
    python benchmarks/bdhs.py --preset 7b --device cuda        # LLaVA-1.6-7B's shape, random weights, bf16

One attempt an answer (N_BDHS = 1): the same masks or noise, the same cuts, greedy decoding, at AnyRes prompt
length (2,949 tokens with a square image) and references of 5 to 8 sentences of about 14 tokens. The plain way
gives `generate` a mask over the whole prompt and explicit position ids (it would close the gap otherwise), and
prepares each image once a pair. The variants take turns, so that a busy machine slows all alike; figures are
medians over the rounds. Our time is that of `BDHS.sample`, from images on disk to Groups.

Exits with 1 if a token differs. The targets, on the CPU: 20 times the plain way for bdhs_attn, 5 for bdhs_noise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from dpo_model import PRESETS, WORDS, Noise, make_folder

from mllm_align.noise import NoisedImage, generator, stable_seed
from mllm_align.records import Example, Group
from mllm_align.samplers import bdhs
from mllm_align.samplers.corruption import AttentionMask, ImageNoise, mask
from mllm_align.samplers.sentences import cut, full_stops, spell
from mllm_align.similarity.scenes import SceneClaims

TARGETS = {"bdhs_attn": 20.0, "bdhs_noise": 5.0}
SEED = 0
SIDE = 600  # pixels of the square images: 2,928 image tokens

Tokens = list[tuple[int, ...]]


@dataclass
class Times:
    """Seconds a pair of each round, and the tokens of each example (by id) that were drawn in its one attempt."""

    seconds: list[float] = field(default_factory=list)
    tokens: dict[str, Tokens] = field(default_factory=dict)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="small", help="small, 7b or tiny (default: small)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rho-th", type=float, default=0.99, help="share of hidden tokens (default: 0.99)")
    parser.add_argument("--steps", type=int, default=500, help="steps of noise (default: 500)")
    parser.add_argument("--new", type=int, default=14, help="most tokens of a completion (default: 14)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs a round, ours (default: 8)")
    parser.add_argument("--plain", type=int, default=1, help="of these, pairs the plain way (default: 1)")
    parser.add_argument("--rounds", type=int, default=4, help="measured rounds (default: 4)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    clock = "process counts the processor's time: for a machine that others use too (default: wall)"
    parser.add_argument("--clock", default="wall", choices=["wall", "process"], help=clock)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def make_references(rounds: int, pairs: int) -> list[Group]:
    """Prompts with an answer of 5 to 8 sentences of 12 to 14 words; two in three begin with yes or no.

    The number of sentences goes round, and begins one later in every round, so that those which are made the plain
    way are in the end as long as the others.
    """
    rng = np.random.default_rng(0)
    groups = []
    for i in range(rounds * pairs):
        lengths = rng.integers(12, 15, 5 + (i % pairs + i // pairs) % 4)
        sentences = [" ".join(rng.choice(WORDS, n)).capitalize() + "." for n in lengths]
        lead = ["", "Yes, ", "No, "][i % 3]
        example = Example(f"pair{i}", Noise(f"noise{i}", SIDE, SIDE, i), "Describe the image in detail.")
        groups.append(Group(replace(example, reference=lead + " ".join(sentences)), ()))
    return groups


def sampler(args: argparse.Namespace, name: str, **options: Any) -> bdhs.BDHS:
    corruption = AttentionMask(args.rho_th) if name == "bdhs_attn" else ImageNoise(args.steps)
    defaults = {"eps_s": 0.97, "iterations": 1, "max_new_tokens": args.new, "source": name}
    return bdhs.BDHS(corruption, SceneClaims(), **{**defaults, **options})


class Recorder:
    """Stands in for `complete` in the sampler, and keeps the tokens that it gave, by example."""

    def __init__(self) -> None:
        self.complete = bdhs.complete
        self.tokens: dict[str, Tokens] = {}
        bdhs.complete = self

    def __call__(self, policy: Any, prepared: Any, attempts: Any, **options: Any) -> list[Tokens]:
        written = self.complete(policy, prepared, attempts, **options)
        self.tokens.update({prepared.ids[a.row]: own for a, own in zip(attempts, written, strict=True)})
        return written


def plain_pair(policy: Any, made: bdhs.BDHS, group: Group) -> Tokens:
    """The completions of one reference, each by a `generate` of its own."""
    import torch

    from mllm_align.models.load import prompt_text

    processor, example = policy.processor, group.example
    own = stable_seed(SEED, example.id, 1)
    image = example.image
    if isinstance(made.corruption, ImageNoise):
        image = NoisedImage(image, made.corruption.steps, own, made.corruption.wrap)
    inputs = processor(
        images=image.load(), text=prompt_text(processor, example.prompt), return_tensors="pt"
    ).to(policy.model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(policy.model.dtype)
    prompt = inputs.pop("input_ids")[0]
    seen = torch.ones_like(prompt)
    if isinstance(made.corruption, AttentionMask):
        here = prompt == policy.model.config.image_token_id
        seen[here] = torch.from_numpy(mask(int(here.sum()), made.corruption.rho_th, own)).to(seen)
    text = str(example.reference)
    (spelling,) = spell([text], processor)
    found = []
    for part in cut(text, spelling, generator(own, "cuts"), made.swap, processor):
        behind = prompt.new_tensor([*spelling.ids[: part.start], *part.forced])
        ids = torch.cat([prompt, behind])[None]
        options = {
            **inputs,
            "attention_mask": torch.cat([seen, torch.ones_like(behind)])[None],
            "position_ids": torch.arange(ids.shape[1], device=ids.device)[None],
        }
        output = policy.model.generate(
            input_ids=ids,
            do_sample=False,
            max_new_tokens=made.max_new_tokens,
            eos_token_id=list(full_stops(policy)),
            pad_token_id=processor.tokenizer.pad_token_id,
            **options,
        )
        found.append(tuple(output[0, ids.shape[1] :].tolist()))
    return found


@dataclass(frozen=True)
class Way:
    """How pairs are made: by us, with options of the sampler, or the plain way."""

    pairs: int  # of a round's
    options: dict[str, Any] | None  # None: the plain way


def ways(args: argparse.Namespace) -> dict[str, Way]:
    few = max(args.plain, args.pairs // 4)
    return {
        "plain": Way(args.plain, None),
        "ours": Way(args.pairs, {"batch_size": args.pairs}),
        "ours, a pair at a time": Way(args.plain, {"batch_size": 1}),
        # Nothing is ever different enough: four guided iterations, and one without guidance.
        "ours, 5 iterations for every answer": Way(few, {"batch_size": few, "iterations": 5, "eps_s": -2.0}),
    }


def run(
    args: argparse.Namespace,
    name: str,
    way: Way,
    policies: tuple[Any, Any],
    groups: list[Group],
    kept: Recorder,
) -> tuple[float, dict[str, Tokens]]:
    """Seconds for `groups`, and the tokens that were drawn (of a single attempt only)."""
    import torch

    ours, plain = policies
    made = sampler(args, name, **(way.options or {}))
    kept.tokens = {}
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    start = clock()
    if way.options is None:
        kept.tokens = {group.example.id: plain_pair(plain, made, group) for group in groups}
    else:
        made.sample(ours, groups, SEED)
    if args.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start, kept.tokens if made.iterations == 1 else {}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, Times]]:
    """Sampler -> way -> its times."""
    from mllm_align.models.load import load_policy

    dtype = PRESETS[args.preset].dtype
    policies = tuple(load_policy(folder, dtype=dtype, device=args.device) for _ in range(2))
    groups = make_references(args.rounds + 1, args.pairs)
    kept = Recorder()
    times = {name: {way: Times() for way in ways(args)} for name in TARGETS}
    for number in range(args.rounds + 1):  # the first is not counted
        window = groups[number * args.pairs :]
        for name, own in times.items():
            for label, way in ways(args).items():
                seconds, tokens = run(args, name, way, policies, window[: way.pairs], kept)
                own[label].tokens.update(tokens)
                if number:
                    own[label].seconds.append(seconds / way.pairs)
    return times


def equal_tokens(plain: Times, other: Times) -> tuple[int, int]:
    """Tokens of the plain way that the other gives too, and all that either gives, of the answers of both."""
    same = total = 0
    for name in plain.tokens.keys() & other.tokens.keys():
        for a, b in zip(plain.tokens[name], other.tokens[name], strict=True):
            same += sum(x == y for x, y in zip(a, b, strict=False))
            total += max(len(a), len(b))
    return same, total


def report(args: argparse.Namespace, times: dict[str, dict[str, Times]]) -> dict[str, dict[str, Any]]:
    print(f"\n{args.preset} on {args.device}, rho_th {args.rho_th}, {args.steps} steps of noise, "
          f"{args.threads} threads, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; "
          f"medians of {args.rounds} rounds, {args.clock} time\n")  # fmt: skip
    print("| sampler | way | pairs/s | s per 100 pairs | x plain | tokens equal |")
    print("|---|---|---|---|---|---|")
    rows: dict[str, dict[str, Any]] = {}
    for name, variants in times.items():
        plain = median(variants["plain"].seconds)
        for variant, own in variants.items():
            seconds = median(own.seconds)
            same, total = equal_tokens(variants["plain"], own)
            rows[f"{name}, {variant}"] = {"s per 100": 100 * seconds, "x plain": plain / seconds,
                                          "same": same, "tokens": total, "seconds": own.seconds}  # fmt: skip
            equal = f"{same} of {total}" if total else ""
            faster = f"{plain / seconds:.1f}"
            print(f"| {name} | {variant} | {1 / seconds:.2f} | {100 * seconds:.1f} | {faster} | {equal} |")
    return rows


def differing(rows: dict[str, dict[str, Any]]) -> list[str]:
    return [f"{name}: {row['tokens'] - row['same']} tokens differ" for name, row in rows.items()
            if row["same"] < row["tokens"]]  # fmt: skip


def targets(rows: dict[str, dict[str, Any]]) -> str:
    """Whether the CPU figures are what we aim at; a busy machine may miss them."""
    reached = {name: rows[f"{name}, ours"]["x plain"] >= least for name, least in TARGETS.items()}
    return ", ".join(
        f"{name} at least {TARGETS[name]:.0f} times as fast: {'yes' if good else 'no'}"
        for name, good in reached.items()
    )


def main() -> int:
    args = parse()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        make_folder(PRESETS[args.preset], Path(folder))
        times = measure(args, Path(folder))
    rows = report(args, times)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if args.device == "cpu":
        print(f"\n{targets(rows)}")
    wrong = differing(rows)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

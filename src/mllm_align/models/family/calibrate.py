"""Measures a model of the family: `python -m mllm_align.models.family.calibrate models=asset://scenes/base n=1000`.

Every figure comes with a 95% bootstrap interval over images. Results go to `out` as JSON, the predictions beside it,
and with `figure=...` the picture that shows where hallucinations come from (prior.py).
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mllm_align.benchmarks.base import Benchmark, ratio, run
from mllm_align.benchmarks.pope import Pope
from mllm_align.benchmarks.recall import Recall
from mllm_align.benchmarks.stats import Array, Interval, intervals, sum_by_image
from mllm_align.benchmarks.vqa import Vqa
from mllm_align.compute.decoding import first_token_logprobs
from mllm_align.models.family import prior
from mllm_align.models.load import Policy, load_policy
from mllm_align.records import Example
from mllm_align.scenes.corrupt import corrupt
from mllm_align.scenes.draw import SceneImage
from mllm_align.scenes.tasks import describe_item, judge_prompt, question_items
from mllm_align.scenes.world import sample_scene

TARGETS = {"pope/f1": (0.80, 0.88), "recall/chair_s": (0.10, 0.25), "recall/recall": (0.60, 0.80)}


def judge_pairs(n: int, split: str = "evaluation") -> list[dict[str, Any]]:
    """For each scene a description and a short answer, each true and corrupted."""
    pairs = []
    for index in range(n):
        scene, rng = sample_scene(split, index), random.Random(f"judge/{split}/{index}")
        short = question_items(scene, rng)
        for question, true, task in (
            describe_item(scene, rng, noise=0.0),
            short[int(rng.random() * len(short))],
        ):
            false = corrupt(true, scene, rng, n=1, prompt=question).text
            if false != true:
                part = "describe" if task == "describe" else "short"
                pairs.append(
                    {"scene": scene, "question": question, "true": true, "false": false, "part": part}
                )
    return pairs


def judge(policy: Policy, n: int, split: str = "evaluation") -> dict[str, Interval]:
    """Accuracy of "Which answer is better?", each pair asked in both orders.

    `accuracy` averages the orders, `decided` is that of the sign of the mean log-odds of both orders (what the
    annotators use), `consistent` the share right in both, `said_a` the share of "A" (0.5 without position bias).
    """
    pairs = judge_pairs(n, split)
    odds = np.stack([_log_odds(policy, pairs, order) for order in (False, True)])  # (2, pairs): of "A"
    good = np.stack([odds[0], -odds[1]])  # of the true answer
    rows = []
    for i, pair in enumerate(pairs):
        first, second = good[:, i] > 0
        values = {
            "right": float(first) + float(second),
            "decided": float(good[:, i].sum() > 0),
            "both_right": float(first and second),
            "said_a": float((odds[:, i] > 0).sum()),
            "pairs": 1.0,
        }
        part = {f"{pair['part']}_{name}": values[name] for name in ("right", "decided", "pairs")}
        rows.append((pair["scene"].id, {**values, **part}))
    names = ["right", "decided", "both_right", "said_a", "pairs"]
    names += [f"{part}_{name}" for part in ("describe", "short") for name in ("right", "decided", "pairs")]
    return intervals(sum_by_image(rows, names), _judge_metrics)


def _judge_metrics(totals: Mapping[str, Array]) -> dict[str, Array]:
    both = 2 * np.asarray(totals["pairs"])
    metrics = {
        "accuracy": ratio(totals["right"], both),
        "decided": ratio(totals["decided"], totals["pairs"]),
        "consistent": ratio(totals["both_right"], totals["pairs"]),
        "said_a": ratio(totals["said_a"], both),
    }
    for part in ("describe", "short"):
        metrics[f"{part}_decided"] = ratio(totals[f"{part}_decided"], totals[f"{part}_pairs"])
    return metrics


def _log_odds(policy: Policy, pairs: Sequence[Mapping[str, Any]], swapped: bool) -> np.ndarray:
    """(pairs,) log-odds of "A"; A is the true answer unless `swapped`."""
    examples = []
    for i, pair in enumerate(pairs):
        a, b = (pair["false"], pair["true"]) if swapped else (pair["true"], pair["false"])
        prompt = judge_prompt(pair["question"], a, b)
        examples.append(Example(id=f"judge/{i}", image=SceneImage(pair["scene"]), prompt=prompt))
    logprobs = first_token_logprobs(policy, examples, ("A", "B"))
    return (logprobs[:, 0] - logprobs[:, 1]).numpy()


def measure(policy: Policy, n: int, folder: Path, split: str = "evaluation") -> dict[str, dict[str, Any]]:
    """{benchmark/metric: interval} of POPE, descriptions, short questions and judging over `n` scenes."""
    benchmarks: dict[str, Benchmark] = {
        "pope": Pope(n, split),
        "recall": Recall(n, split),
        "vqa": Vqa(n, split),
    }
    found: dict[str, Interval] = {}
    for name, benchmark in benchmarks.items():
        predictions = run(policy, benchmark, folder / f"{name}.jsonl")
        scores = intervals(benchmark.counts(predictions), benchmark.metrics)
        found |= {f"{name}/{metric}": value for metric, value in scores.items()}
    found |= {f"judge/{metric}": value for metric, value in judge(policy, n, split).items()}
    return {name: asdict(value) for name, value in found.items()}


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A markdown table, a row a metric and a column a model, in per cent (words as they are)."""
    models = list(results)
    lines = ["| metric | " + " | ".join(models) + " |", "| --- |" + " --- |" * len(models)]
    for metric in dict.fromkeys(name for result in results.values() for name in result):
        scale = 1 if metric.endswith("/words") else 100
        cells = []
        for model in models:
            v = results[model][metric]
            cells.append(f"{scale * v['value']:.1f} [{scale * v['low']:.1f}, {scale * v['high']:.1f}]")
        lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    options = {
        "models": "asset://scenes/base",
        "n": "1000",
        "out": "outputs/calibration",
        "figure": "",
        "split": "evaluation",
    }
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or key not in options:
            raise SystemExit(f"{word!r} is not one of {', '.join(f'{k}=...' for k in options)}")
        options[key] = value
    results, folders = {}, {}
    for path in options["models"].split(","):
        start = time.time()
        policy = load_policy(path)
        folder = Path(options["out"]) / policy.name
        folder.mkdir(parents=True, exist_ok=True)
        results[policy.name] = measure(policy, int(options["n"]), folder, options["split"])
        folders[policy.name] = folder
        (folder / "calibration.json").write_text(json.dumps(results[policy.name], indent=1) + "\n")
        print(f"{policy.name}: {time.time() - start:.0f} s", flush=True)
    print(table(results))
    if options["figure"]:
        prior.draw(folders, Path(options["figure"]), options["split"])


if __name__ == "__main__":
    main(sys.argv[1:])

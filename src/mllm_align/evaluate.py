"""`mllm-align evaluate`: benchmarks on a base model, on any PEFT adapter of it, on a served model, or on answers that
lie in a file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mllm_align.entry import command


def _run(config: dict[str, Any]) -> None:
    from mllm_align.pipeline import benchmark_specs
    from mllm_align.store import write_json

    specs = benchmark_specs(config)
    if not specs:
        raise ValueError("no benchmark is chosen; add benchmark=published/pope, say, or benchmark=scenes")
    out = Path(config["out"])
    metrics = _scored(config, specs, out) if config["predictions"] else _answered(config, specs, out)
    write_json(out / "metrics.json", metrics)
    print(f"predictions and metrics are in {out}")


def _answered(config: dict[str, Any], specs: dict[str, Any], out: Path) -> dict[str, dict[str, float]]:
    """The metrics of a model's answers; questions and images are looked for first."""
    from mllm_align import stages
    from mllm_align.store import Store

    store = Store(Path(config["outputs"]) / "store")
    for spec in specs.values():
        stages.ready(spec, store)
    policy = stages.answering(config, specs)
    metrics = {}
    for name, spec in specs.items():
        file = out / "predictions" / f"{name}.jsonl"
        metrics[name] = stages.answer(policy, spec, file, config["base_model"]["batch_size"], store)
        _say(name, metrics[name], file)
    return metrics


def _scored(config: dict[str, Any], specs: dict[str, Any], out: Path) -> dict[str, dict[str, float]]:
    """The metrics of answers that lie in a file; no model is loaded."""
    from mllm_align.benchmarks import base
    from mllm_align.benchmarks.scoring import read_predictions
    from mllm_align.pipeline import made

    if len(specs) > 1:
        raise ValueError(
            f"predictions={config['predictions']} belongs to one benchmark, and {len(specs)} are chosen "
            f"({', '.join(specs)}); choose one, such as benchmark=published/pope"
        )
    [(name, spec)] = specs.items()
    benchmark, file = made(spec), out / "predictions" / f"{name}.jsonl"
    rows, told = read_predictions(benchmark, config["predictions"], config["predictions_partial"])
    rows = base.finish(benchmark, rows, file, told)
    metrics = {name: base.score(benchmark, rows)}
    _say(name, metrics[name], file)
    return metrics


def _say(name: str, metrics: dict[str, float], file: Path) -> None:
    """The official figures where the benchmark has a result beside its predictions, else the metrics in a line."""
    result = file.with_suffix(".json")
    if not result.is_file():
        print(f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
        return
    from mllm_align.benchmarks.scoring import lines

    print("\n".join(lines(json.loads(result.read_text(encoding="utf-8")))))


main = command("evaluate", _run)


if __name__ == "__main__":
    sys.exit(main())

"""`mllm-align judge`: how often an annotator agrees with held-out pairs, its ties and its liking for a place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from mllm_align.entry import command


def _run(config: dict[str, Any]) -> None:
    if config["annotator"]["build"] is None:
        raise ValueError(
            "annotator=none judges nothing; choose annotator=oracle (scenes only), self, large, reward_model or api"
        )
    build = config["dataset"]["build"]
    given = any(override.startswith("dataset.size=") for override in HydraConfig.get().overrides.task)
    if "split" not in build and not given:
        build["size"] = None  # own data have no part that is kept aside, and are judged as they are
    from mllm_align import stages
    from mllm_align.benchmarks.base import write_jsonl
    from mllm_align.store import write_json

    stages.set_threads(config["trainer"]["threads"])
    rows, figures = stages.judged(config)
    out = Path(config["out"])
    write_jsonl(rows, out / "judgements.jsonl")
    write_json(out / "judge.json", figures)
    print(f"{config['annotator']['name']} on {config['dataset']['name']}: {told(figures)}")
    print(f"judgements: {out / 'judgements.jsonl'}")


def told(figures: dict[str, Any]) -> str:
    """The figures in a line."""
    if figures["accuracy"] is None:
        return f"{figures['pairs']} pairs, all of them ties"
    low, high = figures["interval"]
    parts = [
        f"accuracy {100 * figures['accuracy']:.1f}% [{100 * low:.1f}, {100 * high:.1f}] of "
        f"{figures['pairs'] - figures['ties']} decided pairs",
        f"{figures['ties']} ties",
    ]
    if figures["comparisons"]:
        parts.append(
            f"both orders name different winners in {100 * figures['conflicting']:.1f}% of "
            f"{figures['comparisons']} comparisons"
        )
        if figures["lean"] is not None:
            unit = {"log-odds": "nats"}.get(figures["unit"], figures["unit"])
            parts.append(f"{figures['lean']:+.2f} {unit} for place A")
    if figures["undecided"]:
        parts.append(f"{figures['undecided']} comparisons undecided")
    return ", ".join(parts)


main = command("judge", _run)


if __name__ == "__main__":
    sys.exit(main())

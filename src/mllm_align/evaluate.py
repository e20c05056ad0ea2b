"""`mllm-align evaluate`: benchmarks on a base model, or on any PEFT adapter of it, outside a run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from mllm_align.paths import conf_dir
from mllm_align.train import plain, say_errors_shortly


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="evaluate")
def _main(cfg: DictConfig) -> None:
    logging.basicConfig(
        level=logging.INFO, format="[%(asctime)s] %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    if code := say_errors_shortly(lambda: _run(plain(cfg))):
        sys.exit(code)


def _run(config: dict[str, Any]) -> None:
    from mllm_align import stages
    from mllm_align.store import Store, write_json

    stages.set_threads(config["trainer"]["threads"])
    model, out = config["base_model"], Path(config["out"])
    policy = stages.load(model, config["trainer"]["accelerator"], adapter=config["adapter"])
    metrics = {}
    for name, spec in (config["benchmark"]["tasks"] or {}).items():
        metrics[name] = stages.answer(
            policy,
            spec,
            out / "predictions" / f"{name}.jsonl",
            model["batch_size"],
            Store(Path(config["outputs"]) / "store"),
        )
        print(f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in metrics[name].items()))
    write_json(out / "metrics.json", metrics)
    print(f"predictions and metrics are in {out}")


def main() -> int:
    _main()
    return 0


if __name__ == "__main__":
    sys.exit(main())

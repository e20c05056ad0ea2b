"""`mllm-align train`: compose one cell and run it; with -m a grid of cells (see `sweep`)."""

from __future__ import annotations

import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig

from mllm_align.entry import command


def _run(config: dict[str, Any]) -> None:
    from mllm_align.launch import place
    from mllm_align.pipeline import ready_cell, run_cell
    from mllm_align.record import run_folder

    for name in ("table", "cells"):
        if value := config["sweep"][name]:
            raise ValueError(
                f"sweep.{name}={value} is a grid of cells: add -m, and leave hydra/launcher as it is"
            )
    overrides = list(HydraConfig.get().overrides.task)
    if config["estimate"]:
        from mllm_align.estimate.run import tell

        tell(" ".join(overrides) or "the default cell", config)
        return
    cell = ready_cell(config)
    if config["plan"]:
        from mllm_align.store import Store
        from mllm_align.sweep.cells import Planned
        from mllm_align.sweep.plan import make_plan, show
        from mllm_align.terminal import console

        planned = Planned(cell, tuple(overrides), config)
        show(make_plan([planned], Store(cell.outputs / "store"), cell.outputs, 1), console(), 1, None)
        return
    headline = run_cell(config, overrides)
    if not place(config["trainer"]["devices"], config["trainer"]["nodes"]).leads:
        return
    figures = "  ".join(f"{name} {value:.4g}" for name, value in headline.items())
    print(f"{cell.label} seed{cell.seed}: {figures or 'finished, without a benchmark'}")
    print(f"record, adapter and predictions: {run_folder(cell.outputs, cell.label, cell.seed)}")


main = command("train", _run)


if __name__ == "__main__":
    sys.exit(main())

"""`mllm-align train`: compose one cell and run it; with -m a grid of cells (see `sweep`)."""

from __future__ import annotations

import logging
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mllm_align.paths import conf_dir

REFUSED = 2


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without Hydra's own part. Raises where a value is missing, naming it."""
    values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def say_errors_shortly(run: Any) -> int:
    """Run `run`; a mistake of the user's (ValueError, missing file) ends with one message instead of a traceback."""
    try:
        run()
    except (ValueError, FileNotFoundError) as error:
        message = "\n".join([str(error), *getattr(error, "__notes__", ())])
        print(f"mllm-align: {type(error).__name__}: {message}", file=sys.stderr)
        return REFUSED
    return 0


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def _main(cfg: DictConfig) -> None:
    logging.basicConfig(
        level=logging.INFO, format="[%(asctime)s] %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    overrides = list(HydraConfig.get().overrides.task)
    code = say_errors_shortly(lambda: _run(plain(cfg), overrides))
    if code:
        sys.exit(code)


def _run(config: dict[str, Any], overrides: list[str]) -> None:
    from mllm_align.launch import place
    from mllm_align.pipeline import plan_cell, run_cell

    if config["estimate"]:
        from mllm_align.estimate.run import tell

        tell(" ".join(overrides) or "the default cell", config)
        return
    cell = plan_cell(config)
    if config["plan"]:
        from mllm_align.store import Store
        from mllm_align.sweep.cells import Planned
        from mllm_align.sweep.plan import make_plan, show
        from mllm_align.terminal import console

        show(
            make_plan(
                [Planned(cell, tuple(item for item in overrides if item != "plan=true"), config)],
                Store(cell.outputs / "store"),
                cell.outputs,
                1,
            ),
            console(),
            1,
            None,
        )
        return
    headline = run_cell(config, overrides)
    if not place(config["trainer"]["devices"], config["trainer"]["nodes"]).leads:
        return
    print(
        f"{cell.label} seed{cell.seed}: "
        + "  ".join(f"{name} {value:.4g}" for name, value in headline.items())
    )


def main() -> int:
    _main()
    return 0


if __name__ == "__main__":
    sys.exit(main())

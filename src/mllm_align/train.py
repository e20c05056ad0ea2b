"""`mllm-align train`: compose one cell and run it; with -m a grid of cells (see `sweep`)."""

from __future__ import annotations

import logging
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf

from mllm_align.paths import PACKAGE, conf_dir

REFUSED = 2
STOPPED = 130
# Packages whose errors are about the config, or say what to do.
TELLING = {"mllm_align", "hydra", "omegaconf"}


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without Hydra's own part. Raises ValueError where a value is missing, naming it."""
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} has no value; give {error.full_key}=...") from None
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def say_errors_shortly(run: Any) -> int:
    """Run `run`; a mistake of the user's (ValueError, missing file) ends with one message instead of a traceback.

    What is raised by a module of the user's own, or inside a library, is raised on: its traceback says where.
    """
    try:
        run()
    except (ValueError, FileNotFoundError) as error:
        if not _tells(error):
            raise
        message = "\n".join([str(error), *getattr(error, "__notes__", ())])
        print(f"mllm-align: {type(error).__name__}: {message}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("mllm-align: stopped; the same command goes on from what is stored", file=sys.stderr)
        return STOPPED
    return 0


def _tells(error: BaseException) -> bool:
    """Whether the message is enough: this package, or what composes its config, raised it."""
    if type(error).__module__.partition(".")[0] in TELLING:
        return True
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, FileNotFoundError):  # it names the file, also where a library opened it
        files = [file for file in files if file.is_relative_to(PACKAGE) or not _of_a_library(file)]
    return bool(files) and files[-1].is_relative_to(PACKAGE)


def _of_a_library(file: Path) -> bool:
    """Python's own or installed code, also what is frozen into Python (`<frozen ...>`)."""
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return bool(installed) or file.is_relative_to(sysconfig.get_path("stdlib")) or str(file).startswith("<")


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
    from mllm_align.pipeline import ready_cell, run_cell
    from mllm_align.record import run_folder

    for name in ("table", "cells"):
        if value := config["sweep"][name]:
            raise ValueError(
                f"sweep.{name}={value} is a grid of cells: add -m, and leave hydra/launcher as it is"
            )
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


def main() -> int:
    _main()
    return 0


if __name__ == "__main__":
    sys.exit(main())

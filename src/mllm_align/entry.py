"""How a command is entered: Hydra composes its config, and mistakes of the user's end in words, not in tracebacks."""

from __future__ import annotations

import logging
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
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


def say_errors_shortly(run: Callable[[], int | None]) -> int:
    """Run `run`, and give its exit status; a mistake of the user's (ValueError, missing file) ends with one message
    instead of a traceback.

    What is raised by a module of the user's own, or inside a library, is raised on: its traceback says where.
    """
    try:
        return run() or 0
    except (ValueError, FileNotFoundError) as error:
        if not _tells(error):
            raise
        message = "\n".join([str(error), *getattr(error, "__notes__", ())])
        print(f"mllm-align: {type(error).__name__}: {message}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("mllm-align: stopped; the same command goes on from what is stored", file=sys.stderr)
        return STOPPED


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


def command(
    name: str, run: Callable[[dict[str, Any]], int | None], level: int = logging.INFO
) -> Callable[[], int]:
    """The `main` of the command with conf/<name>.yaml: `run` takes its resolved config, and gives the exit status or
    None. Messages of `level` and above are shown.
    """

    def task(cfg: DictConfig) -> None:
        logging.basicConfig(level=level, format="[%(asctime)s] %(levelname)s %(message)s", datefmt="%H:%M:%S")
        if code := say_errors_shortly(lambda: run(plain(cfg))):
            sys.exit(code)

    task.__module__ = run.__module__  # Hydra names the program by it
    composed = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(task)

    def main() -> int:
        composed()
        return 0

    return main

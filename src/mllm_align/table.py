"""`mllm-align table`: compare finished runs in the terminal, as Markdown, CSV or LaTeX, and as a page with pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from mllm_align.paths import conf_dir
from mllm_align.record import RECORD
from mllm_align.train import plain, say_errors_shortly


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="table")
def _main(cfg: DictConfig) -> None:
    if code := say_errors_shortly(lambda: _run(plain(cfg))):
        sys.exit(code)


def _run(config: dict[str, Any]) -> None:
    from rich.console import Console

    from mllm_align.store import write_text
    from mllm_align.tables.compare import compare, render_csv, render_latex, render_markdown, render_terminal

    comparison = compare(run_folders(config), config["baseline"])
    console = Console(highlight=False)
    console.print(render_terminal(comparison, console.width))
    for name, render in {"markdown": render_markdown, "csv": render_csv, "latex": render_latex}.items():
        if config[name]:
            write_text(Path(config[name]), render(comparison))
            print(f"{name}: {config[name]}")
    if config["report"]:
        from mllm_align.tables.report import write_page

        steps = [(text, command) for text, command in config["next"]]
        page = write_page(comparison, Path(config["report"]), config["title"], steps)
        print(f"page with pictures: {page}")
        for text, command in steps:
            print(f"next, {text}:\n  {command}")


def run_folders(config: Mapping[str, Any]) -> list[Path]:
    """The folders asked for. Raises FileNotFoundError for a sweep that is not there, naming those that are."""
    if config["sweep"] is None:
        return [Path(folder) for folder in config["runs"]]
    sweeps = Path(config["outputs"]) / "sweeps"
    file = sweeps / config["sweep"] / "summary.json"
    if not file.is_file():
        known = ", ".join(sorted(path.parent.name for path in sweeps.glob("*/summary.json"))) or "none"
        raise FileNotFoundError(f"sweep={config['sweep']}: {file} does not exist; sweeps there: {known}")
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    folders = [Path(config["outputs"]) / cell["run"] for cell in cells]
    for folder in (folder for folder in folders if not (folder / RECORD).is_file()):
        print(f"not started yet, so not in the table: {folder}", file=sys.stderr)
    return [folder for folder in folders if (folder / RECORD).is_file()]


def main() -> int:
    _main()
    return 0


if __name__ == "__main__":
    sys.exit(main())

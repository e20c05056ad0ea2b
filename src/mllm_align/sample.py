"""`mllm-align sample`: a preference set as Parquet, in the form that TRL and `dataset=local` read."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from mllm_align.paths import conf_dir
from mllm_align.train import plain, say_errors_shortly


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="sample")
def _main(cfg: DictConfig) -> None:
    logging.basicConfig(
        level=logging.INFO, format="[%(asctime)s] %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    if code := say_errors_shortly(lambda: _run(plain(cfg))):
        sys.exit(code)


def _run(config: dict[str, Any]) -> None:
    from mllm_align import stages

    stages.set_threads(config["trainer"]["threads"])
    groups, report = stages.sampled(config)
    out = Path(config["out"])
    stages.write_groups(out, groups)
    print(f"{len(groups)} groups in {out}" + "".join(f"; {name}: {value}" for name, value in report.items()))


def main() -> int:
    _main()
    return 0


if __name__ == "__main__":
    sys.exit(main())

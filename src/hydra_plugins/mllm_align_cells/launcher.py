"""Hydra's launcher for sweeps of cells (`hydra/launcher: cells`).

Hydra imports this at every start: keep it light.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig


class CellsLauncher(Launcher):
    """Checks all cells, prints the plan, runs each cell in a process of its own (see mllm_align.sweep).

    Hydra's task function is not called: a cell runs `task(config, overrides)` in its own process.
    Its settings are described in conf/hydra/launcher/cells.yaml.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One JobReturn a cell. SystemExit: 2 where a cell is refused, 1 where one fails, 130 on Ctrl-C."""
        from mllm_align.sweep.drive import LauncherConfig, drive

        config = LauncherConfig(**self.settings)
        metrics = drive(job_overrides, self.context.config_loader, self.config, config)
        return [_completed(overrides, figures) for overrides, figures in metrics]


def _completed(overrides: Sequence[str], figures: Any) -> JobReturn:
    done = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    done.return_value = figures
    return done

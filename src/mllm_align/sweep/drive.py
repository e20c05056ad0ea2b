"""From Hydra's launcher to a finished sweep: compose, check, plan, run, report.

Knows Hydra; the other modules of this folder do not.
"""

import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from mllm_align import terminal
from mllm_align.host import usable_cores
from mllm_align.redact import redact_overrides
from mllm_align.store import Store, load
from mllm_align.sweep.cells import Planned, Refused, check, cross, read_rows
from mllm_align.sweep.plan import make_plan, show
from mllm_align.sweep.report import Report, driver_overrides, sweep_name, tell_end
from mllm_align.sweep.run import Settings, run_plan
from mllm_align.tables.spec import read_spec

REFUSED = 2
# Groups that a row of a table chooses, by its experiment.
OF_ROWS = ("alignment", "dataset", "sampler", "annotator")
STOPPED = 130

Overrides = list[tuple[str, ...]]
Results = list[tuple[tuple[str, ...], dict[str, float]]]


@dataclass(frozen=True)
class LauncherConfig:
    """The keys of conf/hydra/launcher/cells.yaml, which says what each one does."""

    plan: str
    task: str
    command: str
    outputs: str
    store: str
    preload: Sequence[str] = ()
    workers: int = 1
    threads: int | None = None
    cells: str | None = None
    table: str | None = None
    name: str | None = None
    plan_only: bool = False
    estimate_only: bool = False
    fail_fast: bool = False
    retries: int = 0


def drive(
    jobs: Sequence[Sequence[str]], loader: ConfigLoader, master: DictConfig, config: LauncherConfig
) -> Results:
    """Overrides and headline metrics of each cell; none where only the plan was asked for.

    Raises SystemExit: 2 where a cell was refused and nothing ran, 1 where one failed, 130 after Ctrl-C.
    """
    console = terminal.console()
    try:
        settings = _settings(config)
        overrides = _expand(jobs, config, loader)
        cells, refused = check(overrides, partial(_compose, loader, master), load(config.plan))
        name = sweep_name(config.name or config.table, cells)
    except ValueError as error:
        console.print(Text(str(error)), soft_wrap=True)
        sys.exit(REFUSED)
    if refused:
        _tell_refused(refused, len(overrides), console)
        sys.exit(REFUSED)
    if len(cells) < len(overrides):
        console.print(f"{len(overrides)} cells were asked for; those that are the same count once.")
    if config.estimate_only:
        return _estimated(cells)
    store = Store(config.store)
    cells = [_named(planned, name) for planned in cells]
    plan = make_plan(cells, store, settings.outputs, settings.workers)
    show(plan, console, settings.workers, settings.threads)
    if config.plan_only:
        return []
    program = _program(config)
    command = shlex.join([*shlex.split(program), "-m", *redact_overrides(_given(master))])
    about = {"command": command, "workers": settings.workers, "threads": settings.threads}
    report = Report(name, cells, settings.outputs, store, about)
    report.found(plan.finished)
    stopped = _run_until_stopped(lambda: run_plan(plan, settings, report, console))
    driver = driver_overrides(_given(master))
    code = tell_end(report, console, program, driver)
    if stopped:
        console.print(Text(f"Stopped. To continue the whole sweep:\n  {command}"), soft_wrap=True)
        sys.exit(STOPPED)
    if code:
        sys.exit(code)
    return [(planned.overrides, report.outcomes[planned.name].metrics) for planned in cells]


def _estimated(cells: Sequence[Planned]) -> Results:
    """Every cell's estimate, and the hours of all; nothing is run."""
    from mllm_align.estimate.run import tell

    hours = [tell(" ".join(planned.overrides), planned.config) for planned in cells]
    print(f"{len(hours)} cells: about {sum(hours):.1f} h one after the other")
    return []


def _settings(config: LauncherConfig) -> Settings:
    """Raises ValueError where a number cannot be."""
    if config.workers < 1 or config.retries < 0 or (config.threads is not None and config.threads < 1):
        raise ValueError("sweep.workers and sweep.threads must be 1 or more, sweep.retries 0 or more")
    return Settings(
        task=config.task,
        outputs=Path(config.outputs),
        workers=config.workers,
        # By the workers asked for, not by the cells left: a continued sweep must compute with the same
        # number of threads, or its sums differ in the last bit.
        threads=config.threads or max(1, usable_cores() // config.workers),
        fail_fast=config.fail_fast,
        retries=config.retries,
        preload=tuple(config.preload),
    )


def _expand(
    jobs: Sequence[Sequence[str]], config: LauncherConfig, loader: ConfigLoader
) -> list[tuple[str, ...]]:
    """The jobs, crossed with the rows of a file or table; a row may hold comma-separated choices itself."""
    if config.cells is not None and config.table is not None:
        raise ValueError("sweep.cells and sweep.table both say which cells to run; leave one of them out")
    if config.cells is not None:
        origin, written = f"sweep.cells={config.cells}", read_rows(Path(config.cells))
    elif config.table is not None:
        origin, written = f"sweep.table={config.table}", _table_rows(config.table, loader)
        _check_rows_stay(jobs, config.table)
    else:
        return [tuple(job) for job in jobs]
    parser = OverridesParser.create(config_loader=loader)
    rows = [
        tuple(row)
        for overrides in written
        for batch in BasicSweeper.split_arguments(parser.parse_overrides(list(overrides)), None)
        for row in batch
    ]
    return cross(jobs, rows, origin)


def _check_rows_stay(jobs: Sequence[Sequence[str]], table: str) -> None:
    """The command line would win over what a row's experiment chooses, and the row keep its name."""
    for override in dict.fromkeys(override for job in jobs for override in job):
        if override.partition("=")[0] in OF_ROWS:
            raise ValueError(
                f"sweep.table={table}: {override} would make other rows of the table's, under their names; leave it "
                "out, or write a table of your own (docs/tables.md)"
            )


def _table_rows(name: str, loader: ConfigLoader) -> list[tuple[str, ...]]:
    """Overrides of each row of a table. Raises ValueError for a table that is not there, naming those that are."""
    known = loader.get_group_options("table")
    if name not in known:
        raise ValueError(f"sweep.table={name}: there is no such table; choose one of {', '.join(known)}")
    config = loader.load_configuration("table", [f"table={name}"], RunMode.RUN)
    section = OmegaConf.to_container(config.table, resolve=True)
    assert isinstance(section, dict)
    spec = read_spec({str(key): value for key, value in section.items()})
    return [row.overrides for row in spec.rows]


def _compose(loader: ConfigLoader, master: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """One cell's config as plain data. Raises where a value is missing, or set out of the sweep's sight."""
    config = loader.load_sweep_config(master, list(overrides))
    for name in ("sweep", "outputs", "hydra.launcher", "hydra.sweeper"):
        if _plain(config, name) != _plain(master, name):
            raise ValueError(
                f"this cell sets {name}, which is read once for the whole sweep: give it on the command "
                "line without commas, or in a file that is not itself swept over"
            )
    HydraConfig.instance().set_config(config)
    names = [str(key) for key in config if key != "hydra"]
    values = OmegaConf.to_container(OmegaConf.masked_copy(config, names), resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _plain(config: DictConfig, name: str) -> Any:
    part = OmegaConf.select(config, name)
    return OmegaConf.to_container(part, resolve=False) if OmegaConf.is_config(part) else part


def _named(planned: Planned, name: str) -> Planned:
    """The cell is told the sweep's name, to group its runs by; its key does not depend on it."""
    sweep = {**dict(planned.config.get("sweep") or {}), "id": name}
    return replace(planned, config={**planned.config, "sweep": sweep})


def _tell_refused(refused: Sequence[Refused], count: int, console: Console) -> None:
    console.print(f"[bold red]Nothing was run[/]: {len(refused)} of {count} cells cannot run.")
    for cell in refused:
        words = shlex.join(redact_overrides(cell.overrides))
        console.print(Text(f"  {words}\n    {cell.reason}"), soft_wrap=True)


def _run_until_stopped(run: Any) -> bool:
    """Whether Ctrl-C, or a scheduler's SIGTERM, ended it."""
    try:
        with _sigterm_as_ctrl_c():
            run()
    except KeyboardInterrupt:
        return True
    return False


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = (signal.SIGTERM, signal.SIGINT)  # SIGINT too: a shell's background jobs start with it ignored
    before = [signal.signal(number, signal.default_int_handler) for number in wanted]
    try:
        yield
    finally:
        for number, handler in zip(wanted, before, strict=True):
            signal.signal(number, handler)


def _given(master: DictConfig) -> list[str]:
    """What stood on the command line, but for what Hydra adds by itself."""
    given = [*master.hydra.overrides.task, *master.hydra.overrides.hydra]
    return [str(item) for item in given if not str(item).startswith("hydra.mode=")]


def _program(config: LauncherConfig) -> str:
    """The program's call with the options by which Hydra found its configs (`--config-dir` or `-cd`, and the like)."""
    given = vars(get_args_parser().parse_known_args(sys.argv[1:])[0])
    names = ("config_path", "config_name", "config_dir")
    options = [f"--{name.replace('_', '-')}={given[name]}" for name in names if given[name]]
    return shlex.join([*shlex.split(config.command), *options])

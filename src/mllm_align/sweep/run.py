"""Run the cells of a plan, each in a process of its own, and say at once how each one ended."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from mllm_align.record import SCALARS, mark_killed, read_record
from mllm_align.store import Stage, Store
from mllm_align.sweep import pool
from mllm_align.sweep.cells import Planned
from mllm_align.sweep.plan import Plan, duration, own_settings, stage_names
from mllm_align.sweep.report import Outcome, Report
from mllm_align.sweep.worker import Order

LOG = "log.txt"
TICK = 0.5  # seconds between looks at the running cells
SHOWN = 4  # figures beside a finished cell


@dataclass(frozen=True)
class Settings:
    """How to run: `task` is the dotted name of `run(config, overrides) -> headline metrics`."""

    task: str
    outputs: Path
    workers: int
    threads: int
    fail_fast: bool
    retries: int
    preload: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """A cell in flight, the number of its attempt (1 is the first), and the stages it may be building."""

    planned: Planned
    number: int
    running: pool.Running
    builds: frozenset[str]


def run_plan(plan: Plan, settings: Settings, report: Report, console: Console) -> None:
    """Fills the report. Raises KeyboardInterrupt after ending the cells that ran."""
    if not plan.pending:
        return
    with pool.fork_server(settings.preload, settings.threads) as context:
        Loop(plan, settings, report, console, context).run()


class Loop:
    """The state of a running sweep: what waits, what runs; what has ended is in the report."""

    def __init__(
        self, plan: Plan, settings: Settings, report: Report, console: Console, context: ForkServerContext
    ) -> None:
        self.settings = settings
        self.report = report
        self.console = console
        self.context = context
        self.missing = dict(plan.missing)
        self.own = own_settings((*plan.finished, *plan.pending))
        self.store = report.store
        self.waiting: list[tuple[Planned, int]] = [(planned, 1) for planned in plan.pending]
        self.attempts: list[Attempt] = []

    def run(self) -> None:
        with Live(console=self.console, transient=True, auto_refresh=False) as live:
            try:
                while self.waiting or self.attempts:
                    self._fill()
                    pool.wait([attempt.running for attempt in self.attempts], TICK)
                    for attempt in list(self.attempts):
                        self._look(attempt)
                    if self.console.is_terminal:
                        live.update(_status(self.attempts, self.settings.outputs), refresh=True)
            except BaseException as error:
                by_hand = isinstance(error, KeyboardInterrupt)
                self._stop("stopped by Ctrl-C" if by_hand else f"stopped: {type(error).__name__}: {error}")
                raise

    def _fill(self) -> None:
        """Start cells while there are free workers, first those whose stages nobody builds at the moment."""
        while self.waiting and len(self.attempts) < self.settings.workers:
            self.missing = still_missing(self.missing, self.store)
            busy = frozenset().union(*(attempt.builds for attempt in self.attempts))
            index = choose([planned for planned, _ in self.waiting], busy, self.missing)
            self._start(*self.waiting.pop(index))

    def _start(self, planned: Planned, number: int) -> None:
        folder = planned.folder(self.settings.outputs)
        order = Order(
            run=self.settings.task,
            config=planned.config,
            overrides=planned.overrides,
            log=str(folder / LOG),
            threads=self.settings.threads,
            title=planned.name,
        )
        again = f" (attempt {number})" if number > 1 else ""
        self.report.started(planned)
        settings = escape("  ".join(self.own[planned.cell.label]))
        self.console.print(
            f"{self._count()} start   {escape(planned.name)}{again}  [dim]{settings}[/]", soft_wrap=True
        )
        builds = frozenset(stage_names(planned)) & frozenset(self.missing)
        self.attempts.append(Attempt(planned, number, pool.start(self.context, order), builds))

    def _look(self, attempt: Attempt) -> None:
        if attempt not in self.attempts:  # fail_fast has ended it meanwhile
            return
        ending = pool.ending(attempt.running)
        if ending is None:
            return
        self.attempts.remove(attempt)
        seconds = time.monotonic() - attempt.running.started
        if ending.metrics is None and attempt.number <= self.settings.retries:
            self._tell_failure(attempt, ending.reason, seconds, "failed, tried again")
            self.waiting.insert(0, (attempt.planned, attempt.number + 1))
        elif ending.metrics is None:
            self._tell_failure(attempt, ending.reason, seconds, "FAILED")
            self.report.ended(attempt.planned, Outcome("failed", seconds, attempt.number, ending.reason))
            if self.settings.fail_fast:
                self._stop("stopped by fail_fast")
                self.waiting.clear()
        else:
            self._tell_success(attempt, ending.metrics, seconds)

    def _tell_success(self, attempt: Attempt, metrics: Mapping[str, float], seconds: float) -> None:
        data = read_record(attempt.planned.folder(self.settings.outputs))
        status = "collapsed" if data.get("status") == "collapsed" else "finished"
        self.report.ended(attempt.planned, Outcome(status, seconds, attempt.number, metrics=dict(metrics)))
        figures = "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:SHOWN])
        word = "[green]done[/]   " if status == "finished" else "[yellow]COLLAPSED[/]"
        title = escape(attempt.planned.name)
        self.console.print(
            f"{self._count()} {word} {title}  {duration(seconds)}  {escape(figures)}", soft_wrap=True
        )

    def _tell_failure(self, attempt: Attempt, reason: str, seconds: float, word: str) -> None:
        folder = attempt.planned.folder(self.settings.outputs)
        mark_killed(folder, attempt.running.process.pid or 0, reason)
        title = escape(attempt.planned.name)
        self.console.print(f"{self._count()} [bold red]{word}[/] {title} after {duration(seconds)}")
        self.console.print(Text(f"    reason: {reason}\n    log:    {folder / LOG}"), soft_wrap=True)

    def _stop(self, why: str) -> None:
        if self.attempts:
            self.console.print(f"{why}: ending {len(self.attempts)} running cells ...")
        pool.stop([attempt.running for attempt in self.attempts])
        for attempt in self.attempts:
            pid = attempt.running.process.pid or 0
            mark_killed(attempt.planned.folder(self.settings.outputs), pid, why, status="interrupted")
            seconds = time.monotonic() - attempt.running.started
            self.report.ended(attempt.planned, Outcome("interrupted", seconds, attempt.number, why))
        self.attempts.clear()

    def _count(self) -> str:
        return f"[dim]\\[{self.report.count_ended()}/{len(self.report.cells)}][/]"


def choose(waiting: Sequence[Planned], busy: frozenset[str], missing: Mapping[str, Stage]) -> int:
    """Index of the cell to start: the first one with the fewest missing stages that another cell builds now.

    Two cells that lack the same stage would have one worker wait for the other.
    """
    shared = [len(busy & frozenset(stage_names(planned)) & frozenset(missing)) for planned in waiting]
    return shared.index(min(shared))


def still_missing(missing: Mapping[str, Stage], store: Store) -> dict[str, Stage]:
    return {name: stage for name, stage in missing.items() if not store.path(stage).exists()}


def _status(attempts: Sequence[Attempt], outputs: Path) -> Text:
    lines = []
    for attempt in attempts:
        folder = attempt.planned.folder(outputs)
        passed = duration(time.monotonic() - attempt.running.started)
        lines.append(f"  running {attempt.planned.name}  {passed}  {_where(folder)}")
    return Text("\n".join(lines), style="dim")


def _where(folder: Path) -> str:
    """The stage a run is in, and the step of its last scalar."""
    stage = read_stage(folder)
    try:
        with (folder / SCALARS).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 300))
            last = file.read().decode(errors="replace").rstrip("\n").rsplit("\n", 1)[-1]
    except OSError:
        return stage
    step = last.partition(",")[0]
    return f"{stage} step {step}" if step.isdigit() else stage


def read_stage(folder: Path) -> str:
    return str(read_record(folder).get("stage", ""))

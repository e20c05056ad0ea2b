"""What a sweep would do: which cells run, which stages they share, how long it may take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from mllm_align.record import read_record
from mllm_align.redact import redact_overrides
from mllm_align.store import Stage, Store
from mllm_align.sweep.cells import Planned, drives

# Cells and stages without an estimate that are named.
SHOWN_UNKNOWN = 3


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep, split by whether they are finished, and their stages, each once.

    `missing` are the stages that the unfinished cells need and the store lacks.
    """

    finished: tuple[Planned, ...]
    pending: tuple[Planned, ...]
    continued: tuple[Planned, ...]
    stages: dict[str, Stage]
    missing: dict[str, Stage]
    seconds: float | None
    unknown: tuple[str, ...]


def make_plan(cells: Sequence[Planned], store: Store, outputs: Path, workers: int) -> Plan:
    """Checks every finished run and every stored stage that is needed against its checksums."""
    finished = [planned for planned in cells if planned.cell.finished(outputs)]
    names = {planned.name for planned in finished}
    pending = [planned for planned in cells if planned.name not in names]
    continued = [
        planned for planned in pending if read_record(planned.folder(outputs)).get("key") == planned.cell.key
    ]
    stages = _unique(cells)
    missing = _missing(pending, store)
    seconds, unknown = _estimate(pending, missing, store, workers)
    return Plan(tuple(finished), tuple(pending), tuple(continued), stages, missing, seconds, unknown)


def stage_names(planned: Planned) -> dict[str, Stage]:
    """Name/key -> stage, of a cell's stages with their inputs."""
    return {f"{part.name}/{part.key}": part for stage in planned.cell.stages for part in stage.with_inputs()}


def _unique(cells: Sequence[Planned]) -> dict[str, Stage]:
    return {name: stage for planned in cells for name, stage in stage_names(planned).items()}


def _missing(pending: Sequence[Planned], store: Store) -> dict[str, Stage]:
    """Only what will be built: the inputs of a stored stage are not needed."""
    missing: dict[str, Stage] = {}
    queue = [stage for planned in pending for stage in planned.cell.stages]
    while queue:
        stage = queue.pop()
        name = f"{stage.name}/{stage.key}"
        if name not in missing and not store.has(stage):
            missing[name] = stage
            queue.extend(stage.inputs.values())
    return missing


def _estimate(
    pending: Sequence[Planned], missing: dict[str, Stage], store: Store, workers: int
) -> tuple[float | None, tuple[str, ...]]:
    """Seconds if the workers share the work evenly, and the names of what nothing is known about.

    None where most cells were never timed: the sum of the others says nothing about the whole.
    """
    cells = {planned.cell.label: planned.cell.estimate_seconds() for planned in pending}
    stages = {stage.name: store.typical_seconds(stage.name) for stage in missing.values()}
    unknown = [name for name, seconds in {**cells, **stages}.items() if seconds is None]
    total = sum(cells[planned.cell.label] or 0.0 for planned in pending)
    total += sum(stages[stage.name] or 0.0 for stage in missing.values())
    timed = sum(cells[planned.cell.label] is not None for planned in pending)
    known = (total > 0 and 2 * timed >= len(pending)) or not pending
    return (total / max(1, min(workers, len(pending))) if known else None), tuple(unknown)


# --- showing -----------------------------------------------------------------------------------------------


def show(plan: Plan, console: Console, workers: int, threads: int | None) -> None:
    """Print the plan; `threads` is a worker's, None where the run chooses itself."""
    console.print(Group(_cells_table(plan), _stages_table(plan)))
    count = len(plan.finished) + len(plan.pending)
    fresh = len(plan.pending) - len(plan.continued)
    stored = len(plan.stages) - len(plan.missing)
    console.print(
        f"[bold]{_count(count, 'cell')}[/]: {len(plan.finished)} finished already, {fresh} to run, "
        f"{len(plan.continued)} to continue; {_count(len(plan.stages), 'unique stage')}: {stored} stored or "
        f"not needed, {len(plan.missing)} to build.",
        soft_wrap=True,
    )
    each = f" with {_count(threads, 'thread')} each" if threads else ""
    console.print(
        f"{_count(workers, 'worker')}{each}; estimated time: {_time_text(plan)}.",
        soft_wrap=True,
    )


def _cells_table(plan: Plan) -> Table:
    """A cell in two lines: its label, and what sets it apart from the others."""
    table = Table(Column("cell", overflow="fold"), "seeds", "each takes", title="Cells", box=SIMPLE_HEAD)
    cells = (*plan.finished, *plan.pending)
    own = own_settings(cells)
    for label in dict.fromkeys(planned.cell.label for planned in cells):
        estimate = next((p.cell.estimate_seconds() for p in plan.pending if p.cell.label == label), 0.0)
        time = "unknown" if estimate is None else duration(estimate) if estimate else ""
        told = Text(label)
        told.append(f"\n  {' '.join(own[label])}" if own[label] else "", style="dim")
        table.add_row(told, "\n".join(_seeds_in_words(plan, label)), time)
    return table


def _seeds_in_words(plan: Plan, label: str) -> list[str]:
    """The seeds of a cell by what becomes of them, such as `finished: 0` and `to run: 1 2`."""
    continued = _seeds(plan.continued, label)
    fresh = [seed for seed in _seeds(plan.pending, label) if seed not in continued]
    parts = {"finished": _seeds(plan.finished, label), "to continue": continued, "to run": fresh}
    return [f"{what}: {' '.join(map(str, seeds))}" for what, seeds in parts.items() if seeds]


def own_settings(cells: Sequence[Planned]) -> dict[str, tuple[str, ...]]:
    """Label -> the overrides that not every cell has, without the seed and how to run: what its hash stands for."""
    told = {planned.cell.label: redact_overrides(planned.overrides) for planned in cells}
    shared = set.intersection(*map(set, told.values())) if len(told) > 1 else set()
    return {
        label: tuple(o for o in overrides if o not in shared and not drives(o) and not o.startswith("seed="))
        for label, overrides in told.items()
    }


def _stages_table(plan: Plan) -> Table:
    table = Table("stage", "unique", "stored or not needed", "to build", title="Stages", box=SIMPLE_HEAD)
    for name in dict.fromkeys(stage.name for stage in plan.stages.values()):
        unique = sum(stage.name == name for stage in plan.stages.values())
        missing = sum(stage.name == name for stage in plan.missing.values())
        table.add_row(name, str(unique), str(unique - missing), str(missing))
    return table


def _seeds(cells: Sequence[Planned], label: str) -> list[int]:
    return [planned.cell.seed for planned in cells if planned.cell.label == label]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _time_text(plan: Plan) -> str:
    if not plan.pending:
        return "nothing to run"
    if plan.seconds is None:
        return "unknown (most of these cells were never timed)"
    named = list(plan.unknown[:SHOWN_UNKNOWN])
    if len(plan.unknown) > SHOWN_UNKNOWN:
        named.append(f"{len(plan.unknown) - SHOWN_UNKNOWN} more")
    unknown = f", not counting {', '.join(named)} (never timed)" if named else ""
    return f"about {duration(plan.seconds)}{unknown}"


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole or not seconds else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

"""The cells of a sweep: the command line's product, crossed with a list of override sets, and checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from mllm_align.record import run_folder
from mllm_align.store import Stage

DRIVER = ("sweep.", "plan=", "outputs=", "hydra.", "hydra/")  # overrides that say how to run, not what


class Cell(Protocol):
    """What a pipeline says about one composed config before it runs: `plan(config) -> Cell`.

    It raises where the config cannot run (a missing file, an impossible combination), in words for the user.
    """

    @property
    def label(self) -> str:
        """Names the run's folder; the same for all seeds of a config, different for different configs."""

    @property
    def seed(self) -> int: ...

    @property
    def key(self) -> str:
        """Hash of all that the run's result depends on."""

    @property
    def stages(self) -> Sequence[Stage]:
        """What the run takes from the store; their inputs need not be listed."""

    def finished(self, outputs: Path) -> bool:
        """Whether the run lies finished and intact below `outputs`."""

    def estimate_seconds(self) -> float | None:
        """Time of the run without its stored stages, by earlier records; None where nothing is known."""


@dataclass(frozen=True)
class Planned:
    """A checked cell with what is needed to run it."""

    cell: Cell
    overrides: tuple[str, ...]
    config: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.cell.label} seed{self.cell.seed}"

    def folder(self, outputs: Path) -> Path:
        return run_folder(outputs, self.cell.label, self.cell.seed)


@dataclass(frozen=True)
class Refused:
    """A cell that cannot run, and why."""

    overrides: tuple[str, ...]
    reason: str


def read_rows(file: Path) -> list[tuple[str, ...]]:
    """A YAML list of override lists, one a cell. Raises ValueError that names the row.

    - [alignment=dpo, trainer.lr=1e-4]
    - [alignment=ipo, trainer.lr=3e-5]
    """
    try:
        rows = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"sweep.cells={file}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"sweep.cells={file}: is not YAML ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"sweep.cells={file}: must be a list of override lists, such as - [seed=0, lr=1e-4]")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list) or not all(isinstance(item, str) and "=" in item for item in row):
            raise ValueError(
                f"sweep.cells={file}: row {number} is {row!r}, not a list of name=value overrides; "
                "quote an override that YAML reads as something else"
            )
    return [tuple(row) for row in rows]


def cross(
    jobs: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], origin: str = "sweep.cells"
) -> list[tuple[str, ...]]:
    """Every job with every row, rows fastest. Raises ValueError where both set the same name; `origin` of the rows."""
    for job in jobs:
        set_by_job = {_name(override) for override in job}
        for number, row in enumerate(rows, start=1):
            if twice := set_by_job & {_name(override) for override in row}:
                raise ValueError(
                    f"{origin}: row {number} sets {', '.join(sorted(twice))}, "
                    "which the command line sets too; take it out of one of them"
                )
    return [(*job, *row) for job in jobs for row in rows]


def check(
    overrides: Sequence[Sequence[str]],
    compose: Callable[[Sequence[str]], Mapping[str, Any]],
    plan: Callable[[Mapping[str, Any]], Cell],
) -> tuple[list[Planned], list[Refused]]:
    """Compose and plan each cell. Cells of one key are one cell; different ones in one folder are refused."""
    planned: dict[tuple[str, int], Planned] = {}
    refused: list[Refused] = []
    for item in overrides:
        try:
            config = compose(item)
            new = Planned(plan(config), tuple(item), config)
            new.folder(Path())
            _same_folder_same_key(planned.setdefault((new.cell.label, new.cell.seed), new), new)
        except Exception as error:
            refused.append(Refused(tuple(item), f"{type(error).__name__}: {_first_paragraph(str(error))}"))
    return list(planned.values()), refused


def drives(override: str) -> bool:
    """Whether an override is read once for the whole sweep."""
    return override.lstrip("+~").startswith(DRIVER)


def _first_paragraph(text: str) -> str:
    """In one line; what Hydra adds, lists of all options and search paths, would hide the next cell's reason."""
    return " ".join(text.strip().partition("\n\n")[0].split())


def _same_folder_same_key(old: Planned, new: Planned) -> None:
    if old.cell.key != new.cell.key:
        raise ValueError(
            f"{new.name} would share its run folder with a different cell ({' '.join(old.overrides)}); "
            "give one of them a label of its own"
        )


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")

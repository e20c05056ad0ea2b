"""Figures of a comparison: faithfulness against recall, learning curves, and a summary in one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm_align.benchmarks.stats import Interval
from mllm_align.tables.rows import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers too.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F7F")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT, GRID = "#1f2933", "#616e7c", "#e4e7eb"
BASELINE = "#323f4b"

# Faithful on the y axis: (column, axis label, whether it is one minus the metric).
FAITHFUL = (
    ("pope/f1", "POPE F1 (%)", False),
    ("recall/chair_s", "descriptions without hallucination (%)", True),
)
RECALL = "recall/recall"
CURVES = (
    ("loss", "loss"),
    ("margin", "margin"),
    ("accuracy", "chosen preferred (share)"),
    ("kl", "KL to the reference (nats)"),
)
_STYLE = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "svg.hashsalt": "mllm-align",  # the same records give the same bytes
}


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure here, for the body alone."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


@dataclass(frozen=True)
class Look:
    """How a row is drawn."""

    colour: str
    marker: str
    dash: str


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """Row name -> Look: a colour a method, a marker and a dash a dataset, the baseline dark."""
    others = [row for row in rows if not row.baseline]
    methods = list(dict.fromkeys(row.method for row in others))
    datasets = list(dict.fromkeys(row.dataset for row in others))
    places = [(methods.index(row.method), datasets.index(row.dataset)) for row in others]
    if len(set(places)) < len(places):  # other axes vary too: a colour and a marker a row
        places = [(i, i) for i in range(len(others))]
    found = {
        row.name: Look(PALETTE[i % len(PALETTE)], MARKERS[j % len(MARKERS)], DASHES[j % len(DASHES)])
        for row, (i, j) in zip(others, places, strict=True)
    }
    return found | {row.name: Look(BASELINE, "*", "-") for row in rows if row.baseline}


def save(figure: Figure, path: Path, **options: Any) -> Path:
    """Writes without a date, so that the same records give the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, metadata=metadata, **options)
    return path


# --- faithfulness against recall ---------------------------------------------------------------------------


def scatter(comparison: Comparison, path: Path) -> Path | None:
    """One panel a faithfulness metric; None where no run has both axes."""
    from matplotlib.figure import Figure

    panels = [panel for panel in FAITHFUL if _points(comparison, panel[0])]
    if not panels:
        return None
    with style():
        figure = Figure(figsize=(5.2 * len(panels), 4.3), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw_scatter(axes, comparison, panel)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
        return save(figure, path)


def draw_scatter(axes: Axes, comparison: Comparison, panel: tuple[str, str, bool] = FAITHFUL[0]) -> None:
    """Each row as a point with both intervals; up and to the right is better."""
    key, label, inverted = panel
    look = looks(comparison.rows)
    for row in _points(comparison, key):
        x, x_error = _position(row.cells[RECALL].value, False)
        y, y_error = _position(row.cells[key].value, inverted)
        axes.errorbar(
            x,
            y,
            xerr=x_error,
            yerr=y_error,
            color=look[row.name].colour,
            marker=look[row.name].marker,
            markersize=13 if row.baseline else 8,
            markeredgecolor="white",
            linestyle="none",
            elinewidth=1.2,
            alpha=0.95,
            label=row.name,
        )
    axes.margins(0.12)
    axes.set_xlabel("object recall (%)")
    axes.set_ylabel(label)


def _points(comparison: Comparison, key: str) -> list[Row]:
    return [row for row in comparison.rows if key in row.cells and RECALL in row.cells]


def _position(interval: Interval, inverted: bool) -> tuple[float, Any]:
    """Percent, and the (2, 1) lengths of the error bar."""
    value, low, high = (100 * x for x in (interval.value, interval.low, interval.high))
    if inverted:
        value, low, high = 100 - value, 100 - high, 100 - low
    return value, np.clip([[value - low], [high - value]], 0, None)


# --- learning curves ---------------------------------------------------------------------------------------


def curves(comparison: Comparison, path: Path) -> Path | None:
    """A panel a figure, a line a run (running mean over a twentieth of the steps); None without training."""
    from matplotlib.figure import Figure

    trained = [(row, run.scalars()) for row in comparison.rows for run in row.done]
    panels = [panel for panel in CURVES if any(panel[0] in scalars for _, scalars in trained)]
    if not panels:
        return None
    look = looks(comparison.rows)
    with style():
        figure = Figure(figsize=(10.4, 2.75 * ((len(panels) + 1) // 2) + 0.4), layout="constrained")
        grid = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).ravel()
        for axes, (name, title) in zip(grid, panels, strict=False):
            for row, scalars in trained:
                if name in scalars:
                    _draw_curve(axes, scalars[name], look[row.name], row.name)
            axes.set_title(title)
            axes.set_xlabel("step")
        for axes in grid[len(panels) :]:
            axes.axis("off")
        named = {
            label: h for ax in figure.axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, fontsize=8.5)
        return save(figure, path)


def _draw_curve(axes: Axes, series: Sequence[tuple[int, float]], look: Look, name: str) -> None:
    steps, values = np.array(series, dtype=float).T
    mean = running_mean(values, max(1, len(values) // 20))
    axes.plot(steps, values, color=look.colour, alpha=0.15, linewidth=0.8)
    axes.plot(steps, mean, color=look.colour, linestyle=look.dash, linewidth=1.6, label=name)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values (fewer at the start). (n,) -> (n,)"""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)

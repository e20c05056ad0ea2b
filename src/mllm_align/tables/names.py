"""Short names of rows: method and dataset, and whatever else tells two rows of one table apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mllm_align.tables.load import Run

# Parts of a config that say where and how a run ran, and not what it is.
NOT_NAMING = ("seed", "outputs", "plan", "sweep", "logger", "benchmark", "trainer", "hydra")
MOST_SETTINGS = 3
Names = dict[str, list[str]]


def row_names(first_runs: Mapping[str, Run]) -> dict[str, str]:
    """Label -> name, from one run of each label. Different labels get different names.

    The base model is named where the table has several; sampler and annotator only where method and dataset do
    not tell rows apart; then the settings that differ (`beta=0.1`), and as a last resort the label.
    """
    several_models = len({run.axes.get("base_model") for run in first_runs.values()}) > 1
    names: Names = {}
    for label, run in first_runs.items():
        parts = [run.axes.get("alignment", label), run.axes.get("dataset", "none")]
        names[label] = [*parts, run.axes.get("base_model", "none")] if several_models else parts
    for axis in ("sampler", "annotator"):
        names = _told_apart(names, partial(_by_axis, runs=first_runs, axis=axis))
    names = _told_apart(names, partial(_by_settings, runs=first_runs))
    names = _told_apart(names, lambda group: {label: [label] for label in group})
    return {label: _joined(parts) for label, parts in names.items()}


def _told_apart(names: Names, more: Callable[[list[str]], Names]) -> Names:
    """Adds `more` parts to the names that several labels share."""
    groups: dict[str, list[str]] = {}
    for label, parts in names.items():
        groups.setdefault(_joined(parts), []).append(label)
    found = dict(names)
    for group in groups.values():
        if len(group) > 1:
            found |= {label: [*names[label], *parts] for label, parts in more(group).items()}
    return found


def _by_axis(group: list[str], runs: Mapping[str, Run], axis: str) -> Names:
    values = {label: runs[label].axes.get(axis, "none") for label in group}
    return {label: [value] for label, value in values.items()} if len(set(values.values())) > 1 else {}


def _by_settings(group: list[str], runs: Mapping[str, Run]) -> Names:
    """The settings whose values differ within the group, the last word of each key."""
    flat = {label: _flat(runs[label].config) for label in group}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)
    differing = [key for key in keys if len({repr(settings.get(key)) for settings in flat.values()}) > 1]
    told = {
        label: [f"{key.rsplit('.', 1)[-1]}={settings.get(key)}" for key in differing]
        for label, settings in flat.items()
    }
    # A setting that another one follows (`alignment.lr` takes `base_model.lr`) is told once.
    columns = list(dict.fromkeys(zip(*told.values(), strict=True)))[:MOST_SETTINGS]
    return {label: [column[place] for column in columns] for place, label in enumerate(told)}


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if not above and key in NOT_NAMING:
            continue
        name = f"{above}{key}"
        found |= _flat(value, name + ".") if isinstance(value, Mapping) else {name: value}
    return found


def _joined(parts: list[str]) -> str:
    return " · ".join([parts[0], *(part for part in parts[1:] if part != "none")])

"""Every option composes and runs with every other that makes sense: a pairwise covering grid, a few steps each."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mllm_align.checks import ImpossibleCell, check
from mllm_align.entry import plain
from mllm_align.paths import conf_dir
from mllm_align.pipeline import run_cell

CONF = Path(conf_dir())
# Not run here: `api` needs a server (tests/annotators/test_api.py); `local` files (tests/test_own_data.py).
LEFT_OUT = {"api", "local"}
SMALL = [
    "dataset.size=4",
    "alignment.batch_size=2",
    "alignment.epochs=1",
    "base_model.max_new_tokens=6",
    "base_model.lora.r=2",
    "benchmark.n=2",
    "logger=csv",
    "trainer.threads=1",
    "trainer.checkpoint_every_steps=0",
]


def options(group: str, below: str = "") -> list[str]:
    return sorted(p.stem for p in (CONF / group / below).glob("*.yaml") if p.stem not in LEFT_OUT)


def axes() -> dict[str, list[str]]:
    return {
        "alignment": [name for name in options("alignment") if name != "none"],
        "sampler": [f"{name} {when}" for name in options("sampler") for when in ("offline", "online")],
        "annotator": options("annotator"),
        # Made by the shipped models: a tiny one that was never trained writes nothing that has claims.
        "dataset": [f"scenes/{name}" for name in options("dataset", "scenes")],
        "model": ["llava", "llava_next"],
        "logprobs": ["sum", "mean"],
    }


def overrides(cell: Mapping[str, str]) -> list[str]:
    sampler, when = cell["sampler"].split()
    benchmark = "scenes/reward" if cell["alignment"] == "reward_model" else "scenes/vqa"
    return [
        f"alignment={cell['alignment']}",
        f"sampler={sampler}",
        f"sampler.when={when}",
        f"annotator={cell['annotator']}",
        f"dataset={cell['dataset']}",
        f"benchmark={benchmark}",
    ]


@pytest.fixture(scope="module")
def parts() -> dict[tuple[str, str], Any]:
    """Axis and option -> its config, each composed once: checking a combination needs no more."""
    found: dict[tuple[str, str], Any] = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for axis in ("alignment", "sampler", "annotator"):
            for name in options(axis):
                config = compose("train", overrides=[f"{axis}={name}"])
                found[axis, name] = OmegaConf.to_container(config[axis], resolve=False)
                if axis == "alignment":
                    found["benchmark", name] = OmegaConf.to_container(config["benchmark"], resolve=False)
        for name in axes()["dataset"]:
            config = compose("train", overrides=[f"dataset={name}"])
            found["dataset", name] = OmegaConf.to_container(config["dataset"], resolve=False)
    return found


def makes_sense(cell: Mapping[str, str], parts: Mapping[tuple[str, str], Any]) -> bool:
    sampler, when = cell["sampler"].split()
    config = {
        "seed": 0,
        "alignment": {**parts["alignment", cell["alignment"]], "batch_size": 2},
        "sampler": {**parts["sampler", sampler], "when": when},
        "annotator": parts["annotator", cell["annotator"]],
        "dataset": parts["dataset", cell["dataset"]],
        "benchmark": parts["benchmark", cell["alignment"]],
        "trainer": {"devices": 1, "nodes": 1, "strategy": "ddp", "precision": "32-true"},
    }
    # Reinforcement learning and reward models have no such option.
    if "logprobs" not in config["alignment"] and cell["logprobs"] != "sum":
        return False
    try:
        check(config)
    except ImpossibleCell:
        return False
    return True


def covering(cells: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Few cells that together have every pair of options that occurs in any cell; greedy, so not the fewest."""
    cells = list(cells)
    offers = [pairs(cell) for cell in cells]
    wanted = set().union(*offers)
    # A cell offers less and less that is still wanted: one that leads with its present worth is the best.
    queue = [(-len(offer), i) for i, offer in enumerate(offers)]
    heapq.heapify(queue)
    chosen = []
    while wanted:
        i = queue[0][1]
        worth = len(wanted & offers[i])
        heapq.heapreplace(queue, (-worth, i))
        if worth and queue[0][1] == i:
            wanted -= offers[i]
            chosen.append(cells[i])
    return chosen


def pairs(cell: Mapping[str, str]) -> set[Any]:
    return set(itertools.combinations(cell.items(), 2))


@pytest.fixture(scope="module")
def grid(parts) -> list[dict[str, str]]:
    names = axes()
    cells = (dict(zip(names, values, strict=True)) for values in itertools.product(*names.values()))
    return covering(cell for cell in cells if makes_sense(cell, parts))


def test_every_option_has_a_place(grid) -> None:
    for axis, names in axes().items():
        unused = set(names) - {cell[axis] for cell in grid}
        assert not unused, f"{axis}: {sorted(unused)} goes with nothing"


def test_the_covering_has_every_pair() -> None:
    cells = [dict(zip("abc", values, strict=True)) for values in itertools.product("xyz", "xyz", "xyz")]
    chosen = covering(cells)
    assert {p for c in chosen for p in pairs(c)} == {p for c in cells for p in pairs(c)}
    assert len(chosen) < 15  # of 27; 9 is the least


@pytest.mark.slow
def test_all_of_them_run(grid, tiny_folders, tmp_path) -> None:
    failed = []
    for cell in grid:
        try:
            run_cell(composed(cell, tiny_folders, tmp_path))
        except Exception as error:
            failed.append(f"{cell}: {type(error).__name__}: {error}")
    assert not failed, f"{len(failed)} of {len(grid)} cells:\n" + "\n".join(failed)


def composed(cell: Mapping[str, str], models: Mapping[str, Path], outputs: Path) -> dict[str, Any]:
    """The config of a cell, as the command line composes it."""
    changes = [*overrides(cell), *SMALL, f"outputs={outputs}", f"base_model.path={models[cell['model']]}"]
    if cell["annotator"] == "large":
        changes.append(f"annotator.build.path={models['llava']}")
    if cell["annotator"] == "reward_model":
        changes += ["annotator.data.size=4", "annotator.train.epochs=1", "annotator.train.batch_size=2"]
    if cell["annotator"] == "oracle":
        changes.append("annotator.build.noise=1")  # what an untrained model writes would tie
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=changes)
    if "logprobs" in config.alignment:
        config.alignment.logprobs = cell["logprobs"]
    return plain(config)

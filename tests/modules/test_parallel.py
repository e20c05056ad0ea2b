"""Several processes for one run: which is which, what each takes of a step, and that the result is that of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from mllm_align.checks import ImpossibleCell
from mllm_align.entry import plain
from mllm_align.launch import ALONE, Place, place
from mllm_align.modules.order import MicroPlan, Plan
from mllm_align.modules.parallel import share, trainer_settings
from mllm_align.paths import conf_dir
from mllm_align.pipeline import plan_cell, run_cell
from mllm_align.record import read_record, read_scalars, run_folder

TWO = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.workers=0", "trainer.devices=2"]
# Seven examples in steps of 2 x 2: the last pass of an epoch has one, so one of two processes has none of its own.
SMALL = [
    "dataset.size=7",
    "alignment.batch_size=2",
    "alignment.accumulate=2",
    "alignment.epochs=2",
    "base_model.max_new_tokens=6",
    "base_model.lora.r=2",
    "base_model.lr=1e-2",
    "benchmark=none",
    "logger=none",
    "trainer.threads=1",
]
ORACLE = ["annotator=oracle", "annotator.build.noise=1"]


# --- which process ------------------------------------------------------------------------------------------


def test_one_process_needs_nothing() -> None:
    assert place(1, 1, {"LOCAL_RANK": "3", "RANK": "3", "WORLD_SIZE": "4"}) == ALONE


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place(0, 0, 4)),
        ({"LOCAL_RANK": "1"}, Place(1, 1, 4, started=True)),
        ({"NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, Place(2, 0, 4)),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, Place(3, 1, 4, "torchrun", True)),
        ({"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}, Place(2, 0, 4, "srun", True)),
        # One task of SLURM's, as a sweep's job is: it starts its processes itself.
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}, Place(0, 0, 4)),
    ],
)
def test_the_environment_says_which(environment, expected) -> None:
    nodes = 1 if not environment or environment.keys() == {"LOCAL_RANK"} or expected == Place(0, 0, 4) else 2
    assert place(4 // nodes, nodes, environment) == expected


@pytest.mark.parametrize(
    ("nodes", "environment", "message"),
    [
        (1, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "8"}, "torchrun started 8 processes"),
        (2, {"NODE_RANK": "1"}, "needs MASTER_ADDR, MASTER_PORT"),
        (2, {"NODE_RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "NODE_RANK is 2"),
    ],
)
def test_what_does_not_agree_is_refused(nodes, environment, message) -> None:
    with pytest.raises(ValueError, match=message):
        place(2, nodes, environment)


# --- what each takes ----------------------------------------------------------------------------------------


def test_the_parts_of_a_pass_make_the_whole_of_it() -> None:
    whole = MicroPlan((4, 0, 3, 1, 2), epoch=0, step=1, part=0, scale=0.2)
    parts = [share(whole, number, 2) for number in range(2)]
    assert [part.indices for part in parts] == [(4, 3, 2), (0, 1)]
    # The mean over two processes of scale x sum of losses is what one process has: (2 s a + 2 s b) / 2 = s (a + b).
    assert [part.scale for part in parts] == [0.4, 0.4]
    assert {(part.step, part.part, part.epoch) for part in parts} == {(1, 0, 0)}


def test_a_process_without_a_part_does_the_pass_for_nothing() -> None:
    lone = MicroPlan((7,), epoch=0, step=1, part=0, scale=1.0)
    assert [(p.indices, p.scale) for p in (share(lone, n, 3) for n in range(3))] == [
        ((7,), 3.0),
        ((7,), 0.0),
        ((7,), 0.0),
    ]


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_every_group_counts_once_whatever_the_number_of_processes(processes) -> None:
    plan = Plan(size=11, batch_size=4, accumulate=2, epochs=2, seed=5)
    for micro in plan.micro_batches(1):
        shared = [share(micro, number, processes) for number in range(processes)]
        counted = sorted(index for part in shared if part.scale for index in part.indices)
        assert counted == sorted(micro.indices)


def test_processes_that_nobody_started_are_missed(monkeypatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="needs them started"):
        trainer_settings("ddp", 1, Place(0, 0, 2), None)


def test_an_unknown_strategy_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="ddp, fsdp2, deepspeed_zero3"):
        trainer_settings("fsdp", 1, Place(0, 0, 2), None)


def test_deepspeed_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ValueError, match="pip install"):
        trainer_settings("deepspeed_zero3", 1, Place(0, 0, 2), None)


# --- configs ------------------------------------------------------------------------------------------------


def composed(outputs: Path, model: Path, *overrides: str) -> dict:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        given = [f"outputs={outputs}", f"base_model.path={model}", *SMALL, *overrides]
        return plain(compose("train", overrides=given))


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["trainer=ddp", "trainer.devices=4"], "choose alignment.batch_size=4 or more"),
        (["trainer=fsdp2", "alignment=online_dpo", *ORACLE], "choose trainer=ddp"),
        (["trainer=deepspeed_zero3", "alignment=rloo", *ORACLE], "choose trainer=ddp"),
        (["trainer=deepspeed_zero3", "trainer.precision=bf16-mixed"], "choose trainer.precision=32-true"),
    ],
)
def test_what_cannot_be_shared_is_refused(tmp_path, tiny_folders, overrides, advice) -> None:
    with pytest.raises(ImpossibleCell, match=advice):
        plan_cell(composed(tmp_path, tiny_folders["llava"], *overrides))


@pytest.mark.parametrize("trainer", ["gpu", "ddp", "fsdp2", "deepspeed_zero3"])
def test_the_key_does_not_depend_on_who_shares_it(tmp_path, tiny_folders, trainer) -> None:
    alone = plan_cell(composed(tmp_path, tiny_folders["llava"], "trainer.precision=32-true"))
    changes = [f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    assert plan_cell(composed(tmp_path, tiny_folders["llava"], *changes)).key == alone.key


# --- training -----------------------------------------------------------------------------------------------

METHODS = {
    "offline": ["alignment=dpo"],
    "online": ["alignment=online_dpo", *ORACLE],
    "rloo": ["alignment=rloo", "alignment.epochs=1", *ORACLE],
    "reward_model": ["alignment=reward_model"],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_folders):
    """method -> the run folder of one process, each trained once."""
    done: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in done:
            outputs = tmp_path_factory.mktemp(f"alone-{method}")
            done[method] = trained(composed(outputs, tiny_folders["llava_next"], *METHODS[method]))
        return done[method]

    return run


def trained(config: dict) -> Path:
    run_cell(config)
    cell = plan_cell(config)
    return run_folder(cell.outputs, cell.label, cell.seed)


def assert_same_run(one: Path, other: Path) -> None:
    """To float32's rounding: sums are taken in another order, and Adam divides by small numbers."""
    figures = [read_scalars(folder) for folder in (one, other)]
    names = {"loss", "grad_norm"} | ({"reward"} & figures[0].keys())
    for name in names:
        ours, theirs = (dict(found[name]) for found in figures)
        assert len(ours) > 1
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-4), name
    ours, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    far = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
    assert max(far.values()) < 1e-4, sorted(far.items(), key=lambda item: -item[1])[:3]
    assert {p.name for p in one.iterdir()} == {p.name for p in other.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        ("offline", "ddp"),
        ("online", "ddp"),
        ("rloo", "ddp"),
        ("offline", "fsdp2"),
        ("reward_model", "fsdp2"),
    ],
)
def test_two_processes_do_what_one_does(tmp_path, tiny_folders, alone, method, strategy) -> None:
    changes = [*METHODS[method], f"trainer={strategy}", *TWO]
    both = trained(composed(tmp_path, tiny_folders["llava_next"], *changes))
    assert_same_run(alone(method), both)
    assert read_record(both)["status"] == "finished"
    assert not torch.distributed.is_initialized()
    assert not {"LOCAL_RANK", "MASTER_PORT"} & os.environ.keys()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_go_on_where_they_were_killed(
    tmp_path, tiny_folders, alone, strategy, monkeypatch
) -> None:
    from mllm_align import runs

    class Killed(RuntimeError):
        pass

    def kill(mirror, step, values):
        mirror.scalars.log(step, values)
        if step == 3:
            raise Killed

    changes = ["alignment=dpo", f"trainer={strategy}", *TWO, "trainer.checkpoint_every_steps=2"]
    config = composed(tmp_path, tiny_folders["llava_next"], *changes)
    with monkeypatch.context() as patched:
        patched.setattr(runs.Mirror, "log", kill)
        with pytest.raises(Killed):
            run_cell(config)
    assert next((tmp_path / "runs").glob("*/seed0/checkpoint.safetensors"))
    assert_same_run(alone("offline"), trained(config))


@pytest.mark.slow
def test_torchrun_may_start_them(tmp_path, tiny_folders, alone) -> None:
    given = [f"outputs={tmp_path}", f"base_model.path={tiny_folders['llava_next']}", *SMALL]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "mllm_align.cli", "train", *given, *METHODS["offline"], "trainer=ddp", *TWO]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(alone("offline"), next((tmp_path / "runs").glob("*/seed0")))
    assert done.stdout.count("seed0:") == 1  # one of them speaks


@pytest.mark.slow
def test_a_follower_that_fails_ends_the_run(tmp_path, tiny_folders) -> None:
    """It fails after it was started, in the training: its loss is no number."""
    script = tmp_path / "broken.py"
    script.write_text(
        "import os\nfrom mllm_align.losses import dpo as right\n"
        "def dpo(*args, beta):\n"
        "    assert os.environ.get('LOCAL_RANK') != '1', 'the second process is broken'\n"
        "    return right(*args, beta=beta)\n"
    )
    command = [sys.executable, "-m", "mllm_align.cli", "train", f"outputs={tmp_path / 'outputs'}", *SMALL]
    command += [f"base_model.path={tiny_folders['llava_next']}", "trainer=ddp", *TWO, "alignment=dpo"]
    command += ["alignment.loss._target_=broken.dpo"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode != 0
    assert "the second process is broken" in done.stderr
    record = read_record(next((tmp_path / "outputs" / "runs").glob("*/seed0")))
    assert record["status"] in ("failed", "interrupted")

"""Multiruns as a shell starts them: what goes wrong in a cell or to the whole sweep, and what comes of it."""

import json
import os
import random
import shlex
import signal
import time
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from harness import REPOSITORY, command, kill_and_restart, results, run, start, statuses, study, summary

from mllm_align.sweep.drive import LauncherConfig

RESULT_OF_A = "slow_sum-a-rate0.5"


def built(folder: Path) -> list[str]:
    return (folder / "outputs/store/built.txt").read_text().split("\n")[:-1]


def test_a_grid_runs_each_cell_once_and_finds_it_the_second_time(tmp_path):
    code, text = study(tmp_path, "seed=0,1", "method=slow_sum,slow_square")
    assert code == 0, text
    assert "4 cells: 0 finished already, 4 to run" in text
    assert set(statuses(tmp_path).values()) == {"finished"}
    assert len(built(tmp_path)) == 1  # one shared stage for four cells
    before = results(tmp_path / "outputs")
    assert len(before) == 8

    code, text = study(tmp_path, "seed=0,1", "method=slow_sum,slow_square")
    assert code == 0
    assert "4 cells: 4 finished already, 0 to run" in text
    assert "start" not in text
    assert set(statuses(tmp_path).values()) == {"found"}
    assert results(tmp_path / "outputs") == before


def test_the_record_of_a_cell_is_complete_and_keeps_no_secret(tmp_path):
    code, text = study(tmp_path, "seed=3", "sweep.workers=2", "sweep.threads=1", "api_key=sk-topsecret")
    assert code == 0, text
    folder = tmp_path / f"outputs/runs/{RESULT_OF_A}/seed3"
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["threads"] == 1
    assert record["overrides"] == ["seed=3", "sweep.workers=2", "sweep.threads=1", "api_key=[removed]"]
    assert record["seconds"]["train"] >= 0
    assert record["versions"]["numpy"]
    assert (folder / "log.txt").read_text().count("step ") == 20
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"topsecret" in file.read_bytes()]
    assert not list(tmp_path.rglob("multirun.yaml"))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise", "ArithmeticError: the sum went wrong"),
        ("exit0", "it called sys.exit(0) before it had finished"),
        pytest.param("exit1", "it called sys.exit(1) before it had finished", marks=pytest.mark.slow),
        ("kill", "killed by SIGKILL"),
        pytest.param("segfault", "killed by SIGSEGV", marks=pytest.mark.slow),
    ],
)
def test_a_cell_that_ends_badly_is_told_with_reason_and_log_and_the_rest_goes_on(tmp_path, fault, reason):
    code, text = study(tmp_path, "seed=0,1,2", f"fault={fault}", "fault_seed=1")
    assert code == 1
    log = f"outputs/runs/{RESULT_OF_A}/seed1/log.txt"
    assert f"reason: {reason}" in text
    assert log in text
    assert "step 10 " in (tmp_path / log).read_text()
    assert text.index(reason) < text.index(f"done    {RESULT_OF_A} seed2")  # at once, not at the end
    assert "2 finished, 1 failed" in text
    assert "Error executing job" not in text
    want = {0: "finished", 1: "failed", 2: "finished"}
    assert statuses(tmp_path) == {f"{RESULT_OF_A}/{seed}": status for seed, status in want.items()}
    record = json.loads((tmp_path / f"outputs/runs/{RESULT_OF_A}/seed1/record.json").read_text())
    assert record["status"] == "failed"

    assert "again.yaml" in text
    code, text = rerun(text, tmp_path)
    assert code == 1
    assert "1 cell: 0 finished already, 0 to run, 1 to continue" in text


def test_retries_try_a_failed_cell_again_from_its_checkpoint(tmp_path):
    code, text = study(tmp_path, "seed=0", "fault=once", "sweep.retries=1")
    assert code == 0, text
    assert "failed, tried again" in text
    assert "only at the first attempt" in text
    assert summary(tmp_path)["cells"][0]["attempts"] == 2
    other = tmp_path / "undisturbed"
    other.mkdir()
    assert study(other, "seed=0")[0] == 0
    assert results(tmp_path / "outputs") == results(other / "outputs")


def test_fail_fast_stops_the_rest_and_says_how_to_run_what_is_left(tmp_path):
    code, text = study(tmp_path, "seed=0,1,2", "fault=raise", "fault_seed=0", "sweep.fail_fast=true")
    assert code == 1
    assert list(statuses(tmp_path).values()) == ["failed", "waiting", "waiting"]
    assert "To run what is left:" in text


def test_fail_fast_ends_the_cells_of_other_workers_and_the_sweep_goes_on_to_its_words(tmp_path):
    arguments = ("seed=0,1,2", "fault=raise", "fault_seed=0", "pause=0.2")
    code, text = study(tmp_path, *arguments, "sweep.fail_fast=true", "sweep.workers=2")
    assert code == 1
    assert "Traceback" not in text
    assert list(statuses(tmp_path).values()) == ["failed", "interrupted", "waiting"]
    assert "To run what is left:" in text


def rerun(text: str, folder: Path) -> tuple[int, str]:
    """Run the command that was printed at a sweep's end."""
    again = next(line for line in text.splitlines() if line.startswith("  python -m fake_app"))
    return run([command()[0], *shlex.split(again)[1:]], folder)


def test_the_printed_command_works_on_the_same_folders_and_keeps_the_sweep_whole(tmp_path):
    program = [command()[0], "-m", "fake_app", "-cd", str(REPOSITORY / "conf"), "-m"]
    given = ["fault=once", "fault_seed=1", "outputs=mine/out", "sweep.name=grid"]
    code, text = run([*program, *given, "seed=0,1,2"], tmp_path)
    assert code == 1
    assert f"--config-dir={REPOSITORY / 'conf'}" in text
    summary_file = tmp_path / "mine/out/sweeps/grid/summary.json"
    rows = json.loads(summary_file.read_text())["cells"]
    assert [(row["seed"], row["status"]) for row in rows] == [(0, "finished"), (1, "failed"), (2, "finished")]

    code, text = rerun(text, tmp_path)
    assert code == 0, text
    assert "1 cell: 0 finished already, 0 to run, 1 to continue" in text
    assert "1 finished. Summary" in text
    rows = json.loads(summary_file.read_text())["cells"]
    assert [(row["seed"], row["status"]) for row in rows] == [(seed, "finished") for seed in (0, 1, 2)]
    assert not (tmp_path / "outputs").exists()


def test_plan_only_prints_and_stops(tmp_path):
    code, text = study(tmp_path, "seed=0,1", "plan=true")
    assert code == 0
    assert "2 cells: 0 finished already, 2 to run" in text
    assert "1 unique stage: 0 stored or not needed, 1 to build" in text
    assert "estimated time: unknown" in text
    assert not (tmp_path / "outputs").exists()

    study(tmp_path, "seed=0")
    _, text = study(tmp_path, "seed=0,1", "plan=true")
    assert "2 cells: 1 finished already, 1 to run" in text
    assert "1 unique stage: 1 stored or not needed, 0 to build" in text
    assert "estimated time: about" in text


def test_paired_cells_are_crossed_with_the_command_line(tmp_path):
    rows = tmp_path / "rows.yaml"
    rows.write_text("- [data=a, rate=0.25]\n- [data=b, 'rate=0.5,1.0']\n")
    code, text = study(tmp_path, f"sweep.cells={rows}", "seed=0,1")
    assert code == 0, text
    want = {f"slow_sum-{pair}/{seed}" for pair in ("a-rate0.25", "b-rate0.5", "b-rate1.0") for seed in (0, 1)}
    assert set(statuses(tmp_path)) == want


def test_nothing_runs_when_a_cell_cannot(tmp_path):
    code, text = study(tmp_path, "rate=0.5,-1,-2")
    assert code == 2
    assert "Nothing was run: 2 of 3 cells cannot run." in text
    assert "ValueError: rate=-1: must not be negative" in text
    assert "Traceback" not in text
    assert not (tmp_path / "outputs/runs").exists()


def test_all_cells_that_do_not_compose_are_named(tmp_path):
    code, text = study(tmp_path, "method=slow_sum,slow_som,slow_sam")
    assert code == 2
    assert "2 of 3 cells cannot run" in text
    assert "Could not find 'method/slow_som'" in text
    assert "Could not find 'method/slow_sam'" in text
    assert "Available options" not in text
    assert len(text.splitlines()) == 5


def test_the_launcher_knows_every_key_of_its_config():
    config = yaml.safe_load((REPOSITORY / "conf/hydra/launcher/cells.yaml").read_text())
    assert set(config) - {"_target_"} == {field.name for field in fields(LauncherConfig)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep.workers=1,2"], "this cell sets sweep"),
        (["outputs=a,b"], "this cell sets outputs"),
        (["sweep.name=../../escaped"], "cannot name a folder"),
        (["sweep.workers=0"], "must be 1 or more"),
        (["sweep.cells=none.yaml"], "sweep.cells=none.yaml: cannot be read"),
        (["misspelt=1"], "misspelt"),
    ],
)
def test_bad_settings_are_refused_in_a_few_words(tmp_path, arguments, words):
    code, text = study(tmp_path, *arguments)
    assert code != 0
    assert words in text
    assert "Traceback" not in text


def test_two_workers_that_need_the_same_stage_build_it_once(tmp_path):
    code, text = study(tmp_path, "seed=0,1", "sweep.workers=2", "build_pause=5")
    assert code == 0, text
    assert len(built(tmp_path)) == 1
    logs = "".join(file.read_text() for file in tmp_path.glob("outputs/runs/*/*/log.txt"))
    assert "waiting: another process builds stage numbers" in logs


def test_workers_start_with_cells_that_do_not_wait_for_each_other(tmp_path):
    """Four cells, two shared stages: the second worker takes the first cell of the other stage."""
    code, text = study(tmp_path, "data=a,b", "seed=0,1", "sweep.workers=2", "build_pause=2")
    assert code == 0
    starts = [line.split()[2] for line in text.splitlines() if "start" in line]
    assert starts[:2] == ["slow_sum-a-rate0.5", "slow_sum-b-rate0.5"]
    logs = "".join(file.read_text() for file in tmp_path.glob("outputs/runs/*/*/log.txt"))
    assert "waiting" not in logs


def test_ctrl_c_ends_the_cells_and_says_how_to_continue(tmp_path):
    process = start(command("seed=0,1", "pause=0.2"), tmp_path)
    wait_for(lambda: list(tmp_path.glob("outputs/runs/*/seed0/checkpoint/last.json")))
    os.kill(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "To continue the whole sweep:\n  python -m fake_app" in text
    assert "Traceback" not in text
    assert list(statuses(tmp_path).values()) == ["interrupted", "waiting"]
    record = json.loads((tmp_path / f"outputs/runs/{RESULT_OF_A}/seed0/record.json").read_text())
    assert record["status"] == "interrupted"
    assert not processes_of(tmp_path)


def test_a_killed_sweep_leaves_no_cell_behind(tmp_path):
    process = start(command("seed=0", "fault=hang"), tmp_path)
    wait_for(lambda: list(tmp_path.glob("outputs/runs/*/seed0/scalars.csv")))
    assert processes_of(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    wait_for(lambda: not processes_of(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_multirun_killed_at_random_moments_ends_with_the_same_results(tmp_path, workers):
    pause = 0.05 * workers
    arguments = command(
        "seed=0,1,2", "data=a,b", f"sweep.workers={workers}", f"pause={pause}", "build_pause=0.5"
    )
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    assert run(arguments, undisturbed)[0] == 0
    code, text = kill_and_restart(arguments, disturbed, kills=8, longest=5.0, seed=workers)
    assert code == 0, text
    attempts = [
        json.loads(file.read_text())["attempt"] for file in disturbed.glob("outputs/runs/*/*/record.json")
    ]
    assert max(attempts) > 1  # a cell was hit while it ran
    assert len(results(undisturbed / "outputs")) == 12
    assert results(disturbed / "outputs") == results(undisturbed / "outputs")


@pytest.mark.slow
def test_cells_killed_at_random_moments_are_found_or_continued(tmp_path):
    """`kill -9` of the cells themselves while the sweep lives: retries bring every cell to the same end."""
    arguments = command("seed=0,1", "pause=0.05", "sweep.retries=20", "sweep.workers=2")
    quiet = tmp_path / "undisturbed"
    quiet.mkdir()
    assert run(arguments, quiet)[0] == 0
    process = start(arguments, tmp_path)
    moments = random.Random(7)
    for _ in range(4):
        wait_for(lambda: processes_of(tmp_path, "seed") or process.poll() is not None)
        time.sleep(moments.uniform(0.0, 0.8))
        for pid in processes_of(tmp_path, "seed"):
            os.kill(pid, signal.SIGKILL)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "killed by SIGKILL" in text
    assert results(tmp_path / "outputs") == results(quiet / "outputs")


def test_a_damaged_stage_is_reported_and_built_again(tmp_path):
    study(tmp_path, "seed=0")
    before = results(tmp_path / "outputs")
    (stored,) = tmp_path.glob("outputs/store/numbers/*/numbers.npy")
    broken = bytearray(stored.read_bytes())
    broken[-1] ^= 1
    stored.write_bytes(broken)
    code, text = study(tmp_path, "seed=0,1")
    assert code == 0
    assert f"{stored.relative_to(tmp_path)} has changed since it was written" in " ".join(text.split())
    assert "1 unique stage: 0 stored or not needed, 1 to build" in text
    assert len(built(tmp_path)) == 2
    assert before.items() <= results(tmp_path / "outputs").items()
    assert list(tmp_path.glob("outputs/store/damaged/numbers-*/numbers.npy"))


def test_a_damaged_run_is_reported_and_repeated(tmp_path):
    study(tmp_path, "seed=0")
    before = results(tmp_path / "outputs")
    (metrics,) = tmp_path.glob("outputs/runs/*/seed0/metrics.json")
    metrics.write_text("{}")
    code, text = study(tmp_path, "seed=0")
    assert code == 0
    assert "metrics.json has 2 bytes instead of" in text
    assert results(tmp_path / "outputs") == before
    assert list(tmp_path.glob("outputs/aside/*/seed0-*/metrics.json"))


def wait_for(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def processes_of(folder: Path, log: str = "") -> list[int]:
    """Processes that print into a run's log below `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            target = os.readlink(entry / "fd" / "1")
        except OSError:
            continue
        if target.startswith(str(folder)) and log in target:
            found.append(int(entry.name))
    return found

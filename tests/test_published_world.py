"""`world=published`: every row and table composes, and the documented command runs on stand-ins of released files."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file

from mllm_align.entry import plain
from mllm_align.paths import conf_dir
from mllm_align.pipeline import plan_cell
from mllm_align.record import read_record, read_scalars
from mllm_align.tables.spec import read_spec
from standins import environment

CONF = Path(conf_dir())
ROOT = Path(__file__).parents[1]
ROWS = sorted(f"{path.parent.name}/{path.stem}" for path in (CONF / "experiment").glob("*/*.yaml"))
TABLES = sorted(path.stem for path in (CONF / "table").glob("*.yaml"))


def composed(name: str, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(overrides))


# --- composing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_of_its_world_alone(row) -> None:
    config = plain(composed("train", "world=published", f"experiment={row}"))
    cell = plan_cell(config)
    assert "published" in cell.label
    text = OmegaConf.to_yaml(OmegaConf.create({k: v for k, v in config.items() if k != "hydra"}))
    assert "scenes" not in text.replace("scenes only", ""), [t for t in text.splitlines() if "scenes" in t]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("world", ["scenes", "published"])
def test_every_table_has_columns_of_its_world(table, world) -> None:
    config = composed("table", f"table={table}", f"world={world}")
    spec = read_spec(OmegaConf.to_container(config.table, resolve=True))
    row = plain(composed("train", f"world={world}", *spec.rows[-1].overrides))
    missing = {column.benchmark for column in spec.columns} - set(row["benchmark"]["tasks"])
    assert not missing, f"{table} shows {sorted(missing)}, which its rows do not measure in world={world}"


@pytest.mark.parametrize("command", ["sample", "evaluate", "judge"])
def test_the_other_commands_know_the_world(command) -> None:
    assert plain(composed(command, "world=published"))["base_model"]["name"] == "published/llava_1_6_7b"


def test_what_differs_by_world() -> None:
    here, there = (
        plain(composed("train", f"world={world}", "sampler=bdhs_attn")) for world in ("scenes", "published")
    )
    rho = [config["sampler"]["build"]["corruption"]["rho_th"] for config in (here, there)]
    alike = [config["sampler"]["build"]["similarity"]["_target_"].split(".")[-1] for config in (here, there)]
    steps = [
        config["alignment"]["batch_size"] * config["alignment"]["accumulate"] for config in (here, there)
    ]
    assert (rho, alike, steps) == ([0.7, 0.99], ["SceneClaims", "SentenceTransformers"], [16, 16])


def test_the_judge_and_the_reward_model_s_data_are_the_world_s() -> None:
    large = plain(composed("train", "world=published", "alignment=online_dpo"))["annotator"]["build"]
    assert large["path"].endswith("/llava-v1.6-34b-hf")
    assert "Reply with the letter A or B" in large["template"]
    reward = plain(composed("train", "world=published", "alignment=rloo"))["annotator"]
    assert reward["data"]["name"] == "published/vlfeedback"
    assert reward["train"]["batch_size"] * reward["train"]["accumulate"] == 32


def test_reward_models_and_judges_are_tested_on_what_is_kept_aside() -> None:
    config = plain(composed("train", "world=published", "alignment=reward_model"))
    tested = {name: task["data"]["build"] for name, task in config["benchmark"]["tasks"].items()}
    assert tested.keys() == {"reward_povid", "reward_rlhf_v", "reward_vlfeedback", "reward_llava_rlhf"}
    asked = plain(composed("judge", "world=published", "dataset=published/rlhf_v"))["dataset"]["build"]
    assert {build["split"] for build in (*tested.values(), asked)} == {"reward_heldout"}
    assert config["dataset"]["build"]["split"] == "preference"
    shares = {name: build["heldout"] for name, build in tested.items()}
    assert shares == {**dict.fromkeys(tested, 0.05), "reward_rlhf_v": 0.1}
    assert asked["heldout"] == 0.1


def test_the_command_line_still_chooses() -> None:
    config = composed("train", "world=published", "alignment=rloo", "dataset@annotator.data=published/povid")
    assert config.annotator.data.name == "published/povid"
    config = composed("train", "world=published", "sampler=bdhs_attn", "similarity@sampler.build=scenes")
    assert config.sampler.build.similarity._target_.endswith("SceneClaims")
    config = composed("train", "dataset=published/povid", "base_model=published/llava_1_6_7b")
    assert (config.world.name, config.dataset.name) == ("scenes", "published/povid")


# --- running ------------------------------------------------------------------------------------------------

SMALL = [
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.workers=0",
    "trainer.threads=1",
    "base_model.dtype=float32",
    "world.large.dtype=float32",
    "world.training.epochs=1",
    "base_model.max_new_tokens=4",
    "base_model.lora.r=2",
    "benchmark.tasks.pope.max_new_tokens=2",
    "logger=none",
]
FIRST_ROWS = ["baseline", "DPO, POVID", "Online-DPO, POVID", "Mixed-DPO, POVID"]


def documented(start: str) -> list[str]:
    """The words of the first command of docs/published.md that begins so, its continued lines joined."""
    text = (ROOT / "docs" / "published.md").read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.strip().startswith(start))
    return shlex.split(line, comments=True)


def run(words: list[str], where: Path, told: dict[str, str], *more: str) -> subprocess.CompletedProcess:
    assert words[0] == "mllm-align"
    command = [sys.executable, "-m", "mllm_align.cli", *words[1:], *more]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command, cwd=where, env={**told, "PYTHONPATH": path}, capture_output=True, text=True, timeout=550
    )


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("published")
    return root, environment(root)


@pytest.fixture(scope="module")
def ran(stand_ins) -> Path:
    """The folder in which the documented command has run."""
    root, told = stand_ins
    done = run(documented("mllm-align train -m world=published"), root, told, *SMALL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


@pytest.mark.slow
def test_table_9_s_first_rows_run_by_one_command(ran) -> None:
    found = [read_record(folder) for folder in sorted((ran / "outputs/runs").glob("*/seed0"))]
    assert [record["status"] for record in found] == ["finished"] * 4
    assert {record["axes"]["alignment"] for record in found} == {"none", "dpo", "online_dpo", "mixed_dpo"}
    assert all("pope/f1" in record["headline"] for record in found)


@pytest.mark.slow
def test_the_table_is_made_of_them(ran, stand_ins) -> None:
    done = run(documented("mllm-align table table=table09"), ran, stand_ins[1])
    assert done.returncode == 0, done.stderr
    with (ran / "outputs/tables/table09-published/table.csv").open() as file:
        found = {row["row"]: row for row in csv.DictReader(file) if row["metric"] == "f1"}
    assert [name for name, row in found.items() if row["status"] == "finished"] == FIRST_ROWS
    assert found["DPO, POVID"]["difference"]
    assert {row["status"] for name, row in found.items() if name not in FIRST_ROWS} == {"missing"}


@pytest.mark.slow
def test_two_processes_train_the_same_rows(ran, stand_ins) -> None:
    """The documented command once more, with `trainer=ddp` in place of one GPU."""
    words = [
        word.replace("trainer=gpu", "trainer=ddp")
        for word in documented("mllm-align train -m world=published")
    ]
    loading = "trainer.workers=1"  # as on a GPU: a process of its own prepares what each takes
    done = run(words, ran, stand_ins[1], *SMALL, "trainer.devices=2", "outputs=both", loading)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = sorted((ran / "both/runs").glob("*/seed0"))
    assert len(rows) == 4
    for both in rows:
        alone = ran / "outputs/runs" / both.parent.name / "seed0"  # the same config, so the same folder
        if not (alone / "adapter").is_dir():
            continue  # the baseline
        figures = [dict(read_scalars(folder)["loss"]) for folder in (alone, both)]
        assert figures[1] == pytest.approx(figures[0], rel=1e-3), both
        ours, theirs = (
            load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (alone, both)
        )
        assert all((ours[name] - theirs[name]).abs().max() < 1e-4 for name in ours), both


@pytest.mark.slow
def test_the_estimate_needs_no_weights(stand_ins) -> None:
    root, told = stand_ins
    elsewhere = {**told, "MLLM_ALIGN_MODELS": str(root / "nowhere")}
    done = run(documented("mllm-align train -m world=published"), root, elsewhere, "estimate=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("7,063,431,168") == 4
    assert "4 cells: about" in done.stdout

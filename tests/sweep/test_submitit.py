"""A grid as a cluster runs it: submitit's executor on this machine, in place of ours (docs/scaling.md)."""

import csv
import json
import sys

import pytest
from harness import run

SMALL = [
    "dataset.size=8",
    "alignment.epochs=1",
    "alignment.batch_size=8",
    "base_model.lora.r=2",
    "benchmark=scenes/pope",
    "benchmark.n=4",
    "logger=none",
    "trainer.threads=1",
]
SUBMITIT = [
    "hydra/launcher=submitit_local",
    "hydra.launcher.timeout_min=10",
    "hydra.sweep.dir=outputs/submitit",
]


@pytest.mark.slow
def test_submitit_runs_a_grid_and_the_table_finds_it(tmp_path):
    program = [sys.executable, "-m", "mllm_align"]
    code, text = run([*program, "train", "-m", *SUBMITIT, "alignment=dpo,ipo", *SMALL], tmp_path, timeout=500)
    assert code == 0, text
    records = [json.loads(file.read_text()) for file in tmp_path.glob("outputs/runs/*/seed0/record.json")]
    assert [record["status"] for record in records] == ["finished", "finished"]
    assert {record["axes"]["alignment"] for record in records} == {"dpo", "ipo"}
    jobs = sorted(tmp_path.glob("outputs/submitit/.submitit/*/*_log.out"))
    assert len(jobs) == 2  # each was a process of submitit's
    assert ["seed0: " in job.read_text() for job in jobs] == [True, True]

    code, text = run([*program, "table", "csv=table.csv"], tmp_path)
    assert code == 0, text
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.reader(file))
    assert {"dpo · povid", "ipo · povid"} <= {row[0] for row in rows}

"""From a table's config to its runs and files, as a shell starts it."""

import json
import os
import subprocess
import sys

import pytest

TINY_TABLE = """
name: tiny
title: A table of one's own
paper: null
rows:
  - {experiment: common/baseline, name: baseline}
  - {experiment: common/dpo_povid, name: DPO, against: baseline, overrides: [alignment.batch_size=4]}
columns:
  - {metric: pope/f1, name: POPE F1}
"""


def mllm_align(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "mllm_align", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_a_table_is_a_sweep_over_its_rows(tmp_path):
    """Four rows and two seeds, of which the untrained row counts once."""
    done = mllm_align(tmp_path, "train", "-m", "sweep.table=table12", "seed=0,1", "plan=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 cells: 0 finished already, 7 to run" in done.stdout
    assert "experiment=table12/ipo_povid" in "".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep.table=table99"], "sweep.table=table99: there is no such table; choose one of table06,"),
        (["sweep.table=table12", "sweep.cells=rows.yaml"], "leave one of them out"),
        (
            ["sweep.table=table12", "experiment=common/baseline,common/dpo_povid"],
            "sweep.table=table12: row 1 sets experiment",
        ),
        (["sweep.table=table12", "alignment=dpo,ipo"], "alignment=dpo would make other rows of the table's"),
    ],
)
def test_a_table_that_cannot_be_swept_is_refused(tmp_path, arguments, words):
    done = mllm_align(tmp_path, "train", "-m", *arguments)
    assert done.returncode == 2
    assert words in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_table_without_runs_says_that_they_are_missing(tmp_path):
    """And leaves an earlier table as it is."""
    done = mllm_align(tmp_path, "table", "table=table12", "seeds=[0,1]")
    assert done.returncode == 2
    assert "DPO: seed 1 missing: not run with these settings and this code" in done.stdout
    assert "none of the rows of table12 has been run" in done.stderr
    assert "make table12" in done.stderr
    assert not (tmp_path / "outputs/tables").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report=page"], "report=... belongs to a comparison of runs"),
        (["sweep=other"], "sweeps there: none"),
        (
            ["overrides='dataset.sise=3'"],
            "row 'baseline' (common/baseline): Could not override 'dataset.sise'",
        ),
    ],
)
def test_a_table_that_cannot_be_rendered_is_refused(tmp_path, arguments, words):
    done = mllm_align(tmp_path, "table", "table=table12", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_table_of_ones_own_from_nothing(tmp_path):
    """Two files of config make a table: trained, found again, rendered by its plan and by its sweep."""
    (tmp_path / "conf/table").mkdir(parents=True)
    (tmp_path / "conf/table/tiny.yaml").write_text(TINY_TABLE)
    small = ["dataset.size=8", "benchmark.n=4", "logger=none"]
    sweep = ["train", "--config-dir", "conf", "-m", "sweep.table=tiny", "seed=0,1", *small]
    first = mllm_align(tmp_path, *sweep)
    assert "Sweep tiny: 3 finished." in first.stdout, first.stdout + first.stderr
    assert "3 cells: 3 finished already, 0 to run" in mllm_align(tmp_path, *sweep).stdout

    shown = mllm_align(
        tmp_path, "table", "--config-dir", "conf", "table=tiny", f"overrides='{' '.join(small)}'"
    )
    assert shown.returncode == 0, shown.stderr
    files = [tmp_path / f"outputs/tables/tiny/table.{suffix}" for suffix in ("md", "tex", "csv")]
    planned = [file.read_text() for file in files]
    assert "| DPO | baseline | 2 |" in planned[0]
    mllm_align(tmp_path, "table", "--config-dir", "conf", "table=tiny", "sweep=tiny")
    assert [file.read_text() for file in files] == planned
    other = mllm_align(tmp_path, "table", "--config-dir", "conf", "table=tiny", "seeds=[0,1]")
    assert "DPO: seed 1 missing" in other.stdout
    assert "The sweep tiny was: mllm-align train" in other.stderr
    assert "dataset.size=8" in other.stderr
    assert [file.read_text() for file in files] == planned


def test_a_sweep_that_varied_more_than_rows_and_seeds_is_no_table(tmp_path):
    told = [
        {
            "run": f"runs/{label}/seed0",
            "label": label,
            "seed": 0,
            "overrides": ["experiment=common/dpo_povid"],
        }
        for label in ("dpo-a", "dpo-b")
    ]
    folder = tmp_path / "outputs/sweeps/wide"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"cells": told}))
    done = mllm_align(tmp_path, "table", "table=table12", "sweep=wide")
    assert done.returncode == 2
    assert "row 'DPO' has runs of several configs in sweep wide (dpo-a, dpo-b)" in done.stderr

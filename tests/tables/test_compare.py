"""Comparisons of records: the figures, what is paired with what, and that nothing is dropped."""

import json

import pytest
from fake import answers, config_of, write_failed, write_run

from mllm_align.benchmarks import stats
from mllm_align.benchmarks.base import read_jsonl
from mllm_align.benchmarks.pope import Pope
from mllm_align.benchmarks.published.lmms_eval import LmmsEval
from mllm_align.tables.compare import compare, compare_runs
from mllm_align.tables.load import benchmarks_of, load_run, load_runs

QUICK = {"draws": 1000}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A baseline, a better method on two datasets, one run that failed."""
    root = tmp_path_factory.mktemp("grid")
    write_run(root, "none", "none")
    write_run(root, "dpo", "povid", answer=answers(0.95, 0.9, 0.05))
    write_run(root, "dpo", "rlhf_v", answer=answers(0.8, 0.8, 0.3))
    write_failed(root, "online_dpo")
    return root


@pytest.fixture(scope="module")
def comparison(grid):
    return compare([grid / "runs"], **QUICK)


def test_every_run_has_a_row_and_the_baseline_comes_first(comparison):
    assert [row.name for row in comparison.rows] == [
        "none",
        "dpo · povid",
        "online_dpo · povid",
        "dpo · rlhf_v",
    ]
    assert [row.baseline for row in comparison.rows] == [True, False, False, False]
    assert [row.status for row in comparison.rows] == ["finished", "finished", "failed", "finished"]


def test_a_failed_run_says_why_and_has_no_figures(comparison):
    failed = comparison.rows[2]
    assert failed.cells == {}
    assert failed.notes == ("seed 0 failed: RuntimeError: out of memory",)


def test_values_are_those_of_metrics_json_and_of_the_predictions(grid, comparison):
    row = comparison.rows[1]
    recorded = json.loads((row.runs[0].folder / "metrics.json").read_text())
    for column in comparison.columns:
        assert row.cells[column.key].value.value == pytest.approx(
            recorded[column.benchmark][column.metric.name]
        )
    assert comparison.notes == ()


def test_a_difference_is_the_paired_bootstrap_of_two_prediction_files(grid, comparison):
    base, ours = (
        Pope().counts(read_jsonl(grid / "runs" / label / "seed0" / "predictions" / "pope.jsonl"))
        for label in ("none-none", "dpo-povid")
    )
    expected = stats.mean_paired_difference([(ours, base)], Pope().metrics, draws=1000)["f1"]
    cell = comparison.rows[1].cells["pope/f1"]
    assert cell.difference == expected
    assert expected.low > 0
    assert cell.significant()
    assert comparison.rows[0].cells["pope/f1"].difference is None


def test_only_main_metrics_with_a_direction_are_tested(comparison):
    tested = {column.key for column in comparison.columns if column.tested}
    assert tested == {
        "pope/f1", "pope/adversarial_f1", "recall/chair_s", "recall/chair_i", "recall/recall", "vqa/accuracy",
    }  # fmt: skip
    for row in comparison.rows[1:]:
        assert {key for key, cell in row.cells.items() if cell.p_adjusted is not None} <= tested
    assert comparison.comparisons == 12
    ps = [
        (c.difference.p, c.p_adjusted) for row in comparison.rows for c in row.cells.values() if c.p_adjusted
    ]
    assert stats.holm([p for p, _ in ps]) == [adjusted for _, adjusted in ps]


def test_several_seeds_are_averaged_and_paired_seed_by_seed(tmp_path):
    for seed, skill in enumerate((0.80, 0.85, 0.90)):
        write_run(tmp_path, "none", "none", seed, answer=answers(0.75, 0.8, 0.3, seed), n=30)
        write_run(tmp_path, "dpo", "povid", seed, answer=answers(skill, 0.9, 0.1, seed), n=30)
    found = compare([tmp_path], **QUICK)
    base, row = found.rows
    scores = {
        r.name: [json.loads((run.folder / "metrics.json").read_text())["pope"]["f1"] for run in r.runs]
        for r in (base, row)
    }
    cell = row.cells["pope/f1"]
    assert cell.value.value == pytest.approx(sum(scores[row.name]) / 3)
    assert cell.difference.value == pytest.approx((sum(scores[row.name]) - sum(scores[base.name])) / 3)
    assert cell.difference.method == "t over seeds and images"
    single = compare([row.runs[1].folder, base.runs[1].folder], **QUICK).rows[1].cells["pope/f1"]
    assert cell.difference.high - cell.difference.low > single.difference.high - single.difference.low


def test_a_row_with_a_failed_seed_keeps_the_others_and_says_so(tmp_path):
    write_run(tmp_path, "none", "none", n=10)
    write_run(tmp_path, "dpo", seed=1, n=10)
    write_failed(tmp_path, "dpo")  # seed 0
    row = compare([tmp_path], **QUICK).rows[1]
    assert [run.status for run in row.runs] == ["failed", "finished"]
    assert row.cells["pope/f1"].value.n == 10
    assert "out of memory" in row.notes[0]


def test_runs_on_other_images_are_not_compared(tmp_path):
    write_run(tmp_path, "none", "none", n=10)
    write_run(tmp_path, "dpo", n=12)
    row = compare([tmp_path], **QUICK).rows[1]
    assert row.cells["pope/f1"].difference is None
    assert any("different images" in note for note in row.notes)


def test_seeds_on_different_images_have_a_mean_and_a_note(tmp_path):
    write_run(tmp_path, "dpo", seed=0, n=10)
    write_run(tmp_path, "dpo", seed=1, n=12)
    row = compare([tmp_path], **QUICK).rows[0]
    assert row.cells["pope/f1"].value.method == "t over seeds"
    assert any("different images" in note for note in row.notes)


def test_without_a_baseline_there_are_values_and_a_note(tmp_path):
    write_run(tmp_path, "dpo", n=10)
    found = compare([tmp_path], **QUICK)
    assert found.rows[0].cells["pope/f1"].difference is None
    assert found.notes == ("no finished run is none, so there are no differences to it",)


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ("dpo · povid", {"dpo · povid"}),
        ("dpo-rlhf_v", {"dpo · rlhf_v"}),
        ("dpo", {"dpo · povid", "dpo · rlhf_v"}),
        ("bdhs_attn", {"ipo · povid"}),
    ],
)
def test_a_baseline_may_be_a_row_a_label_an_alignment_or_a_sampler(tmp_path, wanted, rows):
    write_run(tmp_path, "none", "none", n=10)
    write_run(tmp_path, "dpo", n=10)
    write_run(tmp_path, "dpo", "rlhf_v", n=10)
    write_run(tmp_path, "ipo", n=10, axes={"sampler": "bdhs_attn"})
    found = compare([tmp_path], wanted, **QUICK)
    assert {row.name for row in found.rows if row.baseline} == rows
    others = [row for row in found.rows if not row.baseline]
    assert all(row.cells["pope/f1"].difference is not None for row in others)


def test_a_baseline_that_nothing_is_called_is_refused(tmp_path):
    write_run(tmp_path, "dpo", n=10)
    with pytest.raises(ValueError, match="baseline=dop is no row: there are the rows dpo"):
        compare([tmp_path], "dop", **QUICK)


def test_a_finished_run_without_a_benchmark_is_no_damaged_one(tmp_path):
    write_run(tmp_path, "none", "none", n=10)
    folder = write_run(tmp_path, "dpo", n=10, config={"benchmark": {"tasks": {}}})
    (folder / "metrics.json").unlink()
    assert [row.status for row in compare([tmp_path], **QUICK).rows] == ["finished", "finished"]


def test_a_baseline_of_another_base_model_is_not_one(tmp_path):
    write_run(tmp_path, "none", "none", n=10, axes={"base_model": "large"})
    write_run(tmp_path, "dpo", n=10)
    found = compare([tmp_path], **QUICK)
    assert [row.name for row in found.rows] == ["none · large", "dpo · povid · base"]
    assert found.rows[1].cells["pope/f1"].difference is None


@pytest.mark.parametrize(
    ("setting", "ours", "theirs"),
    [("path", "/models/A", "/models/B"), ("dtype", "float32", "bfloat16"), ("four_bit", False, True)],
)
def test_nor_is_one_in_another_folder_or_precision(tmp_path, setting, ours, theirs):
    for name, value in (("none", ours), ("dpo", ours), ("ipo", theirs)):
        base = {"path": "/models/A", "dtype": "float32", setting: value}
        write_run(tmp_path, name, n=10, axes={"base_model": "local"}, config=config_of(10, base_model=base))
    found = compare([tmp_path], **QUICK)
    rows = {row.method: row for row in found.rows}
    assert rows["dpo"].cells["pope/f1"].difference is not None
    assert rows["ipo"].cells["pope/f1"].difference is None
    assert [note for note in found.notes if "no finished run of none has its base model" in note] == [
        f"{rows['ipo'].name}: no finished run of none has its base model (folder, dtype and four_bit), so "
        "there are no differences to it"
    ]


def test_runs_that_were_asked_other_questions_are_not_compared(tmp_path):
    """The same images, and another prompt; the other benchmarks are compared, in whatever order they were asked."""
    write_run(tmp_path, "none", "none", n=10)
    folder = write_run(tmp_path, "dpo", n=10, answer=answers(0.9, 0.9, 0.1))
    file = folder / "predictions" / "recall.jsonl"
    file.write_text(file.read_text().replace("Describe the image in detail.", "Describe this image."))
    file = folder / "predictions" / "pope.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    row = compare([tmp_path], **QUICK).rows[1]
    assert row.cells["recall/chair_s"].difference is None
    assert row.cells["recall/chair_s"].value.method == "BCa"
    assert row.cells["pope/f1"].difference is not None
    (note,) = row.notes
    assert note.startswith("recall: not compared with the baseline")
    assert "different questions" in note


def test_seeds_that_lack_a_benchmark_are_named(tmp_path):
    for seed in range(3):
        folder = write_run(tmp_path, "none", "none", seed, n=10)
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["pope"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (row,) = compare([tmp_path], **QUICK).rows
    assert row.notes == ("pope: not answered by seed 2, so its figures are of the others",)


def test_missing_predictions_leave_the_recorded_figure_without_an_interval(tmp_path):
    write_run(tmp_path, "none", "none", n=10)
    folder = write_run(tmp_path, "dpo", n=10)
    (folder / "predictions" / "pope.jsonl").unlink()
    found = compare([tmp_path], **QUICK)
    cell = found.rows[1].cells["pope/f1"]
    assert cell.value.method == "no predictions"
    assert cell.difference is None
    assert found.rows[1].cells["vqa/accuracy"].difference is not None
    assert "no intervals for pope" in found.notes[0]


def test_metrics_that_disagree_with_their_predictions_are_reported(tmp_path):
    folder = write_run(tmp_path, "none", "none", n=10)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["pope"]["f1"] = 0.99
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert "metrics.json has pope/f1 = 0.99" in compare([tmp_path], **QUICK).notes[0]


def test_a_benchmark_that_only_one_run_has_leaves_a_gap(tmp_path):
    folder = write_run(tmp_path, "none", "none", n=10)
    write_run(tmp_path, "dpo", n=10)
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["vqa"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    found = compare([tmp_path], **QUICK)
    assert "vqa/accuracy" not in found.rows[0].cells
    assert found.rows[1].cells["vqa/accuracy"].difference is None


def test_a_foreign_target_is_not_imported(tmp_path):
    tasks = {"pope": {"_target_": "os.system", "command": "false"}}
    write_run(tmp_path, "none", "none", n=10, config={"benchmark": {"tasks": tasks}})
    found = compare([tmp_path], **QUICK)
    assert any("benchmark pope is not known here" in note for note in found.notes)
    assert found.rows[0].cells["pope/f1"].value.method == "no predictions"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"_target_": "mllm_align.benchmarks.pope.Pope", "old_option": 1}, "old_option"),
        ({"_target_": "mllm_align.benchmarks.pope.Gone"}, "has no 'Gone'"),
        ({"_target_": "mllm_align.benchmarks.gone.Pope"}, "No module named"),
        ({"_target_": "mllm_align.benchmarks.base.write_jsonl", "rows": [], "path": "x"}, "is no benchmark"),
        ({"_target_": "mllm_align.benchmarks.base.Metric", "name": "x", "title": "x"}, "is no benchmark"),
    ],
)
def test_a_record_that_can_not_be_scored_again_does_not_end_the_others(tmp_path, caplog, spec, reason):
    write_run(tmp_path, "none", "none", n=10)
    write_run(tmp_path, "dpo", n=10, config={"benchmark": {"tasks": {"pope": spec, "mine": spec}}})
    found = compare([tmp_path], **QUICK)
    assert found.rows[1].cells["pope/f1"].difference is not None  # by the other record's scorer
    assert reason in caplog.text
    assert "seed0: benchmark mine cannot be scored again" in caplog.text


def test_the_tasks_of_lmms_eval_are_a_list(tmp_path):
    each = {"_target_": "mllm_align.benchmarks.published.lmms_eval.LmmsEval", "limit": 3}
    folder = write_run(tmp_path, "none", "none", n=10, config={"benchmark": {"tasks": ["mme"], "each": each}})
    (scorer,) = benchmarks_of(load_run(folder)).items()
    assert scorer == ("lmms_eval_mme", LmmsEval("mme", limit=3))


def test_own_scorers_can_be_given(tmp_path):
    write_run(tmp_path, "none", "none", n=10, config={"benchmark": {"tasks": {}}})
    found = compare_runs(load_runs([tmp_path]), benchmarks={"pope": Pope()}, **QUICK)
    assert found.rows[0].cells["pope/f1"].value.method == "BCa"


def test_a_damaged_record_is_shown_as_unreadable(tmp_path):
    write_run(tmp_path, "none", "none", n=10)
    damaged = [write_run(tmp_path, name, n=10) for name in ("dpo", "ipo", "slic")]
    (damaged[0] / "record.json").write_text("{")
    (damaged[1] / "metrics.json").write_text("[1")
    (damaged[2] / "metrics.json").unlink()
    rows = {row.runs[0].folder.parent.name: row for row in compare([tmp_path], **QUICK).rows}
    assert {label: row.status for label, row in rows.items()} == {
        "none-none": "finished",
        "dpo-povid": "unreadable",
        "ipo-povid": "unreadable",
        "slic-povid": "unreadable",
    }
    assert all(row.notes for label, row in rows.items() if label != "none-none")


def test_a_record_of_several_seeds_does_not_end_the_table(tmp_path):
    write_run(tmp_path, "none", "none", n=10)
    file = write_run(tmp_path, "dpo", n=10) / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "seed": [0, 1]}))
    assert {row.status for row in compare([tmp_path], **QUICK).rows} == {"finished", "unreadable"}


def test_no_runs_at_all_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run there"):
        load_runs([tmp_path])


def test_a_run_named_twice_counts_once(grid):
    assert len(load_runs([grid, grid / "runs" / "none-none" / "seed0", grid])) == 4


def test_the_command_compares_without_a_table_of_the_study(tmp_path, capsys, monkeypatch) -> None:
    from mllm_align.cli import main

    write_run(tmp_path, "none", "none", n=10)
    write_run(tmp_path, "dpo", n=10)
    monkeypatch.chdir(tmp_path)
    assert main(["table", f"runs=[{tmp_path}/runs]", f"csv={tmp_path}/all.csv"]) == 0
    assert "dpo" in capsys.readouterr().out
    assert (tmp_path / "all.csv").is_file()

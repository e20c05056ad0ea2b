import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from mllm_align.store import Stage, Store
from mllm_align.sweep.cells import Planned, check, cross, read_rows
from mllm_align.sweep.plan import duration, make_plan, own_settings
from mllm_align.sweep.report import Outcome, Report, driver_overrides, rerun_command, sweep_name
from mllm_align.sweep.run import choose


@dataclass(frozen=True)
class FakeCell:
    label: str
    seed: int = 0
    key: str = "k"
    stages: tuple[Stage, ...] = ()
    seconds: float | None = None
    done: bool = False

    def finished(self, outputs):
        return self.done

    def estimate_seconds(self):
        return self.seconds


def planned(label: str, **more) -> Planned:
    overrides = more.pop("overrides", ("a=1",))
    return Planned(FakeCell(label, **more), overrides, {})


def stage(name: str, config: int = 0, **inputs: Stage) -> Stage:
    return Stage(name, "mllm_align.store.write_json", {"config": config}, inputs)


def test_rows_are_read_and_crossed(tmp_path):
    file = tmp_path / "rows.yaml"
    file.write_text("- [a=1, b=2]\n- ['a=3']\n")
    rows = read_rows(file)
    assert rows == [("a=1", "b=2"), ("a=3",)]
    want = [("seed=0", "a=1", "b=2"), ("seed=0", "a=3"), ("seed=1", "a=1", "b=2"), ("seed=1", "a=3")]
    assert cross([("seed=0",), ("seed=1",)], rows) == want


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{a: 1}", "must be a list"),
        ("", "must be a list"),
        ("- [a=1]\n- a=1", "row 2 is 'a=1', not a list"),
        ("- [a=1]\n- [{a: 1}]", "row 2"),
        ("- [a=1", "is not YAML"),
        ("- [alignment]", "row 1"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, words):
    file = tmp_path / "rows.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_rows(file)


def test_a_name_set_twice_is_refused():
    with pytest.raises(ValueError, match="row 2 sets seed, which the command line sets too"):
        cross([("seed=0",)], [("a=1",), ("+seed=1",)])


def test_cells_that_would_share_a_folder_are_refused_and_equal_ones_count_once():
    def plan(config):
        return FakeCell("same", key=config["key"])

    cells, refused = check([["x=a"], ["x=a"], ["x=b"]], lambda item: {"key": item[0]}, plan)
    assert [cell.overrides for cell in cells] == [("x=a",)]
    assert len(refused) == 1
    assert "would share its run folder" in refused[0].reason


def test_plan_counts_each_stage_once_and_estimates_by_what_is_missing(tmp_path):
    shared, other = stage("preferences"), stage("preferences", 1)
    reference = stage("reference", preferences=shared)
    cells = [
        planned("dpo", seed=0, stages=(shared, reference), seconds=100.0),
        planned("dpo", seed=1, stages=(shared, reference), seconds=100.0),
        planned("ipo", stages=(other,), seconds=None),
        planned("none", done=True, stages=(stage("unneeded"),)),
    ]
    plan = make_plan(cells, Store(tmp_path), tmp_path, workers=2)
    assert [len(part) for part in (plan.finished, plan.pending, plan.continued)] == [1, 3, 0]
    assert len(plan.stages) == 4
    assert len(plan.missing) == 3
    assert plan.seconds == 100.0  # two cells of 100 s shared by two workers
    assert set(plan.unknown) == {"ipo", "preferences", "reference"}


def test_the_time_is_unknown_where_most_cells_were_never_timed(tmp_path):
    timed, new = planned("dpo", seconds=7.0), [planned(f"ipo{number}") for number in range(2)]
    assert make_plan([timed, new[0]], Store(tmp_path), tmp_path, workers=1).seconds == 7.0
    assert make_plan([timed, *new], Store(tmp_path), tmp_path, workers=1).seconds is None


def test_a_cell_s_own_settings_do_not_say_how_to_run():
    words = ("alignment=dpo", "sweep.workers=2", "outputs=elsewhere", "plan=true", "+hydra.x=1")
    assert own_settings([planned("x", overrides=words)]) == {"x": ("alignment=dpo",)}


def test_a_cell_s_own_settings_are_what_the_others_lack_and_show_no_secret():
    cells = [
        planned("x", seed=0, overrides=("seed=0", "alignment=dpo", "a.lr=1")),
        planned("x", seed=1, overrides=("seed=1", "alignment=dpo", "a.lr=1")),
        planned("y", overrides=("seed=0", "alignment=dpo", "a.lr=2", "b.api_key=sk-1")),
    ]
    assert own_settings(cells) == {"x": ("a.lr=1",), "y": ("a.lr=2", "b.api_key=[removed]")}
    assert own_settings(cells[:1]) == {"x": ("alignment=dpo", "a.lr=1")}


def test_the_next_cell_is_the_one_that_waits_for_nobody():
    shared, other = stage("a"), stage("b")
    missing = {f"{one.name}/{one.key}": one for one in (shared, other)}
    waiting = [planned("x", stages=(shared,)), planned("y", stages=(other,)), planned("z")]
    assert choose(waiting, frozenset(), missing) == 0
    assert choose(waiting, frozenset({f"a/{shared.key}"}), missing) == 1
    assert choose(waiting, frozenset({f"a/{shared.key}"}), {}) == 0  # it has been built meanwhile


def test_a_sweep_has_the_same_name_in_any_order_unless_it_is_given_one():
    cells = [planned("x", key="1"), planned("y", key="2")]
    assert sweep_name(None, cells) == sweep_name(None, cells[::-1])
    assert sweep_name("demo", cells) == "demo"


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/x", ".hidden", "a b", "x" * 201])
def test_a_sweep_s_name_stays_inside_its_folder(name):
    with pytest.raises(ValueError, match=r"sweep\.name .* cannot name a folder"):
        sweep_name(name, [])


def summary(report: Report) -> dict:
    return json.loads((report.folder / "summary.json").read_text())


def test_a_name_used_again_keeps_the_cells_of_before(tmp_path):
    dpo, ipo, slic = planned("dpo"), planned("ipo"), planned("slic")
    first = Report("grid", [dpo, ipo], tmp_path, Store(tmp_path), {})
    first.ended(dpo, Outcome("finished", 1.0, 1))
    first.ended(ipo, Outcome("failed", 1.0, 1, "it fell"))
    again = Report("grid", [ipo, slic], tmp_path, Store(tmp_path), {})
    again.ended(ipo, Outcome("finished", 2.0, 1))
    kept = summary(again)
    want = [("dpo", "finished"), ("ipo", "finished"), ("slic", "waiting")]
    assert [(cell["label"], cell["status"]) for cell in kept["cells"]] == want
    assert kept["finished"] == 2
    assert again.count_ended() == 1  # what is told at the end is of this command


@pytest.mark.parametrize("text", ["{", "[]", '{"cells": [{"label": "x"}, 3]}', '{"cells": null}'])
def test_a_damaged_summary_is_written_anew(tmp_path, text):
    report = Report("grid", [planned("dpo")], tmp_path, Store(tmp_path), {})
    report.folder.mkdir(parents=True)
    (report.folder / "summary.json").write_text(text)
    report.write()
    assert [cell["label"] for cell in summary(report)["cells"]] == ["dpo"]


def test_the_rerun_command_names_the_cells_but_no_secret(tmp_path):
    overrides = (
        "alignment=dpo",
        "sweep.workers=2",
        "annotator.api_key=sk-1",
        "plan=false",
        "outputs=elsewhere",
        "annotator.build.settings={api_key: sk-2}",
    )
    cell = planned("dpo", overrides=overrides)
    report = Report("id", [cell], tmp_path, Store(tmp_path), {})
    given = ["sweep.workers=2", "seed=0,1", "plan=false", "sweep.cells=old.yaml", "sweep.table=table09"]
    given += ["outputs=elsewhere"]
    driver = driver_overrides(given)
    line = rerun_command(report, [cell], "mllm-align train", driver)
    file = tmp_path / "sweeps" / "id" / "again.yaml"
    hidden = "annotator.api_key=... annotator.build.settings=..."
    assert line == f"mllm-align train -m sweep.cells={file} sweep.workers=2 outputs=elsewhere {hidden}"
    assert read_rows(file) == [("alignment=dpo",)]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (0.4, "0.4 s"), (8, "8 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_run_folder_of_a_planned_cell():
    assert planned("x", seed=2).folder(Path("out")) == Path("out/runs/x/seed2")

"""Tables of the study: that the shipped ones hold together, and what a table says of every state of a run."""

import copy
import csv
import io
from dataclasses import replace

import pytest
from fake import answers, benchmarks, write_failed, write_run
from hydra import compose, initialize_config_dir
from rich.console import Console

from mllm_align.benchmarks.stats import Interval
from mllm_align.entry import plain
from mllm_align.paths import conf_dir
from mllm_align.pipeline import plan_cell
from mllm_align.record import RunRecord, read_record
from mllm_align.store import write_json
from mllm_align.tables import paper, render, render_study
from mllm_align.tables.load import Run, benchmarks_in, find_run, load_run
from mllm_align.tables.paper import Reported
from mllm_align.tables.rows import Cell
from mllm_align.tables.spec import read_spec
from mllm_align.tables.study import direction, make_table, state

TABLES = sorted(path.stem for path in (conf_dir() / "table").glob("*.yaml"))
EXPERIMENTS = sorted(
    path.relative_to(conf_dir() / "experiment").with_suffix("").as_posix()
    for path in (conf_dir() / "experiment").rglob("*.yaml")
)
QUICK = {"draws": 500}
# The paper's Table 7 has two base models, and a reward model trained on two datasets together.
IN_PART = {"table07"}


def composed(config_name: str, *overrides: str) -> dict:
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return plain(compose(config_name, overrides=list(overrides)))


# --- the shipped tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_a_shipped_table_has_runnable_rows_and_its_place_in_the_paper(name, tmp_path):
    spec = read_spec(composed("table", f"table={name}")["table"])
    assert spec.name == name
    configs = {row.name: composed("train", *row.overrides) for row in spec.rows}
    labels = {row: plan_cell(config).label for row, config in configs.items()}
    assert len(set(labels.values())) == len(spec.rows), labels
    runs = {row.name: [Run(tmp_path, labels[row.name], 0, "missing")] for row in spec.rows}
    table = make_table(spec, runs, benchmarks_in(configs[spec.rows[0].name]), **QUICK)
    figures = paper.read(spec.paper)
    told = [figures.row(row.paper) for row in spec.rows if row.paper is not None]
    assert len({tuple(row.items()) for row in told}) == len(told), "a row of the paper stands there twice"
    if name not in IN_PART:
        assert len(figures.rows) == len(spec.rows), "a row of the paper is left out"
        assert told == list(figures.rows), "rows stand in the paper's order"
    assert any(table.reported.values())
    assert figures.source.startswith(f"Table {int(name.removeprefix('table'))} of ")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_plans_and_its_header_names_a_table(name):
    plan_cell(composed("train", f"experiment={name}"))
    header = (conf_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()[1]
    assert header.startswith(("# Table", "# Tables"))


def test_the_experiments_are_those_of_the_paper():
    """What a header says, the composed config is."""
    seen = {name: composed("train", f"experiment={name}") for name in EXPERIMENTS}
    for name, config in seen.items():
        told = name.rpartition("/")[2]
        if "bdhs" in told or "distortion" in told:
            assert config["sampler"]["when"] == ("online" if told.endswith("online") else "offline"), name
            assert config["alignment"]["name"] == ("averaged_dpo" if told.startswith("povid_") else "dpo"), (
                name
            )
        for dataset in ("povid", "rlhf_v"):
            if told.endswith(f"dpo_{dataset}"):
                assert config["dataset"]["name"] == f"scenes/{dataset}"


# --- made-up tables ----------------------------------------------------------------------------------------

ROWS = [
    {"experiment": "e/none", "name": "baseline", "paper": {"alignment": "baseline"}},
    {"experiment": "e/dpo", "name": "DPO", "against": "baseline", "paper": {"alignment": "DPO"}},
    {"experiment": "e/ipo", "name": "IPO", "against": "DPO", "paper": {"alignment": "IPO"}},
]
COLUMNS = [
    {"metric": "pope/f1", "name": "POPE F1", "paper": "pope"},
    {"metric": "recall/recall", "name": "object recall", "paper": "recall_coco"},
    {"metric": "recall/words", "name": "words"},
]
CONFIG = {"name": "made_up", "title": "A table", "paper": "table12", "rows": ROWS, "columns": COLUMNS}


def changed(**more) -> dict:
    return {**copy.deepcopy(CONFIG), **more}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Runs by row: a baseline of one seed, a much better DPO of three, an IPO of two that is as good as DPO."""
    root = tmp_path_factory.mktemp("study")
    runs = {"baseline": [load_run(write_run(root, "none", "none", n=30))]}
    for name, method, seeds in (("DPO", "dpo", 3), ("IPO", "ipo", 2)):
        folders = [
            write_run(root, method, "povid", seed, answer=answers(0.95, 0.95, 0.02, seed), n=30)
            for seed in range(seeds)
        ]
        runs[name] = [load_run(folder) for folder in folders]
    return runs


@pytest.fixture(scope="module")
def table(found):
    return make_table(read_spec(CONFIG), found, benchmarks(30), **QUICK)


def column(table, metric):
    return next(column for column in table.comparison.columns if column.key == metric)


def row(table, name):
    return next(row for row in table.comparison.rows if row.name == name)


def test_each_row_is_compared_with_the_row_it_names(table, found):
    f1 = [[run.metrics["pope"]["f1"] for run in found[name]] for name in ("baseline", "DPO", "IPO")]
    base, dpo, ipo = (row(table, name).cells["pope/f1"] for name in ("baseline", "DPO", "IPO"))
    assert base.difference is None
    assert base.value.method == "BCa"
    assert dpo.value.method == "t over seeds and images"
    assert dpo.difference.value == pytest.approx(sum(f1[1]) / 3 - f1[0][0])
    assert ipo.difference.value == pytest.approx(sum(f1[2]) / 2 - (f1[1][0] + f1[1][1]) / 2)


def test_holm_counts_every_comparison_of_the_table(table):
    cells = [
        cell
        for name in ("DPO", "IPO")
        for key, cell in row(table, name).cells.items()
        if key != "recall/words"  # of which nobody knows what is better
    ]
    assert table.comparison.comparisons == len(cells) == 4
    by_p = sorted(cells, key=lambda cell: cell.difference.p)
    largest = 0.0
    for rank, cell in enumerate(by_p):
        largest = max(largest, min(1.0, (4 - rank) * cell.difference.p))
        assert cell.p_adjusted == pytest.approx(largest)
    assert row(table, "DPO").cells["pope/f1"].significant()
    assert row(table, "DPO").cells["recall/words"].p_adjusted is None


def test_directions_beside_the_paper(table):
    """Table 12 has POPE 86.40, DPO 88.09 and IPO 87.62: up by 1.69 to the baseline, down by 0.47 to DPO."""
    f1 = column(table, "pope/f1")
    assert table.paper(row(table, "DPO"), f1) == Reported("88.09", 1.69)
    assert table.paper(row(table, "IPO"), f1) == Reported("87.62", -0.47)
    assert table.paper(row(table, "baseline"), f1) == Reported("86.40", None)
    assert table.agreement(row(table, "DPO"), f1) == "agrees"
    assert table.agreement(row(table, "IPO"), f1) == "not significant"
    assert table.agreement(row(table, "baseline"), f1) == ""
    words = column(table, "recall/words")
    assert table.paper(row(table, "DPO"), words) is None
    assert table.agreement(row(table, "DPO"), words) == ""


@pytest.mark.parametrize(
    ("difference", "p", "told", "expected"),
    [
        (0.1, 0.01, 2.0, "agrees"),
        (-0.1, 0.01, -2.0, "agrees"),
        (-0.1, 0.01, 2.0, "disagrees"),
        (0.1, 0.05, 2.0, "not significant"),
        (0.1, 0.01, 0.0, ""),
        (0.1, 0.01, None, ""),
    ],
)
def test_agreement_by_hand(difference, p, told, expected):
    value = Interval(0.5, 0.4, 0.6, 10, 0.5, "BCa")
    cell = Cell(value, replace(value, value=difference), p)
    assert direction(cell, Reported("1.00", told)) == expected


def test_arrows():
    arrows = [Reported("1", change).arrow for change in (0.3, -0.3, 0.0, None)]
    assert arrows == ["↑", "↓", "=", ""]


# --- runs that are not there, or went wrong ----------------------------------------------------------------


def collapsed_run(root, seed=0):
    label = "ipo-povid"
    with RunRecord.open(root, label=label, seed=seed, key=label, config={}) as record:
        write_json(record.folder / "metrics.json", {"pope": {"f1": 0.1}})
        record.collapsed("KL reached 90 nats")
    return load_run(record.folder)


def test_failed_missing_and_collapsed_rows_say_so(found, tmp_path):
    failed = load_run(write_failed(tmp_path, "dpo"))
    missing = find_run(tmp_path, "dpo-povid-other", 1, "key")
    runs = {"baseline": found["baseline"], "DPO": [failed, missing], "IPO": [collapsed_run(tmp_path)]}
    table = make_table(read_spec(CONFIG), runs, benchmarks(30), **QUICK)
    assert state(row(table, "DPO")) == "failed (1), missing (1)"
    assert state(row(table, "IPO")) == "not stable"
    assert row(table, "IPO").cells == {}
    assert table.comparison.comparisons == 0
    markdown = render_study.render_markdown(table)
    assert "| failed (1), missing (1)<br>paper 88.09 ↑ |" in markdown
    assert "| not stable<br>paper 87.62 ↓ |" in markdown
    assert "seed 0 failed: RuntimeError: out of memory" in markdown
    assert "seed 0 not stable: KL reached 90 nats" in markdown
    assert "seed 1 missing: not run" in markdown
    assert "not stable & not stable & not stable" in render_study.render_latex(table)
    rows = list(csv.DictReader(io.StringIO(render_study.render_csv(table))))
    assert [line["status"] for line in rows if line["name"] == "words"] == [
        "finished",
        "failed (1), missing (1)",
        "not stable",
    ]


def test_one_collapsed_seed_takes_the_figures_of_its_row(found, tmp_path):
    """The mean of the seeds that survived would flatter the method."""
    runs = {**found, "DPO": [*found["DPO"][:2], collapsed_run(tmp_path, seed=2)]}
    table = make_table(read_spec(CONFIG), runs, benchmarks(30), **QUICK)
    assert state(row(table, "DPO")) == "not stable (1 of 3 seeds)"
    assert row(table, "DPO").cells == {}
    assert row(table, "IPO").cells["pope/f1"].difference is None
    told = "IPO: not compared with DPO, which has no figures (not stable (1 of 3 seeds))"
    assert told in render.problems(table.comparison)


def test_a_row_keeps_the_seeds_that_are_done(found, tmp_path):
    gone = find_run(tmp_path, "dpo-povid", 7, "key")
    runs = {**found, "DPO": [found["DPO"][0], gone]}
    table = make_table(read_spec(CONFIG), runs, benchmarks(30), **QUICK)
    assert row(table, "DPO").cells["pope/f1"].value.method == "BCa"
    assert "| DPO | baseline | 1 of 2 |" in render_study.render_markdown(table)


def test_a_run_is_found_by_its_key_and_its_benchmarks_by_theirs(tmp_path):
    folder = write_run(tmp_path, "dpo", n=10)
    data = read_record(folder)
    write_json(folder / "record.json", {**data, "benchmarks": {"pope": {"key": "p"}, "vqa": {"key": "v"}}})
    asked = {"pope": "p", "vqa": "other", "recall": "r"}
    run = find_run(tmp_path, "dpo-povid", 0, "dpo-povid", asked)
    assert (run.status, set(run.metrics)) == ("finished", {"pope"})
    assert run.problem == "recall, vqa: answered with other settings than are asked for"
    other = find_run(tmp_path, "dpo-povid", 0, "another key", asked)
    assert (other.status, other.metrics) == ("missing", {})
    runs = {"baseline": [run], "DPO": [run], "IPO": [run]}
    table = make_table(read_spec(CONFIG), runs, benchmarks(10), **QUICK)
    assert render_study.value_text(row(table, "DPO"), column(table, "recall/recall")) == "not evaluated"


# --- rendering ---------------------------------------------------------------------------------------------


def printed(table, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(render_study.render_terminal(table, width))
    return console.file.getvalue()


def test_terminal_shows_everything_in_as_many_blocks_as_it_takes(table):
    wide, narrow = printed(table, 140), printed(table, 70)
    for text in ("A table", "against baseline", "88.09 ↑ agrees", "87.62 ↓ not significant", "words"):
        assert text in wide
    assert max(map(len, wide.splitlines())) <= 140
    assert max(map(len, narrow.splitlines())) <= 70
    assert (wide.count("A table"), narrow.count("A table")) == (1, 3)
    assert all(text in narrow for text in ("POPE F1", "object recall", "words"))
    assert "Holm's correction for 4 comparisons" in " ".join(wide.split())


def test_markdown_cells_have_value_difference_and_paper(table):
    cell = row(table, "DPO").cells["pope/f1"]
    line = next(t for t in render_study.render_markdown(table).splitlines() if t.startswith("| DPO"))
    value = f"{100 * cell.value.value:.1f} [{100 * cell.value.low:.1f}, {100 * cell.value.high:.1f}]"
    change = f"+{100 * cell.difference.value:.1f}\\* [+{100 * cell.difference.low:.1f}, "
    assert line.split(" | ")[3].startswith(f"{value}<br>{change}")
    assert line.split(" | ")[3].endswith("<br>paper 88.09 ↑ agrees")
    assert "arXiv 2407.02477" in render_study.render_markdown(table)


def test_csv_has_every_cell_unrounded(table):
    rows = list(csv.DictReader(io.StringIO(render_study.render_csv(table))))
    assert len(rows) == 9
    line = next(entry for entry in rows if (entry["row"], entry["metric"]) == ("DPO", "f1"))
    cell = row(table, "DPO").cells["pope/f1"]
    assert float(line["value"]) == cell.value.value
    assert float(line["p_holm"]) == cell.p_adjusted
    told = ("table", "experiment", "against", "seeds", "paper_value", "paper_difference", "agreement")
    assert [line[key] for key in told] == [
        "made_up",
        "e/dpo",
        "baseline",
        "0 1 2",
        "88.09",
        "1.69",
        "agrees",
    ]


def test_latex_lines_have_all_columns(table):
    text = render_study.render_latex(table)
    body = [line for line in text.splitlines() if not line.startswith("%") and "&" in line]
    assert {line.count(" & ") for line in body} == {3}
    assert len(body) == 1 + 2 + 3 + 3
    assert r"{\scriptsize 88.09 $\uparrow$ agrees}" in text
    assert r"\textbf{" in text


HOSTILE = "[2pt] a|b`*_<script>&[bold]$x^2${}\\%#~ =1"


def test_hostile_names_stay_text(found):
    rows = copy.deepcopy(ROWS)
    rows[0]["name"] = rows[1]["against"] = "=" + HOSTILE
    rows[1]["name"] = rows[2]["against"] = HOSTILE
    runs = {"=" + HOSTILE: found["baseline"], HOSTILE: found["DPO"], "IPO": found["IPO"]}
    table = make_table(read_spec(changed(rows=rows)), runs, benchmarks(30), **QUICK)
    pipes = [t for t in render_study.render_markdown(table).splitlines() if t.startswith("|")]
    assert {len(line.replace("\\|", "").split("|")) for line in pipes} == {8}
    assert "<script" not in "".join(pipes)
    assert "[bold]" in printed(table, 200)
    first, *_, last = csv.DictReader(io.StringIO(render_study.render_csv(table)))
    assert first["row"] == "'=" + HOSTILE
    assert last["against"] == HOSTILE
    tex = render_study.render_latex(table)
    assert r"\$x\textasciicircum{}2\$\{\}\textbackslash{}\%\#\textasciitilde{}" in tex
    assert not [line for line in tex.splitlines() if line.startswith("[")]


# --- what is wrong in a config -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed(rows=[]), "made_up: rows is"),
        (changed(colums=[]), "has the key 'colums'"),
        (changed(rows=[{**ROWS[0], "aginst": "x"}]), "row 1 has the key 'aginst'"),
        (changed(rows=[ROWS[0], {**ROWS[1], "against": "none"}]), "compared with 'none', which is no other"),
        (changed(rows=[{**ROWS[0], "against": "baseline"}]), "which is no other row"),
        (changed(rows=[ROWS[0], ROWS[0]]), "several rows have the name baseline"),
        (changed(rows=[{"name": "x"}]), "row 1: experiment is None"),
        (changed(columns=[{"metric": "f1", "name": "F1"}]), "<benchmark>/<metric>, such as pope/f1"),
    ],
)
def test_a_wrong_config_is_told_by_its_place(config, words):
    with pytest.raises(ValueError, match=words):
        read_spec(config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            changed(columns=[{"metric": "pope/f2", "name": "F2"}]),
            "no metric 'pope/f2'; choose one of pope/f1",
        ),
        (changed(columns=[{"metric": "mmhal/score", "name": "M"}]), "no benchmark 'mmhal' among"),
        (changed(columns=[{**COLUMNS[0], "paper": "popo"}]), "no column 'popo'; it has alignment"),
        (changed(paper="table99"), "no figures of the paper's table99; there are table02"),
        (changed(rows=[{**ROWS[0], "paper": {"dataset": "POVID"}}]), "has 3 rows with dataset: POVID"),
        (changed(rows=[{**ROWS[0], "paper": {"data": "POVID"}}]), "has no column 'data'"),
    ],
)
def test_what_the_benchmarks_or_the_paper_lack_is_told(found, config, words):
    with pytest.raises(ValueError, match=words):
        make_table(read_spec(config), found, benchmarks(30), **QUICK)


def test_a_table_without_a_paper_shows_ours_alone(found):
    rows = [{key: value for key, value in entry.items() if key != "paper"} for entry in ROWS]
    table = make_table(read_spec(changed(rows=rows, paper=None)), found, benchmarks(30), **QUICK)
    assert "paper" not in render_study.render_markdown(table)
    assert row(table, "DPO").cells["pope/f1"].significant()


def test_the_papers_unstable_runs_have_no_figures():
    figures = paper.read("table08")
    ppo = figures.row({"alignment": "PPO", "reward_model_dataset": "POVID"})
    assert paper.reported(ppo, figures.row({"alignment": "baseline"}), "pope") == Reported("not stable")


def test_instability_is_compared_with_the_papers(found, tmp_path):
    rows = copy.deepcopy(ROWS[:2])
    rows[1]["paper"] = {"alignment": "PPO", "reward_model_dataset": "POVID"}
    spec = read_spec(changed(paper="table08", rows=rows))
    told = {}
    missing = [find_run(tmp_path, "ppo", 0, "key")]
    for name, runs in (("stable", found["DPO"]), ("broken", [collapsed_run(tmp_path)]), ("missing", missing)):
        table = make_table(spec, {"baseline": found["baseline"], "DPO": runs}, benchmarks(30), **QUICK)
        told[name] = table.agreement(row(table, "DPO"), column(table, "pope/f1"))
    assert told == {"stable": "disagrees", "broken": "agrees", "missing": ""}

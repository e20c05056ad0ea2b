"""A comparison as text: figures by hand, and that nothing in a name or message breaks the format."""

import csv
import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from mllm_align.benchmarks.base import Metric
from mllm_align.benchmarks.stats import Interval
from mllm_align.tables import render
from mllm_align.tables.load import Run
from mllm_align.tables.rows import Cell, Column, Comparison, Row

F1 = Column("pope", Metric("f1", "POPE F1", +1, main=True))
CHAIR = Column("recall", Metric("chair_s", "CHAIR-s", -1, main=True))
WORDS = Column("recall", Metric("words", "words", main=True, percent=False))
YES = Column("pope", Metric("yes_ratio", "predicted yes"))


def interval(value, low, high, p=0.5):
    return Interval(value, low, high, 300, p, "BCa")


def run(tmp_path, label, status="finished", seed=0):
    return Run(tmp_path / label, label, seed, status)


@pytest.fixture
def comparison(tmp_path):
    base = {
        F1.key: Cell(interval(0.8, 0.78, 0.82)),
        CHAIR.key: Cell(interval(0.31, 0.25, 0.36)),
        WORDS.key: Cell(interval(34.36, 33, 35)),
        YES.key: Cell(interval(0.5, 0.4, 0.6)),
    }
    dpo = {
        F1.key: Cell(interval(0.8512, 0.83, 0.87), interval(0.0512, 0.03, 0.07, 0.001), 0.004),
        CHAIR.key: Cell(interval(0.36, 0.3, 0.4), interval(0.05, 0.01, 0.09, 0.01), 0.02),
        WORDS.key: Cell(interval(30, 29, 31), interval(-4.36, -5, -3.5, 0.001)),
    }
    rows = (
        Row("none", "none", "none", (run(tmp_path, "none"),), True, base),
        Row("dpo", "povid", "dpo · povid", (run(tmp_path, "dpo"),), False, dpo),
        Row("ipo", "povid", "ipo", (run(tmp_path, "ipo", "failed"),), False, {}, ("seed 0 failed: why",)),
    )
    return Comparison(rows, (F1, CHAIR, WORDS, YES), "none", 0.95, 10_000, ("a note",))


def test_numbers_by_hand():
    assert render.number(0.8512, F1) == "85.1"
    assert render.number(0.0512, F1, signed=True) == "+5.1"
    assert render.number(-0.0512, F1, signed=True) == "−5.1"
    assert render.number(-0.00001, F1, signed=True) == "0.0"
    assert render.number(34.36, WORDS) == "34.4"


def test_an_interval_is_called_what_it_is(comparison):
    def text(*methods):
        cells = [
            {F1.key: Cell(interval(0.8, 0.7, 0.9), replace(interval(0, 0, 0), method=m))} for m in methods
        ]
        rows = tuple(replace(comparison.rows[1], cells=found) for found in cells)
        return render.explanation(replace(comparison, rows=rows))

    bootstrap = "Difference to none with a 95% bootstrap interval over images (up to 300 images"
    assert bootstrap in text("BCa", "percentile", "no variation")
    student = "Difference to none with a 95% Student's t interval over seeds and images"
    assert f"{student} (up to" in text("t over seeds and images")
    mixed = text("t over seeds and images", "BCa")
    assert f"{student} (one seed: bootstrap over images) (up to" in mixed


def test_verdict_knows_which_way_is_better(comparison):
    dpo = comparison.rows[1].cells
    assert render.verdict(dpo[F1.key], F1) == "better"
    assert render.verdict(dpo[CHAIR.key], CHAIR) == "worse"
    assert render.verdict(dpo[WORDS.key], WORDS) == ""
    unsure = replace(dpo[F1.key], p_adjusted=0.06)
    assert render.verdict(unsure, F1) == ""
    assert render.star(unsure) == ""


def test_markdown(comparison):
    lines = render.render_markdown(comparison).splitlines()
    assert lines[0] == "| run | seeds | POPE F1 ↑ | CHAIR-s ↓ | words |"
    assert lines[2] == "| none | 1 | 80.0 [78.0, 82.0] | 31.0 [25.0, 36.0] | 34.4 [33.0, 35.0] |"
    cells = ["85.1 (+5.1\\* [+3.0, +7.0])", "36.0 (+5.0\\* [+1.0, +9.0])", "30.0 (−4.4 [−5.0, −3.5])"]
    assert lines[3] == f"| dpo · povid | 1 | {' | '.join(cells)} |"
    assert lines[4] == "| ipo | 0 of 1 | failed | failed | failed |"
    assert "Holm's correction for 2 comparisons" in lines[6]
    assert lines[-2:] == ["- ipo: seed 0 failed: why", "- a note"]


def test_terminal_shows_everything_in_as_many_blocks_as_it_takes(comparison):
    def shown(width):
        console = Console(file=io.StringIO(), width=width)
        console.print(render.render_terminal(comparison, width))
        return console.file.getvalue()

    wide, narrow = shown(120), shown(40)
    assert all(
        text in wide for text in ("POPE F1", "CHAIR-s", "words", "85.1", "+5.1*", "[+3.0, +7.0]", "failed")
    )
    assert "! ipo: seed 0 failed: why" in wide
    assert all(len(line) <= 120 for line in wide.splitlines())
    assert all(len(line) <= 40 for line in narrow.splitlines())
    assert (wide.count("seeds"), narrow.count("seeds")) == (
        1 + wide.count("seeds and"),
        3 + wide.count("seeds and"),
    )
    assert all(text in narrow for text in ("POPE F1", "CHAIR-s", "words", "+5.1*"))


def test_csv_has_every_cell_unrounded(comparison):
    rows = list(csv.DictReader(io.StringIO(render.render_csv(comparison))))
    assert len(rows) == 4 + 3 + 1
    found = next(row for row in rows if row["run"] == "dpo · povid" and row["metric"] == "f1")
    assert (float(found["value"]), float(found["difference"]), float(found["p_holm"])) == (
        0.8512,
        0.0512,
        0.004,
    )
    assert rows[-1]["status"] == "failed"
    assert rows[-1]["value"] == ""


def test_latex(comparison):
    text = render.render_latex(comparison)
    assert r"run & POPE F1 $\uparrow$ & CHAIR-s $\downarrow$ & words \\" in text
    assert r"\textbf{85.1}" in text
    assert r"{\scriptsize $-$4.4 [$-$5.0, $-$3.5]}" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\") or line.endswith("[2pt]")]
    assert {line.count(" & ") for line in body} == {3}


HOSTILE = "a|b`*_<script>alert(1)</script>&amp;[bold]$x^2${}\\%#~\n=1+1"


def test_hostile_names_stay_text(comparison):
    rows = (replace(comparison.rows[0], name="=" + HOSTILE, notes=(HOSTILE,)), *comparison.rows[1:])
    hostile = replace(comparison, rows=rows, baseline=HOSTILE)
    table = [line for line in render.render_markdown(hostile).splitlines() if line.startswith("|")]
    assert len(table) == 5
    assert {len(line.replace("\\|", "").split("|")) for line in table} == {7}
    assert "<script" not in "".join(table)
    console = Console(file=io.StringIO(), width=200)
    console.print(render.render_terminal(hostile, 200))
    assert "[bold]" in console.file.getvalue()
    first = next(csv.DictReader(io.StringIO(render.render_csv(hostile))))
    assert first["run"] == "'=" + HOSTILE
    tex = render.render_latex(hostile)
    assert r"\$x\textasciicircum{}2\$\{\}\textbackslash{}\%\#\textasciitilde{}" in tex
    assert tex.splitlines()[1].startswith(r"\begin{tabular}")


@pytest.mark.parametrize(
    "evil", ["[x](http://evil)", "![x](http://evil/x.png)", "[x][y]", "[x]: http://evil"]
)
def test_no_text_is_a_link_in_markdown(evil):
    assert not re.search(r"(?<!\\)\][(\[:]", render.markdown_text(evil))
    assert render.markdown_text(evil).replace("\\", "") == evil
    assert render.markdown_text("85.1 [83.0, 87.0]") == "85.1 [83.0, 87.0]"

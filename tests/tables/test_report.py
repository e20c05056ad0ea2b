"""The page: complete, self-contained, and safe with whatever a model or a name says."""

import json
import re
from html.parser import HTMLParser

import pytest
from fake import answers, write_failed, write_run
from PIL import Image

from mllm_align.benchmarks.base import read_jsonl, write_jsonl
from mllm_align.scenes.world import Scene, sample_scene
from mllm_align.tables import examples
from mllm_align.tables.compare import compare
from mllm_align.tables.examples import Piece, mark
from mllm_align.tables.figures import running_mean
from mllm_align.tables.report import write_page

QUICK = {"draws": 300}
EVIL = "<script>alert(1)</script> There is a cup. <img src=x onerror=alert(1)> $\\frac{1}$ {{ 7*7 }} \"'&"


def write_report(runs, out, title="Runs", **options):
    return write_page(compare(runs, **QUICK), out, title, **options)


class Page(HTMLParser):
    """Collects tags, links and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.texts = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    write_run(root, "none", "none", n=25)
    write_run(root, "dpo", answer=answers(0.95, 0.9, 0.05), n=25)
    write_run(root, "dpo", "rlhf_v", answer=lambda example: EVIL, n=25, axes={"dataset": "<b>$x$</b>"})
    write_failed(root, "online_dpo", message="<script>alert(2)</script>")
    steps = [("again", "mllm-align train -m '<x>'")]
    return write_report([root / "runs"], root / "page", "A <study> & more", next_steps=steps)


def test_the_page_is_self_contained(report):
    page = Page(report.read_text())
    for link in page.links:
        assert not re.match(r"[a-z]+:|//", link), link
        if not link.startswith("#"):
            assert (report.parent / link).exists(), link
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    svgs = list((report.parent / "figures").glob("*.svg"))
    assert {svg.name for svg in svgs} == {"curves.svg", "faithfulness.svg"}
    for svg in svgs:
        assert "<script" not in svg.read_text()
        assert not re.search(r'href="(?!#)', svg.read_text())


def test_what_models_and_names_say_is_text(report):
    html = report.read_text()
    page = Page(html)
    text = "".join(page.texts)
    assert "<script>alert(1)</script>" in text
    assert "<script>alert(2)</script>" in text
    assert "{{ 7*7 }}" in text
    assert "A <study> & more" in text
    assert "dpo · <b>$x$<" not in html  # escaped ...
    assert (
        page.tags.count("img") == 2 + 6
    )  # ... and the model's <img> is not one: two figures and six pictures


def test_every_run_and_every_failure_is_there(report):
    text = " ".join(Page(report.read_text()).texts)
    for label in ("none-none", "dpo-povid", "dpo-rlhf_v", "online_dpo-povid"):
        assert label in text
    assert "RuntimeError" in text
    assert "mllm-align train -m '<x>'" in text


def test_files_beside_the_page(report):
    folder = report.parent
    assert (folder / "comparison.md").read_text().startswith("| run | seeds | POPE F1")
    assert (folder / "comparison.csv").exists()
    assert (folder / "comparison.tex").exists()
    with Image.open(folder / "summary.png") as picture:
        assert picture.width == 1800
    with Image.open(folder / "images" / "example0.png") as picture:
        assert picture.size == (96, 96)


def test_the_same_records_give_the_same_files(report, tmp_path):
    runs = report.parents[1] / "runs"
    again = write_report(
        [runs],
        report.parent,
        "A <study> & more",
        next_steps=[("again", "mllm-align train -m '<x>'")],
    )
    first = {p.name: p.read_bytes() for p in sorted(again.parent.rglob("*")) if p.is_file()}
    write_report(
        [runs],
        report.parent,
        "A <study> & more",
        next_steps=[("again", "mllm-align train -m '<x>'")],
    )
    assert first == {p.name: p.read_bytes() for p in sorted(again.parent.rglob("*")) if p.is_file()}


def test_a_report_of_failures_only_is_still_a_page(tmp_path):
    write_failed(tmp_path, "dpo")
    html = write_report([tmp_path], tmp_path / "page").read_text()
    assert "out of memory" in html
    assert "No run has descriptions" in html


def test_a_baseline_alone_is_a_page(tmp_path):
    write_run(tmp_path, "none", "none", n=5)
    html = write_report([tmp_path], tmp_path / "page").read_text()
    assert "None of these runs was trained" in html


def test_marks_are_true_made_up_and_wrong():
    scene = sample_scene("evaluation", 0)
    entity = next(e for e in scene.entities if e.count == 1)
    wrong = "red" if entity.colour != "red" else "blue"
    absent = next(kind for kind in ("bed", "boat", "kite", "fish") if kind not in scene.kinds)
    pieces = mark(f"There is a {wrong} {entity.kind}. There is a {absent}.", scene)
    assert pieces == (
        Piece("There is a "),
        Piece(wrong, "wrong"),
        Piece(" "),
        Piece(entity.kind, "true"),
        Piece(". There is a "),
        Piece(absent, "false"),
        Piece("."),
    )
    assert mark("", scene) == ()


def test_marking_keeps_every_character():
    scene = sample_scene("evaluation", 1)
    for text in (EVIL, "no cup. No dog at the top left and the sign reads EHK", "cup cup cup"):
        assert "".join(piece.text for piece in mark(text, scene)) == text


def test_pictures_are_drawn_among_those_that_differ_without_looking_at_who_is_better(tmp_path):
    base = write_run(tmp_path, "none", "none", n=30)
    rows = read_jsonl(base / "predictions" / "recall.jsonl")
    folder = write_run(tmp_path, "dpo", n=30)
    changed = [{**row, "prediction": "other"} if i % 3 == 0 else row for i, row in enumerate(rows)]
    write_jsonl(changed, folder / "predictions" / "recall.jsonl")
    comparison = compare([tmp_path], **QUICK)
    chosen = examples.choose(comparison, number=4, seed=1)
    assert (chosen.differing, chosen.total) == (10, 30)
    differing = {row["image"] for i, row in enumerate(rows) if i % 3 == 0}
    assert {shown.image for shown in chosen.shown} <= differing
    assert chosen == examples.choose(comparison, number=4, seed=1)
    drawn = {
        shown.image for seed in range(30) for shown in examples.choose(comparison, number=4, seed=seed).shown
    }
    assert drawn == differing


def test_many_rows_show_the_first_and_name_the_rest(tmp_path):
    write_run(tmp_path, "none", "none", n=5)
    for name in ("dpo", "ipo", "slic"):
        write_run(tmp_path, name, n=5)
    chosen = examples.choose(compare([tmp_path], **QUICK), most_rows=2)
    assert [told.name for told in chosen.shown[0].told] == ["none", "dpo · povid"]
    assert chosen.left_out == ("ipo · povid", "slic · povid")


def test_the_contents_of_a_picture_are_told():
    scene = sample_scene("evaluation", 0)
    told = examples.contents(scene)
    assert all(any(word in told for word in (e.kind, e.kind + "s", e.kind[:3])) for e in scene.entities)
    assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_running_mean_by_hand():
    import numpy as np

    assert running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]

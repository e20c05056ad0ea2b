"""The page of samples: what is marked, what is drawn, and that text stays text."""

from __future__ import annotations

import base64
import io
import re

from PIL import Image

from mllm_align.records import Example, Group, Preference, Response
from mllm_align.tables.samples import COMPLETION, HEAD, PLAIN, SWAPPED, Piece, pieces, write_samples
from scene_groups import scene_groups
from tiny import ArrayImage

ABOUT = {
    "iteration": 2, "iterations": 5, "similarity": 0.5, "guided": True, "visible": 3, "image_tokens": 46,
    "mask_seed": 9,
    "cuts": [3, 20],
    "sentences": [
        {"head": [0, 3], "completion": [3, 8], "cut": 3, "swapped": True},
        {"head": [8, 8], "completion": [8, 15], "cut": 20, "swapped": False},
        {"head": [15, 18], "completion": [18, 18], "cut": 25, "swapped": False},
    ],
}  # fmt: skip
TEXT = "No, a b. <b>x</b> z"


def group(prompt: str = "What?", **about) -> Group:
    rejected = Response(TEXT, "bdhs_attn", provenance={**ABOUT, **about})
    return Group(
        Example("e", ArrayImage("i", 900, 30), prompt), (Response("Yes."), rejected), (Preference(0, 1),)
    )


def test_heads_and_completions_are_told_apart() -> None:
    assert pieces(group().responses[1]) == (
        Piece("No,", SWAPPED), Piece(" a b.", COMPLETION), Piece(" <b>x</", COMPLETION), Piece("b> ", HEAD),
    )  # fmt: skip
    assert pieces(Response("plain")) == (Piece("plain", PLAIN),)
    assert pieces(Response("plain", provenance={"steps": 500})) == (Piece("plain", PLAIN),)


def test_the_page_shows_them_escaped(tmp_path) -> None:
    report = {"answers": 4, "below eps_s": {"1": 0.5, "2": 1.0}, "skipped": {"a": 1}}
    page = write_samples(
        [group("<script>alert(1)</script>")], tmp_path / "p.html", "A & B", report
    ).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert '<mark class="swapped">No,</mark><mark class="completion"> a b.</mark>' in page
    assert "&lt;b&gt;x&lt;/" in page
    assert "A &amp; B" in page
    assert "iteration 2 of 5" in page
    assert "similarity 0.500" in page
    assert "3 of 46 image tokens visible" in page
    assert "50.0%" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)  # nothing is fetched


def test_large_images_are_scaled_down(tmp_path) -> None:
    page = write_samples([group()], tmp_path / "p.html", "t").read_text()
    (data,) = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (420, 14)


def test_a_few_are_drawn_of_those_with_a_preference(tmp_path) -> None:
    many = [Group(g.example, g.responses, (Preference(0, 1),)) for g in scene_groups(6)]
    undecided = scene_groups(2)
    page = write_samples([*undecided, *many], tmp_path / "p.html", "t", number=4).read_text()
    assert page.count("<article>") == 4
    assert "4 of 6 preferences" in page
    assert page == write_samples([*undecided, *many], tmp_path / "q.html", "t", number=4).read_text()
    assert page != write_samples([*undecided, *many], tmp_path / "r.html", "t", number=4, seed=1).read_text()
    empty = write_samples(undecided, tmp_path / "e.html", "t").read_text()
    assert "no preference in this set" in empty

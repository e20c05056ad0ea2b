"""A stored set of own data follows its rows and its images; keys are made without reading an image."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from photos import encoded, picture, write_jsonl
from PIL import Image

from mllm_align.datasets.parquet import read_groups
from mllm_align.datasets.state import images
from mllm_align.paths import conf_dir
from mllm_align.pipeline import preferences_stage
from mllm_align.store import Store


def painted(file: Path, colour: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    file.write_bytes(buffer.getvalue())


def row(**changes) -> dict:
    return {"image": "a.png", "prompt": "?", "chosen": "Good.", "rejected": "Bad."} | changes


@pytest.fixture
def used(tmp_path):
    """What a run reads of the store, where it is told this `dataset.path`: chosen texts and pixels."""

    def use(path: str, *overrides: str) -> list:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            overrides = ("dataset=local", f"dataset.path='{tmp_path / path}'", *overrides)
            config = compose("train", [*overrides, "base_model=local", "base_model.path=x", "benchmark=none"])
        stage = preferences_stage(OmegaConf.to_container(config.dataset, resolve=True))
        groups = read_groups(Store(tmp_path / "store").get(stage) / "preferences.parquet")
        return [(g.responses[0].text, g.example.image.load().getpixel((0, 0))) for g in groups]

    return use


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize("path", ["train-0.jsonl", "train-*.jsonl"])
def test_a_stored_set_follows_rows_and_images(path, tmp_path, used):
    painted(tmp_path / "a.png", "red")
    write_jsonl(tmp_path / "train-0.jsonl", [row()])
    assert used(path) == [("Good.", RED)]
    painted(tmp_path / "a.png", "blue")
    assert used(path) == [("Good.", BLUE)]
    write_jsonl(tmp_path / "train-0.jsonl", [row(chosen="Mended.")])
    assert used(path) == [("Mended.", BLUE)]


def test_a_stored_set_follows_the_files_of_a_pattern(tmp_path, used):
    painted(tmp_path / "a.png", "red")
    write_jsonl(tmp_path / "train-0.jsonl", [row()])
    assert len(used("train-*.jsonl")) == 1
    write_jsonl(tmp_path / "train-1.jsonl", [row(chosen="More.")])
    assert len(used("train-*.jsonl")) == 2


def test_a_row_that_was_skipped_comes_back_with_its_image(tmp_path, used):
    painted(tmp_path / "a.png", "red")
    write_jsonl(tmp_path / "d.jsonl", [row(), row(image="b.png")])
    assert len(used("d.jsonl", "dataset.on_bad_row=skip")) == 1
    painted(tmp_path / "b.png", "blue")
    assert len(used("d.jsonl", "dataset.on_bad_row=skip")) == 2


# --- what counts ---------------------------------------------------------------------------------------------


def test_only_images_that_rows_name_count(tmp_path):
    """A run writes pictures below the working folder, where the rows may lie, too."""
    path = str(write_jsonl(tmp_path / "d.jsonl", [row()]))
    absent = images(path)
    painted(tmp_path / "a.png", "red")
    first = images(path)
    (tmp_path / "outputs").mkdir()
    painted(tmp_path / "outputs" / "curve.png", "red")
    assert images(path) == first != absent
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert images(path) not in (first, absent)


def test_places_do_not_count(tmp_path):
    states = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        painted(tmp_path / folder / "a.png", "red")
        os.utime(tmp_path / folder / "a.png", ns=(1, 1))
        write_jsonl(tmp_path / folder / "d.jsonl", [row()])
        states.add(images(str(tmp_path / folder / "d.jsonl")))
    assert len(states) == 1


FORMS = {
    "images": {"images": ["a.png"]},
    "an object": {"image": {"path": "a.png", "bytes": None}},
    "POVID": {"image": "./data/coco/a.png", "conversations": [], "rejected_conversations": []},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["JSON", "Parquet"])
def test_images_of_every_form_count(form, kind, tmp_path):
    path = tmp_path / "rows"
    if kind == "JSON":
        path.write_text(json.dumps([FORMS[form]]))
    else:
        pq.write_table(pa.Table.from_pylist([FORMS[form] | {"prompt": "?"}]), path)
    painted(tmp_path / "a.png", "red")
    for root in (None, str(tmp_path)):
        first = images(str(path), root)
        os.utime(tmp_path / "a.png", ns=(1, 1))
        assert images(str(path), root) != first
        painted(tmp_path / "a.png", "red")


def test_images_inside_the_file_are_not_read(tmp_path, monkeypatch):
    image = {"bytes": encoded(picture()), "path": "a.png"}
    pq.write_table(pa.Table.from_pylist([row(image=image), row(image=image)]), tmp_path / "d.parquet")
    asked = []
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *a, **k: (asked.append(k["columns"]), whole(*a, **k))[1]
    )
    assert images(str(tmp_path / "d.parquet"))
    assert asked == [["image.path"]]


@pytest.mark.parametrize(
    ("path", "root"),
    [("hub://a/b", None), ("d.jsonl", "hub://a/b"), ("no.jsonl", None), ("d.jsonl", "no"), ("x.csv", None)],
)
def test_where_nothing_can_be_looked_at_the_build_says_why(path, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "d.jsonl", [row()])
    (tmp_path / "x.csv").write_text("image,prompt\n")
    assert images(path, root) is None


def test_the_key_is_made_without_torch(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [row()])
    code = f"import sys\nfrom mllm_align.datasets.state import images\nassert images({str(path)!r})\n"
    code += "print([name for name in ('torch', 'PIL', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

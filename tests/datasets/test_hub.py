"""Paths of the Hugging Face hub: its own client asks a hub on this machine."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import published_rows as rows
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Hub, serve
from photos import encoded, picture
from PIL import Image

from mllm_align.datasets.errors import BadDataError
from mllm_align.datasets.hub import resolve
from mllm_align.datasets.images import FileImage
from mllm_align.datasets.local import build, read_local
from mllm_align.datasets.published import sets
from tiny import make_tiny

FORMATTED = "HuggingFaceH4/rlaif-v_formatted"


def trl_row(seed: int) -> dict:
    """As HuggingFaceH4/rlaif-v_formatted has it: images inside the file, messages of typed parts."""
    part = {"type": "text", "text": f"What is in picture {seed}?"}
    asked = {"role": "user", "content": [{"type": "image", "text": None}, part]}
    said = [
        [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
        for text in ("A red cup.", "Two dogs.")
    ]
    image = {"bytes": encoded(picture(seed=seed)), "path": None}
    return {"images": [image], "prompt": [asked], "chosen": said[0], "rejected": said[1]}


def parquet(*rows: dict) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def jsonl(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pair(image: str) -> dict:
    return {"image": image, "prompt": "What is it?", "chosen": "A cup.", "rejected": "A dog."}


DATASETS = {
    FORMATTED: {
        ".gitattributes": b"",
        "README.md": b"# A card",
        "data/test-00000-of-00001.parquet": parquet(trl_row(9)),
        "data/train-00000-of-00002.parquet": parquet(trl_row(0), trl_row(1)),
        "data/train-00001-of-00002.parquet": parquet(trl_row(2)),
        "data/more/train-00000-of-00001.parquet": parquet(trl_row(3)),
    },
    "owner/files": {
        "pairs.jsonl": jsonl(pair("photos/a.jpg")),
        "photos/a.jpg": encoded(picture(seed=1)),
        "photos/b.jpg": encoded(picture(seed=2)),
    },
    "owner/povid": {
        "rows.jsonl": jsonl(rows.povid()),
        f"coco/COCO_train2014_{rows.NUMBER}.jpg": encoded(picture(seed=3)),
    },
    "owner/rlaif_v": {"RLAIF-V-Dataset_000.parquet": parquet(rows.rlaif_v())},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve(DATASETS) as hub:
        hub.reached_in(monkeypatch, tmp_path / "cache")
        yield hub


def pixels(image) -> np.ndarray:
    return np.asarray(image.load())


def test_a_pattern_brings_what_matches_and_nothing_else(hub: Hub):
    local = read_local(f"hub://{FORMATTED}/data/*rain-*.parquet")  # not what is below data/more
    assert [group.example.prompt for group in local.groups] == [f"What is in picture {n}?" for n in range(3)]
    assert [r.text for r in local.groups[0].responses] == ["A red cup.", "Two dogs."]
    assert local.report.forms == {"Parquet, standard form, conversational": 3}
    expected = Image.open(io.BytesIO(encoded(picture(seed=2)))).convert("RGB")
    np.testing.assert_array_equal(pixels(local.groups[2].example.image), np.asarray(expected))
    shards = {f"{FORMATTED}/data/train-0000{n}-of-00002.parquet" for n in range(2)}
    assert set(hub.sent) == shards
    assert hub.commit(FORMATTED) in local.report.files[0]  # the record says which revision it was


def test_a_pattern_may_stand_for_folders(hub: Hub):
    assert len(read_local(f"hub://{FORMATTED}/data/*/train-*.parquet").groups) == 1
    assert hub.sent == [f"{FORMATTED}/data/more/train-00000-of-00001.parquet"]


def test_what_was_downloaded_is_read_without_a_network(hub: Hub, monkeypatch):
    path = f"hub://{FORMATTED}/data/train-0000*.parquet"
    before = read_local(path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_local(path).groups == before.groups
    with pytest.raises(
        BadDataError, match=r"HF_HUB_OFFLINE is set\).*copy data/test-\*\.parquet of the dataset"
    ):
        read_local(f"hub://{FORMATTED}/data/test-*.parquet")


def test_nothing_that_matches_names_what_there_is(hub: Hub):
    with pytest.raises(BadDataError) as raised:
        resolve(f"hub://{FORMATTED}/data/trian-*.parquet")
    assert (
        f"the dataset {FORMATTED} has no file that matches data/trian-*.parquet. It has README.md, data/"
        in str(raised.value)
    )
    with pytest.raises(
        BadDataError, match=r"has no rows\.jsonl\. It has pairs\.jsonl, photos/a\.jpg, photos/b\.jpg\."
    ):
        resolve("hub://owner/files/rows.jsonl")
    assert not hub.sent


def test_held_out_files_beside_others_are_told_apart_by_hub_paths(hub: Hub):
    with pytest.raises(BadDataError) as raised:
        read_local(f"hub://{FORMATTED}/data")
    where = f"hub://{FORMATTED}/data"
    assert str(raised.value) == (
        f"{where} holds held-out files (test-00000-of-00001.parquet) beside others. Name the ones to train on: "
        f"dataset.path={where}/more/train-00000-of-00001.parquet or a pattern, "
        f"dataset.path='{where}/more/train*.parquet'."
    )


def test_images_beside_the_rows(hub: Hub):
    """The cache holds links to files elsewhere in it."""
    (whole,) = read_local("hub://owner/files").groups
    (named,) = read_local("hub://owner/files/pairs.jsonl", image_root="hub://owner/files@v1").groups
    assert isinstance(named.example.image, FileImage)
    assert named.example.image.key == whole.example.image.key == "photos/a.jpg"
    expected = Image.open(io.BytesIO(encoded(picture(seed=1)))).convert("RGB")
    for group in (whole, named):
        np.testing.assert_array_equal(pixels(group.example.image), np.asarray(expected))
    assert "v1" in hub.revisions


def test_a_link_out_of_the_cache_is_refused(hub: Hub, tmp_path):
    folder = resolve("hub://owner/files")
    (tmp_path / "secret.jpg").write_bytes(encoded(picture(seed=5)))
    (folder / "photos" / "a.jpg").unlink()
    (folder / "photos" / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(BadDataError, match="leaves the image root"):
        read_local(str(folder))


def test_published_sets_and_their_images(hub: Hub):
    groups, _ = sets.povid(path="hub://owner/povid@v1/rows.jsonl", images=["hub://owner/povid/coco"])
    expected = Image.open(io.BytesIO(encoded(picture(seed=3)))).convert("RGB")
    np.testing.assert_array_equal(pixels(groups[0].example.image), np.asarray(expected))
    groups, report = sets.rlaif_v(path="hub://owner/rlaif_v/RLAIF-V-Dataset_*.parquet", check_images="whole")
    assert len(groups) == 1
    assert report["files"] == ["RLAIF-V-Dataset_000.parquet"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("hub://owner", "names no dataset"),
        ("hub://owner/@v1", "names no dataset"),
        ("hub://owner/files/../x", "names no dataset"),
        ("hub://owner/nothing/a.jsonl", "RepositoryNotFoundError.*Correct dataset.path, or log in"),
        ("hub://owner/files@v2/pairs.jsonl", "RevisionNotFoundError"),
    ],
)
def test_paths_that_lead_nowhere(path, words, hub: Hub):
    with pytest.raises(BadDataError, match=words):
        resolve(path)


def test_an_error_names_its_setting(hub: Hub):
    with pytest.raises(BadDataError, match=r"Correct dataset\.image_root"):
        build("hub://owner/files/pairs.jsonl", image_root="hub://owner/files/pictures")


def test_local_paths_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/a*.jsonl") == tmp_path / "a*.jsonl"
    assert resolve("rows.jsonl") == Path("rows.jsonl")


# --- the command line ----------------------------------------------------------------------------------------


def command(here: Path, hub: Hub, *arguments: str) -> subprocess.CompletedProcess:
    """`mllm-align` in a process of its own, whose hub client reads its environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(here), **hub.environment(here / "hf")}
    program = [sys.executable, "-m", "mllm_align", *arguments]
    return subprocess.run(program, cwd=here, env=environment, capture_output=True, text=True, timeout=300)


TRAIN = f"dataset.path=hub://{FORMATTED}/data/train-*.parquet"


def test_data_check_of_a_hub_path(tmp_path):
    with serve(DATASETS) as hub:
        done = command(tmp_path, hub, "data", "check", "dataset=local", TRAIN)
        assert done.returncode == 0, done.stderr
        assert "local: 3 rows read, 3 to train on" in done.stdout
        assert "images: 3 opened, 0 can't be" in done.stdout


@pytest.mark.slow
def test_from_a_hub_path_to_an_adapter(tmp_path):
    model = make_tiny("llava_next", tmp_path / "model")
    base = [
        "base_model=local",
        f"base_model.path={model}",
        "base_model.lora.r=2",
        "alignment=dpo",
        "benchmark=none",
    ]
    steps = ["alignment.epochs=1", "alignment.batch_size=2", "logger=none", "trainer.threads=1"]
    with serve(DATASETS) as hub:
        done = command(tmp_path, hub, "train", "dataset=local", TRAIN, *base, *steps)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("outputs/runs/*/seed0")
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["dataset"]["used"] == 3
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert {name.rpartition("/")[2] for name in hub.sent} == {
        f"train-0000{n}-of-00002.parquet" for n in range(2)
    }

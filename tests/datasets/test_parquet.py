"""Groups as Parquet: nothing is lost on the way, and others read it as the standard vision form."""

import json
import math
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photos import encoded, picture
from PIL import Image

from mllm_align.datasets.errors import BadDataError
from mllm_align.datasets.images import BytesImage, FileImage
from mllm_align.datasets.parquet import read_groups, write_groups
from mllm_align.records import Example, Group, Preference, Response


class Drawn:
    """An image that was never encoded, as those of the scenes world."""

    key = "scene:7"

    def load(self) -> Image.Image:
        return picture(96, 96, seed=7)


def groups(tmp_path) -> list[Group]:
    data = encoded(picture(seed=3))
    (tmp_path / "p.jpg").write_bytes(data)
    photo, drawn = FileImage(str(tmp_path), "p.jpg"), Drawn()
    meta = {"scene": {"things": [{"kind": "cup", "at": [1, 2]}]}, "weight": 0.1, "none": None, "ä": "日本"}
    return [
        Group(
            Example("a", photo, "What is it?", "A cup.", meta),
            (Response("A cup.", "dataset"), Response("A dog.", "gpt", (5, 6), -1.5)),
            (Preference(0, 1, 0.1),),
        ),
        Group(
            Example("b", drawn, "Describe.\nTwo lines."),
            (
                Response("x", "policy", (), 0.30000000000000004),
                Response("y", "policy", (1, 2, 3), math.inf),
                Response(
                    "z", "bdhs_attn", provenance={"kept": [[0, 4], [9, 9]], "iteration": 2, "guided": True}
                ),
            ),
            (Preference(1, 0), Preference(1, 2, 0.5), Preference(0, 2)),
        ),
        Group(Example("tie", photo, "?"), (Response("same"), Response("same")), ()),
        Group(Example("unanswered", photo, "?"), (), ()),
    ]


def plain(group: Group) -> tuple:
    example = group.example
    pixels = np.asarray(example.image.load()).tobytes()
    return (
        example.id, example.image.key, pixels, example.prompt, example.reference, dict(example.meta), group.responses,
        group.preferences,
    )  # fmt: skip


def test_nothing_is_lost(tmp_path):
    before = groups(tmp_path)
    write_groups(tmp_path / "new" / "pairs.parquet", before)
    after = read_groups(tmp_path / "new" / "pairs.parquet")
    assert [plain(group) for group in after] == [plain(group) for group in before]
    assert isinstance(after[0].example.image, BytesImage)
    assert after[0].example.image.data == (tmp_path / "p.jpg").read_bytes()  # not encoded once more
    assert after[2].example.image is after[0].example.image  # one image in memory, however many rows show it


def test_written_again_it_is_the_same_file(tmp_path):
    write_groups(tmp_path / "1", groups(tmp_path))
    write_groups(tmp_path / "2", read_groups(tmp_path / "1"))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_more_rows_than_are_written_at_a_time(tmp_path):
    image = BytesImage(encoded(picture(8, 8)), "k")
    many = [Group(Example(str(i), image, f"{i}?"), (Response(f"r{i}"),)) for i in range(1000)]
    write_groups(tmp_path / "many", iter(many))
    assert read_groups(tmp_path / "many") == many


def test_the_standard_columns(tmp_path):
    write_groups(tmp_path / "p", groups(tmp_path))
    rows = pq.read_table(tmp_path / "p").to_pylist()
    assert rows[0]["images"] == [{"bytes": (tmp_path / "p.jpg").read_bytes(), "path": "p.jpg"}]
    assert rows[0]["prompt"] == [{"role": "user", "content": "What is it?"}]
    assert rows[1]["chosen"] == [{"role": "assistant", "content": "y"}]  # the first preference
    assert rows[1]["rejected"] == [{"role": "assistant", "content": "x"}]
    assert rows[2]["chosen"] is None
    assert rows[2]["rejected"] is None
    assert json.loads(rows[0]["meta"])["ä"] == "日本"


MADE = {"iteration": 3, "similarity": 0.125, "cuts": [0, 17], "mask_seed": 2**62 + 1, "guided": False}


def made(tmp_path) -> list[Group]:
    first, second, *_ = groups(tmp_path)
    rejected = Response("A dog.", "bdhs_attn", provenance=MADE)
    return [Group(first.example, (first.responses[0], rejected), first.preferences), second]


def test_how_the_rejected_response_was_made_stands_in_columns(tmp_path):
    before = made(tmp_path)
    write_groups(tmp_path / "p", before)
    after = read_groups(tmp_path / "p")
    assert after[0].responses[1].provenance == MADE
    assert [plain(group) for group in after] == [plain(group) for group in before]
    one, other = pq.read_table(tmp_path / "p").to_pylist()
    assert {name: one[name] for name in ("iteration", "similarity", "cuts", "mask_seed")} == {
        "iteration": 3, "similarity": 0.125, "cuts": [0, 17], "mask_seed": 2**62 + 1,
    }  # fmt: skip
    # the first preference of the other Group rejects a response without provenance
    assert [other[name] for name in ("iteration", "similarity", "cuts", "mask_seed")] == [None] * 4


def test_files_without_these_columns_are_read(tmp_path):
    write_groups(tmp_path / "p", groups(tmp_path)[:1])
    table = pq.read_table(tmp_path / "p").drop_columns(["iteration", "similarity", "cuts", "mask_seed"])
    column = [
        [{k: v for k, v in r.items() if k != "provenance"} for r in row]
        for row in table["responses"].to_pylist()
    ]
    table = table.set_column(table.schema.get_field_index("responses"), "responses", pa.array(column))
    pq.write_table(table, tmp_path / "old")
    assert [plain(g) for g in read_groups(tmp_path / "old")] == [plain(g) for g in groups(tmp_path)[:1]]


def test_your_own_data_may_be_such_a_file(tmp_path):
    from mllm_align.datasets.local import load_local

    write_groups(tmp_path / "p.parquet", made(tmp_path))
    assert load_local(str(tmp_path / "p.parquet"))[0].responses[1].provenance == MADE


def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "set" / "pairs.parquet"
    write_groups(path, groups(tmp_path)[:1])
    before = path.read_bytes()

    def broken():
        yield groups(tmp_path)[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_groups(path, broken())
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_other_files_are_refused_with_a_remedy(tmp_path):
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "other")
    with pytest.raises(BadDataError, match=r"has no column images, chosen.*dataset=local"):
        read_groups(tmp_path / "other")
    write_groups(tmp_path / "whole", groups(tmp_path))
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    with pytest.raises(BadDataError, match="not a whole Parquet file"):
        read_groups(tmp_path / "half")


@pytest.mark.slow
def test_datasets_and_trl_read_it(tmp_path):
    """`datasets` decodes the images, and TRL's collator puts image and messages together for a LLaVA processor."""
    datasets = pytest.importorskip("datasets")
    data_utils = pytest.importorskip("trl.data_utils")
    before = made(tmp_path)
    write_groups(tmp_path / "pairs.parquet", before)
    rows = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "pairs.parquet"),
        cache_dir=str(tmp_path / "cache"),
        split="train",
    )
    for group, row in zip(before, rows, strict=True):
        np.testing.assert_array_equal(np.asarray(row["images"][0]), np.asarray(group.example.image.load()))
        assert row["mask_seed"] == (None if group.responses[1].provenance is None else MADE["mask_seed"])
        assert data_utils.is_conversational(row)
        messages = data_utils.prepare_multimodal_messages(row["prompt"], images=row["images"])
        assert [part["type"] for part in messages[0]["content"]] == ["image", "text"]
        best = group.preferences[0]
        assert row["chosen"] == [{"role": "assistant", "content": group.responses[best.chosen].text}]
        assert row["rejected"] == [{"role": "assistant", "content": group.responses[best.rejected].text}]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664)])
def test_a_set_has_the_mode_that_the_umask_leaves(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_groups(tmp_path / "p.parquet", [])
    finally:
        os.umask(before)
    assert (tmp_path / "p.parquet").stat().st_mode & 0o777 == mode

"""A stored published set names its images where they lie, or holds them; either way they come back."""

import json
import zipfile

import published_rows as rows
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photos import encoded, picture, write_jsonl
from published_rows import NUMBER, photo

from mllm_align.datasets.parquet import read_groups, write_groups
from mllm_align.datasets.places import RowImage, ZipImage
from mllm_align.datasets.published import sets

COCO = f"COCO_train2014_{NUMBER}.jpg"


@pytest.fixture
def coco(tmp_path):
    """A folder with the picture of the rows under COCO's name of 2014."""
    photo(tmp_path / "train2014", COCO)
    return str(tmp_path / "train2014")


def saved(tmp_path, *found: dict) -> str:
    (tmp_path / "rows.json").write_text(json.dumps(list(found)))
    return str(tmp_path / "rows.json")


def test_a_stored_set_refers_to_its_images(tmp_path, coco):
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr("llava-conversation-7.jpg", encoded(picture(seed=1)))
    pq.write_table(pa.Table.from_pylist([rows.rlhf_v(encoded(picture(seed=2)))]), tmp_path / "r.parquet")
    groups = [
        *sets.povid(path=saved(tmp_path, rows.povid()), images=[coco])[0],
        *sets.vlfeedback(
            path=str(write_jsonl(tmp_path / "v.jsonl", [rows.vlfeedback()])), images=[str(tmp_path / "i.zip")]
        )[0],
        *sets.rlhf_v(path=str(tmp_path / "r.parquet"))[0],
    ]
    write_groups(tmp_path / "referred", groups, refer=True)
    assert read_groups(tmp_path / "referred") == groups
    assert pq.read_table(tmp_path / "referred").to_pylist()[0]["images"] == [{"bytes": None, "path": COCO}]
    write_groups(tmp_path / "copied", groups)  # what is given away holds its images
    for one, other in zip(groups, read_groups(tmp_path / "copied"), strict=True):
        assert other.example.image.data == one.example.image.encoded()


def test_images_of_large_row_groups_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("mllm_align.datasets.published.collect.REFER_BYTES", 1)
    monkeypatch.setattr("mllm_align.datasets.places.GROUP_BYTES", 1)
    photos = [encoded(picture(seed=seed)) for seed in range(40)]
    pq.write_table(
        pa.Table.from_pylist([rows.rlhf_v(photos[i], idx=i) for i in range(40)]), tmp_path / "r.parquet"
    )
    groups, _ = sets.rlhf_v(path=str(tmp_path / "r.parquet"))
    order = [5, 39, 0, 17, 17, 16]  # forward and back through a row group that is not decoded at once
    assert [groups[i].example.image.encoded() for i in order] == [photos[i] for i in order]
    write_groups(tmp_path / "stored", groups, refer=True)
    (tmp_path / "r.parquet").unlink()
    assert [group.example.image.encoded() for group in read_groups(tmp_path / "stored")] == photos


def test_a_large_stored_set_reads_its_images_when_they_are_asked_for(tmp_path, monkeypatch):
    photos = [encoded(picture(seed=seed)) for seed in range(300)]
    table = pa.Table.from_pylist([rows.rlhf_v(photos[i], idx=i) for i in range(300)])
    pq.write_table(table, tmp_path / "r.parquet")
    groups, _ = sets.rlhf_v(path=str(tmp_path / "r.parquet"))
    write_groups(tmp_path / "stored", groups)
    held = read_groups(tmp_path / "stored")
    monkeypatch.setattr("mllm_align.datasets.parquet.HELD", 0)
    lazy = read_groups(tmp_path / "stored")
    assert all(isinstance(group.example.image, RowImage) for group in lazy)
    assert [g.example.image.encoded() for g in lazy] == [g.example.image.data for g in held] == photos
    assert [(g.example.id, g.responses) for g in lazy] == [(g.example.id, g.responses) for g in held]
    write_groups(tmp_path / "again", lazy, refer=True)  # a copy: the store may drop the first
    (tmp_path / "stored").unlink()
    assert [group.example.image.encoded() for group in read_groups(tmp_path / "again")] == photos


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_an_archive_is_named(packing, tmp_path):
    with zipfile.ZipFile(tmp_path / "i.zip", "w", packing) as archive:
        archive.writestr("a.jpg", bytes(range(256)) * 200)
    whole = bytearray((tmp_path / "i.zip").read_bytes())
    start = 30 + len("a.jpg")
    whole[start : start + 40] = b"\xff" * 40
    (tmp_path / "i.zip").write_bytes(whole)
    with pytest.raises(
        ValueError, match=r"a\.jpg of .*i\.zip can't be read .*Get a whole copy of the archive"
    ):
        ZipImage(str(tmp_path / "i.zip"), "a.jpg").load()


def test_images_are_read_in_forked_workers(tmp_path):
    import multiprocessing

    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for seed in range(20):
            archive.writestr(f"{seed}.jpg", encoded(picture(seed=seed)))
    images = [ZipImage(str(tmp_path / "i.zip"), f"{seed}.jpg") for seed in range(20)]
    expected = [image.encoded() for image in images]  # the parent has the archive open
    with multiprocessing.get_context("fork").Pool(3) as pool:
        for _ in range(5):
            assert pool.map(ZipImage.encoded, images, chunksize=1) == expected


def test_a_referred_image_that_is_gone_is_named(tmp_path, coco):
    groups, _ = sets.povid(path=saved(tmp_path, rows.povid()), images=[coco])
    write_groups(tmp_path / "stored", groups, refer=True)
    (tmp_path / "train2014" / COCO).unlink()
    with pytest.raises(ValueError, match=rf"{COCO} is not there"):
        read_groups(tmp_path / "stored")[0].example.image.load()

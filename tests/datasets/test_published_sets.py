"""Every published form is read as Groups; what its rows hold besides, and what is wrong with them, is told."""

import io
import json
import zipfile

import numpy as np
import published_rows as rows
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photos import encoded, picture, shared_files, write_jsonl
from published_rows import BAD, GOOD, NUMBER, QUESTION, photo

from mllm_align.compute.packing import encode_prompts
from mllm_align.datasets.errors import BadDataError
from mllm_align.datasets.images import FileImage
from mllm_align.datasets.parquet import write_groups
from mllm_align.datasets.places import RowImage, ZipImage
from mllm_align.datasets.published import sets
from tiny import make_processor

COCO = f"COCO_train2014_{NUMBER}.jpg"


@pytest.fixture
def coco(tmp_path):
    """A folder with the picture of the rows under COCO's name of 2014."""
    photo(tmp_path / "train2014", COCO)
    return str(tmp_path / "train2014")


def saved(tmp_path, *found: dict, name: str = "rows.json") -> str:
    (tmp_path / name).write_text(json.dumps(list(found)))
    return str(tmp_path / name)


def texts(group) -> tuple:
    best = group.preferences[0]
    return (group.example.prompt, group.responses[best.chosen].text, group.responses[best.rejected].text)


NAMED = {
    "povid": (sets.povid, rows.povid()),
    "llava_rlhf": (sets.llava_rlhf, rows.llava_rlhf()),
    "llava_rlhf, nested": (sets.llava_rlhf, rows.llava_rlhf(conversations=[rows.talk()])),
    "stic": (sets.stic, rows.stic()),
}


@pytest.mark.parametrize("form", NAMED)
def test_forms_with_named_images(form, tmp_path, coco):
    build, row = NAMED[form]
    groups, report = build(path=saved(tmp_path, row), images=[coco])
    assert [texts(group) for group in groups] == [(QUESTION, GOOD, BAD)]
    assert groups[0].example.image == FileImage(coco, COCO, refer=True)
    assert groups[0].example.image.load().size == (64, 48)
    assert (report["rows"], report["used"], report["skipped"]) == (1, 1, [])


def test_the_real_povid_record(tmp_path):
    path = shared_files() / "pref_samples" / "povid_readme_example.json"
    photo(tmp_path, COCO)
    groups, _ = sets.povid(path=str(path), images=[str(tmp_path)])
    (group,) = groups
    assert group.example.id == f"povid/COCO_train2014_{NUMBER}"
    assert group.example.prompt == "Describe this image in detail."
    assert group.responses[0].text.startswith("This is a vintage black and white image of a group of people")
    assert group.responses[1].text.startswith(
        "This vintage black and white image showcases a group of eleven"
    )


EMBEDDED = {"rlhf_v": (sets.rlhf_v, rows.rlhf_v), "rlaif_v": (sets.rlaif_v, rows.rlaif_v)}


@pytest.mark.parametrize("form", EMBEDDED)
def test_forms_with_embedded_images(form, tmp_path):
    build, row = EMBEDDED[form]
    photos = [encoded(picture(seed=seed)) for seed in range(5)]
    kind = int if form == "rlhf_v" else str
    table = pa.Table.from_pylist([row(photos[i], idx=kind(i)) for i in range(5)])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    groups, _ = build(path=str(tmp_path / "a.parquet"))
    assert [texts(group) for group in groups] == [(QUESTION, GOOD, BAD)] * 5
    assert [group.example.id for group in groups] == [f"{form}/{i}" for i in range(5)]
    assert [group.example.image.encoded() for group in groups] == photos
    assert all(isinstance(group.example.image, RowImage) for group in groups)  # not in memory


def test_the_first_release_of_rlhf_v_is_told_where_todays_is(tmp_path):
    row = {
        "dataset_name": "RLHF-V",
        "text": "eyJxdWVzdGlvbiI6",
        "origin_split": "eyJtb2RlbCI6",
        "image_path": "a.jpg",
    }
    with pytest.raises(
        BadDataError, match=r"first release.*hub://openbmb/RLHF-V-Dataset/RLHF-V-Dataset\.parquet"
    ):
        sets.rlhf_v(path=str(write_jsonl(tmp_path / "a.jsonl", [row])))


def test_a_number_that_json_does_not_know_is_left_out(tmp_path):
    row = rows.rlaif_v(origin_dataset=float("nan"))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    groups, _ = sets.rlaif_v(path=str(tmp_path / "a.parquet"))
    assert "origin_dataset" not in groups[0].example.meta
    write_groups(tmp_path / "stored", groups)


def test_rlhf_v_text_may_be_an_object(tmp_path):
    row = rows.rlhf_v() | {"text": {"question": QUESTION, "chosen": GOOD, "rejected": BAD}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    groups, _ = sets.rlhf_v(path=str(tmp_path / "a.parquet"))
    assert texts(groups[0]) == (QUESTION, GOOD, BAD)
    assert groups[0].example.meta["origin_split"]["type"] == "detailed_description"


def test_a_preference_of_1_chooses_the_first_output(tmp_path, coco):
    groups, _ = sets.llava_rlhf(path=saved(tmp_path, rows.llava_rlhf(preference=1)), images=[coco])
    assert texts(groups[0]) == (QUESTION, BAD, GOOD)


def test_rounds_before_the_question_are_left_out_or_dropped(tmp_path, coco):
    long = rows.llava_rlhf(
        conversations=rows.talk("<image>\nWho is there?", "A man.", "What is he doing?", "x")
    )
    path = saved(tmp_path, long, rows.llava_rlhf())
    groups, report = sets.llava_rlhf(path=path, images=[coco])
    assert len(groups) == 1
    assert report["without_a_pair"] == {"rounds before the question": 1}
    groups, report = sets.llava_rlhf(path=path, images=[coco], history="drop")
    assert groups[0].example.prompt == "What is he doing?"
    assert report["notes"]["rounds before the question: dropped"] == 1


def test_nlf_prefers_the_refined_answer(tmp_path, coco):
    rejected = [
        rows.nlf("2"),
        rows.nlf("4", "4"),
        rows.nlf("N/A", "4"),
        rows.nlf("1", "3", "4"),
        rows.nlf("1", "2", **{"caption": "a text"}),
    ]
    rejected[4]["interaction"][0]["critique_NLF"] = rejected[4]["interaction"][0].pop("critique NLF")
    path = write_jsonl(tmp_path / "n.jsonl", rejected)
    groups, report = sets.nlf(path=str(path), images=[coco])
    assert [texts(group) for group in groups] == [
        (QUESTION, "Answer 2.", "Answer 0."),
        (QUESTION, "Answer 1.", "Answer 0."),
    ]
    assert [group.example.meta["critique"] for group in groups] == ["ok", "ok"]
    assert report["without_a_pair"] == {
        "a single answer": 1,
        "the last answer is not rated higher": 1,
        "no rating": 1,
    }
    groups, _ = sets.nlf(path=str(path), images=[coco], rejected="previous")
    assert texts(groups[0]) == (QUESTION, "Answer 2.", "Answer 1.")


def test_stic_may_be_json_lines(tmp_path, coco):
    path = write_jsonl(tmp_path / "pref_data_new.json", [rows.stic(), rows.stic(image_corruption=True)])
    groups, report = sets.stic(path=str(path), images=[coco])
    assert [group.example.id for group in groups] == [f"stic/{COCO[:-4]}", f"stic/{COCO[:-4]}#2"]
    assert groups[1].example.meta == {"image_corruption": True}
    assert report["notes"] == {"ids that repeat, numbered": 1}


def test_instruction_data_has_answers_and_no_pairs(tmp_path, coco):
    text_only = {key: value for key, value in rows.llava_instruct().items() if key != "image"}
    path = saved(tmp_path, rows.llava_instruct(), text_only)
    groups, report = sets.llava_instruct(path=path, images=[coco])
    (group,) = groups
    assert (group.example.prompt, group.example.reference) == (QUESTION, GOOD)
    assert (group.responses, group.preferences) == ((), ())
    assert report["without_a_pair"] == {"text only": 1}
    assert report["notes"]["several rounds: the first is used"] == 1
    groups, _ = sets.llava_instruct(path=path, images=[coco], rounds="each")
    assert [group.example.reference for group in groups] == [GOOD, "White."]
    assert groups[1].example.id == f"llava_instruct/{NUMBER}/2"


# --- images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        (f"./data/coco/{COCO}", COCO),
        (COCO, COCO),
        (COCO, f"{NUMBER}.jpg"),
        (f"{NUMBER}.jpg", COCO),
        (f"{NUMBER}.jpg", f"COCO_val2014_{NUMBER}.jpg"),
        (f"coco/train2017/{NUMBER}.jpg", f"{NUMBER}.jpg"),
    ],
)
def test_images_are_found_by_any_of_their_names(asked, there, tmp_path):
    photo(tmp_path / "images", there)
    images = [str(tmp_path / "nowhere"), str(tmp_path / "images")]
    groups, report = sets.povid(path=saved(tmp_path, rows.povid(image=asked)), images=images)
    assert groups[0].example.image.key == there
    renamed = asked.rsplit("/", 1)[-1] != there
    assert report["notes"].get("images found under COCO's name of another year", 0) == renamed


TWO_FOLDERS = ["coco/7.jpg", "vg/VG_100K/7.jpg"]


def test_images_found_by_their_bare_name_are_counted(tmp_path):
    photo(tmp_path / "images", "7.jpg")
    path = saved(tmp_path, *(rows.povid(id=str(n), image="coco/7.jpg") for n in range(3)))
    groups, report = sets.povid(path=path, images=[str(tmp_path / "images")])
    assert len(groups) == 3
    assert report["notes"] == {"images found by their bare name, without the folders that rows name": 1}


@pytest.mark.parametrize("packed", [False, True])
def test_two_pictures_are_not_found_as_one(packed, tmp_path):
    whole = photo(tmp_path / "images" / "coco", "7.jpg")
    place = whole.parent
    if packed:
        place = tmp_path / "i.zip"
        with zipfile.ZipFile(place, "w") as archive:
            archive.write(whole, "pictures/7.jpg")
    path = saved(tmp_path, *(rows.povid(id=image, image=image) for image in TWO_FOLDERS))
    with pytest.raises(
        BadDataError,
        match=r"row 2, field 'image': vg/VG_100K/7\.jpg and coco/7\.jpg are both found as .*7\.jpg",
    ):
        sets.povid(path=path, images=[str(place)])
    photo(tmp_path / "images" / "vg/VG_100K", "7.jpg", seed=1)
    groups, report = sets.povid(path=path, images=[str(tmp_path / "images")])
    assert [group.example.image.key for group in groups] == TWO_FOLDERS
    assert report["notes"] == {}


def test_one_picture_of_coco_may_have_two_folders(tmp_path, coco):
    images = [f"train2014/{COCO}", f"./data/coco/{COCO}", f"train2017/{NUMBER}.jpg"]
    path = saved(tmp_path, *(rows.povid(id=image, image=image) for image in images))
    groups, _ = sets.povid(path=path, images=[coco])
    assert {group.example.image.key for group in groups} == {COCO}


def test_files_of_one_name_in_two_folders_have_images_of_their_own(tmp_path):
    for seed, folder in enumerate(("de", "en")):
        (tmp_path / folder).mkdir()
        table = pa.Table.from_pylist([rows.rlaif_v(encoded(picture(seed=seed)), idx=folder)])
        pq.write_table(table, tmp_path / folder / "train-00000-of-00001.parquet")
    groups, _ = sets.rlaif_v(path=str(tmp_path))
    assert [group.example.image.encoded() for group in groups] == [
        encoded(picture(seed=seed)) for seed in (0, 1)
    ]
    prompts = encode_prompts([group.example for group in groups], make_processor("llava"))
    assert prompts.image_index.tolist() == [0, 1]


def test_images_in_a_zip_file(tmp_path):
    data = encoded(picture())
    with zipfile.ZipFile(tmp_path / "merged_images.zip", "w") as archive:
        archive.writestr("merged_images/llava-conversation-7.jpg", data)
        archive.writestr("__MACOSX/merged_images/._llava-conversation-7.jpg", b"x")
    path = write_jsonl(tmp_path / "v.jsonl", [rows.vlfeedback()])
    groups, _ = sets.vlfeedback(path=str(path), images=[str(tmp_path / "merged_images.zip")])
    image = groups[0].example.image
    assert isinstance(image, ZipImage)
    assert image.encoded() == data


def test_a_row_may_hold_its_image_itself(tmp_path):
    import base64

    uri = "data:image/jpeg;base64," + base64.b64encode(encoded(picture())).decode()
    groups, _ = sets.povid(path=saved(tmp_path, rows.povid(image=uri)))
    assert groups[0].example.image.load().size == (64, 48)


def test_a_missing_image_is_named_with_what_to_do(tmp_path, coco):
    path = saved(tmp_path, rows.povid(), rows.povid(image="COCO_train2014_000000000001.jpg"))
    with pytest.raises(
        BadDataError, match=r"1 of 2 rows.*\n.*row 2, field 'image': .*000000000001.jpg is not in"
    ):
        sets.povid(path=path, images=[coco])
    groups, report = sets.povid(path=path, images=[coco], on_bad_row="skip")
    assert len(groups) == 1
    assert "set dataset.images" in report["skipped"][0]
    with pytest.raises(BadDataError, match="none of the places of the images is"):
        sets.povid(path=path, images=[str(tmp_path / "no")])


def test_a_damaged_image_is_found_when_images_are_looked_at(tmp_path, coco):
    whole = photo(tmp_path / "train2014", COCO).read_bytes()
    (tmp_path / "train2014" / COCO).write_bytes(whole[: len(whole) // 2])
    path = saved(tmp_path, rows.povid())
    assert len(sets.povid(path=path, images=[coco])[0]) == 1
    with pytest.raises(BadDataError, match="cut short or damaged"):
        sets.povid(path=path, images=[coco], check_images="whole")


def test_a_name_cannot_leave_the_folder(tmp_path, coco):
    photo(tmp_path, "secret.jpg")
    path = saved(tmp_path, rows.povid(image="../secret.jpg"))
    with pytest.raises(BadDataError, match=r"secret\.jpg is not in"):
        sets.povid(path=path, images=[coco])


def test_a_damaged_zip_file_is_named(tmp_path):
    (tmp_path / "i.zip").write_bytes(b"PK\x03\x04 not a whole archive")
    path = write_jsonl(tmp_path / "v.jsonl", [rows.vlfeedback()])
    with pytest.raises(BadDataError, match=r"i\.zip is not a whole zip file"):
        sets.vlfeedback(path=str(path), images=[str(tmp_path / "i.zip")])


# --- what is wrong with rows -------------------------------------------------------------------------------

FAULTS = {
    "no rejected side": (sets.povid, rows.povid(rejected_conversations=None), "'rejected_conversations': is null"),
    "a question alone": (sets.povid, rows.povid(conversations=rows.talk()[:1]), "has no answer"),
    "another question": (sets.povid, rows.povid(conversations=rows.talk("Why?")), "asks another question"),
    "an empty answer": (sets.povid, rows.povid(conversations=rows.talk(answer=" ")), "'conversations': is empty"),
    "preference 3": (sets.llava_rlhf, rows.llava_rlhf(preference=3), "'preference': is 3. Give 1 or 2"),
    "no output_2": (sets.llava_rlhf, rows.llava_rlhf(output_2=None), "'output_2': is null"),
    "interaction is text": (sets.nlf, rows.nlf(interaction="x"), "'interaction': is not a list"),
    "different questions": (sets.stic, rows.stic(chosen=rows.stic()["chosen"][1:]), "asks another question"),
    "no answer": (sets.llava_instruct, rows.llava_instruct(conversations=rows.talk()[:1]), "has no answer"),
    "completions is text": (sets.vlfeedback, rows.vlfeedback(completions="x"), "'completions': is not a list"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_by_file_row_and_field(fault, tmp_path, coco):
    build, bad, words = FAULTS[fault]
    path = saved(tmp_path, bad)
    with pytest.raises(BadDataError) as caught:
        build(path=path, images=[coco])
    assert "rows.json, row 1" in str(caught.value)
    assert words in str(caught.value)


def test_a_list_that_breaks_off_in_its_second_piece(tmp_path, coco, monkeypatch):
    monkeypatch.setattr("mllm_align.datasets.rows._PIECE", 700)
    text = json.dumps([rows.povid(id=f"r{i}") for i in range(20)], indent=1)
    (tmp_path / "whole.json").write_text(text)
    assert len(sets.povid(path=str(tmp_path / "whole.json"), images=[coco])[0]) == 20
    (tmp_path / "cut.json").write_text(text[: text.index("r13")])
    line = text[: text.index("r13")].count("\n") + 1
    with pytest.raises(
        BadDataError, match=rf"row 14: the JSON list breaks off or is damaged here .*line {line}, "
    ):
        sets.povid(path=str(tmp_path / "cut.json"), images=[coco])
    before = text.rindex("},", 0, text.index('"r7"'))
    (tmp_path / "comma.json").write_text(text[: before + 1] + text[before + 2 :])
    line = text[: text.index('"r7"')].count("\n")
    with pytest.raises(BadDataError, match=rf"row 8: .*no , or \] in line {line}\)"):
        sets.povid(path=str(tmp_path / "comma.json"), images=[coco])


def test_a_cut_parquet_file(tmp_path):
    whole = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([rows.rlhf_v()]), whole)
    (tmp_path / "a.parquet").write_bytes(whole.getvalue()[:-40])
    with pytest.raises(BadDataError, match=r"a\.parquet, row 1: the Parquet file is cut short"):
        sets.rlhf_v(path=str(tmp_path / "a.parquet"))


def test_nothing_at_all_says_why(tmp_path, coco):
    equal = rows.povid(rejected_conversations=rows.talk())
    with pytest.raises(BadDataError, match=r"has nothing that can be used .*equal answers: 1"):
        sets.povid(path=saved(tmp_path, equal), images=[coco])


@pytest.mark.parametrize("option", [{"on_bad_row": "ignore"}, {"check_images": "all"}, {"size": 0}])
def test_unknown_options_are_refused(option, tmp_path, coco):
    with pytest.raises(BadDataError, match=rf"dataset\.{next(iter(option))}="):
        sets.povid(path=saved(tmp_path, rows.povid()), images=[coco], **option)


# --- draws -------------------------------------------------------------------------------------------------


def many(tmp_path, order=None) -> str:
    found = [rows.povid(id=f"r{i}") for i in range(60)]
    return saved(tmp_path, *(found if order is None else [found[i] for i in order]))


def drawn(path: str, coco: str, size: int, seed: int = 0) -> list[str]:
    return [group.example.id for group in sets.povid(path=path, images=[coco], size=size, seed=seed)[0]]


def test_a_smaller_draw_is_part_of_a_larger_one(tmp_path, coco):
    path = many(tmp_path)
    sizes = [set(drawn(path, coco, size)) for size in (1, 7, 20, 60)]
    assert [len(found) for found in sizes] == [1, 7, 20, 60]
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3]
    assert set(drawn(path, coco, 20, seed=1)) != sizes[2]


def test_a_draw_does_not_depend_on_the_order_of_the_rows(tmp_path, coco):
    first = set(drawn(many(tmp_path), coco, 20))
    shuffled = np.random.default_rng(0).permutation(60)
    assert set(drawn(many(tmp_path, shuffled), coco, 20)) == first


@pytest.mark.parametrize("named", [True, False])
def test_nor_where_ids_repeat_or_are_left_out(named, tmp_path, coco):
    """Ids name images in several of the released sets; what the rows say decides which is which."""
    found = [rows.povid(id="a" if named else None) | question(f"{n}?") for n in range(40)]
    draws = []
    for order in (found, found[::-1]):
        path = saved(tmp_path, *order)
        groups, _ = sets.povid(path=path, images=[coco], size=10)
        draws.append({group.example.prompt: group.example.id for group in groups})
        smaller, _ = sets.povid(path=path, images=[coco], size=4)
        assert {group.example.prompt for group in smaller} < set(draws[-1])
    assert set(draws[0]) == set(draws[1])
    if named:  # the ids seed later draws
        assert draws[0] == draws[1]


def question(text: str) -> dict:
    return {"conversations": rows.talk(text), "rejected_conversations": rows.talk(text, BAD)}


def test_a_draw_larger_than_the_set_names_what_there_is(tmp_path, coco):
    with pytest.raises(BadDataError, match=r"dataset\.size=61, but .* gives only 60\. Set dataset\.size=60"):
        drawn(many(tmp_path), coco, 61)


# --- what is kept aside --------------------------------------------------------------------------------------


def numbered(tmp_path, year: str, row, count: int = 60) -> tuple[str, list[dict]]:
    """A folder with COCO pictures 1 .. count under the year's names, and a row about each."""
    names = [f"{year}{number:012}" for number in range(1, count + 1)]
    for name in names:
        photo(tmp_path / f"images{year}", f"{name}.jpg")
    return str(tmp_path / f"images{year}"), [row(id=name, image=f"{name}.jpg") for name in names]


def pictures_of(groups) -> set[int]:
    return {int(group.example.image.key[-16:-4]) for group in groups}


def test_the_splits_share_no_picture_and_agree_between_sets(tmp_path):
    held = {}
    for build, row, year in [
        (sets.povid, rows.povid, "COCO_train2014_"),
        (sets.llava_rlhf, rows.llava_rlhf, ""),
    ]:
        images, found = numbered(tmp_path, year, row)
        found += found[:20]  # pictures with two rows
        path = saved(tmp_path, *found, name=f"{year}rows.json")
        parts = {
            split: build(path=path, images=[images], heldout=0.3, split=split)
            for split in ("preference", "reward_heldout")
        }
        (kept, report), (held[build], _) = parts.values()
        assert len(kept) + len(held[build]) == len(found) == 80
        assert not pictures_of(kept) & pictures_of(held[build])
        assert 10 < len(held[build]) < 40
        assert report["notes"]["held out (dataset.split=reward_heldout)"] == len(held[build])
        everything, _ = build(path=path, images=[images])
        assert len(everything) == 80
    assert pictures_of(held[sets.povid]) == pictures_of(held[sets.llava_rlhf])


def test_rows_with_embedded_images_are_split_by_their_picture_s_name(tmp_path):
    table = pa.Table.from_pylist(
        [rows.rlaif_v(idx=str(i), image_path=f"{i % 20}.jpg") for i in range(60)]  # three rows a picture
    )
    pq.write_table(table, tmp_path / "a.parquet")
    held, _ = sets.rlaif_v(path=str(tmp_path / "a.parquet"), heldout=0.5, split="reward_heldout")
    kept, _ = sets.rlaif_v(path=str(tmp_path / "a.parquet"), heldout=0.5)
    names = [{group.example.meta["image_path"] for group in groups} for groups in (held, kept)]
    assert all(names)
    assert not names[0] & names[1]


@pytest.mark.parametrize(("option", "value"), [("heldout", 1.0), ("heldout", -0.1), ("split", "test")])
def test_unknown_splits_are_refused(option, value):
    with pytest.raises(BadDataError, match=rf"dataset\.{option}={value}"):
        sets.povid(path="rows.json", **{option: value})

"""A person's own data: every form is read as the same Groups; what is wrong is named with its remedy."""

import base64
import json
import logging
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photos import encoded, picture, png_of_size, shared_files, write_jsonl

from mllm_align.compute.packing import encode_prompts
from mllm_align.datasets.errors import BadDataError
from mllm_align.datasets.images import BytesImage, FileImage
from mllm_align.datasets.local import build, load_local, read_local
from mllm_align.datasets.parquet import read_groups, write_groups
from mllm_align.datasets.places import RowImage, ZipImage
from mllm_align.records import Example, Group, Preference, Response
from tiny import make_processor

USER, ASSISTANT = "user", "assistant"


@pytest.fixture
def root(tmp_path):
    """A folder with three photos, one of them below a folder."""
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate(["a.jpg", "b.jpg", "photos/c.jpg"]):
        (tmp_path / name).write_bytes(encoded(picture(seed=seed)))
    return tmp_path


def row(**changes) -> dict:
    return {"image": "a.jpg", "prompt": "What is it?", "chosen": "A cup.", "rejected": "A dog."} | changes


def message(role: str, content) -> dict:
    return {"role": role, "content": content}


def parts(text: str) -> list:
    return [{"type": "image"}, {"type": "text", "text": text}]


def photo(name: str = "a.jpg") -> str:
    seed = ["a.jpg", "b.jpg"].index(name)
    return "data:image/jpeg;base64," + base64.b64encode(encoded(picture(seed=seed))).decode()


ASKED = [message(USER, parts("What is it?"))]
GOOD, BAD = ([message(ASSISTANT, [{"type": "text", "text": text}])] for text in ("A cup.", "A dog."))
FORMS = {
    "plain": row(),
    "placeholder": row(prompt="<image>\nWhat is it?"),
    "placeholder at the end": row(prompt="What is it?\n<image>"),
    "images": {"images": ["a.jpg"], **{k: v for k, v in row().items() if k != "image"}},
    "data uri": row(image=photo()),
    "struct": row(image={"bytes": None, "path": "a.jpg"}),
    "dotted path": row(image="./photos/../a.jpg"),
    "conversational": row(prompt=ASKED, chosen=GOOD, rejected=BAD),
    "text contents": row(prompt=[message(USER, "What is it?")], chosen=GOOD, rejected=BAD),
    "implicit prompt": {"image": "a.jpg", "chosen": ASKED + GOOD, "rejected": ASKED + BAD},
    "prompt twice": row(prompt=ASKED, chosen=ASKED + GOOD, rejected=ASKED + BAD),
    "from and value": row(prompt=[{"from": "human", "value": "<image>What is it?"}]),
    "POVID": {
        "id": "a",
        "image": "./data/coco/a.jpg",
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cup."}],
        "rejected_conversations": [
            {"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "A dog."}
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["JSON", "JSONL", "Parquet"])
def test_every_form_in_every_kind_of_file(form, kind, root):
    path = root / "data"  # the kind is told by content, not by name
    if kind == "JSON":
        path.write_text(json.dumps([FORMS[form]], indent=1))
    elif kind == "JSONL":
        write_jsonl(path, [FORMS[form]])
    else:
        pq.write_table(pa.Table.from_pylist([FORMS[form]]), path)
    local = read_local(str(path))
    (group,) = local.groups
    assert group.example.prompt == "What is it?"
    assert [response.text for response in group.responses] == ["A cup.", "A dog."]
    assert group.preferences == (Preference(0, 1),)
    np.testing.assert_array_equal(
        np.asarray(group.example.image.load()), np.asarray(picture_back(root / "a.jpg"))
    )
    (told,) = local.report.forms
    assert told.startswith(kind)
    assert ("POVID" in told) == (form == "POVID")


def picture_back(path: Path):
    from PIL import Image

    return Image.open(path).convert("RGB")


def test_images_within_parquet(root):
    data = (root / "a.jpg").read_bytes()
    for images in ([{"bytes": data, "path": "elsewhere.jpg"}], [data]):
        pq.write_table(pa.Table.from_pylist([{**row(image=None), "images": images}]), root / "d.parquet")
        (group,) = load_local(str(root / "d.parquet"))
        assert group.example.image.encoded() == data


def test_what_write_groups_wrote(root):
    image = load_local(str(write_jsonl(root / "x.jsonl", [row()])))[0].example.image
    three = Group(
        Example("g", image, "?", "ref", {"k": 1}),
        (Response("x", "policy", (1, 2), 0.5), Response("y"), Response("z")),
        (Preference(2, 0, 0.5), Preference(2, 1)),
    )
    write_groups(root / "d.parquet", [three])
    (group,) = load_local(str(root / "d.parquet"))
    # Token ids are those of the model that sampled, and another one may be trained.
    as_text = (replace(three.responses[0], token_ids=None), *three.responses[1:])
    assert (group.responses, group.preferences) == (as_text, three.preferences)
    assert (group.example.id, group.example.reference, group.example.meta) == ("g", "ref", {"k": 1})


def ours(root, image=None, refer=False, **columns) -> str:
    """A file with one of our Groups, some of its columns changed."""
    image = image or FileImage(str(root), "a.jpg", refer=True)
    group = Group(
        Example("g", image, "?", "A cup."), (Response("A cup."), Response("A dog.")), (Preference(0, 1),)
    )
    path = root / "ours.parquet"
    write_groups(path, [group], refer=refer)
    (record,) = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([record | columns], pq.read_schema(path)), path)
    return str(path)


def test_a_stored_set_that_names_its_images_where_they_lie_is_refused(root):
    """Somebody else's file could name any image of this machine."""
    with zipfile.ZipFile(root / "i.zip", "w") as archive:
        archive.write(root / "b.jpg", "b.jpg")
    for image in (FileImage(str(root), "a.jpg", refer=True), ZipImage(str(root / "i.zip"), "b.jpg")):
        with pytest.raises(
            BadDataError, match=r"row 1, field 'place'.*the file that `mllm-align sample` writes"
        ):
            load_local(ours(root, image, refer=True))


def compared(chosen: int, rejected: int) -> dict:
    return {"preferences": [{"chosen": chosen, "rejected": rejected, "weight": 1.0}]}


def told(*texts: str) -> dict:
    return {"responses": [{"text": text, "source": "dataset"} for text in texts]}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"preferences": []}, "field 'preferences': has no pair.*dataset.offers=answers"),
        (compared(0, 7), "field 'preferences': names response 7 of 2"),
        (compared(0, -1), "field 'preferences': names response -1 of 2"),
        (compared(1, 1), "field 'preferences': the two responses of a pair are equal"),
        (told("A cup.", "A cup. "), "field 'preferences': the two responses of a pair are equal"),
        (told("A cup.", " "), "field 'responses': is empty"),
        (told("A <image> cup.", "x"), "field 'responses': has <image> in the answer"),
        ({"prompt": [message(USER, " ")]}, "field 'prompt': is empty"),
        ({"images": [{"bytes": None, "path": "a.jpg"}]}, "field 'images': holds no image"),
    ],
)
def test_our_own_form_is_checked_as_the_others_are(columns, words, root):
    with pytest.raises(BadDataError, match=rf"row 1.*{words}"):
        load_local(ours(root, **columns))


def test_our_own_form_needs_no_pairs_where_none_are_offered(root):
    (group,) = load_local(ours(root, preferences=[]), offers="answers")
    assert group.example.reference == "A cup."


def test_the_record_of_the_povid_readme(root):
    source = shared_files() / "pref_samples" / "povid_readme_example.json"
    name = "COCO_train2014_000000353952.jpg"
    photos = sorted((shared_files() / "images").glob("*.jpg"))
    (root / "coco").mkdir()
    (root / "coco" / name).write_bytes(photos[0].read_bytes())
    (group,) = load_local(str(source), image_root=str(root / "coco"))
    assert group.example.id == "COCO_train2014_000000353952"
    assert group.example.prompt == "Describe this image in detail."
    assert group.responses[0].text.startswith("This is a vintage black and white image of a group of people")
    assert group.responses[1].text.endswith("carriages or carts in the background.")
    assert group.example.image.load().size == picture_back(photos[0]).size
    with pytest.raises(BadDataError, match=rf"row 1, field 'images': \./data/coco/{name} is not there"):
        load_local(str(source), image_root=str(root))


def test_extra_fields_become_meta_and_ids_are_kept(root):
    path = write_jsonl(root / "d.jsonl", [row(id=7, reference="A red cup.", source={"model": "x"}), row()])
    first, second = load_local(str(path))
    assert (first.example.id, first.example.reference) == ("7", "A red cup.")
    assert first.example.meta == {"source": {"model": "x"}}
    assert second.example.id == "d:2"


def test_numbers_that_json_does_not_know_become_null(root):
    path = write_jsonl(root / "d.jsonl", [row(score=float("nan"), parts=[float("inf"), 1.5])])
    groups = load_local(str(path))
    assert groups[0].example.meta == {"score": None, "parts": [None, 1.5]}
    write_groups(root / "stored", groups)


def test_nothing_is_cut_from_a_long_text(root):
    long = "word " * 20_000 + "end"
    (group,) = load_local(str(write_jsonl(root / "d.jsonl", [row(chosen=long, prompt="q " * 5000 + "?")])))
    assert group.responses[0].text == long
    assert len(group.example.prompt) == 10_001


def test_povid_ids_name_images_and_may_repeat(root):
    povid = FORMS["POVID"]
    several = {**povid, "conversations": povid["conversations"] * 2}
    local = read_local(str(write_jsonl(root / "d.jsonl", [povid, several, povid])))
    assert [group.example.id for group in local.groups] == ["a", "a#2", "a#3"]
    assert local.report.notes == {
        "several rounds: the first is used": 1, "ids that repeat, numbered": 2
    }  # fmt: skip


# --- what is wrong ---------------------------------------------------------------------------------------------

BROKEN = {
    "missing image": (row(image="c.jpg"), "images", r"c\.jpg is not there .*image_root"),
    "folder as image": (row(image="photos"), "images", "photos is a folder"),
    "truncated image": (row(image="cut.jpg"), "images", r"cut\.jpg is cut short or damaged.*Replace the file"),
    "huge image": (row(image="big.png"), "images", r"big\.png is too large.*limit is 100 megapixels.*Scale it down"),
    "no image": ({k: v for k, v in row().items() if k != "image"}, "images", "is missing; the row has prompt"),
    "null image": (row(image=None), "image", "the row has no image"),
    "empty images": ({**row(image=None), "images": []}, "images", "the row has no image"),
    "two images": (row(image=None) | {"images": ["a.jpg", "b.jpg"]}, "images", "has 2 images.*one image a row"),
    "image and images": (row(images=["b.jpg"]), "images", "stands beside 'image'"),
    "web address": (row(image="https://example.org/a.jpg"), "images", "is a web address.*Download"),
    "number as image": (row(image=3), "images", "is int 3"),
    "damaged data uri": (row(image="data:image/png;base64,@@@"), "images", "damaged data URI"),
    "climbs out": (row(image="../a.jpg"), "images", r"\.\./a\.jpg leaves the image root"),
    "absolute": (row(image="/etc/hostname"), "images", "/etc/hostname leaves the image root"),
    "misspelt": ({**{k: v for k, v in row().items() if k != "chosen"}, "choosen": "A cup."}, "chosen",
                 "is missing; the row has 'choosen'. Rename 'choosen' to 'chosen'"),
    "other word": ({**{k: v for k, v in row().items() if k != "prompt"}, "question": "?"}, "prompt",
                   "is missing; the row has 'question'. Rename 'question' to 'prompt'"),
    "nothing near": ({k: v for k, v in row().items() if k != "rejected"}, "rejected",
                     "is missing; the row has image, prompt, chosen. Add 'rejected'"),
    "null": (row(rejected=None), "rejected", "is null"),
    "empty response": (row(rejected=" \n"), "rejected", "is empty.*Write the response"),
    "empty prompt": (row(prompt="<image>\n"), "prompt", "is empty"),
    "equal": (row(rejected=" A cup.\n"), "rejected", "equals chosen.*Remove the row"),
    "number": (row(chosen=5), "chosen", "is int 5"),
    "empty list": (row(chosen=[]), "chosen", "is an empty list"),
    "role": (row(chosen=[message("robot", "x")]), "chosen", "the role 'robot'"),
    "role is a list": (row(chosen=[message(["user"], "x")]), "chosen", r"the role \['user'\]"),
    "video": (row(prompt=[message(USER, [{"type": "video"}])]), "prompt", "a part of the type 'video'"),
    "system turn": (row(prompt=[message("system", "Be nice."), *ASKED]), "prompt", "has the turns system, user"),
    "several turns": (row(prompt=ASKED + GOOD + ASKED), "prompt", "has the turns user, assistant, user"),
    "user at the end": (row(chosen=ASKED), "chosen", "ends with a turn of the user"),
    "two prompts": ({"image": "a.jpg", "chosen": ASKED + GOOD, "rejected": [message(USER, "Other?"), *BAD]},
                    "rejected", "asks another question than chosen"),
    "prompt differs": (row(prompt="Other?", chosen=ASKED + GOOD), "chosen", "begins with another prompt"),
    "placeholder in answer": (row(chosen="A <image> cup."), "chosen", "has <image> in the answer"),
    "two placeholders": (row(prompt="<image><image>?"), "prompt", "has 2 times <image>"),
    "id": (row(id=[1]), "id", "is a list"),
    "surrogate": (row(chosen="A \ud800 cup."), "chosen", r"is not valid UTF-8 after 'A '"),
    "not an object": ([1, 2], None, "is not an object but list"),
    "POVID without answer": ({**FORMS["POVID"], "conversations": FORMS["POVID"]["conversations"][:1]},
                             "conversations", "has no answer"),
    "POVID misspelt": ({"rejected_conversation" if k == "rejected_conversations" else k: v
                        for k, v in FORMS["POVID"].items()}, "rejected_conversations",
                       "Rename 'rejected_conversation' to 'rejected_conversations'"),
    "POVID out": ({**FORMS["POVID"], "image": "../a.jpg"}, "images", "leaves the image root"),
}  # fmt: skip


@pytest.fixture
def traps(root):
    (root / "cut.jpg").write_bytes(encoded(picture(256, 192))[:-500])
    (root / "big.png").write_bytes(png_of_size(20_000, 10_000))
    return root


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_named_with_file_row_field_and_remedy(case, traps):
    bad, field, words = BROKEN[case]
    path = traps / "d.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in (row(), bad, row(image="b.jpg"))))
    where = rf"d\.jsonl, row 2{f', field .{field}.' if field else ''}: [^\n]*{words}"
    with pytest.raises(BadDataError, match=where) as error:
        load_local(str(path))
    assert "1 of 3 rows" in str(error.value)
    assert "dataset.on_bad_row=skip" in str(error.value)
    (problem,) = error.value.problems
    assert problem.remedy
    skipping = read_local(str(path), on_bad_row="skip")
    assert [group.example.id for group in skipping.groups] == ["d:1", "d:3"]
    assert skipping.report.skipped == (problem,)
    assert (skipping.report.rows, skipping.report.good) == (3, 2)


def lines_with(tmp_path, bad: bytes) -> Path:
    good = json.dumps(row()).encode()
    path = tmp_path / "d.jsonl"
    path.write_bytes(good + b"\n\n" + bad + b"\n" + good + b"\n")
    return path


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (json.dumps(row()).encode()[:40], r"row 3: the line is not whole JSON \(Unterminated string.*column 3"),
        (b'{"a": 1} {', r"row 3: the line is not whole JSON \(Extra data"),
        (b"[" * 100_000, r"row 3: the line is not whole JSON \("),
        (
            json.dumps(row(chosen="XX")).encode().replace(b"XX", b"caf\xe9"),
            r"row 3, field 'chosen': is not valid UTF-8 after 'caf'",
        ),
        (b'"text"', "row 3: is not an object but str"),
    ],
)  # fmt: skip
def test_broken_lines(bad, words, root):
    path = lines_with(root, bad)
    with pytest.raises(BadDataError, match=words):
        load_local(str(path))
    assert [group.example.id for group in load_local(str(path), on_bad_row="skip")] == ["d:1", "d:4"]


@pytest.mark.parametrize("drop", [1, 3, 30, 120])
def test_a_json_list_that_breaks_off(drop, root):
    text = json.dumps([row(), row(), row()], indent=2)
    (root / "d.json").write_text(text[:-drop])
    with pytest.raises(
        BadDataError, match=r"d\.json, row [234]: the JSON list breaks off.*nothing from this row on"
    ):
        load_local(str(root / "d.json"))
    assert len(load_local(str(root / "d.json"), on_bad_row="skip")) in (1, 2, 3)


@pytest.mark.parametrize("tail", ["\n" + json.dumps([row()]), " " + json.dumps(row()), "]", "\0"])
def test_what_follows_a_json_list_is_not_dropped_without_a_word(tail, root):
    (root / "d.json").write_text(json.dumps([row(), row()]) + "\n" + tail)
    with pytest.raises(
        BadDataError, match=r"row 3: something stands after the end of the JSON list, in line [23]"
    ):
        load_local(str(root / "d.json"))
    (root / "d.json").write_text(json.dumps([row(), row()]) + " \r\n\t\n")
    assert len(load_local(str(root / "d.json"))) == 2


def test_invalid_utf8_in_a_json_list_names_its_row(root):
    text = json.dumps([row(), row(prompt="XX?"), row()]).encode().replace(b"XX", b"\xff\xfe")
    (root / "d.json").write_bytes(text)
    with pytest.raises(BadDataError, match=r"row 2, field 'prompt': is not valid UTF-8"):
        load_local(str(root / "d.json"))


def test_invalid_utf8_in_parquet_names_its_row(root):
    rows = pa.Table.from_pylist([row(), row(chosen="XXXX"), row()])
    index = rows.column_names.index("chosen")
    raw = pa.array([b"A cup.", b"caf\xe9", b"A cup."])
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(rows.set_column(index, "chosen", broken), root / "d.parquet")
    with pytest.raises(BadDataError, match=r"row 2, field 'chosen': is not valid UTF-8"):
        load_local(str(root / "d.parquet"))
    assert len(load_local(str(root / "d.parquet"), on_bad_row="skip")) == 2


def test_a_parquet_file_that_was_cut(root):
    pq.write_table(
        pa.Table.from_pylist([row(id=i, chosen=f"{i}" * 50) for i in range(500)]), root / "d.parquet"
    )
    whole = (root / "d.parquet").read_bytes()
    (root / "d.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadDataError, match=r"d\.parquet, row 1: the Parquet file is cut short or damaged"):
        load_local(str(root / "d.parquet"))


def test_an_id_given_twice_is_named_with_both_rows(root):
    path = write_jsonl(root / "d.jsonl", [row(id="x"), row(id="y"), row(id="x")])
    with pytest.raises(BadDataError, match=r"row 3, field 'id': 'x' is also that of row 1 of d\.jsonl"):
        load_local(str(path))


def test_twenty_problems_are_shown_and_all_are_counted(root):
    path = write_jsonl(root / "d.jsonl", [row()] + [row(image=f"no{i}.jpg") for i in range(33)])
    with pytest.raises(BadDataError) as error:
        load_local(str(path))
    lines = str(error.value).splitlines()
    assert lines[0].startswith("33 of 34 rows")
    assert len(lines) == 1 + 20 + 1 + 1
    assert "... and 13 more." in lines[21]


def test_no_row_left_is_an_error_with_skip_too(root):
    path = write_jsonl(root / "d.jsonl", [row(image="no.jpg")])
    with pytest.raises(BadDataError, match=r"has nothing that can be used \(of 1 rows\)"):
        load_local(str(path), on_bad_row="skip")


def test_what_was_skipped_reaches_the_log_and_the_record(root, caplog):
    path = write_jsonl(root / "d.jsonl", [row(), row(image="no.jpg")])
    with caplog.at_level(logging.INFO):
        groups, report = build(str(path), on_bad_row="skip")
    assert len(groups) == 1
    assert "2 rows (1 in JSONL, standard form, plain), 1 skipped, 1 used" in caplog.text
    assert "row 2, field 'images': no.jpg is not there" in caplog.text
    assert json.loads(json.dumps(report))["skipped"][0].startswith("d.jsonl, row 2, field 'images': no.jpg")


# --- files -----------------------------------------------------------------------------------------------------


def test_a_folder_of_shards_and_a_pattern(root):
    for shard in ("train-0", "train-1"):
        write_jsonl(root / f"{shard}.jsonl", [row(), row(image="b.jpg")])
    whole = read_local(str(root))
    assert [group.example.id for group in whole.groups] == [
        "train-0:1",
        "train-0:2",
        "train-1:1",
        "train-1:2",
    ]
    assert len(load_local(str(root / "train-1*"))) == 2
    write_jsonl(root / "test-0.jsonl", [row()])
    with pytest.raises(BadDataError, match=r"held-out files \(test-0\.jsonl\).*Name the ones to train on"):
        load_local(str(root))


def test_shards_of_the_same_name_in_two_folders(root):
    for folder in ("x", "y"):
        (root / folder).mkdir()
        write_jsonl(root / folder / "part.jsonl", [row(), row(image="no.jpg")])
    with pytest.raises(BadDataError, match=r"y/part\.jsonl, row 2"):
        load_local(str(root), image_root=str(root))
    groups = load_local(str(root), image_root=str(root), on_bad_row="skip")
    assert [group.example.id for group in groups] == ["x/part:1", "y/part:1"]


def test_files_that_differ_by_their_ending_alone(root):
    for name in ("m.json", "m.jsonl"):
        write_jsonl(root / name, [row(image="no.jpg"), row()])
    groups = load_local(str(root / "m.*"), on_bad_row="skip")
    assert [group.example.id for group in groups] == ["m.json:2", "m.jsonl:2"]


def two_folders(root) -> None:
    """Rows and images of the same names in two folders."""
    for seed, folder in enumerate(("x", "y")):
        (root / folder / "images").mkdir(parents=True)
        (root / folder / "images" / "1.jpg").write_bytes(encoded(picture(seed=seed)))
        write_jsonl(root / folder / "part.jsonl", [row(image="images/1.jpg", chosen=f"Of {folder}.")])


def test_images_start_from_the_folder_of_each_file_of_a_pattern(root):
    two_folders(root)
    groups = load_local(str(root / "*" / "part.jsonl"))
    assert [group.example.image.key for group in groups] == ["x/images/1.jpg", "y/images/1.jpg"]
    for seed, group in enumerate(groups):
        assert group.example.image.encoded() == encoded(picture(seed=seed))


def test_images_start_from_a_folder_that_is_named(root):
    two_folders(root)
    with pytest.raises(BadDataError, match=rf"images/1\.jpg is not there \(looked below {root}\)"):
        load_local(str(root))
    for folder in ("x", "y"):
        write_jsonl(root / folder / "part.jsonl", [row(image=f"{folder}/images/1.jpg")])
    assert [g.example.image.key for g in load_local(str(root))] == ["x/images/1.jpg", "y/images/1.jpg"]


def test_a_bad_image_is_that_of_its_folder(root):
    two_folders(root)
    (root / "x/images/1.jpg").write_bytes(b"no image")
    local = read_local(str(root / "*" / "part.jsonl"), on_bad_row="skip")
    assert [group.responses[0].text for group in local.groups] == ["Of y."]


def test_two_of_our_files_with_images_of_one_name(root):
    """The pictures stay two: a batch tells images apart by their keys."""
    for seed, folder in enumerate(("x", "y")):
        (root / folder).mkdir()
        image = BytesImage(encoded(picture(seed=seed)), "1.jpg")
        group = Group(Example(folder, image, "?"), (Response("a"), Response("b")), (Preference(0, 1),))
        write_groups(root / folder / "d.parquet", [group])
    one, other = load_local(str(root / "*" / "d.parquet"))
    assert one.example.image.key == "1.jpg" != other.example.image.key
    prompts = encode_prompts([one.example, other.example], make_processor("llava"))
    assert prompts.image_index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"image,prompt\n", "neither JSON, JSONL nor Parquet"),
        ("{}".encode("utf-16"), "UTF-16. Save it as UTF-8"),
        (b"\x1f\x8b\x08\x00", "is compressed. Unpack"),
    ],
)
def test_other_files(content, words, root):
    (root / "d.jsonl").write_bytes(content)
    with pytest.raises(BadDataError, match=words):
        load_local(str(root / "d.jsonl"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "nowhere.jsonl"}, "nowhere.jsonl is not there. Set dataset.path"),
        ({"path": "no*.jsonl"}, "No file matches"),
        ({"path": "photos"}, "holds no .json, .jsonl or .parquet file"),
        ({"image_root": "nowhere"}, "image_root=nowhere is not a folder"),
        ({"on_bad_row": "ignore"}, "Use stop or skip"),
        ({"size": 0}, "leaves nothing"),
        ({"size": 3}, r"size=3, but d.jsonl gives only 2.*dataset.size=2"),
    ],
)
def test_options_that_cannot_be_met(options, words, root, monkeypatch):
    monkeypatch.chdir(root)
    write_jsonl(root / "d.jsonl", [row(), row()])
    with pytest.raises(BadDataError, match=words):
        load_local(**{"path": "d.jsonl", **options})


def test_a_mark_at_the_start_of_utf8_is_read_over(root):
    for name, text in (("d.jsonl", json.dumps(row())), ("d.json", json.dumps([row()]))):
        (root / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert len(load_local(str(root / name))) == 1


def test_a_draw_depends_on_the_seed_and_not_on_the_order_and_is_nested(root):
    rows = [row(id=f"r{i}") for i in range(50)]
    path = str(write_jsonl(root / "d.jsonl", rows))
    turned = str(write_jsonl(root / "turned.jsonl", rows[::-1]))

    def ids(path: str, size: int, seed: int) -> set[str]:
        return {group.example.id for group in load_local(path, size=size, seed=seed)}

    assert ids(path, 10, 0) == ids(turned, 10, 0)
    assert ids(path, 10, 0) < ids(path, 20, 0)
    assert ids(path, 10, 0) != ids(path, 10, 1)
    drawn = [int(group.example.id[1:]) for group in load_local(path, size=10)]
    assert drawn == sorted(drawn)
    assert ids(path, 50, 3) == {f"r{i}" for i in range(50)}
    # Draws stay what they are from one release to the next.
    assert ids(path, 4, 0) == {"r27", "r28", "r31", "r6"}


@pytest.mark.parametrize("form", ["without ids", "POVID"])
def test_a_draw_of_rows_without_an_id_of_their_own_depends_on_what_they_say(form, root):
    if form == "POVID":
        rows = [
            FORMS["POVID"]
            | {"conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": "A cup."}],
               "rejected_conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": "A dog."}]}
            for n in range(40)
        ]  # fmt: skip
    else:
        rows = [row(prompt=f"{n}?") for n in range(40)]
    found = []
    for order in (rows, rows[::-1], rows[20:] + rows[:20]):
        path = str(write_jsonl(root / "d.jsonl", order))
        drawn = load_local(path, size=10)
        smaller = {group.example.prompt for group in load_local(path, size=5)}
        prompts = {group.example.prompt: group.example.id for group in drawn}
        assert smaller < set(prompts)
        found.append(prompts)
    assert set(found[0]) == set(found[1]) == set(found[2])
    if form == "POVID":  # the ids seed later draws
        assert found[0] == found[1] == found[2]


# --- images inside Parquet files -------------------------------------------------------------------------------


def embedded_rows(count: int, column: str = "images") -> list[dict]:
    """Rows with their images inside."""
    image = [{"bytes": encoded(picture(seed=seed)), "path": f"{seed}.jpg"} for seed in range(count)]
    plain = {key: value for key, value in row().items() if key != "image"}
    return [
        {**plain, column: [one] if column == "images" else one, "prompt": f"{n}?"}
        for n, one in enumerate(image)
    ]


@pytest.mark.parametrize("column", ["images", "image"])
def test_large_sets_of_images_stay_in_their_files(column, root, monkeypatch):
    rows = embedded_rows(7, column)
    for shard, part in enumerate((rows[:5], rows[5:])):
        table = pa.Table.from_pylist(part)
        pq.write_table(table, root / f"train-{shard}.parquet", row_group_size=2)
    held = load_local(str(root / "train-*"))
    assert {type(group.example.image) for group in held} == {BytesImage}
    monkeypatch.setattr("mllm_align.datasets.embedded.HELD", 1000)
    referred = load_local(str(root / "train-*"))
    assert {type(group.example.image) for group in referred} == {RowImage}
    assert [g.example.image.encoded() for g in referred] == [g.example.image.encoded() for g in held]
    assert [g.example.image.key for g in referred] == [g.example.image.key for g in held]
    assert referred[5].example.image.place["parquet"] == str(root / "train-1.parquet")
    drawn = load_local(str(root / "train-*"), size=3, seed=1)
    assert [(g.example.prompt, g.example.image.encoded()) for g in drawn] == [
        (g.example.prompt, g.example.image.encoded())
        for g in held
        if g.example.id in {d.example.id for d in drawn}
    ]
    write_groups(root / "set", referred, refer=True)
    assert read_groups(root / "set") == referred


def test_large_sets_of_images_with_bad_rows_and_other_files(root, monkeypatch):
    monkeypatch.setattr("mllm_align.datasets.embedded.HELD", 1000)
    rows = embedded_rows(4)
    rows[1]["images"] = [{"bytes": b"no image", "path": None}]
    rows[2]["images"] = rows[2]["images"] * 2
    rows[3]["images"] = [{"bytes": None, "path": "b.jpg"}]
    pq.write_table(pa.Table.from_pylist(rows), root / "a.parquet", row_group_size=3)
    pq.write_table(pa.Table.from_pylist([row(image=photo())]), root / "b.parquet")
    local = read_local(str(root / "*.parquet"), on_bad_row="skip")
    assert [type(group.example.image) for group in local.groups] == [RowImage, FileImage, BytesImage]
    damaged, several = map(str, local.report.skipped)
    assert "row 2, field 'images'" in damaged
    assert "row 3, field 'images': has 2 images" in several

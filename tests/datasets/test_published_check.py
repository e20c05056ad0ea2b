"""`mllm-align data check`: what it counts is right by hand, and what it shows can do no harm."""

import json
import subprocess
import sys
from dataclasses import replace

import published_rows as rows
import pytest
from photos import encoded, picture, shared_files, write_jsonl
from published_rows import NUMBER, photo

from mllm_align import data, datacheck
from mllm_align.datasets.images import BytesImage, FileImage
from mllm_align.datasets.inspect.lengths import lengths, quantiles
from mllm_align.datasets.inspect.overlaps import benchmark_images, overlaps
from mllm_align.datasets.inspect.repeats import repeats
from mllm_align.datasets.inspect.seen import look, one
from mllm_align.records import Example, Group, Preference, Response
from mllm_align.tables.dataset_page import write_page

EVIL = '<script>alert("x")</script>'


def group(name: str, image, prompt: str = "What is it?", *texts: str) -> Group:
    texts = texts or ("A cup.", "A dog.")
    return Group(Example(name, image, prompt), tuple(map(Response, texts)), (Preference(0, 1),))


@pytest.fixture
def photos(tmp_path):
    """Four files, two of which hold the same picture."""
    for number, seed in enumerate([0, 1, 2, 2]):
        photo(tmp_path / "images", f"COCO_val2014_{number:012}.jpg", seed)
    return [FileImage(str(tmp_path / "images"), f"COCO_val2014_{n:012}.jpg") for n in range(4)]


# --- the parts by hand ---------------------------------------------------------------------------------------


def test_repeats(photos):
    groups = [
        group("a", photos[0]),
        group("again", photos[0]),
        group("otherwise", photos[0], "What is it?", "A cup.", "A cat."),
        group("b", photos[2]),
        group("same picture", photos[3]),
    ]
    seen, wrong = look(groups)
    found = repeats(groups, seen)
    assert wrong == {}
    assert found["rows that repeat another"] == 1
    assert found["rows that ask again what was asked about the image"] == 2
    assert found["different images by name"] == 3
    assert found["different images by content"] == 2
    assert found["images under several names"] == [[photos[2].key, photos[3].key]]


def test_an_image_is_seen_upright(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = BytesImage(encoded(picture(64, 48), exif=exif), "turned")
    assert one(image).size == image.load().size == (48, 64)


def test_what_can_not_be_opened_is_named(tmp_path, photos):
    (tmp_path / "images" / "bad.jpg").write_bytes(b"no image")
    bad = FileImage(str(tmp_path / "images"), "bad.jpg")
    gone = FileImage(str(tmp_path / "images"), "gone.jpg")
    seen, wrong = look([group("a", photos[0]), group("b", bad), group("c", gone)])
    assert list(seen) == [photos[0].key]
    assert "is no image" in wrong["bad.jpg"]
    assert "is not there" in wrong["gone.jpg"]


def test_overlaps_by_number_by_name_and_by_content(tmp_path, photos):
    questions = tmp_path / "pope"
    questions.mkdir()
    # Named as COCO does in another year, and as an id.
    write_jsonl(
        questions / "q.json", [{"image": "000000000000.jpg"}, {"image_id": 1}, {"image": "other.jpg"}]
    )
    wild = tmp_path / "wild"
    photo(wild, "001.jpg", seed=2)  # the picture of the third and the fourth file
    groups = [*(group(str(n), image) for n, image in enumerate(photos)), group("4", photos[0], "Why?")]
    seen, _ = look(groups)
    found = overlaps(
        groups, seen, {"pope": benchmark_images(questions), "wild": benchmark_images(wild), "no": None}
    )
    assert (found["pope"]["images"], found["pope"]["shared by name"], found["pope"]["rows"]) == (3, 2, 3)
    assert found["pope"]["shared by content"] is None  # no files to compare
    assert (found["wild"]["shared by name"], found["wild"]["shared by content"]) == (0, 2)
    assert found["no"] is None
    assert benchmark_images(tmp_path / "nowhere") is None


def test_overlaps_of_pictures_that_lie_in_a_parquet_file(tmp_path):
    """Their key is file and row; the row says which picture it is."""
    image = BytesImage(encoded(picture()), "a.parquet:1")
    meta = {"image_path": "coco/COCO_val2014_000000310196.jpg"}
    questions = write_jsonl(tmp_path / "q.jsonl", [{"image": "000000310196.jpg"}])
    groups = [
        Group(Example("a", image, "?", meta=meta), (), ()),
        group("b", replace(image, key="a.parquet:2")),
    ]
    found = overlaps(groups, {}, {"pope": benchmark_images(questions)})["pope"]
    assert (found["shared by name"], found["rows"]) == (1, 1)


def test_the_images_of_pope_are_read_from_the_real_files():
    found = benchmark_images(shared_files() / "pope")
    assert len(found.coco) == 500
    assert not found.names


@pytest.fixture(scope="module")
def processors(tiny_folders):
    from mllm_align.models.load import load_processor

    return {kind: load_processor(folder) for kind, folder in tiny_folders.items()}


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_lengths_are_those_of_a_batch(kind, processors, tmp_path):
    from mllm_align.compute.packing import collate

    images = []
    for number, size in enumerate([(64, 48), (48, 64), (90, 30)]):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(picture(*size)))
        images.append(FileImage(str(tmp_path), f"{number}.jpg"))
    groups = [
        group("a", images[0]),
        group("b", images[1], "What is to be seen here?", "A cup on a table.", "no"),
        group("c", images[2]),
    ]
    processor = processors[kind]
    batch = collate(groups, processor)
    prompt = batch.prompt_mask.sum(1)
    longest = batch.response_mask.sum(-1).amax(1)
    seen, _ = look(groups)
    found = lengths(groups, seen, processor, None, None)
    assert found["whole"] == quantiles((prompt + longest).tolist())
    assert found["response"]["most"] == int(longest.max())
    # A limit in the middle of the answers: as many are cut as in the batch.
    limit = int((prompt + 1).max())
    cut = collate(groups, processor, max_length=limit)
    found = lengths(groups, seen, processor, limit, limit)
    assert found["cut responses"] == cut.truncated > 0
    before, after = (int(b.response_mask.sum()) for b in (batch, cut))
    assert found["cut tokens"] == before - after
    assert found["rows beyond the context"] == sum(
        int(p + r) > limit for p, r in zip(prompt, longest, strict=True)
    )
    found = lengths(groups, seen, processor, int(prompt.max()), None)
    assert found["rows whose prompt leaves no room"] == int((prompt == prompt.max()).sum())


def test_quantiles_by_hand():
    assert quantiles(list(range(1, 101))) == {"least": 1, "middle": 51, "95%": 96, "most": 100}
    assert quantiles([]) == {}


def test_the_page_escapes_what_it_shows(tmp_path):
    image = BytesImage(encoded(picture()), EVIL)
    evil = replace(group(EVIL, image, EVIL, EVIL, "x" + EVIL), preferences=(Preference(0, 1),))
    answered = Group(Example("r", image, "?", reference=EVIL), ())
    page = write_page([evil, answered], tmp_path / "p.html", EVIL, [EVIL]).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8
    assert page.count("data:image/png;base64,") == 2
    assert "://" not in page  # nothing is fetched


# --- the command ---------------------------------------------------------------------------------------------


def run(tmp_path, *overrides: str) -> tuple[int, str, dict]:
    """(exit status, output, report) of the command as it is typed."""
    done = subprocess.run(
        [sys.executable, "-m", "mllm_align.cli", "data", "check", *overrides, f"out={tmp_path}/out"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    file = tmp_path / "out" / "check.json"
    return done.returncode, done.stdout + done.stderr, json.loads(file.read_text()) if file.exists() else {}


def test_a_published_set_as_it_is_typed(tmp_path, tiny_folders):
    root = tmp_path / "data"
    photo(root / "coco" / "train2014", f"COCO_train2014_{NUMBER}.jpg")
    (root / "povid").mkdir()
    found = [
        rows.povid(),
        rows.povid(),
        rows.povid(image="gone.jpg"),
        rows.povid(conversations=rows.talk()[:1]),
    ]
    (root / "povid" / "POVID_preference_data_for_VLLMs_version_1.json").write_text(json.dumps(found))
    (root / "pope").mkdir()
    write_jsonl(root / "pope" / "coco_pope_random.json", [{"image": f"COCO_val2014_{NUMBER}.jpg"}])
    model = ["base_model=local", f"base_model.path={tiny_folders['llava']}", "max_length=60"]
    status, said, report = run(
        tmp_path, "dataset=published/povid", f"dataset.root={root}", f"root={root}", *model
    )
    assert status == datacheck.BAD, said
    assert "4 rows read, 2 to train on" in said
    assert "row 3, field 'image': gone.jpg is not in" in said
    assert "row 4, field 'conversations': has no answer" in said
    assert "rows that repeat another: 1" in said
    assert "pope: 1 of its 1 by name, no files to compare contents; 2 rows" in said
    assert "not at hand, so not compared: object_halbench, llava_w, " in said
    assert report["overlaps"]["pope"]["rows"] == 2
    assert report["tokens"]["max_length"] == 60
    assert "He rides a bicycle." in (tmp_path / "out" / "page.html").read_text()


def test_your_own_data_as_it_is_typed(tmp_path):
    photo(tmp_path, "a.jpg")
    row = {"image": "a.jpg", "prompt": "What is it?", "chosen": "A cup.", "rejected": "A dog."}
    write_jsonl(tmp_path / "pairs.jsonl", [row])
    status, said, report = run(tmp_path, "dataset=local", "dataset.path=pairs.jsonl")
    assert status == 0, said
    assert report["groups"] == 1
    assert report["tokens"] is None
    assert "name a base_model" in said


def test_a_set_that_is_not_there_says_what_to_do(tmp_path):
    status, said, _ = run(tmp_path, "dataset=published/rlhf_v", "dataset.root=nowhere")
    assert status == 2
    assert "nowhere/rlhf_v/RLHF-V-Dataset.parquet is not there. Set dataset.path" in said
    assert "Traceback" not in said


def test_nothing_is_paid_for_by_a_check(tmp_path):
    """The corrupted set is looked at before its corruption: no endpoint, no key, no model's name."""
    photo(tmp_path / "i", "llava-7.jpg")
    path = write_jsonl(tmp_path / "v.jsonl", [rows.vlfeedback("llava-7")])
    set_ = ["dataset=published/vlfeedback_llava_responses", f"dataset.path={path}", "dataset.size=1"]
    status, said, _ = run(tmp_path, *set_, f"dataset.images=[{tmp_path}/i]")
    assert status == 0, said
    assert "before they are corrupted" in said
    assert "Reddish." in (tmp_path / "out" / "page.html").read_text()  # LLaVA's best answer


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        (["mllm-align data"], 0, "usage: mllm-align data ACTION"),
        (["mllm-align data", "help"], 0, "check"),
        (["mllm-align data", "clean"], 2, "no action 'clean'; choose from check, fetch"),
    ],
)
def test_actions(line, status, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", line)
    assert data.main() == status
    captured = capsys.readouterr()
    assert words in captured.out + captured.err

"""`mllm-align data fetch`: what it gets, what it refuses, and what it says where there is no network."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
)

from mllm_align.datafetch import download as getting
from mllm_align.datafetch.catalogue import BENCHMARKS, DATA, DATASETS, MODELS, REWARD, STUDY, Item, items_of
from mllm_align.datafetch.command import NOTE, get, present, run
from mllm_align.datafetch.download import (
    Refused,
    Remote,
    Unreachable,
    Wrong,
    check,
    download,
    fetch,
    in_words,
    unpack,
)
from mllm_align.paths import conf_dir

# What the hub's client asks with: httpx, or httpx2 in its later releases.
httpx = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
BODY = bytes(range(256)) * 40


class Shelf:
    """A hub that has these files; `broken` of them come cut short."""

    def __init__(self, files: dict[str, bytes], broken: tuple[str, ...] = ()) -> None:
        self.contents, self.broken, self.asked = files, broken, []

    def files(self, repository: str, kind: str) -> list[Remote]:
        return [Remote(n, len(b), hashlib.sha256(b).hexdigest()) for n, b in self.contents.items()]

    def download(self, repository: str, kind: str, name: str, into: Path) -> None:
        self.asked.append(name)
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        body = self.contents[name]
        (into / name).write_bytes(body[:-1] + b"?" if name in self.broken else body)


class Unplugged:
    """No network."""

    def files(self, repository: str, kind: str) -> list[Remote]:
        raise Unreachable("huggingface.co cannot be reached")

    def download(self, *args: object) -> None:
        raise AssertionError("it was told so already")


@pytest.fixture
def server() -> Iterator[tuple[str, list[str | None]]]:
    """An address with BODY, which honours ranges, and the ranges that it was asked for."""
    ranges: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(BODY) - start))
            self.end_headers()
            self.wfile.write(BODY[start:] if "short" not in self.path else BODY[start:100])

        def log_message(self, *args: object) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", ranges
    running.shutdown()


@pytest.fixture
def stateful() -> Iterator[tuple[str, list[dict], dict[str, bytes]]]:
    """A server that names the state of its file (`body`), and what it was asked and answered."""
    asked: list[dict] = []
    body = {"now": BODY}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            whole = body["now"]
            tag = f'"{hashlib.sha256(whole).hexdigest()}"'
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            start = start if self.headers.get("If-Range", tag) == tag else 0
            status = 404 if "gone" in self.path else 416 if start >= len(whole) else 206 if start else 200
            asked.append({**self.headers, "sent": tag, "status": status})
            self.send_response(status)
            if status == 416:
                self.send_header("Content-Range", f"bytes */{len(whole)}")
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(whole) - start) if status < 300 else "0")
            self.end_headers()
            if status < 300:
                self.wfile.write(whole[start : 100 if "short" in self.path else None])

        def log_message(self, *args: object) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", asked, body
    running.shutdown()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MLLM_ALIGN_DATA", "MLLM_ALIGN_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(getting, "reachable", lambda address: None)
    return tmp_path


SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
RLHF_V = {"RLHF-V-Dataset.parquet": b"rows", "README.md": b"read"}


# --- the command --------------------------------------------------------------------------------------------


def test_it_puts_a_dataset_where_the_config_reads_it(here, capsys) -> None:
    shelf = Shelf(RLHF_V)
    assert run(["dataset=published/rlhf_v", "accept=true"], shelf) == 0
    assert (here / "data/rlhf_v/RLHF-V-Dataset.parquet").read_bytes() == b"rows"
    assert shelf.asked == ["RLHF-V-Dataset.parquet"]
    told = capsys.readouterr().out
    assert "licence CC-BY-NC-4.0; use it for research only" in told
    assert "put into data/rlhf_v: RLHF-V-Dataset.parquet" in told
    note = json.loads((here / "data/rlhf_v" / NOTE).read_text())[0]
    assert note["source"] == "huggingface.co/datasets/openbmb/RLHF-V-Dataset"
    assert note["bytes"] == {"RLHF-V-Dataset.parquet": 4}


def test_non_commercial_terms_are_said_first_and_wait(here, capsys) -> None:
    shelf = Shelf(RLHF_V)
    assert run(["dataset=published/rlhf_v"], shelf) == 2
    assert not shelf.asked
    assert (
        "rlhf_v: for non-commercial use only. Nothing was fetched; add accept=true" in capsys.readouterr().out
    )


def test_what_is_there_is_not_fetched_again(here, capsys) -> None:
    shelf = Shelf(RLHF_V)
    for _ in range(2):
        assert run(["dataset=published/rlhf_v", "accept=true"], shelf) == 0
    assert shelf.asked == ["RLHF-V-Dataset.parquet"]
    assert "there already" in capsys.readouterr().out


def test_without_a_network_it_says_what_to_copy_where(here, capsys) -> None:
    assert run(["dataset=published/povid", "base_model=published/llava_1_6_7b"], Unplugged()) == 1
    told = capsys.readouterr().err
    assert (
        "data/povid\n    huggingface.co/datasets/YiyangAiLab/POVID_preference_data_for_VLLMs: POVID_" in told
    )
    assert (
        "data/coco/train2014\n    http://images.cocodataset.org/zips/train2014.zip, unpacked (13.5 GB" in told
    )
    assert "models/llava-v1.6-vicuna-7b-hf\n    huggingface.co/llava-hf/llava-v1.6-vicuna-7b-hf:" in told
    assert "cannot be reached" in told


def test_a_machine_that_was_filled_by_hand_needs_no_network(here, capsys) -> None:
    (here / "d/povid").mkdir(parents=True)
    (here / "d/povid/POVID_preference_data_for_VLLMs_version_1.json").write_text("[]")
    (here / "d/coco/train2014").mkdir(parents=True)
    model = here / "m/llava-v1.6-vicuna-7b-hf"
    model.mkdir(parents=True)
    for name in SMALL:
        (model / name).write_text("{}")
    weights = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(weights))
    (model / "model-1.safetensors").touch()
    arguments = ["dataset=published/povid", "base_model=published/base", "data=d", "models=m"]
    assert run(arguments, Unplugged()) == 1  # a shard is missing
    (model / "model-2.safetensors").touch()
    assert run(arguments, Unplugged()) == 0


@pytest.mark.parametrize("left_out", [None, *SMALL, "model-00002-of-00003.safetensors"])
def test_a_model_that_came_in_part_is_not_there(left_out, here) -> None:
    """As a download leaves it that was stopped before the index of the weights came, or after it."""
    shards = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    for name in (*SMALL, *shards):
        if name != left_out:
            (here / name).write_text("{}")
    assert present(here, MODELS["llava_1_6_7b"]) == (left_out is None)


def test_an_embedding_of_sentences_has_no_processor(here) -> None:
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (here / name).write_text("{}")
    assert not present(here, MODELS["sentence_embedding"])
    (here / "tokenizer_config.json").write_text("{}")
    assert present(here, MODELS["sentence_embedding"])


def test_a_set_of_many_files_is_compared_with_the_hub_where_there_is_one(here, capsys) -> None:
    names = [f"RLAIF-V-Dataset_{n:03}.parquet" for n in range(3)]
    shelf = Shelf(dict.fromkeys(names, b"rows"))
    folder = here / "data/rlaif_v"
    folder.mkdir(parents=True)
    (folder / names[0]).write_bytes(b"rows")
    assert not present(folder, DATA["rlaif_v"])
    assert run(["dataset=published/rlaif_v", "accept=true"], Unplugged()) == 0
    assert "not compared with what is published" in capsys.readouterr().out
    assert run(["dataset=published/rlaif_v", "accept=true"], shelf) == 0
    assert shelf.asked == names[1:]
    assert present(folder, DATA["rlaif_v"])


def test_plan_shows_and_does_nothing(here, capsys) -> None:
    assert run(["benchmark=published/pope", "plan=true"], Unplugged()) == 0
    assert "data/coco/val2014" in capsys.readouterr().out
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["dataset=published/povit"],
            "dataset=published/povit: nothing is known of where to get it; choose one of",
        ),
        (["base_model=scenes/base"], "published/llava_1_6_7b"),
        (["povid"], "data fetch does not know 'povid'"),
        (["accept=true"], "nothing to fetch"),
    ],
)
def test_a_mistake_is_named(arguments, message, capsys) -> None:
    assert run(arguments, Unplugged()) == 2
    assert message in capsys.readouterr().err


def test_what_no_program_may_fetch_is_said(here, capsys) -> None:
    assert run(["benchmark=published/amber"], Unplugged()) == 1
    assert "README of github.com/junyangwang0410/AMBER" in capsys.readouterr().err


# --- the hub ------------------------------------------------------------------------------------------------


def test_another_checksum_than_published_is_refused(here) -> None:
    shelf = Shelf(RLHF_V, broken=("RLHF-V-Dataset.parquet",))
    with pytest.raises(Wrong, match="another SHA-256"):
        fetch(DATA["rlhf_v"], here, shelf)
    assert not (here / "RLHF-V-Dataset.parquet").exists()


def test_a_file_that_is_gone_from_the_hub_is_named(here) -> None:
    with pytest.raises(Wrong, match=r"no file vlfeedback_80k\.jsonl any more"):
        fetch(DATA["vlfeedback"], here, Shelf({"merged_images.zip": b""}))


def test_only_what_is_named_comes_and_nothing_leaves_the_folder(here) -> None:
    names = ["config.json", "model-00001-of-00002.safetensors", "sub/config.json", "../config.json", "a.bin"]
    shelf = Shelf(dict.fromkeys(names, b"x"))
    found = fetch(MODELS["llava_1_6_7b"], here, shelf)
    assert {file.name for file in found} == {"config.json", "model-00001-of-00002.safetensors"}
    assert shelf.asked == names[:2]


class Barred(Shelf):
    """A hub that has the file and does not give it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(RLHF_V)
        self.error = error

    def download(self, *args: object) -> None:
        raise self.error


def answered(code: int) -> object:
    return httpx.Response(code, request=httpx.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (GatedRepoError("403: ask first", response=answered(403)), Refused, "GatedRepoError: 403: ask first"),
        (HfHubHTTPError("500: broken", response=answered(500)), Refused, "500: broken"),
        (EntryNotFoundError("no such file"), Refused, "no such file"),
        (LocalEntryNotFoundError("no connection"), Unreachable, "cannot be reached"),
        (httpx.ConnectError("no route"), Unreachable, "no route"),
        (OSError(28, "No space left on device"), OSError, "No space left"),
    ],
)
def test_errors_of_the_hub_s_client_are_told_apart(error, kind, words, here) -> None:
    with pytest.raises(kind, match=words) as caught:
        fetch(DATA["rlhf_v"], here, Barred(error))
    assert isinstance(caught.value, Unreachable) == (kind is Unreachable)


def test_the_real_client_says_at_once_that_it_is_offline(monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE"):
        getting.HuggingFace().files("openbmb/RLHF-V-Dataset", "dataset")


# --- addresses ----------------------------------------------------------------------------------------------


def test_a_download_goes_on_where_it_stopped(here, server) -> None:
    address, ranges = server
    (here / "file.zip.part").write_bytes(BODY[:1000])
    download(f"{address}/file.zip", here / "file.zip")
    assert (here / "file.zip").read_bytes() == BODY
    assert ranges == ["bytes=1000-"]
    assert not (here / "file.zip.part").exists()


def test_a_connection_that_ends_early_keeps_what_came(here, server) -> None:
    address, _ = server
    with pytest.raises(Unreachable, match="the same command continues"):
        download(f"{address}/short", here / "short")
    assert (here / "short.part").stat().st_size == 100
    assert not (here / "short").exists()


def test_a_part_of_an_older_file_is_not_gone_on_with(here, stateful) -> None:
    address, asked, body = stateful
    with pytest.raises(Unreachable):
        download(f"{address}/short", here / "file")
    assert (here / "file.part").read_bytes() == body["now"][:100]
    body["now"] = BODY[::-1]
    download(f"{address}/file", here / "file")
    assert (here / "file").read_bytes() == body["now"]
    assert asked[1]["Range"] == "bytes=100-"
    assert asked[1]["If-Range"] == asked[0]["sent"]
    assert [path.name for path in here.iterdir()] == ["file"]


def test_a_part_that_is_the_same_is_gone_on_with(here, stateful) -> None:
    address, asked, _ = stateful
    with pytest.raises(Unreachable):
        download(f"{address}/short", here / "file")
    download(f"{address}/file", here / "file")
    assert (here / "file").read_bytes() == BODY
    assert asked[1]["status"] == 206


@pytest.mark.parametrize("there", [BODY, BODY + b"more of an older file"])
def test_a_part_that_is_the_whole_or_longer(there, here, stateful) -> None:
    address, asked, _ = stateful
    (here / "file.part").write_bytes(there)
    download(f"{address}/file", here / "file")
    assert (here / "file").read_bytes() == BODY
    assert [one["status"] for one in asked] == ([416] if there == BODY else [416, 200])


def test_what_is_gone_or_not_writable_does_not_end_the_rest(here, stateful, capsys) -> None:
    address, _, _ = stateful
    items = [(here / name, Item(name, (f"{address}/{file}",))) for name, file in
             [("a", "gone.json"), ("b", "blocked.json"), ("c", "fine.json")]]  # fmt: skip
    (here / "b/blocked.json.part").mkdir(parents=True)
    assert get(items, Unplugged(), print) == 1
    assert (here / "c/fine.json").read_bytes() == BODY
    told = capsys.readouterr().err
    assert "gone.json: the server answers 404" in told
    assert "Is a directory" in told
    assert "fine.json" not in told


def test_an_item_of_an_address_is_checked_and_unpacked(here, server, monkeypatch) -> None:
    address, ranges = server
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("val2014/1.jpg", "image")
    monkeypatch.setattr(f"{__name__}.BODY", packed.getvalue())
    item = Item("coco", (f"{address}/val2014.zip",), unpacked="val2014")
    for _ in range(2):
        assert fetch(item, here, Unplugged()) == [here / "val2014"]
    assert (here / "val2014/1.jpg").read_text() == "image"
    assert ranges == [None]
    assert not (here / "val2014.zip").exists()


def test_a_wrong_checksum_moves_the_file_away(here) -> None:
    (here / "a").write_bytes(b"abc")
    with pytest.raises(Wrong, match=r"moved to a\.wrong"):
        check(here / "a", None, "0" * 64)
    assert not (here / "a").exists()
    (here / "b").write_bytes(b"abc")
    with pytest.raises(Wrong, match="3 bytes and not the 4"):
        check(here / "b", 4, None)


def zipped(folder: Path, **members: str) -> Path:
    file = folder / "archive.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/"), text)
    return file


def test_an_interrupted_unpacking_is_not_there(here, monkeypatch) -> None:
    file = zipped(here, **{f"val2014/{number}.jpg": "image" for number in range(5)})
    item = Item("coco", (f"http://127.0.0.1:9/{file.name}",), unpacked="val2014")
    whole = zipfile.ZipFile.open

    def stopped(self, name, *args, **options):
        if str(name).endswith("3.jpg"):
            raise KeyboardInterrupt
        return whole(self, name, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", stopped)
        with pytest.raises(KeyboardInterrupt):
            fetch(item, here, Unplugged())
    assert not present(here, item)
    (here / f".{file.name}.unpacking/val2014").mkdir(parents=True)  # as a killed process leaves it
    (here / f".{file.name}.unpacking/val2014/old.jpg").touch()
    fetch(item, here, Unplugged())
    assert sorted(path.name for path in here.iterdir()) == ["val2014"]
    assert len(list((here / "val2014").iterdir())) == 5


def test_folders_that_are_there_are_added_to_and_what_is_wanted_comes_last(here, monkeypatch) -> None:
    (here / "images/old").mkdir(parents=True)
    file = zipped(here, **{"a.json": "{}", "images/old/1.png": "p", "images/2.png": "q"})
    moved = []
    whole = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (moved.append(to.name), whole(self, to))[1])
    unpack(file, here, here / "a.json")
    assert (here / "images/old/1.png").read_text() == "p"
    assert (here / "images/2.png").read_text() == "q"
    assert moved[-1] == "a.json"


@pytest.mark.parametrize("body", [b"<html>log in</html>", None])
def test_what_is_no_whole_archive_is_moved_aside(body, here) -> None:
    file = zipped(here, **{"val2014/1.jpg": "image" * 1000})
    file.write_bytes(file.read_bytes()[:-30] if body is None else body)
    item = Item("coco", (f"http://127.0.0.1:9/{file.name}",), unpacked="val2014")
    with pytest.raises(Wrong, match=r"no whole zip archive.*moved to archive\.zip\.wrong: fetch it again"):
        fetch(item, here, Unplugged())
    assert [path.name for path in here.iterdir()] == ["archive.zip.wrong"]


def test_one_folder_around_everything_is_left_out(here) -> None:
    """As mm-vet.zip has it: mm-vet/mm-vet.json and mm-vet/images/."""
    unpack(
        zipped(here, **{"mm-vet/mm-vet.json": "{}", "mm-vet/images/v1.png": "p"}), here, here / "mm-vet.json"
    )
    assert (here / "images/v1.png").is_file()


def test_an_archive_cannot_write_elsewhere(here) -> None:
    inside = here / "inside"
    inside.mkdir()
    with pytest.raises(Wrong, match="outside"):
        unpack(zipped(here, **{"../evil": "x"}), inside, inside / "images")
    assert not (here / "evil").exists()
    with pytest.raises(Wrong, match="layout has changed"):
        unpack(zipped(here, **{"other/1.jpg": "x"}), inside, inside / "images")


def test_no_network_is_noticed_at_once(monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(getting.urllib.request, "getproxies", dict)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1 cannot be reached"):
        getting.reachable("http://127.0.0.1:9/file")


# --- the catalogue ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "table"), [("dataset", DATASETS), ("benchmark", BENCHMARKS)])
def test_every_published_option_is_known(axis, table) -> None:
    options = {f"published/{path.stem}" for path in (conf_dir() / axis / "published").glob("*.yaml")}
    assert options <= table.keys()


def test_every_published_model_is_known_and_goes_where_it_is_read() -> None:
    for path in (conf_dir() / "base_model" / "published").glob("*.yaml"):
        ((root, item),) = items_of("base_model", f"published/{path.stem}")
        assert root == "models"
        text = path.read_text()
        assert item.into in text or path.stem == "base", f"{path.name} does not read {item.into}"


def test_every_item_has_a_source_and_a_licence() -> None:
    for name, item in {**DATA, **MODELS}.items():
        assert item.files or item.by_hand, name
        assert item.licence != "not stated" or item.terms, name
    used = {name for names in [*DATASETS.values(), *BENCHMARKS.values()] for name in names}
    assert used == DATA.keys()


# What a benchmark's config names and `data fetch` does not bring: (option, place) -> why.
SECOND = "a second place for the judge's prompt, which the official script has"
COUNTED = "saves counting COCO's annotations, which are fetched"
BY_HAND = {
    ("mmhal", "prompts"): SECOND,
    ("mmhal_v", "prompts"): SECOND,
    ("mmvet", "prompts"): SECOND,
    ("object_halbench", "prompts"): SECOND,
    ("chair", "chair/coco2014_chair_gt_objects.json.gz"): COUNTED,
    ("recall", "chair/coco2014_chair_gt_objects.json.gz"): COUNTED,
    ("recall", "coco/val2014"): "Object HalBench's question file has its own images",
    ("mmvet", "mmvet/images"): "in the archive of mm-vet.json",
}
NAMED = re.compile(r"[\w.-]+\.(?:json\.gz|jsonl|json|txt|ipynb|py)(?!\w)")


def places(axis: str, option: str) -> dict[str, list[str]]:
    """Below the root, in the order of the file: what each key of an option's config reads, with the files that the
    comment above the key names."""
    found: dict[str, list[str]] = {}
    comment = ""
    for line in (conf_dir() / axis / "published" / f"{option}.yaml").read_text().splitlines():
        if line.strip().startswith("#"):
            comment += line
            continue
        if place := re.search(r"\$\{(?:benchmark)?\.*root\}/(\S+)", line):
            found.setdefault(place[1], []).extend(NAMED.findall(comment))
        comment = comment if line.strip().startswith("- $") else ""
    return found


def brings(items: list[tuple[str, Item]], place: str) -> bool:
    """Whether one of the items makes the place, all of its folder, or something in it."""
    made = [f"{item.into}/{name}" for _, item in items for name in item.names]
    return any(
        place == name or place.startswith(f"{name}/") or name.startswith(f"{place}/") or fnmatch(place, name)
        for name in made
    )


BENCHMARK_OPTIONS = sorted(path.stem for path in (conf_dir() / "benchmark" / "published").glob("*.yaml"))


@pytest.mark.parametrize("option", BENCHMARK_OPTIONS)
def test_what_a_benchmark_reads_is_fetched_to_where_it_is_read(option) -> None:
    items = items_of("benchmark", f"published/{option}")
    for place, files in places("benchmark", option).items():
        wanted = [place, *(f"{place}/{name}" for name in files if (option, place) not in BY_HAND)]
        assert not [one for one in wanted if (option, one) not in BY_HAND and not brings(items, one)]


def test_the_configs_of_benchmarks_are_read_right() -> None:
    assert places("benchmark", "object_halbench") == {
        "objhalbench": [
            "obj_halbench_300_with_image.jsonl",
            "synonyms_refine.txt",
            "eval_gpt_obj_halbench.py",
        ],
        "coco/annotations": ["instances_val2014.json", "captions_val2014.json"],
        "prompts": ["objhalbench_extraction_prompt.txt"],
    }
    named = {
        (option, one)
        for option in BENCHMARK_OPTIONS
        for place, files in places("benchmark", option).items()
        for one in (place, *(f"{place}/{name}" for name in files))
    }
    assert BY_HAND.keys() <= named


@pytest.mark.parametrize("option", sorted(option.removeprefix("published/") for option in DATASETS))
def test_what_a_dataset_reads_is_fetched_to_where_it_is_read(option) -> None:
    items = items_of("dataset", f"published/{option}")
    found = places("dataset", "vlfeedback_corrupted" if option.startswith("vlfeedback_") else option)
    rows, *images = found
    assert brings(items, rows)
    assert not images or any(brings(items, one) for one in images)  # any of these places will do


def test_what_benchmark_published_stands_for() -> None:
    composed = yaml.safe_load((conf_dir() / "benchmark" / "published.yaml").read_text())["defaults"]
    assert [f"published/{name}" for name in STUDY] == composed
    reward = yaml.safe_load((conf_dir() / "benchmark" / "published" / "reward.yaml").read_text())["defaults"]
    sets = [name for entry in reward if isinstance(entry, dict) for name in entry.values()]
    assert sets == [f"published/{name}" for name in REWARD]
    assert ("data", DATA["amber"]) not in items_of("benchmark", "published")


def test_sizes_in_words() -> None:
    assert [in_words(n) for n in (None, 12, 63_500_000, 13_510_573_713)] == [
        "size not stated",
        "12 bytes",
        "63.5 MB",
        "13.5 GB",
    ]

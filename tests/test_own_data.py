"""Own data and own model, from the command line to an adapter that PEFT loads, and what a person sees when it can't."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("MLLM_ALIGN_SHARED", ROOT.parent / "shared")) / "benchmarks" / "files"
SIZES = [(640, 427), (427, 640), (333, 500), (512, 512), (900, 300), (300, 900)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A LLaVA-NeXT of AnyRes geometry with random weights."""
    from tiny import make_tiny

    return make_tiny("llava_next", tmp_path_factory.mktemp("model") / "tiny-llava-next")


@pytest.fixture
def here(tmp_path) -> Path:
    """A working folder with photos of different shape: real ones where there are any."""
    (tmp_path / "photos").mkdir()
    real = sorted((SHARED / "images").glob("*.jpg"))[: len(SIZES)]
    for number, (width, height) in enumerate(SIZES):
        target = tmp_path / "photos" / f"{number}.jpg"
        if number < len(real):
            shutil.copy(real[number], target)
        else:
            coarse = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((width, height)).save(target)
    return tmp_path


def train(here: Path, model: Path, path: str, *overrides: str) -> subprocess.CompletedProcess:
    """`mllm-align train` as a person types it, in their folder."""
    command = [sys.executable, "-m", "mllm_align.cli", "train", "dataset=local", f"dataset.path={path}"]
    command += [
        "base_model=local",
        f"base_model.path={model}",
        "alignment=dpo",
        "benchmark=none",
        "trainer=cpu",
    ]
    command += [
        "alignment.epochs=2",
        "alignment.batch_size=2",
        "base_model.lora.r=4",
        "base_model.lr=1e-2",
        *overrides,
    ]
    if not any(override.startswith("logger") for override in overrides):
        command.append("logger=none")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "HOME": str(here / "home"),
        "MPLCONFIGDIR": str(here / "matplotlib"),  # its font cache is nobody's concern
    }
    return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=300)


def plain_rows() -> list[dict]:
    return [
        {
            "id": f"r{number}",
            "image": f"photos/{number}.jpg",
            "prompt": f"What is in picture {number}?",
            "chosen": f"There is a red cup, and {number} dogs.",
            "rejected": "two blue chairs under the window " * (number % 3 + 1),
        }
        for number in range(len(SIZES))
    ]


def conversational_rows() -> list[dict]:
    return [
        {
            "id": row["id"],
            "images": [row["image"]],
            "chosen": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"]}]},
                {"role": "assistant", "content": [{"type": "text", "text": row["chosen"]}]},
            ],
            "rejected": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"]}]},
                {"role": "assistant", "content": [{"type": "text", "text": row["rejected"]}]},
            ],
        }
        for row in plain_rows()
    ]


def povid_rows() -> list[dict]:
    """The published record where it is at hand, and rows of its form."""
    sample = SHARED / "pref_samples" / "povid_readme_example.json"
    real = json.loads(sample.read_text()) if sample.is_file() else []
    made = [
        {
            "id": Path(row["image"]).stem,
            "image": f"./data/coco/{Path(row['image']).name}",
            "conversations": [
                {"from": "human", "value": f"<image>\n{row['prompt']}"},
                {"from": "gpt", "value": row["chosen"]},
            ],
            "rejected_conversations": [
                {"from": "human", "value": f"<image>\n{row['prompt']}"},
                {"from": "gpt", "value": row["rejected"]},
            ],
        }
        for row in plain_rows()
    ]
    return real + made


def write(path: Path, rows: list[dict], kind: str) -> None:
    if kind == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)


def run_folder(here: Path) -> Path:
    (folder,) = (here / "outputs" / "runs").glob("*/seed0")
    return folder


def losses(folder: Path) -> list[float]:
    with (folder / "scalars.csv").open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"].endswith("loss")]


def loaded(model: Path, folder: Path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(model)
    return PeftModel.from_pretrained(base, folder / "adapter").eval()


def check_adapter(model: Path, here: Path, folder: Path) -> None:
    """PEFT loads it, it has the trained projector too, and it changes what the model says."""
    from transformers import AutoProcessor

    policy, processor = loaded(model, folder), AutoProcessor.from_pretrained(model)
    names = [name for name, _ in policy.named_parameters() if "lora_B" in name]
    assert names
    assert not [name for name in names if "vision_tower" in name]
    assert any(policy.get_parameter(name).abs().max() > 0 for name in names)
    inputs = processor(
        images=Image.open(here / "photos" / "0.jpg").convert("RGB"),
        text="USER: <image>\nWhat is it? ASSISTANT:",
        return_tensors="pt",
    )
    with torch.no_grad():
        aligned = policy(**inputs).logits
        with policy.disable_adapter():
            before = policy(**inputs).logits
    assert torch.isfinite(aligned).all()
    assert (aligned - before).abs().max() > 1e-3


CASES = [
    ("plain", plain_rows, "jsonl"),
    ("plain", plain_rows, "parquet"),
    ("conversational", conversational_rows, "json"),
    ("conversational", conversational_rows, "parquet"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "rows", "kind"), CASES)
def test_from_the_command_line_to_an_adapter(form, rows, kind, here, model):
    write(here / f"pairs.{kind}", rows(), kind)
    done = train(here, model, f"pairs.{kind}")
    assert done.returncode == 0, done.stderr
    folder = run_folder(here)
    check_adapter(model, here, folder)
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["dataset"]["used"] == len(SIZES)
    (told,) = record["dataset"]["forms"]
    assert told.endswith(f"standard form, {form}")
    series = losses(folder)
    assert abs(series[0] - np.log(2)) < 1e-4  # before the first step policy and reference are one
    assert series[-1] < series[0]


@pytest.mark.slow
def test_povid_s_own_record_with_a_real_photo(here, model):
    rows = povid_rows()
    write(here / "povid.json", rows, "json")
    for row in rows:
        name = Path(row["image"]).name
        if not (here / "photos" / name).exists():
            shutil.copy(here / "photos" / "0.jpg", here / "photos" / name)
    done = train(here, model, "povid.json", "dataset.image_root=photos", "logger=wandb")
    assert done.returncode == 0, done.stderr
    folder = run_folder(here)
    check_adapter(model, here, folder)
    record = json.loads((folder / "record.json").read_text())
    assert record["dataset"]["forms"] == {"JSON, POVID form": len(rows)}
    assert list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert not (here / "home").exists()


def broken(here: Path) -> list[str]:
    """Data with one fault of each kind; -> what a person must be told."""
    photos = here / "photos"
    whole = (photos / "1.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (20_000, 10_000)).save(photos / "huge.png")
    (here.parent / "outside.jpg").write_bytes(whole)
    good = plain_rows()[0]
    rows: list[bytes] = [json.dumps(good).encode()]

    def add(**changes) -> None:
        row = {**good, "id": f"b{len(rows)}", **changes}
        rows.append(json.dumps({key: value for key, value in row.items() if value != "DROP"}).encode())

    add(image="photos/none.jpg")
    add(image="photos/cut.jpg")
    add(image="photos/huge.png")
    add(image="DROP")
    add(image="../outside.jpg")
    add(chosen="DROP", choosen="A cup.")
    add(rejected="  ")
    add(rejected=good["chosen"])
    add(prompt="XX?")
    rows[-1] = rows[-1].replace(b"XX", b"caf\xe9")
    rows.append(rows[0][:50])
    (here / "pairs.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    return [
        r"row 2, field 'images': photos/none.jpg is not there",
        r"row 3, field 'images': photos/cut.jpg is cut short or damaged",
        r"row 4, field 'images': photos/huge.png is too large",
        r"row 5, field 'images': is missing",
        r"row 6, field 'images': the path ../outside.jpg leaves the image root",
        r"row 7, field 'chosen': is missing; the row has 'choosen'. Rename 'choosen' to 'chosen'.",
        r"row 8, field 'rejected': is empty",
        r"row 9, field 'rejected': equals chosen",
        r"row 10, field 'prompt': is not valid UTF-8",
        r"row 11: the line is not whole JSON",
    ]


@pytest.mark.slow
def test_bad_rows_stop_the_run_before_training_or_are_skipped_and_listed(here, model):
    told = broken(here)
    stopped = train(here, model, "pairs.jsonl")
    assert stopped.returncode == 2
    assert "Traceback" not in stopped.stderr
    assert "10 of 11 rows of pairs.jsonl can't be used; nothing was trained" in stopped.stderr
    for words in told:
        assert f"pairs.jsonl, {words}" in stopped.stderr
    assert "dataset.on_bad_row=skip" in stopped.stderr
    assert not list((here / "outputs").rglob("adapter_model.safetensors"))

    skipped = train(here, model, "pairs.jsonl", "dataset.on_bad_row=skip")
    assert skipped.returncode == 0, skipped.stderr
    (folder,) = {
        path.parent.parent for path in (here / "outputs" / "runs").rglob("adapter_model.safetensors")
    }
    report = json.loads((folder / "record.json").read_text())["dataset"]
    assert (report["rows"], report["good"], report["used"]) == (11, 1, 1)
    assert len(report["skipped"]) == 10
    for words, line in zip(told, report["skipped"], strict=True):
        assert f"pairs.jsonl, {words}" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset.path=nowhere.jsonl"], r"nowhere\.jsonl is not there"),
        (["dataset.size=100"], r"dataset\.size=100, but pairs\.jsonl gives only 6"),
        (["base_model.path=nowhere"], "nowhere"),
        (["logger=wandb", "logger.mode=online"], r"logger\.mode=online needs a key for api\.wandb\.ai"),
    ],
)
def test_what_cannot_work_is_said_shortly(overrides, words, here, model, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    write(here / "pairs.jsonl", plain_rows(), "jsonl")
    done = train(here, model, "pairs.jsonl", *overrides)
    assert done.returncode == 2
    assert re.search(words, done.stderr)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 12

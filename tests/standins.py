"""Stand-ins for what `world=published` reads: small files in the form of the released ones, in the same places."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tiny import make_model, make_processor

SIZES = [(640, 427), (427, 640), (500, 333), (512, 512)]
THINGS = ["dog", "cup", "bus", "chair", "umbrella", "cat"]


def make_published(root: Path, pairs: int = 6, images: int = 2) -> dict[str, str]:
    """Models, POVID, COCO's images and POPE below `root`. -> the environment that says where they are"""
    for seed, name in enumerate(("llava-v1.6-vicuna-7b-hf", "llava-v1.6-34b-hf")):
        write_model(root / "models" / name, seed)
    write_povid(root / "data", pairs)
    write_pope(root / "data", images)
    return {"MLLM_ALIGN_DATA": str(root / "data"), "MLLM_ALIGN_MODELS": str(root / "models")}


def write_model(folder: Path, seed: int) -> None:
    """bfloat16 weights in several safetensors files with their index, processor files, and a chat template file."""
    processor = make_processor("llava_next")
    model = make_model("llava_next", len(processor.tokenizer), seed).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="40KB")
    processor.save_pretrained(folder)


def write_image(file: Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(SIZES[number % len(SIZES)]).save(file)


def write_povid(data: Path, pairs: int) -> None:
    """A JSON list in which <image> stands before or behind the question, and paths with and without a folder."""
    rows = []
    for number in range(pairs):
        name = f"COCO_train2014_{number:012}.jpg"
        write_image(data / "coco" / "train2014" / name, number)
        question = f"What is the {THINGS[number % 6]} doing?"
        human = {"from": "human", "value": f"<image>\n{question}" if number % 2 else f"{question}\n<image>"}
        chosen = {"from": "gpt", "value": f"The {THINGS[number % 6]} is on the left."}
        wrong = {
            "from": "gpt",
            "value": f"The {THINGS[number % 6]} is on the left, beside a {THINGS[number % 5]}.",
        }
        rows.append(
            {
                "id": name.removesuffix(".jpg"),
                "image": name if number % 3 else f"./data/coco/{name}",
                "conversations": [human, chosen],
                "rejected_conversations": [human, wrong],
            }
        )
    file = data / "povid" / "POVID_preference_data_for_VLLMs_version_1.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(rows))


def write_pope(data: Path, images: int) -> None:
    """Three files of JSON lines, six questions an image, as many yes as no."""
    for split in ("random", "popular", "adversarial"):
        lines = []
        for number in range(images):
            name = f"COCO_val2014_{number:012}.jpg"
            if split == "random":
                write_image(data / "coco" / "val2014" / name, 100 + number)
            for place, thing in enumerate(THINGS):
                text = (
                    f"Is there a {thing} in the image?"
                    if split == "random"
                    else f"Is there a {split} {thing}?"
                )
                label = "yes" if place % 2 else "no"
                lines.append({"question_id": len(lines) + 1, "image": name, "text": text, "label": label})
        file = data / "pope" / f"coco_pope_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def environment(root: Path) -> dict[str, str]:
    """Of a process that runs on the stand-ins, and asks no network."""
    return {**os.environ, **make_published(root), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

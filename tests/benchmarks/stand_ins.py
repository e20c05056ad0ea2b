"""Small benchmark files in the form of the published ones, with invented text and drawn images."""

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# The same two COCO images for POPE, CHAIR and Object HalBench.
COCO = (42, 73)
NAMES = [f"COCO_val2014_{number:012d}.jpg" for number in COCO]
ABSENT = {"random": "boat", "popular": "car", "adversarial": "fork"}


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((48, 40))


def jsonl(file: Path, rows: Iterable[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def whole(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def text(file: Path, value: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value)


def images(folder: Path, names: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        picture(seed).save(folder / name)


def pope(root: Path) -> None:
    """Two images, each asked about a dog (there) and something absent, in three splits."""
    for split, absent in ABSENT.items():
        asked = [(name, thing, label) for name in NAMES for thing, label in (("dog", "yes"), (absent, "no"))]
        rows = [
            {"question_id": n, "image": name, "text": f"Is there a {thing} in the image?", "label": label}
            for n, (name, thing, label) in enumerate(asked, 1)
        ]
        jsonl(root / "pope" / f"coco_pope_{split}.json", rows)
    images(root / "coco" / "val2014", NAMES)


SYNONYMS = (
    "person, man, woman\ndog, puppy\nbus, minibus\ncup\nwine glass\nchair, seat\ntoilet\ntie\nhot dog\n"
)


def chair(root: Path) -> None:
    text(root / "chair" / "synonyms.txt", SYNONYMS)
    whole(
        root / "chair" / "coco2014_chair_gt_objects.json",
        {"42": ["dog", "person"], "73": ["bus", "cup", "wine glass"]},
    )
    images(root / "coco" / "val2014", NAMES)


def object_halbench(root: Path) -> None:
    text(root / "objhalbench" / "synonyms_refine.txt", SYNONYMS)
    text(
        root / "prompts" / "objhalbench_extraction_prompt.txt",
        "Q: {question}\nA: {answer}\nList the objects.",
    )
    rows = []
    for number, coco in enumerate(COCO):
        encoded = io.BytesIO()
        picture(number).save(encoded, "JPEG")
        image = base64.b64encode(encoded.getvalue()).decode()
        rows.append({"org_idx": number, "image_id": coco, "question": "Describe this image.", "image": image})
    jsonl(root / "objhalbench" / "obj_halbench_300_with_image.jsonl", rows)
    whole(root / "objects.json", {"42": ["dog", "person"], "73": ["bus", "cup"]})


MMHAL_TYPES = (
    "attribute",
    "adversarial",
    "comparison",
    "counting",
    "relation",
    "environment",
    "holistic",
    "other",
)


def mmhal(root: Path) -> None:
    rows = [
        {
            "question_type": kind,
            "question_topic": "outdoor",
            "image_id": f"{number:016x}",
            "image_src": f"https://example.org/{number}_o.jpg",
            "image_content": ["Dog", "Ball"],
            "question": f"What is number {number}?",
            "gt_answer": f"It is {number}.",
            "model_answer": "",
        }
        for number, kind in enumerate(MMHAL_TYPES)
    ]
    whole(root / "mmhal" / "response_template.json", rows)
    prompt = "Contents: {}\\nQuestion: {}\\nTruth: {}\\nResponse: {}\\nRate it."
    script = f'import json\ntemplate = """{prompt}"""\nprint("never run")\n'
    text(root / "mmhal" / "eval_gpt4.py", script)
    images(root / "mmhal" / "images", [f"{number}_o.jpg" for number in range(8)])


def llava_bench(root: Path) -> None:
    folder = root / "llava_bench_wild"
    kinds = ("conv", "detail", "complex")
    jsonl(
        folder / "questions.jsonl",
        [
            {"image": "001.jpg", "text": f"Question {n}?", "category": k, "question_id": n}
            for n, k in enumerate(kinds)
        ],
    )
    jsonl(folder / "context.jsonl", [{"id": "001", "image": "001.jpg", "caption": "A dog on grass."}])
    jsonl(folder / "answers_gpt4.jsonl", [{"question_id": n, "text": f"Reference {n}."} for n in range(3)])
    rule = {"role": "Assistant", "prompt": "Give two scores."}
    whole(folder / "rule.json", {f"llava_bench_{kind}": rule for kind in kinds})
    images(folder / "images", ["001.jpg"])


def mmvet(root: Path) -> None:
    data = {
        "v1_0": ("a.jpg", "What is x?", "-1<AND>-5", ["ocr", "math"]),
        "v1_1": ("a.jpg", "Which animal is it?", "dog<OR>puppy", ["rec"]),
        "v1_2": ("b.jpg", "What does the sign say?", "stop", ["ocr"]),
    }
    names = ("imagename", "question", "answer", "capability")
    whole(
        root / "mmvet" / "mm-vet.json",
        {name: dict(zip(names, row, strict=True)) for name, row in data.items()},
    )
    source = ["prompt = '''Compare.\\n", "'''\n", "print(prompt)\n"]
    cells = [
        {"cell_type": "markdown", "source": ["# MM-Vet"]},
        {"cell_type": "code", "source": ["!pip install openai\n"]},
        {"cell_type": "code", "source": source},
    ]
    whole(root / "mmvet" / "mm-vet_evaluator.ipynb", {"cells": cells})
    images(root / "mmvet" / "images", ["a.jpg", "b.jpg"])


def textvqa(root: Path) -> None:
    rows = [
        {
            "image_id": "abc",
            "question_id": 7,
            "question": "what brand is it?",
            "answers": ["kodak"] * 3 + ["fuji"] * 7,
        },
        {"image_id": "abc", "question_id": 8, "question": "what year is it?", "answers": ["1999"] * 10},
    ]
    whole(root / "textvqa" / "TextVQA_0.5.1_val.json", {"data": rows})
    prompts = [
        {
            "question_id": row["image_id"],
            "image": "abc.jpg",
            "text": f"{row['question'].capitalize()}\nReference OCR token: KODAK, 1999\nAnswer briefly.",
        }
        for row in rows
    ]
    jsonl(root / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl", prompts)
    images(root / "textvqa" / "train_images", ["abc.jpg"])


def gqa(root: Path) -> None:
    whole(
        root / "gqa" / "testdev_balanced_questions.json",
        {
            "201": {"question": "Is it overcast?", "answer": "no", "imageId": "n1"},
            "202": {"question": "What is this?", "answer": "traffic light", "imageId": "n1"},
        },
    )
    images(root / "gqa" / "images", ["n1.jpg"])


def amber(root: Path) -> None:
    folder = root / "amber"
    kinds = (
        "discriminative-hallucination",
        "discriminative-attribute-state",
        "discriminative-attribute-number",
        "discriminative-attribute-action",
        "discriminative-relation",
        "relation",
    )
    truths = ("no", "yes", "no", "yes", "yes", "no")
    annotations = [{"id": 1, "type": "generative", "truth": ["person", "sky"], "hallu": ["dog"]}]
    annotations += [
        {"id": n, "type": kind, "truth": truth}
        for n, (kind, truth) in enumerate(zip(kinds, truths, strict=True), 2)
    ]
    whole(folder / "annotations.json", annotations)
    queries = [
        {"id": one["id"], "image": "AMBER_1.jpg", "query": f"Query {one['id']}?"} for one in annotations
    ]
    whole(folder / "query_all.json", queries)
    whole(
        folder / "relation.json",
        {"person": ["man", "woman"], "sky": [], "dog": ["puppy"], "cloud": [], "tree": []},
    )
    text(folder / "safe_words.txt", "cloud\nlight")
    images(folder / "images", ["AMBER_1.jpg"])


def everything(root: Path) -> Path:
    for make in (pope, chair, object_halbench, mmhal, llava_bench, mmvet, textvqa, gqa, amber):
        make(root)
    return root

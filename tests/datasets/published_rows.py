"""Rows in the form of the released files; texts are made up, keys and their oddities are real."""

import json
from pathlib import Path

from photos import encoded, picture

QUESTION, GOOD, BAD = "What is the man doing?", "He rides a bicycle.", "He rides a horse."
NUMBER = "000000353952"


def talk(question: str = f"<image>\n{QUESTION}", answer: str = GOOD, *more: str) -> list[dict]:
    texts = [question, answer, *more]
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def povid(**changes) -> dict:
    name = f"COCO_train2014_{NUMBER}"
    return {
        "id": name,
        "image": f"./data/coco/{name}.jpg",
        "conversations": talk(),
        "rejected_conversations": talk(answer=BAD),
    } | changes


def rlhf_v(data: bytes | None = None, idx: int = 0, **texts) -> dict:
    text = {"question": QUESTION, "chosen": GOOD, "rejected": BAD} | texts
    return {
        "ds_name": "RLHF-V-example",
        "image": {"bytes": data or encoded(picture()), "path": None},
        "text": json.dumps(text),
        "origin_dataset": "LCS-558K",
        "origin_split": json.dumps({"model": "InstructBLIP", "type": "detailed_description"}),
        "idx": idx,
        "image_path": "llava1.5_raw_images/00013/000139279.jpg",
    }


def rlaif_v(data: bytes | None = None, idx: str = "0", **changes) -> dict:
    return {
        "ds_name": "RLAIF-V",
        "image": {"bytes": data or encoded(picture()), "path": "a.jpg"},
        "question": QUESTION,
        "chosen": GOOD,
        "rejected": BAD,
        "origin_dataset": "COCO",
        "origin_split": "{}",
        "idx": idx,
        "image_path": "a.jpg",
    } | changes


def llava_rlhf(**changes) -> dict:
    return {
        "id": NUMBER,
        "image": f"{NUMBER}.jpg",
        "conversations": talk(answer="placeholder"),
        "output_1": {"from": "llava", "value": BAD},
        "output_2": {"from": "llava", "value": GOOD},
        "preference": 2,
        "hallucination": True,
    } | changes


def nlf(*ratings: str, **changes) -> dict:
    ratings = ratings or ("2", "4")
    rounds = [
        {
            "user": QUESTION if i == 0 else "Please add where.",
            "model": f"Answer {i}.",
            "rating": value,
            "critique NLF": "ok",
        }
        for i, value in enumerate(ratings)
    ]
    return {"image_id": f"{NUMBER}.jpg", "caption": ["A man."], "interaction": rounds} | changes


def stic(**changes) -> dict:
    asked = {"role": "user", "content": QUESTION}
    return {
        "image": f"COCO_train2014_{NUMBER}.jpg",
        "image_corruption": False,
        "hallu_prompt": "",
        "chosen": [asked, {"role": "assistant", "content": GOOD}],
        "rejected": [asked, {"role": "assistant", "content": BAD}],
    } | changes


def llava_instruct(**changes) -> dict:
    return {
        "id": NUMBER,
        "image": f"{NUMBER}.jpg",
        "conversations": talk(f"{QUESTION}\n<image>", GOOD, "What colour is it?", "White."),
    } | changes


def completion(model: str, response: str, *ratings: str) -> dict:
    names = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    values = ratings * 3 if len(ratings) == 1 else ratings
    rated = {name: {"Rating": value, "Rationale": "so"} for name, value in zip(names, values, strict=True)}
    return {"annotations": rated, "model": model, "response": response}


def vlfeedback(name: str = "llava-conversation-7", **changes) -> dict:
    answers = [
        completion("gpt4v", "Red.", "5"),
        completion("llava-v1.5-13b", "Reddish.", "4"),
        completion("qwen-vl-chat", "Blue.", "2", "5", "1"),
        completion("fuyu-8b", "No idea.", "1"),
    ]
    return {
        "id": name,
        "prompt": "What colour is the bus?",
        "models": [answer["model"] for answer in answers],
        "completions": answers,
    } | changes


def photo(folder: Path, name: str, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encoded(picture(seed=seed)))
    return folder / name

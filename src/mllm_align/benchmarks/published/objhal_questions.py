"""Object HalBench's question file: 300 images of COCO, each with a request for a detailed description."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from mllm_align.benchmarks.published.answers import AnswerFileError, coco_id, read_rows
from mllm_align.datasets.images import BytesImage
from mllm_align.records import Example

FILE = "obj_halbench_300_with_image.jsonl"
SOURCE = "it is eval/data/ of RLHF-V/RLHF-V (63.5 MB)"


def read(file: Path) -> list[Example]:
    """The questions, with their images from the file itself. Raises FileNotFoundError and AnswerFileError."""
    file = file.expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file.name} is not in {file.parent}: {SOURCE}")
    questions = []
    for number, row in enumerate(read_rows(file), 1):
        try:
            image = BytesImage(base64.b64decode(row["image"], validate=True), coco_id(str(row["image_id"])))
        except (KeyError, binascii.Error, ValueError) as error:
            raise AnswerFileError(
                f"{file.name}, row {number}: {error}; take the file anew, {SOURCE}"
            ) from None
        prompt = str(row["question"]).replace("<image>./</image>", "").replace("<image>", "").strip()
        questions.append(Example(coco_id(str(row["image_id"])), image, prompt))
    return questions

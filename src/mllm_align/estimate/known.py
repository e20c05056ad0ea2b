"""How large the released datasets and benchmarks are, for an estimate of a run on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Rows of the released sets, where the config does not say how many are drawn.
ROWS = {
    "published/povid": 17_184,
    "published/rlhf_v": 5_733,
    "published/vlfeedback": 80_258,
    "published/llava_rlhf": 9_422,
    "published/nlf": 63_000,
    "published/rlaif_v": 83_132,
    "published/stic": 6_099,
    "published/llava_instruct": 157_712,
}
# Images, questions and tokens of an answer of the released benchmarks, by name of the task (and of its part).
QUESTIONS = {
    "pope": (500, 9_000, 2),
    "recall": (300, 300, 250),
    "object_halbench": (300, 300, 250),
    "chair": (500, 500, 250),
    "mmhal": (96, 96, 150),
    "mmhal_v": (96, 96, 150),
    "llava_w": (24, 60, 250),
    "textvqa": (3_166, 5_000, 4),
    "gqa": (398, 12_578, 3),
    "mmvet": (218, 218, 100),
    "amber_generative": (1_004, 1_004, 150),
    "amber_discriminative": (1_004, 14_216, 2),
}


def rows_of(dataset: Mapping[str, Any]) -> int:
    """Rows of a dataset. Raises ValueError where neither config nor release says how many."""
    size = dataset.get("size") or ROWS.get(dataset["name"])
    if size is None:
        raise ValueError(
            f"dataset={dataset['name']} has no known number of rows; give dataset.size=... for the estimate"
        )
    return int(size)


def questions(name: str, task: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Those of QUESTIONS that a task asks, of a benchmark in parts each part's; none of one that is not known."""
    parts = ("generative", "discriminative") if task.get("part") == "all" else (task.get("part"),)
    names = [name if part is None else f"{name}_{part}" for part in parts]
    return [QUESTIONS[part] for part in names if part in QUESTIONS]

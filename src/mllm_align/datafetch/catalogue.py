"""What each published dataset, model and benchmark consists of, and where it comes from.

Targets are the paths that conf/dataset/published, conf/base_model/published and conf/benchmark/published read by
default, below the folder of the data (MLLM_ALIGN_DATA) or of the models (MLLM_ALIGN_MODELS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Item:
    """Files of one source that belong together.

    into: the folder that they go to. files: names in the repository `hub`, `*` standing for anything, or addresses;
    a zip archive among them is unpacked where `unpacked` names what that makes. size: about so many bytes. sha256: of
    the only file, where one is published. licence: its name; `terms` what it asks beyond that. by_hand: how to get
    what no program may fetch.
    """

    into: str
    files: tuple[str, ...] = ()
    hub: str | None = None
    kind: str = "dataset"
    unpacked: str | None = None
    size: int | None = None
    sha256: str | None = None
    licence: str = "not stated"
    terms: str | None = None
    by_hand: str | None = None

    @property
    def non_commercial(self) -> bool:
        return "NC" in self.licence.split("-")

    @property
    def names(self) -> list[str]:
        """What it makes in its folder: a name or a pattern for each of `files`, or what unpacking makes."""
        if self.unpacked:
            return [self.unpacked]
        return [name.rsplit("/", 1)[-1] if "://" in name else name for name in self.files]

    @property
    def source(self) -> str:
        return (
            f"huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.hub}"
            if self.hub
            else "the web"
        )


NC = (
    "use it for research only, name its authors, and share what you make of it under the terms of the licence"
)
FLICKR = "the images belong to their authors on Flickr, whose terms of use apply"
OPENAI = "answers were written by GPT-4, so OpenAI's terms of use apply too"
COCO = "http://images.cocodataset.org"
GITHUB = "https://raw.githubusercontent.com"


def _coco(name: str, size: int) -> Item:
    address = f"{COCO}/zips/{name}.zip"
    return Item("coco", (address,), unpacked=name, size=size, licence="CC-BY-4.0 (annotations)", terms=FLICKR)


def _model(repository: str, size: float, licence: str) -> Item:
    files = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt")
    name = repository.split("/")[1]
    return Item(name, files, hub=repository, kind="model", size=int(size * GB), licence=licence)


LLAMA = "Llama 2 Community License"

DATA: Mapping[str, Item] = {
    "coco_train2014": _coco("train2014", 13_510_573_713),
    "coco_val2014": _coco("val2014", 6_645_013_297),
    "coco_train2017": _coco("train2017", 19_336_861_798),
    "coco_annotations": Item(
        "coco",
        (f"{COCO}/annotations/annotations_trainval2014.zip",),
        unpacked="annotations",
        size=252_872_794,
        licence="CC-BY-4.0",
    ),
    "povid": Item(
        "povid",
        ("POVID_preference_data_for_VLLMs_version_1.json",),
        hub="YiyangAiLab/POVID_preference_data_for_VLLMs",
        size=20_900_000,
        licence="CC-BY-4.0",
    ),
    "rlhf_v": Item(
        "rlhf_v", ("RLHF-V-Dataset.parquet",), hub="openbmb/RLHF-V-Dataset", licence="CC-BY-NC-4.0", terms=NC
    ),
    "vlfeedback": Item(
        "vlfeedback",
        ("vlfeedback_80k.jsonl", "merged_images.zip"),
        hub="MMInstruction/VLFeedback",
        size=int(3.34 * GB),
        terms="its card states no licence: ask its authors before you use it for more than research",
    ),
    "llava_rlhf": Item(
        "llava_rlhf",
        ("llava_7b_v1_preference.json",),
        hub="zhiqings/LLaVA-Human-Preference-10K",
        size=32_300_000,
        licence="Apache-2.0",
    ),
    "nlf": Item(
        "nlf",
        ("LVLM_NLF/*.jsonl",),
        hub="YangyiYY/LVLM_NLF",
        size=102_000_000,
        terms="its card states no licence: ask its authors before you use it for more than research",
    ),
    "rlaif_v": Item(
        "rlaif_v",
        ("RLAIF-V-Dataset_*.parquet",),
        hub="openbmb/RLAIF-V-Dataset",
        licence="CC-BY-NC-4.0",
        terms=NC,
    ),
    "stic": Item(
        "stic",
        ("pref_data_new.json", "images.zip"),
        hub="STIC-LVLM/stic-coco-preference-6k",
        size=1_009_000_000,
        licence="CC-BY-4.0",
    ),
    "llava_instruct": Item(
        "llava_instruct",
        ("llava_instruct_150k.json",),
        hub="liuhaotian/LLaVA-Instruct-150K",
        size=229_000_000,
        licence="CC-BY-4.0",
        terms=OPENAI,
    ),
    "pope": Item(
        "pope",
        tuple(
            f"{GITHUB}/RUCAIBox/POPE/main/output/coco/coco_pope_{split}.json"
            for split in ("random", "popular", "adversarial")
        ),
        size=1_300_000,
        licence="MIT",
    ),
    "chair_synonyms": Item(
        "chair",
        (f"{GITHUB}/LisaAnne/Hallucination/master/data/synonyms.txt",),
        size=3_577,
        licence="BSD-2-Clause",
    ),
    "object_halbench": Item(
        "objhalbench",
        (f"{GITHUB}/RLHF-V/RLHF-V/main/eval/data/obj_halbench_300_with_image.jsonl",),
        size=63_500_000,
        sha256="e89c705f3cdebc35b7863878e059c88a97506767b87ad17014d58428ce6547a7",
        licence="CC-BY-NC-4.0",
        terms=f"{NC}; {FLICKR}",
    ),
    "object_halbench_rules": Item(
        "objhalbench",
        (
            f"{GITHUB}/RLHF-V/RLHF-V/main/eval/data/synonyms_refine.txt",
            f"{GITHUB}/RLHF-V/RLHF-V/main/eval/eval_gpt_obj_halbench.py",
        ),
        size=31_960,
        licence="Apache-2.0 (script), CC-BY-NC-4.0 (data)",
        terms=NC,
    ),
    "mmhal": Item(
        "mmhal",
        ("response_template.json", "eval_gpt4.py"),
        hub="Shengcao1006/MMHal-Bench",
        size=150_000,
        licence="Apache-2.0",
    ),
    "mmhal_images": Item(
        "mmhal",
        ("https://huggingface.co/datasets/Shengcao1006/MMHal-Bench/resolve/main/test_data.zip",),
        unpacked="images",
        size=170_000_000,
        licence="Apache-2.0",
        terms=FLICKR,
    ),
    "llava_w": Item(
        "llava_bench_wild",
        ("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl", "images/*"),
        hub="liuhaotian/llava-bench-in-the-wild",
        size=25_000_000,
        licence="Apache-2.0",
    ),
    "llava_w_rule": Item(
        "llava_bench_wild",
        (f"{GITHUB}/haotian-liu/LLaVA/main/llava/eval/table/rule.json",),
        licence="Apache-2.0",
    ),
    "textvqa": Item(
        "textvqa",
        ("https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json",),
        licence="CC-BY-4.0",
    ),
    "textvqa_images": Item(
        "textvqa",
        ("https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",),
        unpacked="train_images",
        size=int(7.1 * GB),
        licence="CC-BY-4.0",
    ),
    "textvqa_ocr": Item(
        "textvqa",
        licence="Apache-2.0",
        unpacked="llava_textvqa_val_v051_ocr.jsonl",
        by_hand="eval.zip that docs/Evaluation.md of haotian-liu/LLaVA links to, from its folder textvqa",
    ),
    "gqa": Item(
        "gqa",
        ("https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip",),
        unpacked="testdev_balanced_questions.json",
        size=int(1.4 * GB),
        licence="CC-BY-4.0",
    ),
    "gqa_images": Item(
        "gqa",
        ("https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip",),
        unpacked="images",
        size=int(20.3 * GB),
        licence="CC-BY-4.0",
    ),
    "mmvet": Item(
        "mmvet",
        ("https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip",),
        unpacked="mm-vet.json",
        licence="CC-BY-NC-4.0",
        terms=NC,
    ),
    "mmvet_prompt": Item(
        "mmvet", (f"{GITHUB}/yuweihao/MM-Vet/main/mm-vet_evaluator.ipynb",), licence="Apache-2.0"
    ),
    "amber": Item(
        "amber",
        tuple(
            f"{GITHUB}/junyangwang0410/AMBER/master/data/{name}"
            for name in (
                "query/query_all.json",
                "annotations.json",
                "relation.json",
                "safe_words.txt",
                "metrics.txt",
            )
        ),
        licence="Apache-2.0",
    ),
    "amber_images": Item(
        "amber",
        unpacked="images",
        licence="Apache-2.0",
        by_hand="the link to its images in the README of github.com/junyangwang0410/AMBER: put AMBER_*.jpg there",
    ),
}

MODELS: Mapping[str, Item] = {
    "llava_1_6_7b": _model("llava-hf/llava-v1.6-vicuna-7b-hf", 14.1, LLAMA),
    "llava_1_6_13b": _model("llava-hf/llava-v1.6-vicuna-13b-hf", 26.7, LLAMA),
    "llava_1_6_34b": _model("llava-hf/llava-v1.6-34b-hf", 69.5, "Apache-2.0"),
    "llava_1_5_7b": _model("llava-hf/llava-1.5-7b-hf", 14.1, LLAMA),
    "qwen2_5_vl_7b": _model("Qwen/Qwen2.5-VL-7B-Instruct", 16.6, "Apache-2.0"),
    "internvl3_8b": _model("OpenGVLab/InternVL3-8B-hf", 15.9, "Apache-2.0"),
    "smolvlm": _model("HuggingFaceTB/SmolVLM-Instruct", 4.5, "Apache-2.0"),
    "sentence_embedding": Item(
        "all-mpnet-base-v2",
        ("*.json", "model.safetensors", "vocab.txt", "1_Pooling/*.json"),
        hub="sentence-transformers/all-mpnet-base-v2",
        kind="model",
        size=440_000_000,
        licence="Apache-2.0",
    ),
}

VLFEEDBACK = ("vlfeedback",)
# Option of a config group -> the items of DATA that it reads.
DATASETS: Mapping[str, tuple[str, ...]] = {
    "published/povid": ("povid", "coco_train2014"),
    "published/rlhf_v": ("rlhf_v",),
    "published/vlfeedback": VLFEEDBACK,
    "published/vlfeedback_corrupted": VLFEEDBACK,
    "published/vlfeedback_gpt4v_responses": VLFEEDBACK,
    "published/vlfeedback_llava_prompts": VLFEEDBACK,
    "published/vlfeedback_llava_responses": VLFEEDBACK,
    "published/llava_rlhf": ("llava_rlhf", "coco_train2017"),
    "published/nlf": ("nlf", "coco_train2017"),
    "published/rlaif_v": ("rlaif_v",),
    "published/stic": ("stic",),
    "published/llava_instruct": ("llava_instruct", "coco_train2017"),
}
# The sets on whose rows reward models are tested (conf/benchmark/published/reward.yaml).
REWARD = ("povid", "rlhf_v", "vlfeedback", "llava_rlhf")
BENCHMARKS: Mapping[str, tuple[str, ...]] = {
    "published/pope": ("pope", "coco_val2014"),
    "published/chair": ("chair_synonyms", "coco_annotations", "coco_val2014"),
    "published/recall": ("chair_synonyms", "coco_annotations", "object_halbench"),
    "published/object_halbench": ("object_halbench", "object_halbench_rules", "coco_annotations"),
    "published/mmhal": ("mmhal", "mmhal_images"),
    "published/mmhal_v": ("mmhal", "mmhal_images"),
    "published/llava_w": ("llava_w", "llava_w_rule"),
    "published/textvqa": ("textvqa", "textvqa_images", "textvqa_ocr"),
    "published/gqa": ("gqa", "gqa_images"),
    "published/mmvet": ("mmvet", "mmvet_prompt"),
    "published/amber": ("amber", "amber_images"),
    "published/reward": tuple(name for option in REWARD for name in DATASETS[f"published/{option}"]),
}
# What benchmark=published stands for (conf/benchmark/published.yaml).
STUDY = ("pope", "recall", "mmhal", "mmhal_v", "llava_w", "textvqa", "gqa", "mmvet")


def items_of(axis: str, option: str) -> list[tuple[str, Item]]:
    """(which root, item) of an option; the root is data or models.

    Raises ValueError for an option of which nothing is known, naming those that are.
    """
    if axis == "base_model":
        name = option.removeprefix("published/")
        found = {"base": "llava_1_6_7b"}.get(name, name)
        if option.startswith("published/") and found in MODELS:
            return [("models", MODELS[found])]
        known = [f"published/{name}" for name in MODELS if name != "sentence_embedding"]
    elif axis == "similarity":
        if option == "sentence_transformers":
            return [("models", MODELS["sentence_embedding"])]
        known = ["sentence_transformers"]
    else:
        table = DATASETS if axis == "dataset" else BENCHMARKS
        known = list(table)
        if axis == "benchmark" and option == "published":
            names = dict.fromkeys(name for one in STUDY for name in table[f"published/{one}"])
            return [("data", DATA[name]) for name in names]
        if option in table:
            return [("data", DATA[name]) for name in table[option]]
    raise ValueError(
        f"{axis}={option}: nothing is known of where to get it; choose one of {', '.join(known)}"
    )

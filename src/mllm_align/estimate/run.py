"""What a composed run would need (`mllm-align train ... estimate=true`), by its config and a model's config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm_align.estimate import cost
from mllm_align.estimate.cost import GIB, GPUS, Gpu, Layout, Numbers
from mllm_align.estimate.model import RELEASED, Model, read_model
from mllm_align.paths import asset_folder

Config = Mapping[str, Any]

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
# Images, questions and tokens of an answer of the released benchmarks, by name of the task.
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


@dataclass(frozen=True)
class Assumed:
    """What no config says; the estimate prints it. Pixels of an image, and tokens."""

    width: int = 640
    height: int = 480
    question: int = 50
    response: int = 130
    drawn: int = 200
    judge_words: int = 120


@dataclass(frozen=True)
class Estimate:
    """Bytes a device by what they are for, in order; hours by what they are for; and counts."""

    counts: Mapping[str, float]
    memory: Mapping[str, float]
    hours: Mapping[str, float]
    left_out: tuple[str, ...]

    @property
    def peak(self) -> float:
        return cost.with_overhead(sum(self.memory.values()))


def estimate(config: Config, gpu: Gpu, assumed: Assumed | None = None) -> Estimate:
    """The cost of a cell on `gpu`s. Raises FileNotFoundError where a model's config.json is not at hand."""
    assumed = assumed or Assumed()
    model = model_of(config["base_model"])
    run = Run(config, model, numbers_of(config), gpu, assumed)
    hours = {} if config["alignment"]["module"] is None else run.training_hours()
    answered, left_out = run.evaluation_hours()
    return Estimate(run.counts(), run.memory(), hours | answered, left_out)


def model_of(base_model: Config) -> Model:
    """From the folder's config.json, or of a released model that has not been downloaded."""
    file = asset_folder(base_model["path"]) / "config.json"
    if file.is_file():
        return read_model(json.loads(file.read_text(encoding="utf-8")))
    if base_model["name"] in RELEASED:
        return read_model(RELEASED[base_model["name"]])
    raise FileNotFoundError(
        f"{file} is not there, and base_model={base_model['name']} is not one of {', '.join(RELEASED)}; its "
        "config.json is all that an estimate needs: put it there"
    )


def numbers_of(config: Config) -> Numbers:
    base = config["base_model"]
    return Numbers(
        base["dtype"],
        config["trainer"]["precision"],
        base.get("four_bit", False),
        base.get("checkpointing", False),
    )


def rows_of(dataset: Config) -> int:
    """Rows of a dataset. Raises ValueError where neither config nor release says how many."""
    size = dataset.get("size") or ROWS.get(dataset["name"])
    if size is None:
        raise ValueError(
            f"dataset={dataset['name']} has no known number of rows; give dataset.size=... for the estimate"
        )
    return int(size)


@dataclass(frozen=True)
class Run:
    """A cell, its model and the GPU it is meant for; the methods are what `estimate` adds up."""

    config: Config
    model: Model
    numbers: Numbers
    gpu: Gpu
    assumed: Assumed

    @property
    def method(self) -> Config:
        return self.config["alignment"]

    @property
    def processes(self) -> int:
        return int(self.config["trainer"]["devices"] * self.config["trainer"]["nodes"])

    @property
    def online(self) -> bool:
        return bool(self.method["module"] is not None and self.config["sampler"]["when"] == "online")

    @property
    def draws(self) -> int:
        """Responses a prompt that are written, in the step or before it; 0 where the dataset has them."""
        gives = self.config["sampler"]["gives"]
        return 0 if gives == "pairs" else int(self.config["sampler"]["build"].get("k", 1))

    @property
    def responses(self) -> int:
        """Responses a prompt that are trained on."""
        return max(2, self.draws)

    @property
    def rows(self) -> int:
        return rows_of(self.config["dataset"])

    @property
    def image_tokens(self) -> int:
        return self.model.image_tokens(self.assumed.width, self.assumed.height)

    @property
    def tiles(self) -> int:
        return self.model.tiles(self.assumed.width, self.assumed.height)

    @property
    def prompt(self) -> int:
        return self.image_tokens + self.assumed.question

    @property
    def response(self) -> int:
        return self.assumed.drawn if self.draws else self.assumed.response

    @property
    def packed(self) -> int:
        """Tokens of a packed row: the prompt once, then the responses."""
        return self.prompt + self.responses * self.response

    @property
    def share(self) -> int:
        """Rows of a forward pass on one device."""
        return -(-int(self.method["batch_size"]) // self.processes)

    def counts(self) -> dict[str, float]:
        lora = self.config["base_model"].get("lora") or {"r": 0}
        counts: dict[str, float] = {
            "parameters": self.model.parameters,
            "image tokens": self.image_tokens,
            "prompt tokens": self.prompt,
        }
        if self.method["module"] is not None:
            per_step = self.method["batch_size"] * self.method["accumulate"]
            counts |= {
                "trained parameters": self.model.decoder.lora(lora["r"]) + self.model.projector,
                "tokens of a packed row": self.packed,
                "steps": -(-self.rows // per_step) * self.method["epochs"],
            }
        return counts

    def memory(self) -> dict[str, float]:
        """Bytes a device at the run's highest point."""
        layout = Layout(self.processes, self.config["trainer"]["strategy"] != "ddp")
        found = {"base model": cost.per_device(layout, self.model, self.numbers)}
        if self.method["module"] is None:
            prompts = self.config["base_model"]["batch_size"]
            return found | {
                "keys and values": cost.cache(self.model, prompts, self.prompt, 1, self.assumed.drawn)
            }
        r = self.config["base_model"]["lora"]["r"]
        found["adapter, projector, optimiser"] = cost.trained(self.model, r)
        if judge := self.judge():
            found["judge"] = cost.weights(*judge)
        kept = cost.activations(
            self.model,
            r,
            self.numbers,
            self.share * self.packed,
            self.share * self.responses * self.response,
            self.share * self.image_tokens,
        )
        if self.online and self.draws:  # written before the forward pass: the two are never held together
            kept = max(kept, cost.cache(self.model, self.share, self.prompt, self.draws, self.assumed.drawn))
        found["activations, or keys and values"] = kept
        return found

    def judge(self) -> tuple[Model, Numbers] | None:
        """A second model that the annotator loads."""
        build = self.config["annotator"]["build"]
        if (
            not build
            or "dtype" not in build
            or "path" not in build
            or self.config["annotator"]["name"] != "large"
        ):
            return None
        file = asset_folder(build["path"]) / "config.json"
        released = read_model(RELEASED["published/llava_1_6_34b"])
        model = read_model(json.loads(file.read_text("utf-8"))) if file.is_file() else released
        return model, Numbers(build["dtype"], "32-true", build.get("four_bit", False))

    def training_hours(self) -> dict[str, float]:
        args = (self.packed, self.prompt, self.tiles)
        step = cost.training_seconds(self.model, self.numbers, self.gpu, *args)
        reading = cost.reading_seconds(self.model, self.gpu, *args)
        passes = self.rows * self.method["epochs"]
        seconds = {"training": passes * step / self.processes}
        if self.config["annotator"].get("train") and self.config["annotator"]["path"] is None:
            data, epochs = self.config["annotator"]["data"], self.config["annotator"]["train"]["epochs"]
            seconds["reward model, once"] = rows_of(data) * epochs * step
        needed = self.method["needs"][self.config["sampler"]["when"]]
        if "reference" in needed:
            seconds["reference, once"] = self.rows * reading
        elif self.online:
            seconds["reference"] = passes * reading / self.processes
        if self.draws:
            each = self.writing(
                self.share if self.online else self.config["sampler"]["build"].get("batch_size", 8)
            )
            name = "drawing" if self.online else "drawing, once"
            drawn = 1 - float(
                self.method.get("draw", {}).get("p", 0)
            )  # mixed: the rest keep the dataset's pair
            seconds[name] = drawn * (passes * each / self.processes if self.online else self.rows * each)
            if self.config["annotator"]["build"]:
                seconds["judging"] = drawn * passes * self.judging() / self.processes
        return {name: value / 3600 for name, value in seconds.items()}

    def writing(self, prompts: int) -> float:
        """Seconds a prompt to read it and write its responses, `prompts` of them side by side."""
        read = cost.reading_seconds(self.model, self.gpu, self.prompt, self.prompt, self.tiles)
        together = cost.writing_seconds(
            self.model, self.numbers, self.gpu, prompts, self.prompt, self.draws, self.assumed.drawn
        )
        return read + together / prompts

    def judging(self) -> float:
        """Seconds a prompt: every two responses in both orders, or every response once by a reward model."""
        judge = self.judge()
        model = judge[0] if judge else self.model
        asked = (
            self.draws * (self.draws - 1)
            if self.config["annotator"]["name"] != "reward_model"
            else self.draws
        )
        tokens = model.image_tokens(self.assumed.width, self.assumed.height) + self.assumed.judge_words
        tokens += 2 * self.response
        return asked * cost.reading_seconds(model, self.gpu, tokens, tokens, self.tiles)

    def evaluation_hours(self) -> tuple[dict[str, float], tuple[str, ...]]:
        """Hours of the benchmarks that are known here, together, and the names of the others."""
        tasks = list(self.config["benchmark"]["tasks"] or {})
        if self.config["world"]["name"] != "published":
            return {}, tuple(tasks)
        batch = self.config["base_model"]["batch_size"]
        seconds = 0.0
        for name in (name for name in tasks if name in QUESTIONS):
            images, questions, tokens = QUESTIONS[name]
            read = cost.reading_seconds(self.model, self.gpu, self.prompt, self.prompt, self.tiles)
            write = cost.writing_seconds(self.model, self.numbers, self.gpu, batch, self.prompt, 1, tokens)
            seconds += images * read + questions * write / batch
        known = {"benchmarks": seconds / 3600} if seconds else {}
        return known, tuple(name for name in tasks if name not in QUESTIONS)


# --- showing -----------------------------------------------------------------------------------------------


def gpu_of(name: str) -> Gpu:
    """Raises ValueError for a GPU that is not known, naming those that are."""
    if name not in GPUS:
        raise ValueError(f"estimate_gpu={name}: choose one of {', '.join(GPUS)}")
    return GPUS[name]


def lines(title: str, found: Estimate, gpu: Gpu, processes: int, assumed: Assumed | None = None) -> list[str]:
    """The estimate as text, with what it assumes."""
    assumed = assumed or Assumed()
    shown = [f"{title}", ""]
    shown += [f"  {name:<34}{value:>16,.0f}" for name, value in found.counts.items()]
    shown += ["", f"  memory of a GPU, at its highest ({gpu.name}: {gpu.memory:.0f} GiB)"]
    shown += [f"  {name:<34}{value / GIB:>12.1f} GiB" for name, value in found.memory.items()]
    shown += [
        f"  {'with context and fragments':<34}{found.peak / GIB:>12.1f} GiB   {verdict(found, gpu)}",
        "",
    ]
    shown += [f"  hours on {processes} x {gpu.name}"]
    shown += [f"  {name:<34}{value:>12.2f} h" for name, value in found.hours.items()]
    shown += [f"  {'together':<34}{sum(found.hours.values()):>12.2f} h"]
    if found.left_out:
        shown += [f"  not counted: benchmark {', '.join(found.left_out)}"]
    shown += [
        "",
        f"  assumes images of {assumed.width} x {assumed.height}, {assumed.question} tokens a question, "
        f"{assumed.response} a response of the",
        f"  dataset, {assumed.drawn} a drawn one; {cost.ARITHMETIC:.0%} of the peak arithmetic and "
        f"{cost.BANDWIDTH:.0%} of the bandwidth.",
        "  Memory and hours have not been checked on a GPU; expect hours to be off by a factor of up to 2.",
    ]
    return shown


def verdict(found: Estimate, gpu: Gpu) -> str:
    if found.peak <= gpu.memory * GIB:
        return "fits"
    return (
        "does not fit: a smaller alignment.batch_size with more alignment.accumulate, base_model.checkpointing=true, "
        "base_model.four_bit=true, or a larger GPU"
    )


def tell(title: str, config: Config) -> float:
    """Print a cell's estimate. -> its hours"""
    gpu = gpu_of(config["estimate_gpu"])
    found = estimate(config, gpu)
    processes = config["trainer"]["devices"] * config["trainer"]["nodes"]
    print("\n".join(lines(title, found, gpu, processes)), "\n")
    return sum(found.hours.values())

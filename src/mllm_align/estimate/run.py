"""What a composed run would need (`mllm-align train ... estimate=true`), by its config and a model's config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm_align.estimate import cost
from mllm_align.estimate.cost import GIB, GPUS, Gpu, Layout, Numbers
from mllm_align.estimate.known import questions, rows_of
from mllm_align.estimate.model import RELEASED, Model, read_model
from mllm_align.paths import asset_folder

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Assumed:
    """What no config says; the estimate prints it. Pixels of an image, and tokens.

    again: share of the answers that each iteration of BDHS after the first draws; of the paper's, 74% are taken after
    the first one (Figure 10), so it is less.
    """

    width: int = 640
    height: int = 480
    question: int = 50
    response: int = 130
    drawn: int = 200
    judge_words: int = 120
    again: float = 0.26


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
    def sampler(self) -> Config:
        return self.config["sampler"]["build"]

    @property
    def draws(self) -> int:
        """Responses a prompt that are drawn, in the step or before it; 0 where the dataset has them."""
        return 0 if self.config["sampler"]["gives"] == "pairs" else int(self.sampler.get("k", 1))

    @property
    def drawn_prompts(self) -> float:
        """Share of the prompts that responses are drawn for; of a mixture the others keep the dataset's pair."""
        return 1 - float((self.method.get("draw") or {}).get("p", 0))

    @property
    def responses(self) -> int:
        """Responses a prompt that are trained on; an average has the dataset's rejected one beside the drawn one."""
        return max(2, self.draws) + ("gamma" in (self.method.get("draw") or {}))

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
    def extended(self) -> int:
        """Tokens of the row that `extend` adds: the chosen response under an image of its own; 0 without."""
        return self.prompt + self.response if self.method.get("extend") else 0

    @property
    def share(self) -> int:
        """Rows of a forward pass on one device."""
        return -(-int(self.method["batch_size"]) // self.processes)

    @property
    def repeats(self) -> int:
        """Optimiser steps in a row on what was drawn once (PPO)."""
        return int((self.method.get("estimator") or {}).get("passes", 1))

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
                "steps": -(-self.rows // per_step) * self.method["epochs"] * self.repeats,
            }
        return counts

    def memory(self) -> dict[str, float]:
        """Bytes a device at the run's highest point: in the training, or where responses are drawn before it."""
        if self.method["module"] is None:
            prompts = self.config["base_model"]["batch_size"]
            return self._base_model() | {
                "keys and values": cost.cache(self.model, prompts, self.prompt, 1, self.assumed.drawn)
            }
        points = [self._training_memory()]
        if self.draws and not self.online:
            points.append(self._drawing_memory())
        return max(points, key=lambda point: sum(point.values()))

    def _base_model(self) -> dict[str, float]:
        layout = Layout(self.processes, self.config["trainer"]["strategy"] != "ddp")
        return {"base model": cost.per_device(layout, self.model, self.numbers)}

    def _training_memory(self) -> dict[str, float]:
        r = self.config["base_model"]["lora"]["r"]
        found = self._base_model() | {"adapter, projector, optimiser": cost.trained(self.model, r)}
        if self.online and (judge := self.judge()):
            found["judge"] = cost.weights(*judge)
        more = bool(self.extended)
        kept = cost.activations(
            self.model,
            r,
            self.numbers,
            self.share * (self.packed + self.extended),
            self.share * (self.responses + more) * self.response,
            self.share * (1 + more) * self.image_tokens,
        )
        if self.online and self.draws:  # written before the forward pass: the two are never held together
            kept = max(kept, self.keys_and_values())
        return found | {"activations, or keys and values": kept}

    def _drawing_memory(self) -> dict[str, float]:
        """Of the stage before the training: the whole model, in the first process alone, with nothing to train."""
        found = {"base model": cost.weights(self.model, self.numbers)}
        if judge := self.judge():
            found["judge"] = cost.weights(*judge)
        return found | {"keys and values": self.keys_and_values()}

    def keys_and_values(self) -> float:
        """Bytes of them where responses are drawn; a distortion reads its reference and writes nothing."""
        if "max_new_tokens" not in self.sampler:
            return 0.0
        return cost.cache(self.model, self.together, self.seen, self.draws, self.assumed.drawn)

    @property
    def together(self) -> int:
        """Prompts whose responses are written side by side."""
        together = int(self.sampler.get("batch_size", 8))
        return min(together, self.share) if self.online else min(together, self.rows)

    @property
    def seen(self) -> int:
        """Tokens that a drawn response is written behind: the prompt without its hidden image tokens, and for BDHS
        the reference answer.
        """
        hidden = (self.sampler.get("corruption") or {}).get("rho_th", 0.0) * self.image_tokens
        rejected = self.config["sampler"]["gives"] == "rejected"
        return round(self.prompt - hidden) + (self.assumed.response if rejected else 0)

    def judge(self) -> tuple[Model, Numbers] | None:
        """A second model that the annotator loads: a larger one, or the base model with a reward head."""
        build, name = self.config["annotator"]["build"], self.config["annotator"]["name"]
        if name == "reward_model":
            return self.model, Numbers(build["dtype"])
        if name != "large":
            return None
        file = asset_folder(build["path"]) / "config.json"
        released = read_model(RELEASED["published/llava_1_6_34b"])
        model = read_model(json.loads(file.read_text("utf-8"))) if file.is_file() else released
        return model, Numbers(build["dtype"], "32-true", build.get("four_bit", False))

    def training_hours(self) -> dict[str, float]:
        """What the first process does before the training is said to be done once: other processes do not help."""
        passes = self.rows * self.method["epochs"]
        seconds = {"training": passes * self.repeats * self.step() / self.processes}
        pair = self.prompt + 2 * self.assumed.response
        if self.config["annotator"].get("train") and self.config["annotator"]["path"] is None:
            data, epochs = self.config["annotator"]["data"], self.config["annotator"]["train"]["epochs"]
            seconds["reward model, once"] = rows_of(data) * epochs * self.training(pair)
        needed = self.method["needs"][self.config["sampler"]["when"]]
        if "reward_statistics" in needed:
            seconds["reward statistics, once"] = self.rows * self.reading(pair)
        reading = self.reading(self.packed) + (self.reading(self.extended) if self.extended else 0)
        if "reference" in needed:
            seconds["reference, once"] = self.rows * reading
        elif self.online and not self.method["module"]["online"].get("reference_free"):
            seconds["reference"] = passes * reading / self.processes
        if self.draws:
            prompts = self.drawn_prompts * (passes / self.processes if self.online else self.rows)
            once = "" if self.online else ", once"
            seconds[f"drawing{once}"] = prompts * self.drawing()
            if judging := self.judging():
                seconds[f"judging{once}"] = prompts * judging
        return {name: value / 3600 for name, value in seconds.items()}

    def step(self) -> float:
        """Seconds of an example in the training step."""
        return self.training(self.packed) + (self.training(self.extended) if self.extended else 0)

    def training(self, tokens: int) -> float:
        """Seconds of one packed row, forward and backward."""
        return cost.training_seconds(self.model, self.numbers, self.gpu, tokens, self.prompt, self.tiles)

    def reading(self, tokens: int) -> float:
        """Seconds of one packed row, forward only."""
        return cost.reading_seconds(self.model, self.gpu, tokens, self.prompt, self.tiles)

    def drawing(self) -> float:
        """Seconds a prompt to read it and write its responses, `together` side by side; again for those that BDHS
        finds too much like the reference.
        """
        if "max_new_tokens" not in self.sampler:
            return self.reading(self.prompt + self.assumed.response)
        read = cost.reading_seconds(self.model, self.gpu, self.seen, self.seen, self.tiles)
        written = cost.writing_seconds(
            self.model, self.numbers, self.gpu, self.together, self.seen, self.draws, self.assumed.drawn
        )
        attempts = 1 + self.assumed.again * (int(self.sampler.get("iterations", 1)) - 1)
        return attempts * (read + written / self.together)

    def judging(self) -> float:
        """Seconds a prompt: all responses at once by a reward model, or every two of them in both orders by a model
        that answers; 0 where nobody asks a model here.
        """
        name = self.config["annotator"]["name"]
        if name == "reward_model":
            return self.reading(self.prompt + self.draws * self.assumed.drawn)
        if name not in ("large", "self"):
            return 0.0
        judge = self.judge()
        model = judge[0] if judge else self.model
        tokens = model.image_tokens(self.assumed.width, self.assumed.height) + self.assumed.judge_words
        tokens += 2 * self.response
        asked = self.draws * (self.draws - 1)
        return asked * cost.reading_seconds(model, self.gpu, tokens, tokens, self.tiles)

    def evaluation_hours(self) -> tuple[dict[str, float], tuple[str, ...]]:
        """Hours of the benchmarks that are known here, together, and what is not counted."""
        published = self.config["world"]["name"] == "published"
        tasks = self.config["benchmark"]["tasks"] or {}
        tasks = (
            tasks if isinstance(tasks, Mapping) else {name: {} for name in tasks}
        )  # lmms-eval's are a list
        known = {name: questions(name, task) if published else [] for name, task in tasks.items()}
        batch = self.config["base_model"]["batch_size"]
        seconds = 0.0
        for images, asked, tokens in (part for parts in known.values() for part in parts):
            write = cost.writing_seconds(self.model, self.numbers, self.gpu, batch, self.prompt, 1, tokens)
            seconds += images * self.reading(self.prompt) + asked * write / batch
        left_out = [f"benchmark {name}" for name, parts in known.items() if not parts]
        left_out += ["annotator api"] if self.config["annotator"]["name"] == "api" else []
        return {"benchmarks": seconds / 3600} if seconds else {}, tuple(left_out)


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
        shown += [f"  not counted: {', '.join(found.left_out)}"]
    shown += [
        "",
        f"  assumes images of {assumed.width} x {assumed.height}, {assumed.question} tokens a question, "
        f"{assumed.response} a response of the",
        f"  dataset, {assumed.drawn} a drawn one; each iteration of BDHS after the first draws {assumed.again:.0%} of "
        "the answers again;",
        f"  {cost.ARITHMETIC:.0%} of the peak arithmetic and {cost.BANDWIDTH:.0%} of the bandwidth.",
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

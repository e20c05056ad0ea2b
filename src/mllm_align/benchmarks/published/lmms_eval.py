"""Any task of lmms-eval (EvolvingLMMs-Lab), asked of our models by our decoder and recorded in our form.

lmms-eval is an extra of its own (pip install lmms-eval) and is imported when a task is run. It loads the task's data,
makes the prompts and scores the answers; its figures are those of the result. A task that asks for log-likelihoods,
or for a question with other than one image, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mllm_align.benchmarks.base import Metric, Prediction, ratio
from mllm_align.benchmarks.published import result
from mllm_align.benchmarks.stats import Array, Counts, sum_by_image
from mllm_align.records import Example

if TYPE_CHECKING:
    from PIL.Image import Image

    from mllm_align.models.load import Policy

LOGGED = {
    "doc_id",
    "doc",
    "target",
    "arguments",
    "resps",
    "filtered_resps",
    "token_counts",
    "doc_hash",
    "input_media",
}
Answered = Callable[[Sequence[Example], int, float], list[str]]


@dataclass(frozen=True)
class LmmsEval:
    """One task of lmms-eval; `limit` takes its first questions only, `max_new_tokens` holds where it says nothing."""

    task: str
    limit: int | None = None
    max_new_tokens: int = 1024

    @property
    def shown(self) -> tuple[Metric, ...]:
        """`score` is the task's first figure, as lmms-eval gives it."""
        return (
            Metric("score", f"lmms-eval {self.task}", +1, main=True, percent=False),
            Metric("valid", f"{self.task} answered", +1),
        )

    def ready(self) -> None:
        """Raises ValueError where lmms-eval is not installed."""
        _evaluator()

    def examples(self) -> list[Example]:
        """None that can be told without running the task: lmms-eval has them."""
        return []

    def answer(self, policy: Policy, batch_size: int) -> list[dict[str, Any]]:
        """A row a question: id, image, prompt, prediction, truth, its `scores`, and the task's figures."""
        from mllm_align.compute.decoding import generate

        def answered(examples: Sequence[Example], tokens: int, temperature: float) -> list[str]:
            made = generate(
                policy, examples, k=1, max_new_tokens=tokens, temperature=temperature, batch_size=batch_size
            )
            return [responses[0].text for responses in made]

        found = _evaluator().simple_evaluate(
            model=_model(answered, self.max_new_tokens, str(policy.model.device)),
            tasks=[self.task],
            limit=self.limit,
            batch_size=batch_size,
            log_samples=True,
        )
        figures = {
            name.removesuffix(",none"): float(value)
            for name, value in found["results"][self.task].items()
            if isinstance(value, int | float) and "stderr" not in name and name != "samples"
        }
        if not figures:
            raise ValueError(
                f"lmms-eval gave no figure of task {self.task!r}; is it a group? Name its tasks one by one"
            )
        version = found.get("versions", {}).get(self.task)
        return [_row(self.task, sample, figures, version) for sample in found["samples"][self.task]]

    def counts(self, predictions: Sequence[Prediction]) -> Counts:
        names = sorted({name for row in predictions for name in row["scores"]})
        counted = (
            (
                row["image"],
                {**row["scores"], "answered": float(bool(row["prediction"].strip())), "asked": 1.0},
            )
            for row in predictions
        )
        return sum_by_image(counted, [*names, "answered", "asked"])

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """Means over questions; lmms-eval's own figures stand in the result."""
        names = [name for name in totals if name not in ("answered", "asked")]
        return {
            **{name: ratio(totals[name], totals["asked"]) for name in names},
            "valid": ratio(totals["answered"], totals["asked"]),
        }

    def result(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """lmms-eval's figures as it gives them."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            release = version("lmms-eval")
        except PackageNotFoundError:
            release = "of unknown version"
        first = predictions[0]
        return result.told(
            self,
            predictions,
            first["figures"],
            benchmark=f"lmms-eval {self.task}",
            rule=f"lmms-eval {release}, task version {first['task_version']}",
        )


@dataclass(frozen=True)
class TaskImage:
    """The image of a question, which lmms-eval loads when it is asked for."""

    key: str
    visuals: Callable[[], Sequence[Any]]

    def load(self) -> Image:
        """Raises ValueError unless the question has one image."""
        found = list(self.visuals())
        if len(found) != 1 or not hasattr(found[0], "convert"):
            raise ValueError(
                f"{self.key} has {len(found)} images or videos, and a question has one here; choose another task"
            )
        return found[0].convert("RGB")


def _row(task: str, sample: Mapping[str, Any], figures: Mapping[str, float], version: Any) -> dict[str, Any]:
    """`scores` are the sample's numbers; where it has none, the task's figures, so that their mean is the figure."""
    scores = {
        name: float(value)
        for name, value in sample.items()
        if name not in LOGGED and isinstance(value, int | float) and name in figures
    }
    name, value = next(iter(figures.items()))
    said = sample["filtered_resps"]
    while isinstance(said, list) and said:
        said = said[0]
    return {
        "id": f"{task}/{sample['doc_id']}",
        "image": f"{task}/{sample['doc_id']}",
        "prompt": _prompt(sample),
        "prediction": str(said),
        "truth": str(sample.get("target")),
        "scores": {**scores, "score": scores.get(name, value)},
        "figures": dict(figures),
        "task_version": version,
    }


def _prompt(sample: Mapping[str, Any]) -> str:
    arguments: Any = sample.get("arguments", "")
    while isinstance(arguments, list | tuple) and arguments:
        arguments = arguments[0]
    return str(arguments)


def _model(answered: Answered, max_new_tokens: int, device: str) -> Any:
    """A model as lmms-eval wants it, whose answers `answered` gives."""
    from lmms_eval.api.model import lmms

    class Ours(lmms):  # their base class asks for it
        is_simple = True

        def __init__(self) -> None:
            super().__init__()
            self.device = device

        def generate_until(self, requests: list[Any]) -> list[str]:
            return answer_requests(requests, self.task_dict, answered, max_new_tokens)

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise ValueError("a task in several rounds cannot be asked here; choose another task")

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise ValueError(
                "a task that compares log-likelihoods cannot be asked here; choose one that generates"
            )

    return Ours()


def answer_requests(
    requests: Sequence[Any], tasks: Mapping[str, Any], answered: Answered, max_new_tokens: int
) -> list[str]:
    """Answers in the order of the requests (prompt, settings, visuals, number, task, split), by settings in groups."""
    groups: dict[tuple[int, float], list[int]] = {}
    asked: list[Example] = []
    for number, request in enumerate(requests):
        prompt, settings, visuals, place, task, split = request.args
        key = f"{task}/{place}"
        doc = tasks[task][split][place]
        asked.append(Example(key, TaskImage(key, partial(visuals, doc)), prompt))
        tokens = int(settings.get("max_new_tokens") or max_new_tokens)
        warm = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        groups.setdefault((tokens, warm), []).append(number)
    said = [""] * len(asked)
    for (tokens, warm), numbers in groups.items():
        for number, text in zip(numbers, answered([asked[n] for n in numbers], tokens, warm), strict=True):
            said[number] = _until(text, requests[number].args[1].get("until") or ())
    return said


def _until(text: str, stops: str | Sequence[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text.strip()


def _evaluator() -> Any:
    try:
        from lmms_eval import evaluator
    except ImportError as error:
        raise ValueError(
            f"benchmark=lmms_eval needs lmms-eval, which cannot be imported ({error}); install it with: "
            "pip install lmms-eval"
        ) from None
    return evaluator

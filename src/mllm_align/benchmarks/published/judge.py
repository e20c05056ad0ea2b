"""A judge behind an OpenAI-compatible endpoint, what it said as it is kept, and the prompts of published ones."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm_align.api.client import ApiError, Client, Question, Reply, Terms
from mllm_align.api.spending import SpendingCapReached
from mllm_align.benchmarks.base import Prediction
from mllm_align.benchmarks.published.answers import AnswerFileError, read_text

UNNAMED = "not named in the judgement file"
# Of `judge`, and of what it wrote; a scorer adds what it reads out of the text.
Judgement = dict[str, Any]


class JudgeError(ValueError):
    """The judge could not be asked; says why, and that nothing is lost."""


@dataclass(frozen=True)
class ApiJudge:
    """Asks `model` at `base_url`; `settings` go into every request. The key comes from the environment (`terms`).

    `official` names the judge of the published scores; another one gives other scores.
    """

    model: str
    base_url: str
    settings: Mapping[str, Any]
    terms: Terms
    official: str
    image_format: str = "png"
    spent: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Raises JudgeError naming endpoint, item and remedy; answers and paid judgements are kept."""
        try:
            client = Client(
                base_url=self.base_url,
                model=self.model,
                settings=self.settings,
                terms=self.terms,
                image_format=self.image_format,
            )
            try:
                return client.ask(questions)
            finally:
                self._note(client.report())
        except (ApiError, SpendingCapReached) as error:
            raise JudgeError(
                f"the judge cannot go on: {error}. The model's answers are kept, and so is every judgement that was "
                "paid for: `mllm-align evaluate ... predictions=FILE` with the file of predictions goes on from them"
            ) from None

    def judgement(self, reply: Reply) -> Judgement:
        """What is kept of an answer."""
        return {"judge": self.model, "version": reply.model, "text": reply.text}

    def report(self) -> dict[str, Any]:
        """Requests, tokens and money of this object's questions, as `Client.report` has them."""
        return dict(self.spent)

    def _note(self, report: Mapping[str, Any]) -> None:
        for name, value in report.items():
            added = "in all" not in name and isinstance(value, int | float)
            self.spent[name] = self.spent.get(name, 0) + value if added else value


def judge_rows(
    judge: ApiJudge,
    rows: Sequence[Prediction],
    question: Callable[[Prediction, int, int], Question],
    read: Callable[[str], Mapping[str, Any]],
    runs: int = 1,
    tries: int = 1,
) -> list[dict[str, Any]]:
    """The rows with `runs` judgements each; the judge is asked about those that have none.

    `question` gets row, run and attempt; what `read` finds in a reply is kept, and a reply in which it says to have
    `read` nothing is asked for again, in `tries` attempts at most.
    """
    todo = [(row, run) for row in rows if "judgements" not in row for run in range(runs)]
    made: dict[tuple[str, int], Judgement] = {}
    for attempt in range(tries):
        if not todo:
            break
        replies = judge.ask([question(row, run, attempt) for row, run in todo])
        again = []
        for (row, run), reply in zip(todo, replies, strict=True):
            found = read(reply.text)
            made[row["id"], run] = {**judge.judgement(reply), **found}
            again += [] if found.get("read", True) else [(row, run)]
        todo = again
    return [
        {**row, "judgements": row.get("judgements") or [made[row["id"], run] for run in range(runs)]}
        for row in rows
    ]


def unjudged(rows: Sequence[Prediction]) -> bool:
    """Whether the judge, and so its prompt, is needed."""
    return any("judgements" not in row for row in rows)


def told(judge: ApiJudge, rows: Sequence[Prediction]) -> dict[str, Any]:
    """For the result: who judged, with versions, how often an item was judged, and what it cost."""
    made = [one for row in rows for one in row.get("judgements", ())]
    return {
        "model": sorted({str(one["judge"]) for one in made}),
        "version": sorted({str(one["version"]) for one in made if one.get("version")}),
        "official": judge.official,
        "runs": runs_of(rows),
        "cost": judge.report() or "nothing was asked",
    }


def runs_of(rows: Sequence[Prediction]) -> int:
    """How often each item was judged. Raises ValueError where items differ in that."""
    numbers = {len(row["judgements"]): row["id"] for row in rows}
    if len(numbers) != 1:
        few, many = min(numbers), max(numbers)
        raise ValueError(
            f"items are judged {few} times ({numbers[few]}, ...) and {many} times ({numbers[many]}, ...); "
            "complete the runs, or leave out those that lack items"
        )
    return next(iter(numbers))


def mean_of_runs(row: Prediction, value: Callable[[Judgement], float]) -> float:
    """The mean over an item's judgements."""
    return sum(value(one) for one in row["judgements"]) / len(row["judgements"])


# Fields of a row that hold the judge's words; "text" may as well hold the model's.
REVIEW = ("content", "review", "judgement", "judgment", "gpt4_review", "evaluation")


def reply_text(row: Mapping[str, Any]) -> str | None:
    """The judge's words in a row of a judgement file: a whole response of OpenAI's API, or a text by some name."""
    if "choices" in row:
        try:
            text = row["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            return None
        return text if isinstance(text, str) else None
    return next((row[name] for name in (*REVIEW, "text") if isinstance(row.get(name), str)), None)


# --- prompts of published judges ---------------------------------------------------------------------------


def prompt_text(folders: Sequence[Path], names: Sequence[str], constant: str, source: str) -> str:
    """A judge's prompt from the first of the files `names` that one of the folders has.

    Of a text file it is the whole, of the official script or notebook the string that is assigned to `constant`;
    the script is read and not run. `source` is where the file comes from, for the error.
    """
    for folder in folders:
        for name in names:
            file = folder / name
            if file.is_file():
                return read_text(file) if file.suffix == ".txt" else _assigned(file, constant)
    raise FileNotFoundError(
        f"the judge's prompt is missing: none of {', '.join(names)} is in {' or '.join(map(str, folders))}; {source}"
    )


def _assigned(file: Path, constant: str) -> str:
    for code in _python(file):
        try:
            tree = ast.parse(code)
        except SyntaxError:
            continue  # a notebook's cell with a command of the shell
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                named = [target.id for target in node.targets if isinstance(target, ast.Name)]
                if constant in named and isinstance(node.value.value, str):
                    return node.value.value
    raise AnswerFileError(f"{file.name} assigns no text to {constant}; is it the official file?")


def _python(file: Path) -> Iterator[str]:
    text = read_text(file)
    if file.suffix != ".ipynb":
        yield text
        return
    for cell in json.loads(text)["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])

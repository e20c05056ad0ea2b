"""What asking an endpoint costs, and the cap on it.

Every paid answer is a line of `spent.jsonl` in the cache's folder, so the cap holds for all processes and runs
that share the folder together, now and later: a sweep of nine runs spends once what one run may.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)

MILLION = 1_000_000


class SpendingCapReached(RuntimeError):
    """The next question might cost more than is left. What was paid for is in the cache."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one question and its answer, as the endpoint counts them (an image counts as prompt tokens)."""

    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Bill:
    """Sums over answers. `money` is in the unit of the prices, 0 where no prices were given."""

    answers: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    money: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens

    def __add__(self, other: Bill) -> Bill:
        return Bill(
            self.answers + other.answers,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            self.money + other.money,
        )


@dataclass(frozen=True)
class Budget:
    """Prices for a million tokens, and the caps; null is no price and no cap.

    The unit of `max_spend` is that of the prices. Raises ValueError for a cap on money without prices.
    """

    max_spend: float | None = None
    max_total_tokens: int | None = None
    price_prompt: float | None = None
    price_answer: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; it cannot be negative")
        if (self.price_prompt is None) != (self.price_answer is None):
            raise ValueError("price_prompt and price_answer belong together; give both or neither")
        if self.max_spend is not None and not self.priced:
            raise ValueError(
                "max_spend needs the endpoint's prices; give price_prompt and price_answer (for a million "
                "tokens), or set max_spend to null and cap max_total_tokens"
            )

    @property
    def priced(self) -> bool:
        return self.price_prompt is not None

    @property
    def capped(self) -> bool:
        return self.max_spend is not None or self.max_total_tokens is not None

    def bill(self, usage: Usage) -> Bill:
        """What one answer costs, without discounts that a provider may give."""
        money = usage.prompt_tokens * (self.price_prompt or 0) + usage.answer_tokens * (
            self.price_answer or 0
        )
        return Bill(1, usage.prompt_tokens, usage.answer_tokens, money / MILLION)

    def exceeded(self, money: float, tokens: int) -> bool:
        """Whether a total of this much is above one of the caps."""
        if self.max_spend is not None and money > self.max_spend:
            return True
        return self.max_total_tokens is not None and tokens > self.max_total_tokens


class Purse:
    """Pays for the questions of one model within a budget. Threads of a process share one."""

    def __init__(self, folder: Path, model: str, budget: Budget) -> None:
        self.file, self.model, self.budget = folder / "spent.jsonl", model, budget
        self.here = Bill()  # paid by this object
        self.total = Bill()  # paid from this folder, by whomever
        self._dearest_money, self._dearest_tokens = 1e-9, 1  # of one answer of this model
        self._asked = 0  # questions that are with the endpoint now
        self._read = 0  # bytes of the file that `total` holds
        self._lock = threading.Lock()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Held while a question is with the endpoint. Raises SpendingCapReached instead of letting it go.

        A question is expected to cost what the dearest one has, so a cap is kept but for the first questions,
        whose cost nobody knows, and for what other processes ask at the same moment.
        """
        with self._lock:
            self._look()
            ahead = self._asked + 1
            money = self.total.money + ahead * self._dearest_money
            if self.budget.exceeded(money, self.total.tokens + ahead * self._dearest_tokens):
                raise SpendingCapReached(self._refusal())
            self._asked += 1
        try:
            yield
        finally:
            with self._lock:
                self._asked -= 1

    def pay(self, usage: Usage) -> None:
        """Note an answer's cost, for every process to see."""
        bill = self.budget.bill(usage)
        line = json.dumps({"model": self.model, **asdict(bill)}).encode() + b"\n"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, FileLock(self.file.with_suffix(".lock")):
            with self.file.open("a+b") as file:
                if file.tell():  # a process that was killed in the middle of its line has not ended it
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read() == b"\n" else b"\n" + line
                file.write(line)
            self.here += bill
            self._look()

    def _look(self) -> None:
        """Add the lines that were written since the last look."""
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        for line in whole.splitlines():
            self._add(line)
        self._read += len(whole) + len(end)

    def _add(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            bill = Bill(**{name: entry[name] for name in asdict(self.total)})
        except (ValueError, KeyError, TypeError):
            log.warning("%s: the line %r is damaged; its cost is not counted", self.file, line[:80])
            return
        self.total += bill
        if entry["model"] == self.model:
            self._dearest_money = max(self._dearest_money, bill.money)
            self._dearest_tokens = max(self._dearest_tokens, bill.tokens)

    def _refusal(self) -> str:
        budget, total = self.budget, self.total
        parts = []
        if budget.max_spend is not None:
            parts.append(f"{total.money:.4f} of max_spend={budget.max_spend:g}")
        if budget.max_total_tokens is not None:
            parts.append(f"{total.tokens} of max_total_tokens={budget.max_total_tokens} tokens")
        return (
            f"the spending cap is reached: {' and '.join(parts)} spent on {total.answers} answers in "
            f"{self.file.parent}, and one more may take {self._dearest_tokens} tokens. Every paid answer is kept "
            "there and is not paid for again: raise the cap and start the same command again"
        )

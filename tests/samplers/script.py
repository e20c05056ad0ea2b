"""A decoder that writes what a test tells it, in place of the model's: what BDHS asks of it can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from mllm_align.samplers import bdhs, corruption
from mllm_align.samplers.sentences import spell

TOKENS = 20  # of every image


@dataclass
class Script:
    """`tail(example id, call, sentence)` completes sentence 0, 1, ...; `whole(example id)` answers unguided."""

    processor: Any
    tail: Callable[[str, int, int], str]
    whole: Callable[[str], str] = lambda name: "Whole."
    prepared: list[list[Any]] = field(default_factory=list)
    completed: list[tuple[list[Any], dict[str, Any]]] = field(default_factory=list)
    answered: list[tuple[list[int], dict[str, Any]]] = field(default_factory=list)

    @property
    def policy(self) -> Any:
        model = SimpleNamespace(generation_config=None)
        return SimpleNamespace(processor=self.processor, model=model)

    def prepare(self, policy: Any, examples: Sequence[Any]) -> list[Any]:
        self.prepared.append(list(examples))
        return list(examples)

    def image_tokens(self, prepared: Sequence[Any]) -> list[int]:
        return [TOKENS] * len(prepared)

    def complete(
        self, policy: Any, prepared: Any, attempts: Any, **options: Any
    ) -> list[list[tuple[int, ...]]]:
        self.completed.append(([(prepared[a.row].id, a) for a in attempts], options))
        call = len(self.completed)
        return [
            [self._tokens(self.tail(prepared[a.row].id, call, k)) for k in range(len(a.forks))]
            for a in attempts
        ]

    def answer(self, policy: Any, prepared: Any, rows: Any, **options: Any) -> list[tuple[int, ...]]:
        self.answered.append(([prepared[row].id for row in rows], options))
        return [self._tokens(self.whole(prepared[row].id)) for row in rows]

    def _tokens(self, text: str) -> tuple[int, ...]:
        end = self.processor.tokenizer.eos_token_id
        return (*spell([text], self.processor)[0].ids, end) if text else (end,)

    def play(self, monkeypatch: Any) -> Script:
        for module, names in ((corruption, ("prepare", "image_tokens")), (bdhs, ("complete", "answer"))):
            for name in names:
                monkeypatch.setattr(module, name, getattr(self, name))
        return self

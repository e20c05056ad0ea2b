"""Answers of a served model in place of our own decoder's, from a server with OpenAI's interface such as vLLM's.

The server has the weights and the chat template. It is sent what our own prompts hold: one turn of a user, first the
image (as PNG, which loses nothing), then the text. It gives texts and no token ids.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_align.api.client import ApiError, Client, Question, Reply, Terms
from mllm_align.api.spending import SpendingCapReached
from mllm_align.records import Example, Response

log = logging.getLogger(__name__)

CUT = "length"  # why an answer ended that was not over at its longest


class ServerError(ValueError):
    """The server could not be asked, or failed; says which question, and what to do."""


@dataclass(frozen=True)
class Server:
    """Asks `client`; `source` is the name that its responses carry."""

    client: Client
    source: str

    def answers(self, examples: Sequence[Example], max_new_tokens: int) -> list[Response]:
        """One greedy response an example, in order. Raises ServerError naming the example that failed."""
        settings = {"max_tokens": max_new_tokens, "temperature": 0}
        return self._ask([_question(example, settings) for example in examples])

    def draw(
        self,
        examples: Sequence[Example],
        *,
        k: int,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> list[tuple[Response, ...]]:
        """k responses to each example, in order; each draw has a seed of its own (`draw_seed`).

        Raises ServerError naming the example that failed.
        """
        settings = {"max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        responses = self._ask(
            [
                _question(example, {**settings, "seed": draw_seed(seed, example.id, draw)})
                for example in examples
                for draw in range(k)
            ]
        )
        return [tuple(responses[at : at + k]) for at in range(0, len(responses), k)]

    def _ask(self, questions: Sequence[Question]) -> list[Response]:
        try:
            replies = self.client.ask(questions)
        except (ApiError, SpendingCapReached) as error:
            raise ServerError(f"{error}. With generation=local no server is needed") from None
        _tell(self.source, replies)
        return [_response(reply, self.source) for reply in replies]


def server(*, base_url: str, model: str | None, settings: Mapping[str, Any], terms: Terms) -> Server:
    """A Server; nothing is asked yet.

    Raises ValueError where no model is named, ServerError where the key or the `openai` package is missing.
    """
    for library in ("httpx", "httpx2"):  # they tell of every request
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        client = Client(base_url=base_url, model=model, settings=settings, terms=terms)
    except ApiError as error:
        raise ServerError(str(error)) from None
    return Server(client, client.model.rstrip("/").rsplit("/", 1)[-1])


def draw_seed(seed: int, name: str, draw: int) -> int:
    """The server's seed of draw `draw` of example `name` under the run's `seed`; 31 bits, which every server takes."""
    key = hashlib.blake2b(f"{seed}\x00{name}\x00{draw}".encode(), digest_size=4).digest()
    return int.from_bytes(key, "little") >> 1


def _question(example: Example, settings: Mapping[str, Any]) -> Question:
    return Question(example.prompt, example.image, example.id, settings=settings)


def _response(reply: Reply, source: str) -> Response:
    """The text without outer space, as our decoder gives it; whether it was cut is kept in its provenance."""
    return Response(reply.text.strip(), source, provenance={"finish": CUT} if reply.finish == CUT else None)


def _tell(source: str, replies: Sequence[Reply]) -> None:
    if refused := sum(reply.refused for reply in replies):
        log.warning(
            "%s: a filter refused %d of %d answers, which count as empty", source, refused, len(replies)
        )

"""A model behind an OpenAI-compatible endpoint as annotator: shown the image, asked in both orders.

Unit of a comparison: log-odds of A against B (nats) where the endpoint gives log-probabilities, else votes, +1
for A and -1 for B. Within a Group it is one unit for all: votes if one decided answer came without
log-probabilities. An answer that names neither A nor B is undecided; a comparison with an undecided order is a
tie (0, 0), because one order alone would carry the judge's liking for a place, and is counted in `report`.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from mllm_align.annotators.base import Comparison, Judgement, Pairs
from mllm_align.annotators.comparing import different, judgement
from mllm_align.annotators.pairs import best_worst
from mllm_align.api.client import Client, Question, Reply, Terms, Token
from mllm_align.records import Group

log = logging.getLogger(__name__)

# "A", "(B).", "**A**", "Answer: A", "The better answer is B.", "Response A is better": the whole first line.
VERDICT = re.compile(
    r"(?:the\s+)?(?:better\s+)?(?:answer|option|response)?(?:\s+is)?\W*(?P<letter>[AB])\W*(?:is\s+better)?\W*",
    re.IGNORECASE,
)
MARKS = " \t\n▁Ġ().:*\"'`["  # what tokenizers and models put around a letter
SPACES = str.maketrans("▁ĠĊ", "  \n")  # as some tokenizers write them
LARGEST = 20.0  # nats; endpoints write a probability of 0 as a log-probability of -9999


@dataclass(frozen=True)
class Verdict:
    """One answer: +1 for A, -1 for B, 0 for neither; `odds` is the log-odds of A (nats) where they are known."""

    vote: int
    odds: float | None = None


@dataclass(frozen=True)
class ApiAnnotator:
    """Asks `client` with `template`, which has the fields {question}, {a} and {b}."""

    client: Client
    template: str
    pairs: Pairs = best_worst
    counts: Counter[str] = field(default_factory=Counter)

    def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """One Judgement a Group. Equal texts are a tie and not asked about.

        Raises ApiError naming endpoint, example and remedy, and SpendingCapReached.
        """
        asked = [(g, i, j) for g, group in enumerate(groups) for i, j in different(group)]
        questions = [self._question(groups[g], i, j) for g, i, j in asked]
        questions += [self._question(groups[g], j, i) for g, i, j in asked]
        replies = self.client.ask(questions)
        verdicts = [verdict(reply) for reply in replies]
        self._tell(replies, verdicts)
        both = list(zip(verdicts, verdicts[len(asked) :], strict=False))
        made: list[dict[tuple[int, int], tuple[Verdict, Verdict]]] = [{} for _ in groups]
        for (g, i, j), pair in zip(asked, both, strict=True):
            made[g][i, j] = pair
        return [
            judgement(len(group.responses), self._comparisons(pairs))
            for group, pairs in zip(groups, made, strict=True)
        ]

    def report(self) -> dict[str, Any]:
        """What was asked, what it cost (`Client.report`), and the comparisons by unit and undecided ones."""
        names = (
            "comparisons in log-odds",
            "comparisons in votes",
            "comparisons undecided",
            "answers undecided",
        )
        return {**self.client.report(), **{name: self.counts[name] for name in names}}

    def _question(self, group: Group, a: int, b: int) -> Question:
        example, responses = group.example, group.responses
        text = self.template.format(question=example.prompt, a=responses[a].text, b=responses[b].text)
        return Question(text, example.image, example.id)

    def _comparisons(self, pairs: Mapping[tuple[int, int], tuple[Verdict, Verdict]]) -> list[Comparison]:
        decided = [v for pair in pairs.values() for v in pair if v.vote]
        odds = all(v.odds is not None for v in decided)
        made = []
        for (i, j), (forward, backward) in pairs.items():
            if forward.vote and backward.vote:
                self.counts["comparisons in log-odds" if odds else "comparisons in votes"] += 1
                unit = "log-odds" if odds else "votes"
                made.append(Comparison(i, j, _value(forward, odds), _value(backward, odds), unit))
            else:
                self.counts["comparisons undecided"] += 1
                made.append(Comparison(i, j, 0.0, 0.0, "undecided"))
        return made

    def _tell(self, replies: Sequence[Reply], verdicts: Sequence[Verdict]) -> None:
        unread = [reply.text for reply, found in zip(replies, verdicts, strict=True) if not found.vote]
        self.counts["answers undecided"] += len(unread)
        if unread:
            log.warning(
                "%s: %d of %d answers name neither A nor B and count as undecided, such as %r",
                self.client.model,
                len(unread),
                len(replies),
                unread[0][:80],
            )


def api(
    policy: Any = None,
    *,
    base_url: str,
    model: str | None,
    template: str,
    settings: Mapping[str, Any],
    terms: Terms,
    pairs: Pairs = best_worst,
    image_format: str = "png",
) -> ApiAnnotator:
    """An ApiAnnotator. The policy that every annotator's builder is given is of no use to it."""
    client = Client(base_url=base_url, model=model, settings=settings, terms=terms, image_format=image_format)
    return ApiAnnotator(client, template, pairs)


def verdict(reply: Reply) -> Verdict:
    """What an answer says. Its first line has to be the letter, alone or in a phrase that names it."""
    text = reply.text.strip()
    found = VERDICT.fullmatch(text.splitlines()[0].strip()) if text else None
    if found is None:
        return Verdict(0)
    vote = {"A": 1, "B": -1}[found["letter"].upper()]
    place = _token_at(reply.tokens or (), text, found.start("letter"))
    return Verdict(vote, None if place is None else log_odds(place))


def _token_at(tokens: Sequence[Token], text: str, place: int) -> Token | None:
    """The token that holds the character of `text` at `place`; None where the tokens do not spell the text."""
    spelt = [token.text.translate(SPACES) for token in tokens]
    start = "".join(spelt).find(text)
    if start < 0:
        return None
    ends = accumulate(len(piece) for piece in spelt)
    return next(token for token, end in zip(tokens, ends, strict=True) if start + place < end)


def log_odds(place: Token) -> float | None:
    """log p(A) - log p(B) of the token that names the letter, at most 20 nats; None where it cannot be told.

    Tokens that differ in spaces and marks alone are summed. A letter that is not among the likeliest tokens has
    at most the probability of the least of them, which is then taken: the true odds are larger.
    """
    listed = {**dict(place.top), place.text: place.logprob}
    a, b = (_log_sum(p for text, p in listed.items() if _letter(text) == letter) for letter in "AB")
    least = min(listed.values())
    odds = (least if a is None else a) - (least if b is None else b)
    if odds == 0 and (a is None or b is None):  # only the letter itself is listed
        return None
    return max(-LARGEST, min(LARGEST, odds))


def _letter(token: str) -> str:
    return token.strip(MARKS)


def _log_sum(logprobs: Iterable[float]) -> float | None:
    values = list(logprobs)
    if not values:
        return None
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def _value(found: Verdict, odds: bool) -> float:
    return found.odds if odds and found.odds is not None else float(found.vote)

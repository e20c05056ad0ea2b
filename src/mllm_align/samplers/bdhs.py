"""BDHS: rejected responses from the model's own bias (section 3.4 and Algorithm 1 of arXiv 2407.02477).

The model completes the sentences of a reference answer while it sees little of the image, so what it adds is
plausible and often false. An answer that still says what the reference says is drawn again with a new mask
(or noise) and new cuts; with more than one iteration the last one writes the whole answer without the
reference, and its result is taken as it is.

Every draw is seeded by (seed, example id, iteration), so batches and the other examples change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_align.compute.corrupted import Attempt, Fork, answer, complete
from mllm_align.compute.packing import text_of
from mllm_align.models.load import Policy
from mllm_align.noise import generator, stable_seed
from mllm_align.records import Group, Preference, Response
from mllm_align.samplers.corruption import Corruption, Inputs
from mllm_align.samplers.reference import reference_answer
from mllm_align.samplers.sentences import Cut, Spelling, completed, cut, full_stops, spell
from mllm_align.similarity.base import Similarity

# Images of so many batches are held at a time: their features are computed once and serve every iteration.
BATCHES_HELD = 4


@dataclass(frozen=True)
class Draft:
    """An answer drawn in one iteration; `sentences` has where its heads and completions are."""

    text: str
    sentences: list[dict[str, Any]]


@dataclass(frozen=True)
class BDHS:
    """Groups of (reference answer, drawn answer), the first preferred to the second.

    Args:
        corruption: what hides the image (`samplers.corruption`).
        similarity: compares a drawn answer with its reference (`similarity`).
        eps_s: an answer at least so similar to the reference is drawn again.
        iterations: N_BDHS, the most draws of an answer. If more than 1, the last one is without guidance.
        guided: false draws every answer whole, without the reference ("unguided" in Table 15).
        swap: probability that a "Yes" or "No" at the head of a sentence becomes its opposite.
        positions: `keep` leaves the text its place behind hidden image tokens, `collapse` moves it up.
        max_new_tokens: bounds a completed sentence, and an answer drawn whole.
        temperature: 0 is greedy.
        batch_size: answers decoded together; changes the speed only.
        source: the name that the drawn responses carry.
    """

    corruption: Corruption
    similarity: Similarity
    eps_s: float
    iterations: int = 5
    guided: bool = True
    swap: float = 0.5
    positions: str = "keep"
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 32
    source: str = "bdhs_attn"

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: an answer takes at least 1")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: choose 1 or more")
        if not 0 <= self.swap <= 1:
            raise ValueError(f"swap={self.swap}: it is a probability, 0 to 1")
        if not -1 <= self.eps_s <= 1:
            raise ValueError(f"eps_s={self.eps_s}: it bounds a cosine, -1 to 1")
        if self.positions not in ("keep", "collapse"):
            raise ValueError(f"positions={self.positions!r}; choose keep or collapse")

    def sample(self, policy: Policy, groups: Sequence[Group], seed: int) -> list[Group]:
        """One Group a Group, in order; without a preference where the drawn answer is empty or the reference
        itself. Raises ValueError for a Group without a reference answer.
        """
        references = [reference_answer(group) for group in groups]
        step = self.batch_size * BATCHES_HELD
        drawn: list[Response] = []
        for at in range(0, len(groups), step):
            drawn += self._window(policy, groups[at : at + step], references[at : at + step], seed)
        return [pair(*parts) for parts in zip(groups, references, drawn, strict=True)]

    def _window(
        self, policy: Policy, groups: Sequence[Group], references: Sequence[Response], seed: int
    ) -> list[Response]:
        examples = [group.example for group in groups]
        texts = [reference.text.rstrip() for reference in references]
        spelled = spell(texts, policy.processor)
        start = self.corruption.start(policy, examples)
        found: dict[int, Response] = {}
        for iteration in range(1, self.iterations + 1):
            rows = [row for row in range(len(groups)) if row not in found]
            if not rows:
                break
            seeds = [stable_seed(seed, examples[row].id, iteration) for row in rows]
            inputs = self.corruption.attempt(policy, examples, start, rows, seeds)
            guided = self._guided(iteration)
            if guided:
                parts = [(texts[row], spelled[row]) for row in rows]
                drafts = self._complete(policy, inputs, parts, seeds, seed, iteration)
            else:
                drafts = self._answer(policy, inputs, seed, iteration)
            alike = self.similarity([draft.text for draft in drafts], [texts[row] for row in rows])
            for row, draft, value, about in zip(
                rows, drafts, alike, self._about(inputs, seeds, iteration, guided), strict=True
            ):
                if value < self.eps_s or iteration == self.iterations:
                    provenance = {"similarity": value, **about, "sentences": draft.sentences}
                    found[row] = Response(draft.text, self.source, provenance=with_cuts(provenance))
        return [found[row] for row in range(len(groups))]

    def _guided(self, iteration: int) -> bool:
        last = self.iterations > 1 and iteration == self.iterations
        return self.guided and not last

    def _complete(
        self,
        policy: Policy,
        inputs: Inputs,
        parts: Sequence[tuple[str, Spelling]],
        seeds: Sequence[int],
        seed: int,
        iteration: int,
    ) -> list[Draft]:
        """Every sentence of every reference completed; all of them run in one batch."""
        cuts = [
            cut(text, spelling, generator(own, "cuts"), self.swap, policy.processor)
            for (text, spelling), own in zip(parts, seeds, strict=True)
        ]
        attempts = [
            Attempt(row, spelling.ids, tuple(self._forks(made, iteration)), visible)
            for row, (_, spelling), made, visible in zip(
                inputs.rows, parts, cuts, inputs.visible, strict=True
            )
        ]
        written = complete(
            policy, inputs.prepared, attempts, stops=full_stops(policy), seed=seed, **self._decoding()
        )  # fmt: skip
        return [
            joined(made, completed(made, spelling, tokens, policy.processor))
            for (_, spelling), made, tokens in zip(parts, cuts, written, strict=True)
        ]

    def _forks(self, cuts: Sequence[Cut], iteration: int) -> Iterator[Fork]:
        """Sentence k of iteration i has a random stream of its own; answers drawn whole have stream 0 of i."""
        for place, made in enumerate(cuts, start=1):
            yield Fork(made.start, made.forced, draw=(iteration << 20) + place)

    def _answer(self, policy: Policy, inputs: Inputs, seed: int, iteration: int) -> list[Draft]:
        written = answer(
            policy,
            inputs.prepared,
            inputs.rows,
            visible=inputs.visible,
            seed=seed,
            draw=iteration << 20,
            **self._decoding(),
        )
        texts = [text_of(tokens, policy.processor) for tokens in written]
        return [Draft(text, [sentence("", text, 0, None)]) for text in texts]

    def _decoding(self) -> dict[str, Any]:
        names = ("max_new_tokens", "positions", "temperature", "top_p", "batch_size")
        return {name: getattr(self, name) for name in names}

    def _about(
        self, inputs: Inputs, seeds: Sequence[int], iteration: int, guided: bool
    ) -> Iterator[dict[str, Any]]:
        for own, seen in zip(seeds, inputs.about(), strict=True):
            yield {
                "iteration": iteration,
                "iterations": self.iterations,
                "eps_s": self.eps_s,
                "guided": guided,
                "mask_seed": own,
                **seen,
            }


def with_cuts(provenance: dict[str, Any]) -> dict[str, Any]:
    """With the places of the cuts in the reference on their own, for the Parquet column."""
    cuts = [part["cut"] for part in provenance["sentences"] if part["cut"] is not None]
    return {**provenance, "cuts": cuts}


def joined(cuts: Sequence[Cut], tails: Sequence[str]) -> Draft:
    """Heads and completions as one answer, with where each of them is in it."""
    text, sentences = "", []
    for made, tail in zip(cuts, tails, strict=True):
        head = made.head if (made.head + tail).strip() else ""  # the model may say nothing at all
        sentences.append(sentence(head, tail, len(text), made.at, made.swapped))
        text += head + tail
    return Draft(text, sentences)


def sentence(head: str, tail: str, start: int, at: int | None, swapped: bool = False) -> dict[str, Any]:
    """Where head and completion are in the drawn text, and where the reference was cut (None: not used)."""
    middle = start + len(head)
    return {
        "head": [start, middle],
        "completion": [middle, middle + len(tail)],
        "cut": at,
        "swapped": swapped,
    }


def pair(group: Group, chosen: Response, rejected: Response) -> Group:
    """(chosen, rejected) with the preference, unless there is nothing to tell apart."""
    same = rejected.text.split() == chosen.text.split() or not rejected.text.strip()
    return Group(group.example, (chosen, rejected), () if same else (Preference(0, 1),))

"""A reference answer in sentences, each to be cut into a kept head and a tail that is to be written anew.

Where Algorithm 1 of arXiv 2407.02477 leaves a choice: a sentence ends after . ! or ? with white space behind
it, or at the end of a line, and white space belongs to what follows; it is cut in front of a word, each of its
words being as likely, the first one too (then nothing of it is kept); a sentence whose yes or no was swapped
is cut behind that word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mllm_align.compute.decoding import stop_tokens
from mllm_align.compute.packing import response_tokens
from mllm_align.models.load import Policy, answer_lead, prompt_text, without_image_token

_END = re.compile(r"[.!?]+[\"')\]]*(?=\s)|(?<=\S)(?=\s*\n)")
_YES_NO = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)
_OPPOSITE = {"Yes": "No", "yes": "no", "No": "Yes", "no": "yes"}

Span = tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """What is kept of a sentence.

    `span` are its characters in the reference and `at` the first one that is dropped; `head` is the kept text
    (with its swapped word, or the white space alone). The model goes on behind the reference's first `start`
    tokens and `forced`.
    """

    span: Span
    at: int
    head: str
    start: int
    forced: tuple[int, ...] = ()
    swapped: bool = False


@dataclass(frozen=True)
class Spelling:
    """Tokens of an answer without the end token, and the character where each begins, its space included."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]


def split(text: str) -> list[Span]:
    """Spans of the sentences, one after the other without a gap; white space after the last is left out.

    Marks without a word (an ellipsis on its own) belong to the sentence before them.
    """
    text = text.rstrip()
    spans: list[Span] = []
    start = 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        if not text[start:end].strip():
            continue
        if spans and not re.search(r"\w", text[start:end]):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
        start = end
    return spans


def spell(texts: Sequence[str], processor: Any) -> list[Spelling]:
    """The tokens that answers have behind the generation prompt, as `compute.packing.response_tokens` has them."""
    lead, tokenizer = answer_lead(processor), processor.tokenizer
    anchor = prompt_text(processor, "\x00").split("\x00")[-1]
    found = []
    for text, ids in zip(texts, response_tokens(texts, processor), strict=True):
        ids = ids[:-1]  # the end token
        for before in (anchor + lead, lead):
            whole = tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True)
            if whole["input_ids"][len(whole["input_ids"]) - len(ids) :] == ids:
                break
        ends = [0, *(end for _, end in whole["offset_mapping"])]
        places = ends[len(ends) - 1 - len(ids) : -1]
        found.append(Spelling(tuple(ids), tuple(max(0, place - len(before)) for place in places)))
    return found


def cut(text: str, spelling: Spelling, rng: np.random.Generator, swap: float, processor: Any) -> list[Cut]:
    """Every sentence of `text` cut at random; the draws are the same whatever the tokenizer finds."""
    return [
        _cut_one(text, spelling, span, rng.random(), rng.random() < swap, processor) for span in split(text)
    ]


def _cut_one(text: str, spelling: Spelling, span: Span, where: float, swap: bool, processor: Any) -> Cut:
    word = _YES_NO.match(text[slice(*span)])
    if not (swap and word and word[1] in _OPPOSITE):
        return _cut_at(text, spelling, span, where, span[0])
    first, last = span[0] + word.start(1), span[0] + word.end(1)
    other = _OPPOSITE[word[1]]
    changed = text[:first] + other + text[last : span[1]]
    (new,) = spell([changed], processor)
    made = _cut_at(changed, new, (span[0], len(changed)), where, first + len(other))
    kept = new.ids[: made.start]
    same = next((i for i, (a, b) in enumerate(zip(kept, spelling.ids, strict=False)) if a != b), len(kept))
    same = min(same, len(spelling.ids))
    return replace(
        made, span=span, at=made.at + last - first - len(other), start=same, forced=kept[same:], swapped=True
    )


def _cut_at(text: str, spelling: Spelling, span: Span, where: float, least: int) -> Cut:
    """The sentence cut in front of one of its words, at or behind the character `least`.

    Behind the last of them where none begins there.
    """
    words = [place for place in _words(text, spelling) if least <= place[1] < span[1]]
    if not words:
        token = next((i for i, at in enumerate(spelling.starts) if at >= least), len(spelling.ids))
        at = spelling.starts[token] if token < len(spelling.ids) else len(text)
        words = [(token, min(at, span[1]))]
    token, at = words[int(where * len(words))]
    return Cut(span, at, _head(text, span, at), token)


def _head(text: str, span: Span, at: int) -> str:
    """The kept text; where that is no word, the white space that sets the sentence off from the one before."""
    kept, whole = text[span[0] : at], text[slice(*span)]
    return kept if kept.strip() else whole[: len(whole) - len(whole.lstrip())]


def _words(text: str, spelling: Spelling) -> Iterator[tuple[int, int]]:
    """The token that each word begins with, and its first character: the space before it, if that is no new line."""
    ends = [*spelling.starts[1:], len(text)]
    for token, (at, end) in enumerate(zip(spelling.starts, ends, strict=True)):
        piece = text[at:end]
        if piece.strip() and (at == 0 or piece[0].isspace() or text[at - 1].isspace()):
            while token and _is_blank(text[spelling.starts[token - 1] : at]):
                token, at = token - 1, spelling.starts[token - 1]
            yield token, at


def _is_blank(piece: str) -> bool:
    return piece.isspace() and "\n" not in piece


def full_stops(policy: Policy) -> tuple[int, ...]:
    """Every token with a full stop in it, and those that end an answer: a completion ends with the first of them."""
    tokenizer = policy.processor.tokenizer
    special = set(tokenizer.all_special_ids)
    stops = {i for token, i in tokenizer.get_vocab().items() if "." in token and i not in special}
    return tuple(sorted(stops.union(stop_tokens(policy))))


def completed(
    cuts: Sequence[Cut], spelling: Spelling, tokens: Sequence[Sequence[int]], processor: Any
) -> list[str]:
    """The text that follows each head, as its tokens spell it there: with its space, without special tokens."""
    return [
        _tail(made, [*spelling.ids[: made.start], *made.forced], list(own), processor)
        for made, own in zip(cuts, tokens, strict=True)
    ]


def _tail(made: Cut, before: list[int], own: list[int], processor: Any) -> str:
    """A tokenizer may give a word's space only when it sees what stands before it, so both are decoded."""
    head, whole = _decode(before, processor), _decode([*before, *own], processor)
    tail = whole[len(head) :] if whole.startswith(head) else _decode(own, processor)
    tail = without_image_token(processor, tail).rstrip()
    return tail if made.head.strip() else tail.lstrip()


def _decode(ids: Sequence[int], processor: Any) -> str:
    return processor.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

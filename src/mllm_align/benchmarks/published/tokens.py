"""Words of an English text as NLTK's `word_tokenize` gives them, for the lower-case text that CHAIR counts in.

That is Punkt's sentences and then the Penn Treebank's rules (public sed script by R. MacIntyre, in NLTK's version).
On lower-case text Punkt comes down to this: a full stop ends a sentence, and so becomes a token, unless it follows
an abbreviation or a lone letter or, before a lower-case word, a number. Checked token for token against NLTK 3.9
on the 10,342 captions of the published CHAIR files (3.10 differs in quotes and dashes); NLTK itself is not needed.
"""

from __future__ import annotations

import re
from functools import cache

# What Punkt's English model takes for abbreviations: its one-word ones; those with inner stops follow a pattern.
_ABBREVIATIONS = (
    "adm ala ariz aug ave bros calif chg cie co col colo conn corp cos ct dec dr feb fla fri ft ga gen ill inc jan jr "
    "kan ky lt ltd maj messrs mg mich minn mr mrs ms nev nov oct ok okla ore pa prof rep reps sen sep sept sr st sw "
    "tenn tues va vs vt wash wed wis yr"
)
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
_STOP = re.compile(r"(?<=[^.\s])\.(?=[?!)\";}\]*:@'({\[]|[\]\)}>\"'»”’]*(\s+\S|\s*$))")
_BEFORE = re.compile(r"[?!']?[^\s?!)\";}\]*:@'({\[]*$")  # a word to Punkt
_INNER = re.compile(r"[a-z](?:\.[a-z])+|[a-z]")
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*")

MARK = "\ue000"  # a full stop that is a token


def _rules(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(find), put) for find, put in rules)


OPENING = _rules(
    (r"([«“‘„]|`+)", r" \1 "),
    (r'^"', "`` "),
    ("``", " `` "),
    (r"([ (\[{<])(?:\"|'')", r"\1 `` "),
    (r"'(?!re|ve|ll|m|t|s|d|n)(\w)\b", r"' \1"),
)
PUNCTUATION = _rules(
    (r"([:,])([^\d])", r" \1 \2"),
    (r"([:,])$", r" \1 "),
    (r"\.{2,}", r" \g<0> "),
    (r"[;@#$%&?!*\]\[(){}<>]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    ("--", " -- "),
)
# Quotes that close, what is joined by an apostrophe, contractions.
CLOSING = _rules(
    (r"([»”’])", r" \1 "),
    (r"''|\"", " '' "),
    (r"([^' ])('[smd]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
    (r"\b(can)(not)\b", r" \1 \2 "),
    (r"\b(gim|lem)(me)\b", r" \1 \2 "),
    (r"\b(gon|wan)(na)\b", r" \1 \2 "),
    (r"\b(got)(ta)\b", r" \1 \2 "),
    (r"\b(d)('ye)\b", r" \1 \2 "),
    (r"\b(more)('n)\b", r" \1 \2 "),
    (r" ('t)(is|was)\b", r" \1 \2 "),
)


@cache
def words(text: str) -> tuple[str, ...]:
    """The tokens of a lower-case text. Pure."""
    return tuple(token for sentence in _sentences(text) for token in _treebank(sentence))


def _sentences(text: str) -> list[str]:
    """Cut where a stop, with what closes after it, ends a sentence; that stop stands alone."""
    parts, start = [], 0
    for stop in _STOP.finditer(text):
        if _ends(text, stop):
            # Marked only: what opens a quote is judged by the sign before it, which a space would hide.
            end = stop.end() + len(re.match(r"[\]\)}>\"'»”’]*", text[stop.end() :]).group())  # type: ignore[union-attr]
            parts.append(text[start : stop.start()] + MARK + text[stop.end() : end])
            start = end
    return [*parts, text[start:]]


def _ends(text: str, stop: re.Match[str]) -> bool:
    after = text[stop.end() :].lstrip("])}>\"'»”’").lstrip()
    if not after:  # the last stop of a text is always a token
        return True
    word = _BEFORE.search(text[: stop.start()]).group()  # type: ignore[union-attr]
    if word in ABBREVIATIONS or word.rpartition("-")[2] in ABBREVIATIONS or _INNER.fullmatch(word):
        return False
    return not (_NUMBER.fullmatch(word) and after[0].islower())


def _treebank(sentence: str) -> list[str]:
    text = sentence.strip()
    if not text:
        return []
    for find, put in OPENING:
        text = find.sub(put, text)
    text = text.replace(MARK, " . ")
    for find, put in PUNCTUATION:
        text = find.sub(put, text)
    text = f" {text} "
    for find, put in CLOSING:
        text = find.sub(put, text)
    return text.split()

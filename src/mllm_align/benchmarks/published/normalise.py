"""Short answers as VQA's scorers compare them: the EvalAI normaliser (MMF, LLaVA's m4c_evaluator), slips included.

In order: lower case; "," and "?" go; "'s" is set apart; punctuation goes or becomes a space; full stops go; number
words become digits; articles go; contractions get their apostrophe.
"""

from __future__ import annotations

import re
from functools import cache

PUNCTUATION = (
    ";",
    "/",
    "[",
    "]",
    '"',
    "{",
    "}",
    "(",
    ")",
    "=",
    "+",
    "\\",
    "_",
    "-",
    ">",
    "<",
    "@",
    "`",
    ",",
    "?",
    "!",
)
ARTICLES = ("a", "an", "the")
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
# Each is found without its apostrophe, and those with two without either of them.
CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're "
    "you've"
)
# What the table has beside them: as it stands, slips too.
IRREGULAR = {
    "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at", "somebody'd": "somebodyd",
    "somethingd've": "something'd've", "let's": "let's",
}  # fmt: skip
_STOP = re.compile(r"\.(?!\d)")
STOPS = 32  # as many are replaced: the official call hands a flag over as the count


@cache
def normal(answer: str) -> str:
    """The answer as it is compared. Pure."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = (NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split())
    return " ".join(contractions().get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """A sign beside a space anywhere in the text goes from all of it, any other one becomes a space."""
    out = text
    for sign in PUNCTUATION:
        beside = f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if beside else " ")
    return _STOP.sub("", out, count=STOPS)


@cache
def contractions() -> dict[str, str]:
    """What is said without an apostrophe -> with it."""
    table = dict(IRREGULAR)
    for word in CONTRACTED.split():
        places = [place for place, sign in enumerate(word) if sign == "'"]
        for place in places:
            table.setdefault(word[:place] + word[place + 1 :], word)
    return table

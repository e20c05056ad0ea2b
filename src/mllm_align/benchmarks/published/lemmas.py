"""WordNet's lemmas by NLTK, for the scorers that are defined by them; asked for only where one is used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

RESOURCES = ("averaged_perceptron_tagger_eng", "wordnet")
REMEDY = (
    "get it with: pip install 'mllm-align[evaluation]' && python -m nltk.downloader averaged_perceptron_tagger_eng "
    "wordnet punkt_tab (a machine without a network takes the folder that this writes, named by the variable NLTK_DATA)"
)
PARTS = {"J": "a", "V": "v", "N": "n", "R": "r"}


class NeedsNltk(ValueError):
    """NLTK, its tagger's weights or WordNet are not there; says how to get them."""


def tagged_lemmas(tokens: Sequence[str]) -> list[str]:
    """Each token's lemma for its part of speech in this text; a noun's where the tag is of none of four kinds.

    Raises NeedsNltk.
    """
    tag, lemma = _nltk()
    return [lemma(word, PARTS.get(kind[0], "n")) for word, kind in tag(list(tokens))]


def noun_lemmas(tokens: Sequence[str]) -> list[str]:
    """Each token's lemma as a noun. Raises NeedsNltk."""
    _, lemma = _nltk()
    return [lemma(word, "n") for word in tokens]


def nouns(text: str) -> list[str]:
    """Lemmas of the text's nouns (tags that begin with NN), case kept, in order. Raises NeedsNltk."""
    tag, lemma = _nltk()
    import nltk

    return [lemma(word, "n") for word, kind in tag(_tokens(nltk, text)) if kind.startswith("NN")]


def available() -> bool:
    """Whether NLTK and what it needs are there."""
    try:
        _nltk()
    except NeedsNltk:
        return False
    return True


@cache
def _nltk() -> tuple[Any, Any]:
    """NLTK's tagger and lemmatiser, tried once."""
    try:
        import nltk
        from nltk.stem import WordNetLemmatizer
    except ImportError:
        raise NeedsNltk(
            f"this scorer tags and lemmatises with NLTK, which is not installed; {REMEDY}"
        ) from None
    lemma = cache(WordNetLemmatizer().lemmatize)
    try:
        nltk.pos_tag(["a", "dog"])
        lemma("dogs", "n")
    except (LookupError, OSError):
        raise NeedsNltk(f"NLTK lacks its data ({' or '.join(RESOURCES)}); {REMEDY}") from None
    return nltk.pos_tag, lemma


def _tokens(nltk: Any, text: str) -> list[str]:
    try:
        return nltk.word_tokenize(text)
    except (LookupError, OSError):
        raise NeedsNltk(f"NLTK lacks its data (punkt_tab); {REMEDY}") from None

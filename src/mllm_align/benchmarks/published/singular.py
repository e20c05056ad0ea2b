"""The singular that the original CHAIR takes of every word: that of `pattern.en`, its faults included.

CHAIR (arXiv 1809.02156) singularises each token with pattern's `singularize`, which cuts an s wherever it finds one
("bus" -> "bu", "glass" -> "glas", "tennis" -> "tenni"), so a bus in the singular is never found. Scores depend on
this. Pattern (CLiPS, BSD-3; after B. Ferrer's Inflector, MIT) no longer installs, so its behaviour is written down
here: first the words that stay as they are, then whole words with a singular of their own, then endings, of which the
first that fits is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

# A word stays as it is if one of these *ends in it*: "rs" is the end of "pincers".
_SAME = (
    "advice bison bread bream breeches britches butter carp chassis cheese christmas clippers cod contretemps corps "
    "debris diabetes djinn eland electricity elk equipment flounder fruit furniture gallows garbage georgia graffiti "
    "gravel happiness headquarters herpes high-jinks homework information innings jackanapes ketchup knowledge love "
    "luggage mackerel mathematics mayonnaise measles meat mews mumps mustard news pincers pliers proceedings progress "
    "rabies research rice salmon sand scissors series shears software species swine swiss trout tuna understanding "
    "water whiting wildebeest"
)

# A word that ends in one of these and an s loses the s.
_IE = (
    "alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie goonie groupie hankie hippie "
    "hoagie hottie indie junkie laddie laramie lingerie meanie newbie nightie oldie pixie quickie reverie rookie "
    "softie sortie stoolie sweetie techie toughie valkyrie veggie weenie yuppie zombie"
)

# The end of a word and what it becomes: "women" -> "woman", "salespeople" -> "salesperson", "your" -> "ymy".
OWN = {
    "atlantes": "atlas", "atlases": "atlas", "axes": "axe", "beeves": "beef", "brethren": "brother",
    "children": "child", "corpora": "corpus", "corpuses": "corpus", "ephemerides": "ephemeris", "feet": "foot",
    "ganglia": "ganglion", "geese": "goose", "genera": "genus", "genii": "genie", "graffiti": "graffito",
    "helves": "helve", "kine": "cow", "leaves": "leaf", "loaves": "loaf", "men": "man", "mongooses": "mongoose",
    "monies": "money", "moves": "move", "mythoi": "mythos", "numena": "numen", "occipita": "occiput",
    "octopodes": "octopus", "opera": "opus", "opuses": "opus", "our": "my", "oxen": "ox", "penes": "penis",
    "penises": "penis", "people": "person", "sexes": "sex", "soliloquies": "soliloquy", "teeth": "tooth",
    "testes": "testis", "trilbys": "trilby", "turves": "turf", "zoa": "zoon",
}  # fmt: skip

ROOTS_OF_SIS = ("analy", "ba", "diagno", "parenthe", "progno", "synop", "the")
SUGARS = ("fruct", "gluc", "galact", "lact", "ket", "malt", "rib", "sacchar", "cellul")


@cache
def singular(word: str) -> str:
    """Pattern's singular of a lower-case token. Pure; "" stays ""."""
    head, dash, rest = word.partition("-")
    if dash and rest.split("-")[0] in _prepositions():
        return f"{singular(head)}-{rest}"
    if word.endswith("'"):
        return singular(word[:-1]) + "'s"
    if any(same.endswith(word) for same in _SAME.split()):
        return word
    if word.endswith("s") and word[:-1].endswith(tuple(_IE.split())):
        return word[:-1]
    for end, one in OWN.items():
        if word.endswith(end):
            return word[: -len(end)] + one
    return next((made for rule in _rules() if (made := rule(word)) is not None), word)


def _prepositions() -> tuple[str, ...]:
    """The words after which a compound's first part carries the plural ("mothers-in-law")."""
    return (
        "about", "above", "across", "after", "among", "around", "at", "athwart", "before", "behind", "below",
        "beneath", "beside", "besides", "between", "betwixt", "beyond", "but", "by", "during", "except", "for",
        "from", "in", "into", "near", "of", "off", "on", "onto", "out", "over", "since", "till", "to", "under",
        "until", "unto", "upon", "with",
    )  # fmt: skip


Rule = Callable[[str], str | None]


def _ending(pattern: str, instead: str, cut: int = 0) -> Rule:
    """Words that end as `pattern` says lose `cut` letters and get `instead`."""
    found = re.compile(f"(?:{pattern})$")
    return lambda word: word[: len(word) - cut] + instead if found.search(word) else None


def _oxen(word: str) -> str | None:
    return "ox" + word[4:] if word.startswith("oxen") else None


@cache
def _rules() -> tuple[Rule, ...]:
    """In this order. What looks like a slip (`|` in a class of letters) is one, and counts."""
    return (
        _ending(".ae", "", 1),
        _ending(".itis", ""),
        _ending(".eaux", "", 1),
        _ending("quizzes", "", 3),
        _ending("matrices", "x", 3),
        _ending("(?:ap|vert|ind)ices", "ex", 4),
        _oxen,
        _ending("(?:alias|status)es", "", 2),
        _ending("[octpvir|]i", "us", 1),
        _ending("(?:cris|ax|test)es", "is", 2),
        _ending("shoes", "", 1),
        _ending("oes", "", 2),
        _ending("buses", "", 2),
        _ending("[ml|]ice", "ouse", 3),
        _ending("(?:x|ch|ss|sh)es", "", 2),
        _ending("movies", "", 1),
        _ending(".ombies", "", 1),
        _ending("series", ""),
        _ending("(?:[^aeiouy]|qu)ies", "y", 3),
        _ending("[aeo]lves", "f", 3),
        _ending("[^d]eaves", "f", 3),
        _ending("arves", "f", 3),
        _ending("erves", "", 1),
        _ending("[nlw]ives", "fe", 3),
        _ending("[lr]ves", "f", 3),
        _ending("[aeo]ves", "", 1),
        _ending("(?:si|ti|hi)ves", "", 1),
        _ending("[^f]ves", "fe", 3),
        _ending("|".join(f"{root}ses" for root in ROOTS_OF_SIS), "is", 2),
        _ending(".opses", "is", 2),
        _ending(".yses", "is", 2),
        _ending("(?:h|d|r|o|n|b|cl|p)oses", "", 1),
        _ending("|".join(f"{sugar}ose" for sugar in SUGARS), ""),
        _ending(".oses", "is", 2),
        _ending("[ti]a", "um", 1),
        _ending("news", ""),
        _ending("s", "", 1),
    )

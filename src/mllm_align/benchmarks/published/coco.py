"""COCO objects in captions, by CHAIR's table of synonyms (arXiv 1809.02156).

Two public variants count differently, by several points on the same captions, so a score names its variant:
`original` takes pattern's singular of every token, `lemma` (OPERA, lmms-eval, less-is-more, PAI, Object HalBench
without its extraction) tags the caption with NLTK and takes WordNet's lemma for the tag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm_align.benchmarks.published import lemmas
from mllm_align.benchmarks.published.answers import read_text
from mllm_align.benchmarks.published.singular import singular
from mllm_align.benchmarks.published.tokens import words

VARIANTS = ("original", "lemma")
SYNONYMS = "synonyms.txt"

# Two words that are one thing. "stove top oven" and "home plate" stand in the table of others, and never name a class.
TOGETHER = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light",
    "fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove",
    "tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier",
    "potted plant", "laptop computer", "home plate", "train track",
)  # fmt: skip
ANIMALS = (
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "animal",
    "cub",
)
VEHICLES = ("jet", "train")


@dataclass(frozen=True)
class Table:
    """`classes`: a word or two -> its COCO class; `pairs`: two words -> what stands for them."""

    classes: Mapping[str, str]
    pairs: Mapping[str, str]

    def merged(self, tokens: Sequence[str]) -> list[str]:
        """The tokens with the pairs joined, from left to right."""
        out, at = [], 0
        while at < len(tokens):
            pair = " ".join(tokens[at : at + 2])
            if pair in self.pairs and at + 1 < len(tokens):
                out.append(self.pairs[pair])
                at += 2
            else:
                out.append(tokens[at])
                at += 1
        return out

    def named(self, tokens: Sequence[str]) -> list[tuple[str, str]]:
        """(word, class) of each merged token that names a COCO class, in order and with repetitions.

        The seat of a toilet is no chair: with a toilet in the text, no "seat" counts.
        """
        toilet = "toilet" in tokens
        return [(w, self.classes[w]) for w in tokens if w in self.classes and not (toilet and w == "seat")]


def read_table(file: Path, strip: bool = False) -> Table:
    """The table of a synonyms file: a line a class, terms apart by ", ", the first of them the class's name.

    The official script does not `strip` the terms, so two of its entries begin with a space and never match;
    Object HalBench's does, and takes every term of several words for one thing.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.name} is not in {file.parent}: CHAIR's table of synonyms is data/{SYNONYMS} of "
            "LisaAnne/Hallucination (Object HalBench: eval/data/synonyms_refine.txt of RLHF-V/RLHF-V); copy it there"
        )
    classes: dict[str, str] = {}
    for line in read_text(file).strip().split("\n"):
        terms = line.strip().split(", ")
        terms = [term.strip() for term in terms] if strip else terms
        classes |= dict.fromkeys(terms, terms[0])
    pairs = {pair: pair for pair in TOGETHER}
    if strip:
        pairs |= {term: term for term in classes if len(term.split()) >= 2}
    pairs |= {f"{age} {animal}": animal for animal in ANIMALS for age in ("baby", "adult")}
    pairs |= {f"passenger {vehicle}": vehicle for vehicle in VEHICLES}
    return Table(classes, pairs | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"})


def tokens_of(text: str, variant: str, table: Table) -> list[str]:
    """The tokens that the variant looks up: lower case, in the singular or lemmatised, pairs joined."""
    found = words(text.lower())
    if variant == "original":
        return table.merged([singular(word) for word in found])
    return table.merged(lemmas.tagged_lemmas(found))


def noun_tokens_of(text: str, table: Table) -> list[str]:
    """As Object HalBench reads the human captions: every token's lemma as a noun, without tags."""
    return table.merged(lemmas.noun_lemmas(words(text.lower())))

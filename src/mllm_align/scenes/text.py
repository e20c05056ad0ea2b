"""What people say about scenes: descriptions, questions with their answers, and the judge's question.

Every sentence made here can be read back by `oracle.parse`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mllm_align.scenes.words import (
    CONTEXT_PHRASES,
    NUMBERS,
    PLACE_PHRASES,
    PLURALS,
    Rng,
    capital,
    listed,
    noun_phrase,
    pick,
    pick_weighted,
    place_list,
    shuffled,
)
from mllm_align.scenes.world import (
    COLOURS,
    CONTEXTS,
    KINDS,
    LETTERS,
    PLACES,
    Entity,
    Scene,
    Sign,
    plausibility,
)

DESCRIBE_PROMPTS = (
    "Describe the image in detail.",
    "Describe this image.",
    "What do you see in the image?",
    "Give a detailed description of the image.",
    "What is in this picture?",
)
YES_NO_SUFFIX = " Answer with yes or no."
BRIEF_SUFFIX = " Answer briefly."
YES_NO_PROMPTS = (
    "Is there {np} in the image?",
    "Is there {np}?",
    "Can you see {np} in the image?",
    "Does the image show {np}?",
)
JUDGE_PROMPT = "Which answer is better? Question: {question} A: {a} B: {b}"
SFT_NOISE = 0.05  # share of SFT descriptions that mention a plausible absent object


@dataclass(frozen=True)
class QA:
    """A question about a scene and its answer; `kind` is one of QA_KINDS."""

    kind: str
    prompt: str
    answer: str


QA_KINDS = ("yes_no", "colour", "count", "where", "read", "short", "describe")


@dataclass(frozen=True)
class Asked:
    """What a prompt asks: the QA kind, the kind of thing, the place, and whether briefly."""

    kind: str
    subject: str | None = None
    place: int | None = None
    brief: bool = False


# ---------------------------------------------------------------- descriptions


def context_sentence(context: str, rng: Rng) -> str:
    form = pick(rng, ("This is {c}.", "The image shows {c}.", "The scene is {c}."))
    return form.format(c=CONTEXT_PHRASES[context])


def sign_sentence(sign: Sign, rng: Rng) -> str:
    forms = ("There is a sign {p} that says {t}.", "A sign {p} says {t}.", "The sign {p} reads {t}.")
    return pick(rng, forms).format(p=PLACE_PHRASES[sign.place], t=sign.text)


def _said(entity: Entity, rng: Rng) -> str:
    """The noun phrase; colour and size are sometimes left out."""
    colour = entity.colour if rng.random() < 0.85 else None
    small = entity.size == "small" and rng.random() < 0.5
    return noun_phrase(entity.kind, colour, small=small, count=entity.count)


def entity_sentence(entity: Entity, rng: Rng) -> str:
    """One sentence about all things of a kind."""
    said, places = _said(entity, rng), place_list(entity.places)
    if entity.count > 1:
        forms: tuple[str, ...] = ("There are {n}, {p}.", "{N} are {p}.", "There are {n} in the image.")
    elif rng.random() < 0.12:
        forms = ("There is {n} in the image.", "The image shows {n}.", "I can see {n}.")
    else:
        forms = ("There is {n} {p}.", "{N} is {p}.", "{P} there is {n}.", "{N} can be seen {p}.")
    return pick(rng, forms).format(n=said, N=capital(said), p=places, P=capital(places))


def pair_sentence(first: Entity, second: Entity, rng: Rng) -> str:
    """Two single things in one sentence."""
    parts = [f"{_said(e, rng)} {place_list(e.places)}" for e in (first, second)]
    return f"There is {parts[0]} and {parts[1]}."


def _order(entities: list[Entity], context: str, rng: Rng) -> list[Entity]:
    """Random, with what is usual in the context tending to come first."""
    rank = {kind: i for i, kind in enumerate(CONTEXTS[context])}
    return sorted(entities, key=lambda e: rank.get(e.kind, 5) + 6.0 * rng.random())


def free_places(scene: Scene) -> list[int]:
    return [place for place in range(len(PLACES)) if scene.at(place) is None]


def plausible_kind(scene: Scene, rng: Rng, avoid: frozenset[str] = frozenset()) -> str:
    """An absent kind that the present ones make one expect."""
    weights = {kind: value**3 for kind, value in plausibility(scene).items() if kind not in avoid}
    return pick_weighted(rng, weights)


def _with_an_error(entities: list[Entity], scene: Scene, rng: Rng) -> list[Entity]:
    """Adds a plausible thing that isn't there, in a cell that is free if one is."""
    places = free_places(scene) or list(range(len(PLACES)))
    kind, colour = plausible_kind(scene, rng), pick(rng, tuple(COLOURS))
    return [*entities, Entity(kind, colour, "normal", (pick(rng, places),))]


def _with_a_wrong_detail(entities: list[Entity], rng: Rng) -> list[Entity]:
    wrong = int(rng.random() * len(entities))
    colours = [c for c in COLOURS if c != entities[wrong].colour]
    return [replace(e, colour=pick(rng, colours)) if i == wrong else e for i, e in enumerate(entities)]


def _entity_sentences(entities: list[Entity], rng: Rng) -> Iterator[str]:
    queue = list(entities)
    while queue:
        first = queue.pop(0)
        if queue and first.count == queue[0].count == 1 and rng.random() < 0.4:
            yield pair_sentence(first, queue.pop(0), rng)
        else:
            yield entity_sentence(first, rng)


def describe(scene: Scene, rng: Rng, noise: float = 0.0, keep: float = 0.97) -> str:
    """Several sentences about the whole scene, faint things included.

    Args:
        noise: probability of a plausible absent object; a wrong colour comes in with half of it.
        keep: probability that a thing is mentioned at all (at least one is).
    """
    entities = [e for e in scene.entities if rng.random() < keep] or list(scene.entities[:1])
    if rng.random() < noise / 2:
        entities = _with_a_wrong_detail(entities, rng)
    if rng.random() < noise:
        entities = _with_an_error(entities, scene, rng)
    sentences = list(_entity_sentences(_order(entities, scene.context, rng), rng))
    if scene.sign is not None and rng.random() < keep:
        sentences.insert(int(rng.random() * (len(sentences) + 1)), sign_sentence(scene.sign, rng))
    if rng.random() < 0.85:
        sentences.insert(0, context_sentence(scene.context, rng))
    return " ".join(sentences)


# ---------------------------------------------------------------- questions


def yes_no_prompt(kind: str, *, brief: bool = True, form: int = 0) -> str:
    """The existence question; with `brief` the answer is exactly `Yes` or `No`."""
    return YES_NO_PROMPTS[form].format(np=noun_phrase(kind)) + (YES_NO_SUFFIX if brief else "")


def present_answer(entity: Entity, rng: Rng) -> str:
    """`There is a red cup at the top left.` with colour and places, as answers to questions have it."""
    said = noun_phrase(entity.kind, entity.colour, count=entity.count)
    if entity.count > 1:
        return f"there are {said}, {place_list(entity.places)}."
    return f"there is {said} {place_list(entity.places)}."


def yes_no(scene: Scene, kind: str, rng: Rng, brief: bool) -> QA:
    prompt = yes_no_prompt(kind, brief=brief, form=int(rng.random() * len(YES_NO_PROMPTS)))
    entity = scene.entity(kind)
    if brief:
        return QA("yes_no", prompt, "No" if entity is None else "Yes")
    if entity is None:
        return QA("yes_no", prompt, f"No, there is no {kind} in the image.")
    return QA("yes_no", prompt, "Yes, " + present_answer(entity, rng))


def colour(scene: Scene, entity: Entity, rng: Rng, brief: bool) -> QA:
    many = entity.count > 1
    noun = PLURALS[entity.kind] if many else entity.kind
    prompt = f"What colour {'are' if many else 'is'} the {noun}?"
    if brief:
        return QA("colour", prompt + BRIEF_SUFFIX, entity.colour)
    return QA("colour", prompt, f"The {noun} {'are' if many else 'is'} {entity.colour}.")


def count(scene: Scene, kind: str, rng: Rng, brief: bool) -> QA:
    prompt = f"How many {PLURALS[kind]} are there?"
    entity = scene.entity(kind)
    number = 0 if entity is None else entity.count
    if brief:
        return QA("count", prompt + BRIEF_SUFFIX, NUMBERS[number])
    if entity is None:
        return QA("count", prompt, f"There are no {PLURALS[kind]} in the image.")
    noun = kind if number == 1 else PLURALS[kind]
    verb = "is" if number == 1 else "are"
    return QA("count", prompt, f"There {verb} {NUMBERS[number]} {entity.colour} {noun} in the image.")


def where(scene: Scene, entity: Entity, rng: Rng, brief: bool) -> QA:
    many = entity.count > 1
    noun, verb = (PLURALS[entity.kind], "are") if many else (entity.kind, "is")
    prompt = f"Where {verb} the {noun}?"
    if brief:
        return QA("where", prompt + BRIEF_SUFFIX, listed([PLACES[p] for p in entity.places]))
    return QA("where", prompt, f"The {noun} {verb} {place_list(entity.places)}.")


def read(scene: Scene, sign: Sign, rng: Rng, brief: bool) -> QA:
    prompt = pick(rng, ("What does the sign say?", "What is written on the sign?"))
    if brief:
        return QA("read", prompt + BRIEF_SUFFIX, sign.text)
    return QA("read", prompt, f"The sign says {sign.text}.")


def at_place(scene: Scene, place: int, rng: Rng, brief: bool) -> QA:
    """What is in a cell: a thing, the sign, or nothing."""
    phrase = PLACE_PHRASES[place]
    kind = scene.at(place)
    prompt = f"What is {phrase}?"
    if brief:
        return QA("short", prompt + BRIEF_SUFFIX, kind or "nothing")
    if kind is None:
        return QA("short", prompt, f"There is nothing {phrase}.")
    entity = scene.entity(kind)
    said = noun_phrase(kind, None if entity is None else entity.colour)
    return QA("short", prompt, f"There is {said} {phrase}.")


def which_context(scene: Scene, rng: Rng, brief: bool) -> QA:
    prompt = "What place is this?"
    if brief:
        return QA("short", prompt + BRIEF_SUFFIX, scene.context)
    return QA("short", prompt, f"This is {CONTEXT_PHRASES[scene.context]}.")


def absent_kind(scene: Scene, rng: Rng) -> str:
    """Half of the time one that the present kinds make one expect, half of the time any."""
    if rng.random() < 0.5:
        return plausible_kind(scene, rng)
    return pick(rng, [kind for kind in KINDS if kind not in scene.kinds])


def existence(scene: Scene, rng: Rng, number: int, brief_share: float = 0.6) -> list[QA]:
    """Existence questions, yes and no in balance, about different kinds."""
    present = shuffled(rng, sorted(scene.kinds))
    asked: list[QA] = []
    seen: set[str] = set()
    first_yes = rng.random() < 0.5
    for i in range(number):
        kind = present.pop() if present and (i % 2 == 0) == first_yes else absent_kind(scene, rng)
        if kind not in seen:
            seen.add(kind)
            asked.append(yes_no(scene, kind, rng, rng.random() < brief_share))
    return asked


def questions(scene: Scene, rng: Rng, *, existence_questions: int = 3) -> list[QA]:
    """A mixed bag: existence, colour, count, where, read (if there is a sign), a cell, the context."""
    entities = scene.entities
    asked = existence(scene, rng, existence_questions)
    asked.append(colour(scene, pick(rng, entities), rng, rng.random() < 0.5))
    many = [e.kind for e in entities if e.count > 1]
    counted = pick(rng, many) if many and rng.random() < 0.6 else pick(rng, entities).kind
    if rng.random() < 0.12:
        counted = absent_kind(scene, rng)
    asked.append(count(scene, counted, rng, rng.random() < 0.5))
    asked.append(where(scene, pick(rng, entities), rng, rng.random() < 0.5))
    if rng.random() < 0.2:
        asked.append(which_context(scene, rng, rng.random() < 0.5))
    else:
        place = pick(rng, entities).places[0] if rng.random() < 0.75 else int(rng.random() * len(PLACES))
        asked.append(at_place(scene, place, rng, rng.random() < 0.5))
    if scene.sign is not None:
        asked.append(read(scene, scene.sign, rng, rng.random() < 0.5))
    return shuffled(rng, asked)


# ---------------------------------------------------------------- reading a prompt back

_KIND_OF_NOUN = {
    **{plural: kind for kind, plural in PLURALS.items()},
    **{k: k for k in KINDS},
    "sign": "sign",
}
_PLACE_OF_PHRASE = {phrase: i for i, phrase in enumerate(PLACE_PHRASES)}
_YES_NO = re.compile(r"^(?:is there|can you see|does the image show) an? (\w+)(?: in the image)?\?")
_ABOUT = {
    "colour": re.compile(r"^what colou?r (?:is|are) the (\w+)\?"),
    "count": re.compile(r"^how many (\w+) are there"),
    "where": re.compile(r"^where (?:is|are) the (\w+)\?"),
}
_AT = re.compile(rf"^what is ({'|'.join(sorted(PLACE_PHRASES, key=len, reverse=True))})\?")


def asked(prompt: str) -> Asked | None:
    """What a prompt of this world asks; None for any other prompt."""
    text = prompt.strip().lower()
    brief = text.endswith((YES_NO_SUFFIX.lower(), BRIEF_SUFFIX.lower()))
    if prompt.strip() in DESCRIBE_PROMPTS:
        return Asked("describe")
    if found := _YES_NO.match(text):
        return Asked("yes_no", _KIND_OF_NOUN.get(found[1]), brief=brief)
    for kind, pattern in _ABOUT.items():
        if found := pattern.match(text):
            return Asked(kind, _KIND_OF_NOUN.get(found[1]), brief=brief)
    if found := _AT.match(text):
        return Asked("short", place=_PLACE_OF_PHRASE[found[1]], brief=brief)
    if text.startswith("what place is this"):
        return Asked("short", "context", brief=brief)
    if text.startswith(("what does the sign say", "what is written on the sign")):
        return Asked("read", "sign", brief=brief)
    return None


def corpus_words() -> list[str]:
    """Every word, number, mark and sign letter the world can say or be asked, sorted: a closed vocabulary."""
    templates = [
        *DESCRIBE_PROMPTS, *YES_NO_PROMPTS, YES_NO_SUFFIX, BRIEF_SUFFIX, JUDGE_PROMPT, *PLACE_PHRASES,
        *CONTEXT_PHRASES.values(), *PLURALS, *PLURALS.values(), *COLOURS, *NUMBERS,
        "This is The image shows The scene is There is a sign that says A sign says The sign reads",
        "There are two small in the image. I can see an can be seen. Yes, there is No, there is no",
        "What colour is are the sign? How many are there? Where is are the? What does the sign say?",
        "What is written on the sign? There is nothing. What place is this? A B nothing and In On At",
        "One Two Three An",
    ]  # fmt: skip
    plain = re.sub(r"{\w+}", "", " ".join(templates))
    found = set(re.findall(r"[A-Za-z]+|[.,:?]", plain))
    return sorted(found | set(LETTERS))

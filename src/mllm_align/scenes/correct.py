"""Segment-wise repair of a response, as RLHF-V's annotators did: false parts mended, the rest left alone.

A wrong detail is replaced by the true one. A thing that isn't there becomes one that is there and was left
out, or its clause goes. Where a sentence can't be mended word by word it is said anew.
"""

from __future__ import annotations

from mllm_align.scenes.answers import true_answer
from mllm_align.scenes.edit import Edit, apply, noun_form, number_edits, replaced
from mllm_align.scenes.oracle import Claim, check, claims_of, is_true, judge, mentioned_objects, score
from mllm_align.scenes.parse import Mention, Sentence, sentences
from mllm_align.scenes.text import asked, context_sentence
from mllm_align.scenes.words import (
    NUMBERS,
    PLACE_PHRASES,
    Rng,
    capital,
    listed,
    noun_phrase,
    pick,
    place_list,
)
from mllm_align.scenes.world import Entity, Scene

SUBSTITUTE_SHARE = 0.5  # of the things that aren't there become a left-out one, where there is one


def correct(text: str, scene: Scene, rng: Rng, prompt: str | None = None) -> str:
    """The text with each false segment repaired; unchanged if nothing in it is false.

    What it returns claims nothing false. It is the right answer itself where an answer to a question can't be
    mended, and a sentence naming the context where nothing of a description is left.
    """
    if not _false(text, scene, prompt):
        return text
    question = asked(prompt) if prompt is not None else None
    if question is not None and question.kind != "describe":
        mended = "" if question.brief else _mend(text, scene, rng)
        if is_true(mended, scene, prompt) and score(mended, scene, prompt) >= 1.0:  # it still answers
            return mended
        return true_answer(scene, question, rng) or context_sentence(scene.context, rng)
    return _mend(text, scene, rng) or context_sentence(scene.context, rng)


def _false(text: str, scene: Scene, prompt: str | None = None) -> list[Claim]:
    return [claim for claim, truth in check(text, scene, prompt) if truth is False]


def _mend(text: str, scene: Scene, rng: Rng) -> str:
    spoken = {m.kind for m in mentioned_objects(text)}
    parts: list[str] = []
    for sentence in sentences(text):
        said = text[slice(*sentence.span)]
        if _false(said, scene):
            said = _mend_sentence(said, scene, rng, spoken)
        if said:
            parts.append(said)
    return " ".join(parts)


def _mend_sentence(said: str, scene: Scene, rng: Rng, spoken: set[str]) -> str:
    """Word by word if that makes it true, else anew from what is true in it, else nothing."""
    sentence = sentences(said)[0]
    edits = _word_edits(said, sentence, scene, rng, spoken)
    if edits is not None:
        mended = apply(said, edits)
        if not _false(mended, scene):
            return mended
    return _said_anew(sentence, scene, rng)


def _word_edits(said: str, sentence: Sentence, scene: Scene, rng: Rng, spoken: set[str]) -> list[Edit] | None:
    """Edits that mend a sentence; None if words alone can't."""
    edits: list[Edit] = []
    for mention in sentence.mentions:
        entity = scene.entity(mention.kind)
        if mention.negated:
            if scene.entity(mention.kind) is not None:
                return None
        elif entity is not None:
            more = _details(said, mention, entity)
            if more is None:
                return None
            edits += more
        elif mention.kind != "sign":
            left_out = _left_out(mention, scene, spoken)
            if not left_out or rng.random() >= SUBSTITUTE_SHARE:
                return None
            instead = pick(rng, left_out)
            spoken.add(instead.kind)
            edits += _substitute(said, mention, instead)
    return edits + _simple_edits(said, sentence, scene)


def _simple_edits(said: str, sentence: Sentence, scene: Scene) -> list[Edit]:
    """Context, letters and the sign's place: one word for another."""
    edits = []
    for claim in claims_of(sentence):
        if judge(claim, scene) is not False:
            continue
        if claim.kind == "context":
            edits.append(replaced("context", said, claim.span, scene.context))
        elif claim.kind == "text" and scene.sign is not None:
            edits.append(replaced("text", said, claim.span, scene.sign.text))
        elif claim.kind == "position" and claim.subject == "sign" and scene.sign is not None:
            edits.append(replaced("position", said, claim.span, PLACE_PHRASES[scene.sign.place]))
    return edits


def _details(said: str, mention: Mention, entity: Entity) -> list[Edit] | None:
    """Colour, size, number and places of a thing that is there; None if the number of places must change."""
    edits: list[Edit] = []
    if mention.colour is not None and mention.colour[0] != entity.colour:
        edits.append(replaced("attribute", said, mention.colour[1], entity.colour))
    if mention.small is not None and entity.size != "small":
        edits.append(replaced("attribute", said, mention.small, ""))
    if mention.count is not None and mention.count[0] != entity.count:
        if mention.places or entity.count >= len(NUMBERS):
            return None
        edits += number_edits(said, mention, entity.count)
    right = {place for place, _ in mention.places} & set(entity.places)
    unsaid = [place for place in entity.places if place not in right]
    for place, span in mention.places:
        if place not in entity.places:
            if not unsaid:
                return None
            edits.append(replaced("position", said, span, PLACE_PHRASES[unsaid.pop(0)]))
    return edits


def _left_out(mention: Mention, scene: Scene, spoken: set[str]) -> list[Entity]:
    """Things that the text doesn't mention and that fit into the mention's place."""
    places, number = len(mention.places), 1 if mention.count is None else mention.count[0]
    return [
        entity
        for entity in scene.entities
        if entity.kind not in spoken
        and entity.count == number
        and (entity.count > 1) == mention.plural
        and places in (0, entity.count)
    ]


def _substitute(said: str, mention: Mention, entity: Entity) -> list[Edit]:
    edits = [replaced("object", said, mention.noun, noun_form(entity.kind, like=mention))]
    if mention.colour is not None:
        edits.append(replaced("attribute", said, mention.colour[1], entity.colour))
    if mention.small is not None and entity.size != "small":
        edits.append(replaced("attribute", said, mention.small, ""))
    for (_, span), place in zip(mention.places, entity.places, strict=False):
        edits.append(replaced("position", said, span, PLACE_PHRASES[place]))
    return edits


def _said_anew(sentence: Sentence, scene: Scene, rng: Rng) -> str:
    """The sentence in plain words, with what is true of what it mentions; empty if nothing is."""
    if sentence.context is not None:
        return context_sentence(scene.context, rng)
    if scene.sign is not None and (sentence.sign_text or any(m.kind == "sign" for m in sentence.mentions)):
        return f"There is a sign {PLACE_PHRASES[scene.sign.place]} that says {scene.sign.text}."
    kinds = list(dict.fromkeys(m.kind for m in sentence.mentions))
    kinds += [kind for place, _ in sentence.nothing if place is not None and (kind := scene.at(place))]
    entities = [entity for kind in kinds if (entity := scene.entity(kind)) is not None]
    phrases = [_phrase(entity, bare=len(entities) > 1) for entity in entities]
    verb = "are" if entities and entities[0].count > 1 else "is"
    return capital(f"there {verb} {listed(phrases)}.") if phrases else ""


def _phrase(entity: Entity, bare: bool) -> str:
    said = noun_phrase(entity.kind, entity.colour, count=entity.count)
    if entity.count > 1 and bare:
        return said  # its places would run into the next phrase
    comma = "," if entity.count > 1 else ""
    return f"{said}{comma} {place_list(entity.places)}"

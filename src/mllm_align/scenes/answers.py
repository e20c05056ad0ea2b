"""The right answer to any question of this world, in the words the world uses."""

from __future__ import annotations

from mllm_align.scenes.text import (
    Asked,
    at_place,
    colour,
    context_sentence,
    count,
    read,
    where,
    which_context,
    yes_no,
)
from mllm_align.scenes.words import Rng
from mllm_align.scenes.world import Scene


def true_answer(scene: Scene, question: Asked, rng: Rng) -> str | None:
    """What should have been said; None where the question presumes something that isn't there.

    For a description it is only its first sentence ("This is a kitchen.").
    """
    brief = question.brief
    if question.kind == "describe" or question.subject is None:
        if question.place is not None:
            return at_place(scene, question.place, rng, brief).answer
        return context_sentence(scene.context, rng)
    if question.subject == "context":
        return which_context(scene, rng, brief).answer
    if question.subject == "sign":
        return None if scene.sign is None else read(scene, scene.sign, rng, brief).answer
    if question.kind == "yes_no":
        return yes_no(scene, question.subject, rng, brief).answer
    if question.kind == "count":
        return count(scene, question.subject, rng, brief).answer
    entity = scene.entity(question.subject)
    if entity is None:
        return None
    return (colour if question.kind == "colour" else where)(scene, entity, rng, brief).answer

"""All facts of a scene in other words and in another order."""

from __future__ import annotations

from mllm_align.scenes.text import context_sentence, sign_sentence
from mllm_align.scenes.words import Rng, capital, noun_phrase, pick, place_list, shuffled
from mllm_align.scenes.world import Scene

ONE = ("There is {n} {p}.", "{N} is {p}.", "{P} there is {n}.", "{N} can be seen {p}.")
MANY = ("There are {n}, {p}.", "{N} are {p}.", "{P} there are {n}.")


def say_all(scene: Scene, rng: Rng) -> str:
    said = [context_sentence(scene.context, rng)]
    said += [sign_sentence(scene.sign, rng)] if scene.sign is not None else []
    for entity in scene.entities:
        noun = noun_phrase(entity.kind, entity.colour, small=entity.size == "small", count=entity.count)
        places = place_list(entity.places)
        form = pick(rng, ONE if entity.count == 1 else MANY)
        said.append(form.format(n=noun, N=capital(noun), p=places, P=capital(places)))
    return " ".join(shuffled(rng, said))

"""Preference sets about scenes, each made the way a published one was made.

- `povid`: an instruction-tuning answer against a version with plausible errors (POVID, arXiv 2402.11411).
- `rlhf_v`: a model's response, corrected segment by segment, against the response (RLHF-V, 2312.00849).
- `vlfeedback`: the best against the worst of several models' responses, as an annotator saw them
  (VLFeedback, 2312.10665); the annotator is the oracle with noise.
- `llava_rlhf`: the better against the worse of two responses of one model (LLaVA-RLHF, 2309.14525).
- `llava_instruct`: prompts with an answer and no pair, for samplers that start from an answer (LLaVA, 2304.08485).

All draw their images from the preference split, or from the `split` they are given (`reward_heldout` holds what
reward models and annotators are tested on): `seed` orders the same POOL of scenes, `size` cuts it, so a
smaller set is a part of a larger one of the same seed. A scene's question and answer depend on the scene
alone.
A prompt that gives no pair is counted in the report and the next one takes its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from mllm_align.records import Example, Group, Preference, Response
from mllm_align.scenes.correct import correct
from mllm_align.scenes.corrupt import corrupt
from mllm_align.scenes.draw import SceneImage
from mllm_align.scenes.oracle import check, score
from mllm_align.scenes.tasks import Item, describe_item, question_items
from mllm_align.scenes.text import QA_KINDS, SFT_NOISE, asked
from mllm_align.scenes.words import pick
from mllm_align.scenes.world import Scene, rng_for, sample_scene

POOL = 20_000  # scenes that a preference set is drawn from
CHUNK = 128  # prompts answered at a time
DESCRIBE_SHARE = (
    0.7  # of the prompts ask for a description, the others a question with a full-sentence answer
)
MOST_ERRORS = 3  # in a corrupted description

Built = tuple[list[Group], dict[str, Any]]
Pair = Group | str  # or why there is none


# ---------------------------------------------------------------- examples


def scene_order(seed: int, pool: int = POOL) -> list[int]:
    """The scenes' indices in the order of a seed."""
    return [int(i) for i in rng_for("scenes-v1", "subsample", seed).permutation(pool)]


def scene_of(example: Example) -> Scene:
    """The scene behind an Example's image."""
    return Scene.from_json(example.meta["scene"])


def _example(scene: Scene, item: Item) -> Example:
    prompt, answer, task = item
    return Example(scene.id, SceneImage(scene), prompt, answer, {"scene": scene.to_json(), "task": task})


def _instruction(index: int, noise: float = SFT_NOISE, split: str = "preference") -> Example:
    """An instruction-tuning example: a description, or a question that is answered in a sentence."""
    scene = sample_scene(split, index)
    rng = rng_for("scenes-v1", "instruction", split, index)
    item = describe_item(scene, rng, noise)
    if rng.random() >= DESCRIBE_SHARE:
        item = pick(rng, [i for i in question_items(scene, rng) if not _is_brief(i[0])] or [item])
    return _example(scene, item)


def _is_brief(prompt: str) -> bool:
    question = asked(prompt)
    return question is not None and question.brief


def examples(
    split: str, size: int, seed: int = 0, tasks: Collection[str] = QA_KINDS, noise: float = 0.0
) -> list[Example]:
    """`size` Examples of a split, one a scene, with reference answers, for samplers and benchmarks.

    Args:
        tasks: the QA kinds to draw from, in equal parts as far as a scene offers them.
        noise: share of reference descriptions that mention a plausible absent object.
    """
    if unknown := set(tasks) - set(QA_KINDS):
        raise ValueError(f"tasks={sorted(unknown)}: the scenes world asks {', '.join(QA_KINDS)}")
    found: list[Example] = []
    for index in scene_order(seed, max(POOL, 4 * size)):
        if len(found) == size:
            break
        scene = sample_scene(split, index)
        rng = rng_for("scenes-v1", "examples", split, index)
        items = [describe_item(scene, rng, noise), *question_items(scene, rng)]
        offered = [task for task in QA_KINDS if task in tasks and any(item[2] == task for item in items)]
        if offered:
            task = pick(rng, offered)
            found.append(_example(scene, pick(rng, [item for item in items if item[2] == task])))
    return found


# ---------------------------------------------------------------- collecting


def _collect(size: int, seed: int, split: str, pairs: Callable[[Sequence[Example]], Iterable[Pair]]) -> Built:
    """Groups from successive prompts until there are `size`; what gave none is counted by its reason."""
    groups: list[Group] = []
    skipped: Counter[str] = Counter()
    prompts = (_instruction(index, split=split) for index in scene_order(seed))
    while len(groups) < size:
        chunk = list(islice(prompts, min(CHUNK, size)))
        if not chunk:
            raise ValueError(
                f"size={size}: only {len(groups)} pairs came from the pool of {POOL} prompts "
                f"(without a pair: {dict(skipped)}); ask for fewer"
            )
        for pair in pairs(chunk):
            if len(groups) == size:
                break
            if isinstance(pair, str):
                skipped[pair] += 1
            else:
                groups.append(pair)
    return groups, {"prompts": len(groups) + skipped.total(), "without_a_pair": dict(skipped)}


def _pair(name: str, example: Example, chosen: Response, rejected: Response) -> Pair:
    """The Group, chosen response first; or why these two make none."""
    if not chosen.text.strip() or not rejected.text.strip():
        return "empty response"
    if chosen.text == rejected.text:
        return "equal responses"
    named = replace(example, id=f"{name}/{example.id}")
    return Group(named, (chosen, rejected), (Preference(0, 1),))


# ---------------------------------------------------------------- the four constructions


def povid(size: int = 600, seed: int = 0, split: str = "preference") -> Built:
    """Instruction-tuning answers, and the same with plausible errors.

    A description gets one to MOST_ERRORS errors, an answer to a question one.
    """
    return _collect(size, seed, split, lambda prompts: map(_corrupted, prompts))


def _corrupted(example: Example) -> Pair:
    answer = example.reference or ""
    scene, rng = scene_of(example), rng_for("scenes-v1", "povid", example.id)
    errors = 1 + int(rng.random() * MOST_ERRORS) if example.meta["task"] == "describe" else 1
    false = corrupt(answer, scene, rng, n=errors, prompt=example.prompt, grow=False)
    if not false.edits:
        return "nothing to corrupt"
    return _pair("povid", example, Response(answer), Response(false.text, "corrupted"))


def rlhf_v(
    size: int = 600,
    seed: int = 0,
    model: str = "asset://scenes/base",
    temperature: float = 0.7,
    max_new_tokens: int = 128,
    device: str = "cpu",
    split: str = "preference",
) -> Built:
    """A model's responses against the same with each false segment repaired.

    Responses without an error give no pair and are passed over.
    """
    answer = _answerer(model, temperature, max_new_tokens, device)

    def pairs(prompts: Sequence[Example]) -> Iterator[Pair]:
        for example, responses in zip(prompts, answer(prompts, 1, 0), strict=True):
            yield _corrected(example, responses[0])

    return _collect(size, seed, split, pairs)


def _corrected(example: Example, response: Response) -> Pair:
    scene, rng = scene_of(example), rng_for("scenes-v1", "rlhf_v", example.id)
    truths = [truth for _, truth in check(response.text, scene, example.prompt)]
    if False not in truths:
        return "no error" if truths else "no claim"
    repaired = correct(response.text, scene, rng, example.prompt)
    return _pair("rlhf_v", example, Response(repaired, "corrected"), response)


def vlfeedback(
    size: int = 600,
    seed: int = 0,
    models: Mapping[str, str] | None = None,
    pool: int = 4,
    noise: float = 0.15,
    temperature: float = 0.9,
    max_new_tokens: int = 128,
    device: str = "cpu",
    split: str = "preference",
) -> Built:
    """The best against the worst of `pool` responses by several models, as a noisy annotator scores them.

    Args:
        models: name and path of each; every one answers a prompt once before any answers it twice.
        noise: standard deviation of the annotator's error, in units of `scenes.oracle.score`.
    """
    paths = dict(models or {name: f"asset://scenes/{name}" for name in ("base", "large", "weak")})
    answerers = {
        name: _answerer(path, temperature, max_new_tokens, device, name) for name, path in paths.items()
    }

    def pairs(prompts: Sequence[Example]) -> Iterator[Pair]:
        for example, responses in zip(prompts, _pool(prompts, answerers, pool), strict=True):
            yield _ranked("vlfeedback", example, responses, noise)

    return _collect(size, seed, split, pairs)


def llava_rlhf(
    size: int = 600,
    seed: int = 0,
    model: str = "asset://scenes/base",
    noise: float = 0.15,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    device: str = "cpu",
    split: str = "preference",
) -> Built:
    """The better against the worse of two responses of one model, as a noisy annotator scores them."""
    answer = _answerer(model, temperature, max_new_tokens, device)

    def pairs(prompts: Sequence[Example]) -> Iterator[Pair]:
        for example, responses in zip(prompts, answer(prompts, 2, 0), strict=True):
            yield _ranked("llava_rlhf", example, responses, noise)

    return _collect(size, seed, split, pairs)


def llava_instruct(size: int = 600, seed: int = 0, split: str = "preference") -> Built:
    """Instruction-tuning prompts with their answers, as `povid` starts from them; no responses, no pairs."""
    if size > POOL:
        raise ValueError(f"size={size}: the pool has {POOL} prompts; ask for fewer")
    found = [_instruction(index, split=split) for index in scene_order(seed)[:size]]
    groups = [Group(replace(example, id=f"llava_instruct/{example.id}"), ()) for example in found]
    return groups, {"prompts": len(groups), "without_a_pair": {}}


# ---------------------------------------------------------------- answering and ranking

Answerer = Callable[[Sequence[Example], int, int], list[tuple[Response, ...]]]


def _answerer(
    path: str, temperature: float, max_new_tokens: int, device: str, name: str | None = None
) -> Answerer:
    """(prompts, k, first draw) -> k responses to each prompt, drawn by the prompt's id alone."""
    from mllm_align.compute.decoding import generate
    from mllm_align.models.load import load_policy

    policy = load_policy(path, device=device, name=name)

    def answer(prompts: Sequence[Example], k: int, first_draw: int) -> list[tuple[Response, ...]]:
        drawn = generate(
            policy,
            prompts,
            k=k,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=0,
            first_draw=first_draw,
        )
        # A dataset is text: whoever is trained on it may have another tokenizer than who wrote it.
        return [tuple(replace(r, token_ids=None) for r in responses) for responses in drawn]

    return answer


def _pool(
    prompts: Sequence[Example], answerers: Mapping[str, Answerer], pool: int
) -> list[tuple[Response, ...]]:
    """`pool` responses to each prompt by models drawn for it."""
    wanted = [_draw_models(example, list(answerers), pool) for example in prompts]
    responses: list[list[Response]] = [[] for _ in prompts]
    for name, answer in answerers.items():
        for draw in range(max(count[name] for count in wanted)):
            rows = [i for i, count in enumerate(wanted) if count[name] > draw]
            for i, (response,) in zip(rows, answer([prompts[i] for i in rows], 1, draw), strict=True):
                responses[i].append(response)
    return [tuple(r) for r in responses]


def _draw_models(example: Example, names: list[str], pool: int) -> Counter[str]:
    """How often each model answers this prompt: rounds of all in random order, cut at `pool`."""
    rng = rng_for("scenes-v1", "pool", example.id)
    rounds = -(-pool // len(names))
    return Counter([name for _ in range(rounds) for name in rng.permutation(names).tolist()][:pool])


def noisy_scores(name: str, example: Example, responses: Sequence[Response], noise: float) -> list[float]:
    """The oracle's scores, each with a normal error fixed by (name, example, place in the list, text)."""
    scene = scene_of(example)
    return [
        score(r.text, scene, example.prompt)
        + noise * float(rng_for("scenes-v1", name, example.id, i, r.text).standard_normal())
        for i, r in enumerate(responses)
    ]


def _ranked(name: str, example: Example, responses: Sequence[Response], noise: float) -> Pair:
    scores = noisy_scores(name, example, responses, noise)
    scored = sorted(
        (replace(r, score=s) for r, s in zip(responses, scores, strict=True)), key=lambda r: r.score or 0.0
    )
    return _pair(name, example, scored[-1], scored[0])

"""VLFeedback with its best answers against the same, corrupted by a language model (Table 5 of arXiv 2407.02477).

Prompts are taken in the order of the draw until there are `size` pairs, a few at a time; what the model refuses,
does not finish or gives back unchanged is counted, and the next prompt takes its place. Each answer is kept in the
client's cache.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

from mllm_align.api.client import Client, Question, Reply, Terms
from mllm_align.datasets.errors import BadDataError
from mllm_align.datasets.fields import PLACEHOLDER
from mllm_align.datasets.published.collect import Built, Source, ordered, told
from mllm_align.datasets.published.vlfeedback import ASPECTS, VLFeedback
from mllm_align.datasets.reading import too_few
from mllm_align.records import Group, Preference, Response

log = logging.getLogger(__name__)

CHUNK = 64  # questions asked before it is seen how many are still wanted


def vlfeedback_corrupted(
    *,
    template: str,
    base_url: str,
    model: str | None,
    settings: Mapping[str, Any],
    terms: Terms,
    show_image: bool = False,
    aspects: Sequence[str] = ASPECTS,
    prompts: str | None = None,
    chosen_by: str | None = None,
    **source: Unpack[Source],
) -> Built:
    """Groups (best answer, corrupted answer). `template` has the fields {question} and {answer}.

    Raises BadDataError for data that can't be used, ApiError and SpendingCapReached as the Client does.
    """
    for name in ("{question}", "{answer}"):
        if name not in template:
            raise BadDataError(f"dataset.build.template has no {name}. Put it where the text should stand.")
    client = Client(base_url=base_url, model=model, settings=settings, terms=terms)
    form = VLFeedback("best", tuple(aspects), 0.0, prompts, chosen_by)
    groups, tally = ordered("vlfeedback", form, form.hint, **source)
    size = source.get("size")
    wanted = len(groups) if size is None else size
    made, without = _corrupt(client, groups, wanted, template, show_image)
    if size is not None and len(made) < size:
        raise too_few(size, len(made), source["path"])
    report = told(tally, len(made))
    report["corruption"] = {"model": model, "without_a_pair": dict(without), **client.report()}
    return made, report


def _corrupt(
    client: Client, groups: Sequence[Group], wanted: int, template: str, show_image: bool
) -> tuple[list[Group], Counter[str]]:
    made: list[Group] = []
    without: Counter[str] = Counter()
    at = 0
    while len(made) < wanted and at < len(groups):
        chunk = groups[at : at + min(CHUNK, wanted - len(made))]
        at += len(chunk)
        questions = [_question(group, template, show_image) for group in chunk]
        for group, reply in zip(chunk, client.ask(questions), strict=True):
            pair = _pair(group, reply, str(client.model))
            if isinstance(pair, str):
                without[pair] += 1
            else:
                made.append(pair)
        log.info("corrupted answers: %d of %d", len(made), wanted)
    return made, without


def _question(group: Group, template: str, show_image: bool) -> Question:
    example = group.example
    texts = {"{question}": example.prompt, "{answer}": group.responses[0].text}
    text = re.sub("|".join(map(re.escape, texts)), lambda field: texts[field.group()], template)
    return Question(text, example.image if show_image else None, example.id)


def _pair(group: Group, reply: Reply, model: str) -> Group | str:
    """The Group, or why the reply makes none."""
    chosen, text = group.responses[0], reply.text.strip()
    if reply.refused:
        return "refused by the endpoint"
    if not text or PLACEHOLDER in text:
        return "no answer"
    if reply.finish == "length":
        return "cut at max_tokens"
    if text == chosen.text:
        return "given back unchanged"
    rejected = Response(text, "corrupted", provenance={"by": model})
    return replace(group, responses=(chosen, rejected), preferences=(Preference(0, 1),))

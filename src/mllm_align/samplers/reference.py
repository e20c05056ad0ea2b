"""The answer that a sampler starts from: y+ of the paper."""

from __future__ import annotations

from mllm_align.records import Group, Response


def reference_answer(group: Group) -> Response:
    """The chosen response of the first preference; else the example's reference answer.

    Raises ValueError naming the example where there is neither.
    """
    if group.preferences:
        return group.responses[group.preferences[0].chosen]
    if group.example.reference:
        return Response(group.example.reference)
    raise ValueError(
        f"example {group.example.id}: it has neither a preference nor a reference answer to start from; choose a "
        "dataset with chosen responses or answers, or sampler=policy, which needs prompts only"
    )

"""What an annotator makes of Groups, in one call."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_align.annotators.base import Annotator, fill
from mllm_align.records import Group


def annotated(annotator: Annotator, groups: Sequence[Group]) -> list[Group]:
    """The Groups with the annotator's scores and preferences."""
    return fill(groups, annotator.judge(groups), annotator.pairs)

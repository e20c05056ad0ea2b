"""Which tokens of a pair differ: the segment weights of RLHF-V's DDPO (Yu et al. 2024, arXiv 2312.00849).

The rule is that of the authors' later code (RLAIF-V): blocks of at least `SHORTEST_BLOCK` tokens that both
responses share are unchanged, and what lies between two of them is a changed segment if both sides have tokens
there; a pure insertion or deletion counts as unchanged.

Two departures. The code compares prompt and response together, so that a response's first tokens join the
prompt's long match; here a shared stand-in of the responses' length takes the prompt's place, which aligns them
in the same way and costs less than an image's tokens. And no token counts as too frequent to compare (difflib's
`autojunk`, which the code leaves on, acts on 200 tokens and more, and depends on the prompt's length).
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

SHORTEST_BLOCK = 3


def segment_weights(
    chosen: Sequence[int], rejected: Sequence[int], *, weight: float
) -> tuple[list[float], list[float]]:
    """`weight` for each token of a changed segment, 1 elsewhere: token ids of a pair -> weights of both.

    Raises ValueError for a weight below 0.
    """
    if weight < 0:
        raise ValueError(f"alignment.token_weights.weight is {weight}; choose 0 or more (1 changes nothing)")
    weights = ([1.0] * len(chosen), [1.0] * len(rejected))
    for spans in changed_segments(chosen, rejected):
        for values, (start, end) in zip(weights, spans, strict=True):
            values[start:end] = [weight] * (end - start)
    return weights


def changed_segments(
    chosen: Sequence[int], rejected: Sequence[int]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(start, end) of each changed segment in `chosen`, and of what stands for it in `rejected`."""
    prompt = [-1 - i for i in range(max(len(chosen), len(rejected)) + SHORTEST_BLOCK)]  # no token is below 0
    lead = len(prompt)
    # The order of the two decides between equally long matches; the authors' is (rejected, chosen).
    matcher = SequenceMatcher(None, [*prompt, *rejected], [*prompt, *chosen], autojunk=False)
    segments = []
    place = (lead, lead)  # in rejected, in chosen: where the last shared block ended
    last = (lead + len(rejected), lead + len(chosen), 0)
    blocks = [tuple(b) for b in matcher.get_matching_blocks() if b.size >= SHORTEST_BLOCK]
    for theirs, ours, size in [*blocks, last]:
        if theirs > place[0] and ours > place[1]:
            segments.append(((place[1] - lead, ours - lead), (place[0] - lead, theirs - lead)))
        place = (theirs + size, ours + size)
    return segments

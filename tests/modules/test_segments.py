"""Changed segments and their weights, worked by hand: letters stand for tokens."""

from __future__ import annotations

import pytest

from mllm_align.modules.segments import changed_segments, segment_weights


def marked(chosen: str, rejected: str) -> tuple[str, str]:
    """The two texts with a # in place of every changed token."""
    weights = segment_weights([ord(c) for c in chosen], [ord(c) for c in rejected], weight=5.0)
    return tuple(
        "".join("#" if w == 5.0 else c for c, w in zip(text, side, strict=True))
        for text, side in zip((chosen, rejected), weights, strict=True)
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("abcXdef", "abcYdef", ("abc#def", "abc#def")),  # a substitution between shared blocks
        ("abcXYdef", "abcZdef", ("abc##def", "abc#def")),  # of another length
        ("abcdef", "abcYdef", ("abcdef", "abcYdef")),  # a pure insertion counts on neither side
        ("abcXdef", "abcdef", ("abcXdef", "abcdef")),  # nor does a pure deletion
        ("abcXdeYfgh", "abcZdeWfgh", ("abc####fgh", "abc####fgh")),  # "de" is too short to be shared
        ("abcXdefYghi", "abcZdefWghi", ("abc#def#ghi", "abc#def#ghi")),  # "def" is long enough
        ("aXbcd", "aYbcd", ("a#bcd", "a#bcd")),  # the first token goes on from the shared prompt
        ("Xbcd", "Ybcd", ("#bcd", "#bcd")),
        ("abcX.", "abcY.", ("abc##", "abc##")),  # one shared token at the end is no block
        ("abc", "xyz", ("###", "###")),
        ("abc", "abc", ("abc", "abc")),
        ("abc", "abcdef", ("abc", "abcdef")),
    ],
)
def test_segments_by_hand(chosen, rejected, expected) -> None:
    assert marked(chosen, rejected) == expected


def test_spans_of_the_chosen_come_first() -> None:
    assert changed_segments([1, 2, 3, 9, 9, 4, 5, 6], [1, 2, 3, 8, 4, 5, 6]) == [((3, 5), (3, 4))]


def test_the_weights() -> None:
    chosen, rejected = segment_weights([1, 2, 3, 9, 4, 5, 6], [1, 2, 3, 8, 8, 4, 5, 6], weight=3.0)
    assert chosen == [1, 1, 1, 3, 1, 1, 1]
    assert rejected == [1, 1, 1, 3, 3, 1, 1, 1]


def test_a_shared_beginning_is_aligned_with_itself_as_behind_a_prompt() -> None:
    """ "abcd" comes again in the rejected response, and in a longer match; the beginnings still belong together."""
    assert marked("abcdXefg", "abcdYefgabcdX") == ("abcd#efg", "abcd#efgabcdX")


def test_long_responses_are_compared_token_by_token() -> None:
    """difflib leaves frequent tokens out from 200 tokens on, if it is let."""
    chosen = [1, 2, 3, 4] * 60
    rejected = [*chosen[:100], 7, *chosen[101:]]
    weights, _ = segment_weights(chosen, rejected, weight=5.0)
    assert [i for i, w in enumerate(weights) if w == 5.0] == [100]


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="choose 0 or more"):
        segment_weights([1], [2], weight=-1.0)

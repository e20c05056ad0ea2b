"""Sentences, cuts and the tokens that a completion goes on from, with the tiny models' tokenizers and the scenes'."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mllm_align.compute.packing import response_tokens
from mllm_align.models.load import load_processor
from mllm_align.samplers.sentences import completed, cut, full_stops, spell, split

TEXT = "There is a red cup. It costs 3.5 dollars! Is it new?\n\nYes, it is."


@pytest.fixture(scope="module", params=["tiny", "scenes"])
def processor(request, tiny_folders):
    return load_processor(tiny_folders["llava"] if request.param == "tiny" else "asset://scenes/base")


def sentences(text: str) -> list[str]:
    return [text[slice(*span)] for span in split(text)]


def test_sentences_follow_each_other_without_a_gap() -> None:
    assert sentences(TEXT) == [
        "There is a red cup.",
        " It costs 3.5 dollars!",
        " Is it new?",
        "\n\nYes, it is.",
    ]
    assert "".join(sentences(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", ["Yes"]),
        ("", []),
        ("  \n", []),
        ("One. ", ["One."]),
        ("Well ... yes. And so on.", ["Well ...", " yes.", " And so on."]),
        ("One. ... Two.", ["One. ...", " Two."]),
        ('He says "no." She goes.', ['He says "no."', " She goes."]),
        ("a line\nanother line", ["a line", "\nanother line"]),
        ("1. A cup\n2. A dog", ["1.", " A cup", "\n2.", " A dog"]),
    ],
)
def test_where_sentences_end(text, expected) -> None:
    assert sentences(text) == expected


def test_a_spelling_is_that_of_the_response(processor) -> None:
    texts = [TEXT, "Yes", "two  spaces ü 日本"]
    for text, spelling, ids in zip(
        texts, spell(texts, processor), response_tokens(texts, processor), strict=True
    ):
        assert list(spelling.ids) == ids[:-1]
        assert spelling.starts[0] == 0
        assert list(spelling.starts) == sorted(spelling.starts)
        assert spelling.starts[-1] <= len(text)  # a character may take several tokens


class Drawn:
    """Uniforms of one's choice: where each sentence is cut, and whether its yes or no is swapped."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)


def decoded(processor, ids) -> str:
    return processor.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def cuts_of(processor, text, *values, swap=0.5):
    (spelling,) = spell([text], processor)
    return spelling, cut(text, spelling, Drawn(*values), swap, processor)


def test_every_word_is_as_likely_a_place_to_cut(processor) -> None:
    text = "A cup. Two red dogs run."  # the second sentence has four words
    heads = [cuts_of(processor, text, 0.0, 0.9, (i + 0.5) / 4, 0.9)[1][1].head for i in range(4)]
    assert heads == [" ", " Two", " Two red", " Two red dogs"]
    _, (first, _) = cuts_of(processor, text, 0.0, 0.9, 0.0, 0.9)
    assert (first.head, first.at, first.start) == ("", 0, 0)


def test_a_completion_goes_on_behind_the_true_sentences_and_the_head(processor) -> None:
    text = "A cup. Two red dogs run."
    spelling, (_, second) = cuts_of(processor, text, 0.0, 0.9, 0.6, 0.9)
    assert text[: second.at] == "A cup. Two red"
    assert decoded(processor, spelling.ids[: second.start]).strip() == "A cup. Two red"
    assert second.forced == ()


@pytest.mark.parametrize(("word", "other"), [("Yes", "No"), ("yes", "no"), ("No", "Yes"), ("no", "yes")])
def test_yes_and_no_are_swapped(processor, word, other) -> None:
    text = f"A cup. {word}, there is a dog."
    for where in np.linspace(0, 0.99, 7):
        spelling, (_, made) = cuts_of(processor, text, 0.0, 0.9, where, 0.1)
        assert made.swapped
        assert made.head.startswith(f" {other},")  # cut behind the word
        assert text[made.span[0] : made.at] == made.head.replace(other, word, 1)
        before = [*spelling.ids[: made.start], *made.forced]
        assert decoded(processor, before).strip() == "A cup." + made.head
        assert decoded(processor, spelling.ids[: made.start]).strip() == "A cup."  # nothing of the sentence


def test_not_swapped_below_the_probability_or_where_it_is_another_word(processor) -> None:
    for text, value in [
        ("Yes, a dog.", 0.5),
        ("Nothing is here.", 0.1),
        ("YES, a dog.", 0.1),
        ("A no.", 0.1),
    ]:
        _, (made,) = cuts_of(processor, text, 0.0, value)
        assert not made.swapped
        assert made.forced == ()
    _, (made,) = cuts_of(processor, "Yes, a dog.", 0.0, 0.0, swap=0.0)
    assert not made.swapped


@pytest.mark.parametrize("text", ["Yes", "Yes."])
def test_a_swapped_word_may_be_all_that_is_kept(processor, text) -> None:
    _, (made,) = cuts_of(processor, text, 0.7, 0.1)
    assert made.head == "No"
    assert decoded(processor, made.forced).strip() == "No"


def test_a_draw_uses_two_numbers_a_sentence_whatever_it_holds(processor) -> None:
    rng, twin = np.random.default_rng(0), np.random.default_rng(0)
    (spelling,) = spell([TEXT], processor)
    cut(TEXT, spelling, rng, 0.5, processor)
    twin.random(8)
    assert rng.random() == twin.random()


def test_tails_bring_their_space(processor) -> None:
    text = "A cup.\n\nTwo red dogs run."
    spelling, made = cuts_of(processor, text, 0.6, 0.9, 0.6, 0.9)
    full, last = spell(["A cup is red.", "A cup.\n\nTwo red cats."], processor)
    tokens = [full.ids[made[0].start :], last.ids[made[1].start :]]
    end = processor.tokenizer.eos_token_id
    tails = completed(made, spelling, [[*tokens[0], end], tokens[1]], processor)
    assert [m.head + tail for m, tail in zip(made, tails, strict=True)] == [
        "A cup is red.",
        "\n\nTwo red cats.",
    ]
    assert completed(made, spelling, [[end], []], processor) == ["", ""]


def test_where_nothing_is_kept_the_sentence_is_set_off_as_it_was(processor) -> None:
    text = "A cup.\n\nTwo red dogs run."
    spelling, made = cuts_of(processor, text, 0.0, 0.9, 0.0, 0.9)
    own = spell(["One cat. Two cats."], processor)[0].ids
    tails = completed(made, spelling, [own, own], processor)
    assert [m.head + tail for m, tail in zip(made, tails, strict=True)] == [
        "One cat. Two cats.",
        "\n\nOne cat. Two cats.",
    ]


def test_every_token_with_a_full_stop_ends_a_sentence(processor) -> None:
    model = SimpleNamespace(generation_config=None)
    stops = set(full_stops(SimpleNamespace(processor=processor, model=model)))
    tokenizer = processor.tokenizer
    assert tokenizer.eos_token_id in stops
    assert all("." in tokenizer.decode([i]) for i in stops - {tokenizer.eos_token_id})
    assert spell(["A cup."], processor)[0].ids[-1] in stops
    assert not set(spell(["A cup"], processor)[0].ids) & stops


def test_a_completion_has_no_image_token_in_letters(processor) -> None:
    spelling, made = cuts_of(processor, "A cup.", 0.0, 0.9)
    own = [
        i
        for c in processor.image_token
        for i in processor.tokenizer(c, add_special_tokens=False)["input_ids"]
    ]
    (tail,) = completed(made, spelling, [[*own, *spelling.ids[-2:]]], processor)
    assert processor.image_token in processor.tokenizer.decode(own)
    assert processor.image_token not in tail
    assert tail.endswith(".")

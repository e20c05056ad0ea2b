"""TextVQA and GQA: the normaliser against the official one's outputs, scores by hand, joins by image and question."""

import json

import pytest
import stand_ins
from published_files import FILES, Evaluate

from mllm_align.benchmarks.published.answers import AnswerFileError
from mllm_align.benchmarks.published.normalise import contractions, normal
from mllm_align.benchmarks.published.short_answers import question_of, soft_accuracy

TEXTVQA = FILES / "textvqa"
needs_files = pytest.mark.skipif(not TEXTVQA.is_dir(), reason="the published files are not here")


@pytest.fixture
def root(tmp_path):
    stand_ins.textvqa(tmp_path / "data")
    stand_ins.gqa(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def evaluate(tmp_path, root, capsys, monkeypatch) -> Evaluate:
    return Evaluate(tmp_path, capsys, monkeypatch, root)


@pytest.mark.parametrize(
    ("raw", "normalised"),
    [
        ("The Dog's", "dog 's"),
        ("Two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("$2.99", "$2.99"),
        ("19.sep", "19sep"),  # the slip in the look-behind
        ("a.b", "ab"),
        ("1,000", "1000"),
        ("07/10/2012", "07 10 2012"),  # no sign stands beside a space: each becomes one
        ("well - known", "well known"),  # beside a space: gone
        ("what?", "what"),
        ("", ""),
    ],
)
def test_the_normaliser_by_hand(raw, normalised):
    assert normal(raw) == normalised


@needs_files
def test_the_normaliser_gives_what_the_official_one_gave():
    pairs = json.loads((TEXTVQA / "evalai_normaliser_vectors.json").read_text())["pairs"]
    assert len(pairs) > 3000
    assert [normal(raw) for raw, _ in pairs] == [out for _, out in pairs]


@needs_files
def test_contractions_are_the_official_ones():
    table = json.loads((TEXTVQA / "evalai_normaliser_tables.json").read_text())["CONTRACTIONS"]
    ours = contractions()
    # Keys with a capital never meet a lower-case word, and words that stay as they are need no entry.
    assert ours == {
        key: value for key, value in table.items() if key == key.lower() and (key != value or key in ours)
    }


def test_soft_accuracy_by_the_number_of_people_who_agree():
    def people(agreeing):
        return ["yes"] * agreeing + ["no"] * (10 - agreeing)

    assert [soft_accuracy("Yes.", people(n)) for n in range(6)] == pytest.approx(
        [0.0, 0.3, 0.6, 0.9, 1.0, 1.0]
    )


@needs_files
def test_published_scores_of_single_rows():
    rows = json.loads((TEXTVQA / "textvqa_val_first15_with_gt_and_scores.json").read_text())["rows"]
    for row in rows:
        assert normal(row["prediction"]) == row["normalized_prediction"]
        assert soft_accuracy(row["prediction"], row["answers"]) == pytest.approx(row["score"])


@pytest.mark.parametrize(
    "prompt",
    [
        "What brand is it?\nReference OCR token: A, B\nAnswer the question using a single word or phrase.",
        "Reference OCR token: A, B\nWhat brand is it?\nAnswer the question using a single word or phrase.",
        "OCR tokens: A B Question: What brand is it? Short answer:",
        "<image>\nWhat brand is it?",
    ],
)
def test_the_question_in_each_form_of_prompt(prompt):
    assert question_of(prompt) == "what brand is it?"


def test_a_prompt_of_another_form_is_refused():
    with pytest.raises(AnswerFileError, match="no question in the prompt"):
        question_of("Reference OCR token: A")


def given(tmp_path, rows):
    stand_ins.jsonl(tmp_path / "answers.jsonl", rows)
    return f"predictions={tmp_path / 'answers.jsonl'}"


def test_textvqa_joins_by_image_and_question(tmp_path, evaluate):
    rows = [
        {
            "question_id": "abc",
            "prompt": "What year is it?\nReference OCR token: X\nAnswer.",
            "text": "1999.",
        },
        {
            "question_id": "abc",
            "prompt": "What brand is it?\nReference OCR token: X\nAnswer.",
            "text": "Kodak",
        },
    ]
    found = evaluate.result("benchmark=published/textvqa", given(tmp_path, rows))
    assert found["official"] == {"accuracy": 95.0}  # 1.0 and, with three of ten, 0.9
    assert [row["id"] for row in evaluate.rows()] == ["7", "8"]
    said = evaluate.fails("benchmark=published/textvqa", given(tmp_path, rows[:1]))
    assert "1 questions have no answer (7)" in said


def test_textvqa_asks_with_ocr_tokens_or_without(root):
    from mllm_align.benchmarks.published.short_answers import TextVqa

    folder, images = str(root / "textvqa"), str(root / "textvqa" / "train_images")
    assert TextVqa(folder, images).examples()[0].prompt.split("\n")[1] == "Reference OCR token: KODAK, 1999"
    plain = TextVqa(folder, images, ocr=False).examples()[0].prompt
    assert plain == "What brand is it?\nAnswer the question using a single word or phrase."


def test_gqa_is_an_exact_match_after_llavas_conversion(tmp_path, evaluate):
    rows = [
        {"question_id": "201", "prompt": "Is it overcast?\nAnswer.", "text": "No."},
        {"question_id": "202", "prompt": "What is this?\nAnswer.", "text": "a traffic light"},
    ]
    assert evaluate.result("benchmark=published/gqa", given(tmp_path, rows))["official"] == {"accuracy": 50.0}
    converted = [
        {"questionId": "201", "prediction": "no"},
        {"questionId": "202", "prediction": "traffic light"},
    ]
    assert evaluate.result("benchmark=published/gqa", given(tmp_path, converted))["official"] == {
        "accuracy": 100.0
    }

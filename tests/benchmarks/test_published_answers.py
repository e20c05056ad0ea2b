"""Answer files in the forms that public scripts write: read and joined alike, or refused with the remedy."""

import csv
import gzip
import json

import pytest
import stand_ins

from mllm_align.benchmarks.published.answers import (
    AnswerFileError,
    answer_files,
    as_answer,
    read_answers,
    read_rows,
)
from mllm_align.benchmarks.published.joining import by_id, by_order, join
from mllm_align.benchmarks.published.questions import image_in
from mllm_align.records import Example

ROWS = [
    {"question_id": 1, "image": "a.jpg", "prompt": "Is there a dog?", "text": "Yes\u2028"},
    {"question_id": 2, "image": "a.jpg", "prompt": "Is there a cat?", "text": "No"},
]


def lines(rows) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def table(file, delimiter):
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", lines(ROWS).encode()),
        ("windows.jsonl", (lines(ROWS).replace("\n", "\r\n") + "\r\n").encode()),
        ("marked.jsonl", lines(ROWS).encode("utf-8-sig")),
        ("a.jsonl.gz", gzip.compress(lines(ROWS).encode())),
        ("list.json", json.dumps(ROWS).encode()),
        (
            "objects.json",
            "\n".join(json.dumps(row, indent=4) for row in ROWS).encode(),
        ),  # POPE's own captions
        ("sentences.json", json.dumps({"overall": 1, "sentences": ROWS}).encode()),
        ("logs.json", json.dumps({"args": {}, "logs": ROWS}).encode()),
        ("coco.json", json.dumps({"overall": {}, "imgToEval": dict(enumerate(ROWS))}).encode()),
    ],
)
def test_the_rows_are_the_same_in_every_kind_of_file(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    found = [(a.id, a.image, a.prompt, a.text) for a in read_answers([tmp_path / name])]
    assert found == [(str(n), "a.jpg", row["prompt"], row["text"]) for n, row in enumerate(ROWS, 1)]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_table_is_read(tmp_path, name, delimiter):
    table(tmp_path / name, delimiter)
    assert [a.text for a in read_answers([tmp_path / name])] == ["Yes\u2028", "No"]
    (tmp_path / name).write_text("question_id\n")
    with pytest.raises(AnswerFileError, match="is empty"):
        read_answers([tmp_path / name])
    for cells in ('1%"a"b', "1%a%b"):
        (tmp_path / name).write_text(f"question_id%text\n{cells}\n".replace("%", delimiter))
        with pytest.raises(AnswerFileError, match="row 1: not a row of the table"):
            read_answers([tmp_path / name])


def read(**row):
    answer = as_answer(row, "a.jsonl", 1)
    return answer.prompt, answer.text


def test_the_field_of_the_answer():
    assert read(Question="Is it?", Answer="Yes") == ("Is it?", "Yes")
    assert read(question="Is it?", answer="the truth", prediction="No") == ("Is it?", "No")
    assert read(text="Is it?", label="yes", answer="No") == ("Is it?", "No")  # the questions' file, filled in
    assert read(text="Is it?", label="yes", response="No") == ("Is it?", "No")
    assert read(question_id=3.0, text="No", answer="the truth") == (None, "No")
    assert as_answer({"question_id": 3.0, "text": "No"}, "a", 1).id == "3"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Is it?", "answer": "the truth", "llm_output": "No"}, "answer or llm_output may be"),
        ({"question": "Is it?", "answer": "the truth", "prediction": None}, "prediction is null"),
        ({"image_id": 1, "caption": "a dog", "generated_caption": "a cat"}, "name it prediction"),
        ({"text": None}, "text is null"),
        ({"text": float("nan")}, "the answer is NaN"),
        ({"text": True}, "the answer is true"),
        ({"text": ["a", "b"]}, "should be one text"),
    ],
)
def test_a_row_whose_answer_is_not_sure_is_refused(row, said):
    with pytest.raises(AnswerFileError, match=f"a.jsonl, row 1: .*{said}"):
        as_answer(row, "a.jsonl", 1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PK\x03\x04\xff", "a spreadsheet as .csv"),
        ("ü".encode("utf-16"), "save it as UTF-8"),
        (b'{"text": "a"}\n{"text": "b"\n', "line 3: not JSON"),
        (b'[{"text": ""}, {"text": " "}]', "text is empty in all 2 rows"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, data, said):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(AnswerFileError, match=f"a.json.*{said}"):
        read_answers([tmp_path / "a.json"])


def test_a_folder_is_not_an_answer_file(tmp_path):
    with pytest.raises(AnswerFileError, match="a folder; predictions="):
        answer_files(str(tmp_path))
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "b").mkdir()
    assert answer_files(f"{tmp_path}/*") == [tmp_path / "a.jsonl"]


def test_a_name_that_says_packed_and_is_not(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"abc")
    with pytest.raises(AnswerFileError, match="Not a gzipped file"):
        read_answers([tmp_path / "a.jsonl.gz"])


def sample(number: int, said: str, **more) -> dict:
    """A row of lmms-eval's log of samples: no document, the prompt as "input", metrics with what they need."""
    metric = {"question_id": f"q{number}", "prediction": said.lower(), "ground_truth": "yes", **more}
    return {
        "doc_id": number,
        "target": "yes",
        "filtered_resps": said,
        "doc_hash": "x",
        "some_metric": metric,
        "token_counts": [None],
        "input": f"Question {number}?\nAnswer.",
    }


def test_the_samples_of_lmms_eval_in_the_order_of_its_documents(tmp_path):
    stand_ins.jsonl(tmp_path / "samples.jsonl", [sample(1, "No.", image_id=7), sample(0, "Yes", image_id=8)])
    found = [(a.id, a.image, a.prompt, a.text) for a in read_answers([tmp_path / "samples.jsonl"])]
    assert found == [
        ("q0", "8", "Question 0?\nAnswer.", "Yes"),
        ("q1", "7", "Question 1?\nAnswer.", "No."),
    ]
    rows = read_rows(tmp_path / "samples.jsonl")
    assert rows[0]["ground_truth"] == "yes"
    assert "answer" not in rows[0]


QUESTIONS = [Example(str(n), image_in("", f"{n}.jpg"), f"What is {n}?\nAnswer briefly.") for n in range(3)]


def joined(rows):
    answers = [as_answer(row, "a.jsonl", number) for number, row in enumerate(rows, 1)]
    return join(QUESTIONS, answers, [by_id(), by_order(QUESTIONS, answers)])


def test_numbers_from_1_do_not_shift_the_answers():
    """Without the check, two of three answers would count for the question before theirs."""
    rows = [{"index": n + 1, "question": f"What is {n}?", "prediction": str(n)} for n in range(3)]
    found = joined(rows)
    assert found.way == "order and question"
    assert {number: answer.text for number, answer in found.answers.items()} == {0: "0", 1: "1", 2: "2"}
    assert joined([{**row, "index": row["index"] - 1} for row in rows]).way == "id"


def test_an_image_of_another_question_is_not_taken_either():
    found = joined(
        [{"id": n + 1, "image": f"x/{n}.jpg", "text": "a"} for n in range(3)] + [{"id": 0, "text": "b"}]
    )
    assert [answer.text for answer in found.answers.values()] == ["b"]
    assert len(found.unknown) == 3
    other = joined(
        [{"id": n, "image": "another.jpg", "prompt": "In one word?", "text": "a"} for n in range(3)]
    )
    assert other.whole  # neither is of the benchmark, and so contradicts nothing


def test_answers_that_tell_no_question_are_told_what_they_lack():
    with pytest.raises(AnswerFileError, match="no id, image or question: add one of these to each"):
        joined([{"answer": "Yes"}])


def test_the_report_names_the_field_that_was_read():
    assert joined([{"id": n, "Response": "a"} for n in range(3)]).report()["answers in"] == ["response"]

"""POPE: the official reading of an answer, the join of others' answer files, and what is wrong with them."""

import json

import pytest
import stand_ins
from published_files import Evaluate

from mllm_align.benchmarks.published.pope import Pope, plain, says_no
from mllm_align.benchmarks.stats import intervals

SPLITS = ("random", "popular", "adversarial")


@pytest.fixture
def root(tmp_path):
    stand_ins.pope(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def evaluate(tmp_path, root, capsys, monkeypatch) -> Evaluate:
    return Evaluate(tmp_path, capsys, monkeypatch, root)


def scorer(root) -> Pope:
    return Pope(str(root / "pope"), str(root / "coco" / "val2014"))


@pytest.mark.parametrize(
    ("answer", "no"),
    [
        ("No", True),
        ("no, there is none", True),
        ("There is not a dog.", True),
        ("Yes. No doubt about it.", False),  # what follows the first full stop does not count
        ("No, it is.", True),
        ("", False),
        ("NO", False),
        ("No!", False),
        ("no\n", False),
        ("Nothing", False),
        ("I see nodogs", False),
    ],
)
def test_the_official_reading_of_an_answer(answer, no):
    assert says_no(answer) is no


def test_prompts_are_compared_without_what_was_added_to_them():
    assert plain("USER: <image>\nIs there a dog in the image? ASSISTANT:") == "is there a dog in the image?"
    assert plain("Is there a dog in the image? Please answer yes or no.") == "is there a dog in the image?"
    assert plain("Is there a dog in the imange?\\nAnswer the question.") == "is there a dog in the image?"
    assert plain("<image>\nIs there a dog in the image?\nAnswer.") == "is there a dog in the image?"


def answers(root, said) -> list[dict]:
    """What `said(truth)` answers to every question, with the fields of the questions."""
    rows = []
    for split in SPLITS:
        for line in (root / "pope" / f"coco_pope_{split}.json").read_text().splitlines():
            row = json.loads(line)
            rows.append(
                {
                    "question_id": row["question_id"],
                    "image": row["image"],
                    "prompt": row["text"] + "\nAnswer the question using a single word or phrase.",
                    "text": said(row["label"]),
                    "category": split,
                }
            )
    return rows


def write(tmp_path, rows, name="answers.jsonl"):
    stand_ins.jsonl(tmp_path / name, rows)
    return f"predictions={tmp_path / name}"


def test_a_perfect_file_and_one_that_always_says_yes(tmp_path, root, evaluate):
    perfect = evaluate.result("benchmark=published/pope", write(tmp_path, answers(root, str.capitalize)))
    assert perfect["official"]["mean F1"] == 1.0
    assert perfect["n"] == 12
    always = evaluate.result("benchmark=published/pope", write(tmp_path, answers(root, lambda truth: "Yes")))
    # By hand: 2 true and 2 false positives a split: precision 1/2, recall 1, F1 2/3.
    assert always["official"]["random"] == {
        "tp": 2, "fp": 2, "tn": 0, "fn": 0, "n": 4,
        "f1": 0.666667, "accuracy": 0.5, "precision": 0.5, "recall": 1.0, "yes_ratio": 1.0, "valid": 1.0,
    }  # fmt: skip
    assert always["decoding"] == "of the answer file, not known"


def by_image(rows):
    return [
        {"image_id": r["image"], "question": r["prompt"], "answer": r["text"], "category": r["category"]}
        for r in rows
    ]


def of_lmms_eval(rows):
    docs = [
        {
            "question": r["prompt"].split("\n")[0],
            "answer": "no",  # the truth of a question, which is no answer of the model
            "image_source": r["image"].removesuffix(".jpg"),
            "category": r["category"],
        }
        for r in rows
    ]
    return [
        {"doc_id": n, "doc": doc, "target": "no", "filtered_resps": [[r["text"]]]}
        for n, (doc, r) in enumerate(zip(docs, rows, strict=True))
    ]


def by_number_of_image(rows):
    return [{**row, "image": int(row["image"][-16:-4]), "question_id": None} for row in rows]


def by_order(rows):
    return [{"question": r["prompt"], "answer": r["text"], "category": r["category"]} for r in rows]


def in_the_questions_own_file(rows):
    """The answer beside "text", which is the question, and the label."""
    return [
        {
            "image": r["image"],
            "text": r["prompt"],
            "label": "yes",
            "answer": r["text"],
            "category": r["category"],
        }
        for r in rows
    ]


def by_sample_of_lmms_eval(rows):
    """All splits in one log, the last written first; no image, no split, numbers from 1 in each."""
    metric = {"prediction": "no", "ground_truth": "no", "score": 1.0}
    samples = [
        {
            "doc_id": n,
            "filtered_resps": r["text"],
            "pope_accuracy": {"question_id": str(r["question_id"]), **metric},
            "input": r["prompt"],
        }
        for n, r in enumerate(rows)
    ]
    return samples[::-1]


def by_llava_number(rows):
    step = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
    return [
        {"question_id": step[r["category"]] + r["question_id"], "prompt": r["prompt"], "text": r["text"]}
        for r in rows
    ]


@pytest.mark.parametrize(
    "form",
    [
        by_image,
        by_number_of_image,
        by_order,
        by_llava_number,
        in_the_questions_own_file,
        of_lmms_eval,
        by_sample_of_lmms_eval,
    ],
)
def test_answer_files_of_other_forms_score_the_same(tmp_path, root, evaluate, form):
    rows = answers(root, lambda truth: "no" if truth == "no" else "There is none, not one")
    expected = evaluate.result("benchmark=published/pope", write(tmp_path, rows))["official"]
    assert evaluate.result("benchmark=published/pope", write(tmp_path, form(rows)))["official"] == expected


def test_a_file_a_split_by_its_name_or_by_its_questions(tmp_path, root, evaluate):
    rows = answers(root, str.capitalize)
    files = []
    for split, name in zip(SPLITS, ("my_random.json", "pope_pop.json", "y.json"), strict=True):
        own = [{k: v for k, v in row.items() if k != "category"} for row in rows if row["category"] == split]
        stand_ins.whole(tmp_path / name, own)  # a JSON list this time
        files.append(str(tmp_path / name))
    found = evaluate.result("benchmark=published/pope", f"predictions=[{','.join(files)}]")
    assert found["official"]["mean F1"] == 1.0
    assert [one["file"] for one in found["answers"]["files"]] == ["my_random.json", "pope_pop.json", "y.json"]


def test_questions_about_other_images_are_found_by_their_official_names(root):
    for split in SPLITS:
        file = root / "pope" / f"coco_pope_{split}.json"
        file.rename(file.with_name(f"aokvqa_pope_seem_{split}.json"))
    examples = Pope(str(root / "pope"), str(root), source="aokvqa").examples()
    assert {example.meta["split"] for example in examples} == set(SPLITS)


@pytest.mark.parametrize("said", [0, "1", "False"])
def test_numbers_and_truth_values_are_no_words(tmp_path, root, evaluate, said):
    """By the official rule all of them are a yes."""
    given = write(tmp_path, [{**row, "text": said} for row in answers(root, str)])
    assert "answers.jsonl, row 1: the answer is" in evaluate.fails("benchmark=published/pope", given)


def test_the_version_of_the_questions_that_was_answered_is_found_and_named(tmp_path, root, evaluate):
    rows = answers(root, str.capitalize)
    file = root / "pope" / "coco_pope_random.json"
    lines = file.read_text().splitlines()
    (root / "pope" / "coco_pope_random.old.json").write_text(
        "\n".join(lines[:3]).replace("image?", "imange?")
    )
    fewer = [row for row in rows if row["category"] != "random"] + [
        r for r in rows if r["category"] == "random"
    ][:3]
    found = evaluate.result("benchmark=published/pope", write(tmp_path, fewer))
    assert found["official"]["random"]["n"] == 3
    assert "coco_pope_random.old.json" in found["questions"]


def test_missing_repeated_and_unknown_answers_are_errors_and_counted_when_allowed(tmp_path, root, evaluate):
    rows = answers(root, str.capitalize)
    wrong = {**rows[1], "text": "Yes"}  # the second answer to this question
    unknown = {**rows[2], "image": "COCO_val2014_000000999999.jpg", "question_id": 99}
    given = write(tmp_path, [*rows[:2], wrong, unknown, *rows[3:]])
    said = evaluate.fails("benchmark=published/pope", given)
    assert "1 questions have no answer (random/3)" in said
    assert "1 answers are to a question that has one already (answers.jsonl, row 3)" in said
    assert "1 answers belong to no question (answers.jsonl, row 4)" in said
    found = evaluate.result("benchmark=published/pope", given, "predictions_partial=true")
    assert found["n"] == 11
    assert {name: found["answers"]["random"][name] for name in ("missing", "repeated", "unknown")} == {
        "missing": 1, "repeated": 1, "unknown": 1,
    }  # fmt: skip
    assert found["official"]["random"]["fp"] == 1  # the last of two answers counts


def test_a_split_without_answers_is_named(tmp_path, root, evaluate):
    given = write(tmp_path, [row for row in answers(root, str.capitalize) if row["category"] == "popular"])
    assert "no answers to the split random and adversarial" in evaluate.fails(
        "benchmark=published/pope", given
    )
    found = evaluate.result("benchmark=published/pope", given, "predictions_partial=true")
    assert found["official"]["mean F1"] == 1.0
    assert "random" not in found["official"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ('{"question_id": 1}\n{"question_id": 2}', "row 1: no answer"),
        ('{"text": "a"}\n{"text"', "line 2: not JSON"),
        ('[{"text": {"a": 1}}]', "should be one text"),
        ("[1, 2]", "row 1: holds int"),
        ('{"question_id": 5, "text": "yes", "category": "random"}', "none of the 1 answers"),
    ],
)
def test_a_bad_file_is_named_with_its_row(tmp_path, evaluate, content, said):
    (tmp_path / "bad.jsonl").write_text(content)
    told = evaluate.fails("benchmark=published/pope", f"predictions={tmp_path / 'bad.jsonl'}")
    assert said in told
    assert "bad.jsonl" in told


def test_no_file_no_questions_and_two_benchmarks(tmp_path, root, evaluate):
    assert "no such answer file" in evaluate.fails(
        "benchmark=published/pope", f"predictions={tmp_path}/none.jsonl"
    )
    given = write(tmp_path, answers(root, str.capitalize))
    assert "belongs to one benchmark" in evaluate.fails("benchmark=published", given)
    (root / "pope" / "coco_pope_random.json").unlink()
    assert "coco_pope_random.json is not in" in evaluate.fails("benchmark=published/pope", given)


def test_images_are_looked_for_before_a_model_is_loaded(root, evaluate):
    (root / "coco" / "val2014" / stand_ins.NAMES[0]).unlink()
    assert "1 images of the questions are missing" in evaluate.fails(
        "benchmark=published/pope", "base_model.path=none"
    )


def test_scores_have_intervals_over_images(root):
    benchmark = scorer(root)
    rows = [
        {**e.meta, "id": e.id, "image": e.image.key, "prompt": e.prompt, "prediction": "yes"}
        for e in benchmark.examples()
    ]
    found = intervals(benchmark.counts(rows), benchmark.metrics, draws=50)
    assert found["f1"].value == pytest.approx(2 / 3)
    assert found["f1"].n == 2


def test_our_own_predictions_are_scored_again(tmp_path, root, evaluate):
    first = evaluate.result("benchmark=published/pope", write(tmp_path, answers(root, lambda truth: "Yes")))
    again = evaluate.result(
        "benchmark=published/pope", f"predictions={tmp_path / 'predictions' / 'pope.jsonl'}"
    )
    assert again["official"] == first["official"]

"""AMBER: nouns by hand, the official rounding, and the figures of its README as a check of the arithmetic."""

import pytest
import stand_ins
from published_files import FILES, Evaluate

from mllm_align.benchmarks.published import lemmas
from mllm_align.benchmarks.published.amber import Amber, Nouns


@pytest.fixture
def root(tmp_path):
    stand_ins.amber(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def evaluate(tmp_path, root, capsys, monkeypatch) -> Evaluate:
    return Evaluate(tmp_path, capsys, monkeypatch, root)


def no_similarity(one: str, other: str) -> float:
    return 0.0


def scorer(root, similarity=no_similarity) -> Amber:
    return Amber(str(root / "amber"), str(root / "amber" / "images"), similarity=similarity, nouns=str.split)


ROW = {"truth": ["person", "sky"], "hallu": ["dog"]}


def test_nouns_are_covered_safe_hallucinated_or_a_trap(root):
    known = Nouns.read(str(root / "amber"))
    found = known.counted(["man", "cloud", "puppy", "tree", "stone"], ROW, None)
    assert found["nouns"] == ["man", "cloud", "puppy", "tree"]  # "stone" is no noun of AMBER's
    assert found["hallucinated"] == [
        "puppy",
        "tree",
    ]  # "cloud" is never wrong, "man" goes along with a person
    assert found["covered"] == [0]
    assert found["hit"] == [0]


def test_a_noun_similar_to_what_is_there_is_fine(root):
    known = Nouns.read(str(root / "amber"))
    alike = {("tree", "sky"): 0.81, ("tree", "puppy"): 0.9, ("puppy", "sky"): 0.8}
    found = known.counted(["tree", "puppy"], ROW, lambda a, b: alike.get((a, b), 0.0))
    assert found["hallucinated"] == ["puppy"]  # 0.8 is not above 0.8
    assert found["covered"] == [1]
    assert found["hit"] == [0]  # by similarity of the one, and by the other itself


def rows(said):
    return [{"id": n, "response": text} for n, text in enumerate(said, 1)]


def test_the_official_figures_by_hand(tmp_path, root):
    benchmark = scorer(root)
    file = tmp_path / "a.json"
    stand_ins.whole(file, rows(["man sky puppy", "No", "Yes", "Yes", "No", "Yes", "No"]))
    answered, report = benchmark.from_files([file], False)
    official = benchmark.result(benchmark.finish(answered))["official"]
    # One of three nouns is false, both things are covered; the trap was walked into.
    assert official["generative"] == {"CHAIR": 33.3, "Cover": 100.0, "Hal": 100.0, "Cog": 99.9}
    # Six questions, four right; three noes to be said, two said rightly of three: P = R = 66.6 after 0.001 more below.
    assert official["discriminative"]["Accuracy"] == 66.7
    assert official["discriminative"]["Precision"] == pytest.approx(66.6)
    assert official["existence"]["F1"] == pytest.approx(99.9)  # 2 x 0.999 x 0.999 / (0.999 + 0.999 + 0.001)
    assert official["relation"] == {"Accuracy": 100.0, "Precision": 99.9, "Recall": 99.9, "F1": 99.9}
    assert official["AMBER score"] == round((100 - 33.3 + official["discriminative"]["F1"]) / 2, 2)
    assert report["missing"] == 0


def test_what_was_not_asked_is_named_and_not_scored(tmp_path, evaluate):
    stand_ins.whole(tmp_path / "a.json", rows(["", "No", "Yes", "No", "Yes", "Yes", "No"])[1:])
    found = evaluate.result("benchmark=published/amber", f"predictions={tmp_path / 'a.json'}")
    assert found["answers"]["not asked"] == ["generative"]
    assert "generative" not in found["official"]
    assert "AMBER score" not in found["official"]
    stand_ins.whole(tmp_path / "a.json", rows(["", "No", "Yes", "No", "Yes", "Yes"])[1:])
    said = evaluate.fails("benchmark=published/amber", f"predictions={tmp_path / 'a.json'}")
    assert "questions have no answer (7)" in said


def test_one_dimension_has_no_figure_of_all(root, tmp_path):
    stand_ins.whole(tmp_path / "existence.json", rows(["", "No"])[1:])
    benchmark = scorer(root)
    answered, _ = benchmark.from_files([tmp_path / "existence.json"], False)
    assert list(benchmark.result(answered)["official"]) == ["existence"]


def test_numbers_from_0_are_told_by_image_and_question(root, tmp_path):
    said = ["man", "No", "Yes", "No", "Yes", "Yes", "No"]
    shifted = [
        {"index": n - 1, "image": "AMBER_1.jpg", "question": f"Query {n}?", "prediction": text}
        for n, text in enumerate(said, 1)
    ]
    stand_ins.jsonl(tmp_path / "a.jsonl", shifted)
    answered, report = scorer(root).from_files([tmp_path / "a.jsonl"], False)
    assert [row["prediction"] for row in answered] == said
    assert report["joined by"] == "image and question"


def test_only_yes_and_no_to_the_letter_are_valid(root, tmp_path, caplog):
    stand_ins.whole(tmp_path / "a.json", rows(["", "no", "Yes.", "No", "Yes", "Yes", "No"])[1:])
    benchmark = scorer(root)
    answered, _ = benchmark.from_files([tmp_path / "a.json"], False)
    found = benchmark.result(answered)
    assert "2 of 6 answers to questions are not Yes or No to the letter" in caplog.text
    assert found["valid"] == pytest.approx(4 / 6)
    assert found["official"]["existence"]["Accuracy"] == 0.0


def test_without_nltk_or_spacy_it_is_said_what_to_install(tmp_path, evaluate, monkeypatch):
    def missing():
        raise lemmas.NeedsNltk(lemmas.REMEDY)

    monkeypatch.setattr(lemmas, "_nltk", missing)
    stand_ins.whole(tmp_path / "a.json", rows(["A man."]))
    given = f"predictions={tmp_path / 'a.json'}"
    assert "pip install 'mllm-align[evaluation]'" in evaluate.fails("benchmark=published/amber", given)


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="generative or discriminative"):
        Amber("", "", part="both")


@pytest.mark.skipif(not FILES.is_dir(), reason="the published files are not here")
def test_the_published_questions_are_read_whole():
    benchmark = Amber(str(FILES / "amber"), "")
    examples = benchmark.examples()
    assert len(examples) == 15220
    kinds = [example.meta["type"] for example in examples]
    assert kinds.count("generative") == 1004
    assert kinds.count("discriminative-hallucination") == 4924
    known = Nouns.read(benchmark.folder)
    assert len(known.safe) == 9
    assert {word for e in examples[:1004] for word in e.meta["truth"]} <= set(known.along)
    assert Amber(str(FILES / "amber"), "", part="discriminative").examples()[0].id == "1005"


@pytest.mark.parametrize(
    ("chair", "f1", "score"), [(21.6, 18.9, 48.7), (11.5, 32.7, 60.6), (7.8, 74.7, 83.5), (4.6, 87.4, 91.4)]
)
def test_the_score_of_the_published_table_is_half_of_what_both_parts_say(chair, f1, score):
    assert (100 - chair + f1) / 2 == pytest.approx(score, abs=0.051)

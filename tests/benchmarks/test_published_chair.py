"""CHAIR: tokens, singulars and pairs of words as the official scripts have them; hand-worked scores."""

import json

import pytest
import stand_ins
from published_files import FILES, Evaluate

from mllm_align.benchmarks.published import coco, lemmas
from mllm_align.benchmarks.published.singular import singular
from mllm_align.benchmarks.published.tokens import words
from mllm_align.benchmarks.published.truth import annotated_objects, read_objects

needs_files = pytest.mark.skipif(not FILES.is_dir(), reason="the published files are not here")


@pytest.fixture
def root(tmp_path):
    stand_ins.chair(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def evaluate(tmp_path, root, capsys, monkeypatch) -> Evaluate:
    return Evaluate(tmp_path, capsys, monkeypatch, root)


@pytest.fixture
def table(root) -> coco.Table:
    return coco.read_table(root / "chair" / "synonyms.txt")


# --- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "one"),
    [
        ("dogs", "dog"),
        ("bus", "bu"),  # so a bus in the singular is never found
        ("buses", "bus"),
        ("glass", "glas"),
        ("glasses", "glass"),
        ("women", "woman"),
        ("people", "person"),
        ("knives", "knife"),
        ("benches", "bench"),
        ("scissors", "scissors"),
        ("skis", "ski"),
        ("ties", "ty"),
        ("cookies", "cookie"),
        ("mice", "mouse"),
        ("sheep", "sheep"),
        ("mothers-in-law", "mother-in-law"),
        ("dogs'", "dog's"),
        ("your", "ymy"),
        ("pasta", "pastum"),
        ("", ""),
    ],
)
def test_singulars_with_the_faults_that_count(word, one):
    assert singular(word) == one


@needs_files
def test_singulars_of_every_token_that_pattern_changed():
    vectors = json.loads((FILES / "chair" / "pattern_singularize_vectors.json").read_text())["changed"]
    assert {word: singular(word) for word in vectors} == vectors


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a dog. a cat.", "a dog . a cat ."),
        ("a dog.a cat", "a dog.a cat"),  # no sentence ends without a space
        ("the man's dogs' bowls", "the man 's dogs ' bowls"),
        ("it isn't a dog, is it?", "it is n't a dog , is it ?"),
        ('a sign "stop". it is red', "a sign `` stop '' . it is red"),
        ('he said "stop." then', "he said `` stop . '' then"),
        ("at 5 p.m. there are 3. dogs", "at 5 p.m. there are 3. dogs"),
        ("dr. smith at 10:30. there", "dr. smith at 10:30. there"),
        ("cups/plates and t-shirts...", "cups/plates and t-shirts ..."),
        ("$1,000 (cash)", "$ 1,000 ( cash )"),
        ("i cannot. gonna", "i can not . gon na"),
        ("**dogs.** cats", "* * dogs . * * cats"),
    ],
)
def test_tokens_are_those_of_nltk(text, tokens):
    assert list(words(text)) == tokens.split()


def test_two_words_are_joined_from_left_to_right(table):
    merged = table.merged(list(words("a hot dog on a baby dog and a wine glas near a toilet seat")))
    assert merged == ["a", "hot dog", "on", "a", "dog", "and", "a", "wine glass", "near", "a", "toilet"]
    assert [name for _, name in table.named(merged)] == ["hot dog", "dog", "wine glass", "toilet"]


def test_no_seat_counts_beside_a_toilet(table):
    assert table.named(["toilet", "seat", "chair"]) == [("toilet", "toilet"), ("chair", "chair")]
    assert table.named(["seat"]) == [("seat", "chair")]


def test_terms_keep_their_spaces_unless_stripped(tmp_path):
    (tmp_path / "synonyms.txt").write_text("cup,  mug\n")
    assert coco.read_table(tmp_path / "synonyms.txt").classes == {"cup": "cup", " mug": "cup"}
    assert coco.read_table(tmp_path / "synonyms.txt", strip=True).classes == {"cup": "cup", "mug": "cup"}


# --- scores ------------------------------------------------------------------------------------------------

CAPTIONS = [
    {"image_id": 42, "caption": "Two dogs and a man. A dog sits in a chair by a bus."},
    {"image_id": 73, "caption": "Buses and wine glasses; two cups and a puppy."},
]


def given(tmp_path, value, name="captions.json"):
    stand_ins.whole(tmp_path / name, value)
    return f"predictions={tmp_path / name}"


def test_a_hand_worked_score(tmp_path, evaluate):
    found = evaluate.result("benchmark=published/chair", given(tmp_path, CAPTIONS))
    # Image 42: dog, person, dog, chair (not there), and "bus" is read as "bu".
    # Image 73: bus, wine glass, cup, dog (not there).
    assert found["official"]["counts"] == {
        "hallucinated": 2, "descriptions": 2, "false mentions": 2, "mentions": 8, "named": 5, "present": 5,
    }  # fmt: skip
    assert found["official"]["percent"] == {"CHAIRs": 100.0, "CHAIRi": 25.0, "Recall": 100.0}
    assert found["official"]["words"] == 11.5  # 14 and 9, between spaces
    assert [row["mentions"] for row in evaluate.rows()] == [
        ["dog", "person", "dog", "chair"],
        ["bus", "wine glass", "cup", "dog"],
    ]


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: {"sentences": rows, "overall_metrics": {}},
        lambda rows: [
            {"question_id": 7, "image": f"x/COCO_val2014_{r['image_id']:012d}.jpg", "text": r["caption"]}
            for r in rows
        ],
        lambda rows: [
            {"answer": r["caption"], "metainfos": {"image_id": r["image_id"]}, "question": "Describe."}
            for r in rows
        ],
        lambda rows: {f"COCO_val2014_{r['image_id']:012d}.jpg": r["caption"] for r in rows},
        lambda rows: [{"id": r["image_id"], "caption": r["caption"]} for r in rows],
        lambda rows: [
            {
                "doc_id": n,
                "filtered_resps": r["caption"],
                "input": "Describe.",
                "coco_cap_recall": {"answer": ["cup"], "pred": ["cup"], "image_id": r["image_id"]},
            }
            for n, r in enumerate(rows)
        ],
    ],
)
def test_captions_of_other_forms(tmp_path, evaluate, form):
    expected = evaluate.result("benchmark=published/chair", given(tmp_path, CAPTIONS))["official"]
    assert (
        evaluate.result("benchmark=published/chair", given(tmp_path, form(CAPTIONS)))["official"] == expected
    )


def test_unknown_images_and_repeated_ones_are_refused(tmp_path, evaluate):
    other = given(tmp_path, [{"image_id": 5, "caption": "A dog."}])
    assert "no objects are known of image 5" in evaluate.fails("benchmark=published/chair", other)
    twice = given(tmp_path, [CAPTIONS[0], CAPTIONS[0]])
    said = evaluate.fails("benchmark=published/chair", twice)
    assert "1 answers are to a question that has one already (captions.json, row 2)" in said
    assert "no answer" not in said
    nameless = given(tmp_path, [{"caption": "A dog."}])
    assert "no COCO image is named" in evaluate.fails("benchmark=published/chair", nameless)


def test_an_unknown_variant_is_refused(tmp_path, evaluate):
    wrong = "benchmark.tasks.chair.variant=stem"
    assert "choose original or lemma" in evaluate.fails(
        "benchmark=published/chair", wrong, given(tmp_path, CAPTIONS)
    )


def test_lemmas_without_nltk_take_the_files_own_tokens_or_say_what_to_install(
    tmp_path, evaluate, monkeypatch
):
    def missing():
        raise lemmas.NeedsNltk(lemmas.REMEDY)

    monkeypatch.setattr(lemmas, "_nltk", missing)
    lemma = ("benchmark=published/chair", "benchmark.tasks.chair.variant=lemma")
    assert "pip install 'mllm-align[evaluation]'" in evaluate.fails(*lemma, given(tmp_path, CAPTIONS))
    own = [
        {**CAPTIONS[0], "words": ["two", "dog", "seat"], "mscoco_gt_words": ["dog"]},
        {**CAPTIONS[1], "words": ["bus"], "mscoco_gt_words": ["bus"]},
    ]
    found = evaluate.result(*lemma, given(tmp_path, own))
    assert found["tokens"] == found["ground truth"] == ["of the answer file"]
    assert found["official"]["counts"]["mentions"] == 3
    assert found["official"]["counts"]["false mentions"] == 1


@pytest.mark.skipif(not lemmas.available(), reason="NLTK and its data are not here")
def test_lemmas_by_part_of_speech(table):
    tokens = coco.tokens_of("Two men are seated near buses.", "lemma", table)
    assert tokens == ["two", "men", "be", "seat", "near", "bus", "."]  # WordNet has "men"


@needs_files
@pytest.mark.skipif(not lemmas.available(), reason="NLTK and its data are not here")
def test_lemmas_are_those_of_a_published_result():
    table = coco.read_table(FILES / "chair" / "synonyms.txt")
    published = json.loads(
        (FILES / "objhalbench" / "sampling-decoding-eval-chair-300_answer.json").read_text()
    )
    for one in published["sentences"]:
        assert coco.tokens_of(one["caption"], "lemma", table) == one["words"]


def test_objects_come_from_cocos_annotations_where_they_are(tmp_path, table):
    folder = tmp_path / "annotations"
    instances = [
        {"image_id": 42, "category_id": 1},
        {"image_id": 42, "category_id": 2},
        {"image_id": 9, "category_id": 1},
    ]
    stand_ins.whole(
        folder / "instances_val2014.json",
        {"categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "wine glass"}], "annotations": instances},
    )
    captions = [{"image_id": 42, "caption": "A man with two cups."}, {"image_id": 9, "caption": "A bus."}]
    stand_ins.whole(folder / "captions_val2014.json", {"annotations": captions})
    found = annotated_objects(folder, {"42"}, table, lambda text: coco.tokens_of(text, "original", table))
    assert found is not None
    assert found.objects == {"42": ["cup", "dog", "person", "wine glass"]}
    assert annotated_objects(tmp_path, {"42"}, table, str.split) is None


def test_a_result_of_a_script_serves_as_the_objects(tmp_path):
    stand_ins.whole(tmp_path / "r.json", {"sentences": [{"image_id": 42, "mscoco_gt_words": ["dog"]}]})
    assert read_objects(tmp_path / "r.json").objects == {"42": ["dog"]}
    stand_ins.whole(tmp_path / "r.json", {"42": "dog"})
    with pytest.raises(ValueError, match="list of classes"):
        read_objects(tmp_path / "r.json")


def test_the_images_that_are_asked_about_depend_on_the_seed_alone(root):
    from mllm_align.benchmarks.published.chair import Chair

    def drawn(seed):
        one = Chair(str(root / "chair"), "", str(root / "coco" / "val2014"), n=1, seed=seed)
        return [example.id for example in one.examples()]

    assert drawn(0) == drawn(0)
    assert {drawn(seed)[0] for seed in range(8)} == {"42", "73"}
    with pytest.raises(FileNotFoundError, match="has 2 images"):
        Chair(str(root / "chair"), "", str(root / "coco" / "val2014"), n=3).examples()

"""Judged benchmarks: what the judge is asked, how its replies are read, files of judgements, what it cost."""

import json
from dataclasses import replace

import pytest
import stand_ins
from published_files import FILES, Evaluate

from annotators.api_server import serving
from mllm_align.api.client import Terms
from mllm_align.benchmarks import base
from mllm_align.benchmarks.published import llava_bench, mmhal, mmvet, objhal
from mllm_align.benchmarks.published.answers import AnswerFileError
from mllm_align.benchmarks.published.judge import ApiJudge, JudgeError, prompt_text

pytest.importorskip("openai", reason="pip install 'mllm-align[api]'")

needs_files = pytest.mark.skipif(not FILES.is_dir(), reason="the published files are not here")
SETTINGS = {"temperature": 0.0}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "k")


@pytest.fixture
def root(tmp_path):
    return stand_ins.everything(tmp_path / "data")


@pytest.fixture
def evaluate(tmp_path, root, capsys, monkeypatch) -> Evaluate:
    return Evaluate(tmp_path, capsys, monkeypatch, root)


def judge(endpoint, tmp_path, **changes) -> ApiJudge:
    terms = Terms(str(tmp_path / "cache"), api_key_env="JUDGE_KEY", concurrency=1)
    return ApiJudge("judge-1", endpoint.url, SETTINGS, terms, official="gpt-x", **changes)


def nobody() -> ApiJudge:
    return ApiJudge(
        "none", "http://127.0.0.1:9/v1", {}, Terms("unused", api_key_env="NO_SUCH_KEY"), official="gpt-x"
    )


def answered(benchmark, text: str = "An answer.") -> list[dict]:
    return [
        {"id": e.id, "image": e.image.key, "prompt": e.prompt, "prediction": text, **e.meta}
        for e in benchmark.examples()
    ]


# --- LLaVA-Bench -------------------------------------------------------------------------------------------


def of_llava(root, judge_, **changes) -> llava_bench.LlavaBench:
    folder = root / "llava_bench_wild"
    return llava_bench.LlavaBench(str(folder), str(folder / "images"), judge_, **changes)


@pytest.mark.parametrize(
    ("review", "scores"),
    [
        ("8 10\nBoth ...", (8.0, 10.0)),
        ("8, 10", (-1.0, -1.0)),  # "8" "" "10": three parts
        ("8,10", (8.0, 10.0)),
        ("8.5 6", (8.5, 6.0)),
        ("Scores: 8 10", (-1.0, -1.0)),
        ("", (-1.0, -1.0)),
    ],
)
def test_the_two_numbers_of_a_review(review, scores):
    assert llava_bench.scores_in(review) == scores


def test_the_judge_sees_context_reference_and_answer(tmp_path, root):
    with serving(lambda text: "8 6\nFine.") as endpoint:
        benchmark = of_llava(root, judge(endpoint, tmp_path))
        rows = benchmark.finish(answered(benchmark))
    assert endpoint.texts[0] == (
        "[Context]\nA dog on grass.\n\n[Question]\nQuestion 0?\n\n"
        "[Assistant 1]\nReference 0.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nAn answer.\n\n[End of Assistant 2]\n\n[System]\nGive two scores.\n\n"
    )
    first = endpoint.bodies[0]["messages"][0]
    assert first == {"role": "system", "content": llava_bench.SYSTEM}
    found = benchmark.result(rows)
    assert found["official"]["run 1"]["all"] == [75.0, 80.0, 60.0]
    assert found["judge"]["model"] == ["judge-1"]
    assert found["judge"]["version"] == ["judge-1"]
    assert found["judge"]["cost"]["requests"] == 3
    assert found["judge"]["cost"]["prompt tokens"] == 270


def test_failed_reviews_count_as_minus_one_and_runs_are_averaged(tmp_path, root):
    replies = iter(["8 8", "no idea", "5 10", "8 4", "8 4", "8 4"])
    with serving(lambda text: next(replies)) as endpoint:
        benchmark = of_llava(root, judge(endpoint, tmp_path), runs=2)
        rows = benchmark.finish(answered(benchmark))
    # Questions in order, two runs each: (8 8, fail), (5 10, 8 4), (8 4, 8 4).
    assert [[one["scores"] for one in row["judgements"]] for row in rows] == [
        [[8, 8], [-1, -1]],
        [[5, 10], [8, 4]],
        [[8, 4], [8, 4]],
    ]
    found = benchmark.result(rows)
    assert found["official"]["run 1"]["all"] == [104.8, 70.0, 73.3]  # 22 / 21
    assert found["official"]["run 2"]["all"] == [46.7, 50.0, 23.3]  # 7 / 15, as 2.333 / 5.0
    assert found["valid"] == pytest.approx(5 / 6)
    assert found["metrics"]["relative"] == pytest.approx((7.333 / 7 + 2.333 / 5) / 2)


def test_reviews_of_others(tmp_path, root):
    benchmark = of_llava(root, nobody())
    texts = [{"question_id": n, "answer2_id": "x", "content": "8 6\nFine.", "tuple": None} for n in range(3)]
    asked = [f"Question {n}?" for n in range(3)]
    nothing = {"scores": [-999, -999], "review": "8 6"}
    samples = [
        {
            "doc_id": n,
            "filtered_resps": f"Said {n}.",
            "input": text,
            "gpt_eval_llava_conv": {"question": text, **nothing},
            "gpt_eval_llava_all": {"question": text, "scores": [8, 6], "eval_model": "gpt-4o"},
        }
        for n, text in enumerate(asked)
    ]
    for name, rows in (("texts", texts), ("samples_llava_in_the_wild", samples)):
        stand_ins.jsonl(tmp_path / f"{name}.jsonl", rows)
        found, told = benchmark.from_files([tmp_path / f"{name}.jsonl"], False)
        assert benchmark.result(found)["official"]["run 1"]["all"] == [75.0, 80.0, 60.0]
    assert [row["prediction"] for row in found] == ["Said 0.", "Said 1.", "Said 2."]
    assert found[0]["judgements"][0]["judge"] == "gpt-4o"
    assert told["samples_llava_in_the_wild.jsonl"]["holds"] == "answers and reviews"
    stand_ins.jsonl(tmp_path / "one.jsonl", [{**texts[0], "tuple": [8]}, *texts[1:]])
    with pytest.raises(AnswerFileError, match=r"one.jsonl, row 1: a review has two numbers"):
        benchmark.from_files([tmp_path / "one.jsonl"], False)


def test_the_means_are_rounded_to_three_decimals_before_they_are_divided():
    totals = {f"0/{c}/{part}": 0.0 for c in llava_bench.CATEGORIES for part in llava_bench.PARTS}
    totals |= {"0/conv/reference": 25.0, "0/conv/model": 16.0, "0/conv/asked": 3.0, "0/conv/valid": 3.0}
    assert llava_bench._run_metrics(totals, 0, "conv")["relative"] == 5.333 / 8.333


# --- MM-Vet ------------------------------------------------------------------------------------------------


def of_mmvet(root, judge_, **changes) -> mmvet.MmVet:
    folder = root / "mmvet"
    return mmvet.MmVet(str(folder), str(folder / "images"), str(root / "prompts"), judge_, **changes)


@pytest.mark.parametrize(
    ("reply", "score"),
    [("0.5", 0.5), ("1.0 because", 1.0), ("0", 0.0), ("1.5", None), ("good", None), ("", None)],
)
def test_the_grade_of_a_reply(reply, score):
    assert mmvet.score_in(reply) == score


def test_a_reply_without_a_grade_is_asked_for_again_warmer(tmp_path, root):
    replies = iter(["1.0", "hm", "0.5", "0.4"])
    with serving(lambda text: next(replies)) as endpoint:
        benchmark = of_mmvet(root, judge(endpoint, tmp_path))
        rows = benchmark.finish(answered(benchmark))
    assert endpoint.texts[0] == "Compare.\n\nWhat is x? | -1 <AND> -5 | An answer. | "
    assert endpoint.texts[3] == (
        "Compare.\n\nWhich animal is it? | dog <OR> puppy | An answer. | "
        "\nPredict the correctness of the answer (digit): "
    )
    assert [body["temperature"] for body in endpoint.bodies] == [0, 0, 0, 0.5]
    found = benchmark.result(rows)
    assert found["official"]["total"] == 63.3  # (1.0 + 0.4 + 0.5) / 3
    assert found["official"]["capabilities"]["ocr"] == 75.0
    assert found["official"]["capability sets"] == {"math_ocr": 100.0, "ocr": 50.0, "rec": 40.0}


def test_a_reply_that_never_has_a_grade_is_0_and_not_valid(tmp_path, root):
    with serving(lambda text: "hm" if "animal" in text else "1.0") as endpoint:
        benchmark = of_mmvet(root, judge(endpoint, tmp_path))
        found = benchmark.result(benchmark.finish(answered(benchmark)))
    assert len(endpoint.bodies) == 3 + 4
    assert found["official"]["total"] == 66.7
    assert found["valid"] == pytest.approx(2 / 3)


def test_runs_of_the_judge_are_asked_one_by_one(tmp_path, root):
    replies = iter(["1.0", "0.0"] * 3)
    with serving(lambda text: next(replies)) as endpoint:
        benchmark = of_mmvet(root, judge(endpoint, tmp_path), runs=2)
        rows = benchmark.finish(answered(benchmark))
        again = benchmark.finish(answered(benchmark))  # from the cache
    assert len(endpoint.bodies) == 6
    official = benchmark.result(rows)["official"]
    assert (official["runs"], official["total"], official["std"]) == ([100.0, 0.0], 50.0, 50.0)
    assert [row["judgements"] for row in again] == [row["judgements"] for row in rows]


def test_answers_as_an_object_of_ids(tmp_path, root):
    stand_ins.whole(tmp_path / "answers.json", {"v1_0": "a", "v1_1": "b", "v1_2": "c"})
    rows, _ = of_mmvet(root, nobody()).from_files([tmp_path / "answers.json"], False)
    assert [row["prediction"] for row in rows] == ["a", "b", "c"]


def test_a_table_of_grades_whose_numbers_begin_with_1(tmp_path, root):
    """VLMEvalKit's: the question and the true answer stand beside prediction and score."""
    asked = ("What is x?", "Which animal is it?", "What does the sign say?")
    rows = [f"{n},{text},true,rec,said {n},{n / 4}" for n, text in enumerate(asked, 1)]
    file = tmp_path / "grades.csv"
    file.write_text("\n".join(["index,question,answer,category,prediction,score", *rows]))
    benchmark = of_mmvet(root, nobody())
    found, told = benchmark.from_files([file], False)
    assert [row["prediction"] for row in found] == ["said 1", "said 2", "said 3"]
    assert [row["judgements"][0]["score"] for row in found] == [0.25, 0.5, 0.75]
    assert told["grades.csv"]["joined by"] == "order and question"
    assert told["grades.csv"]["holds"] == "answers and grades"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": [5]}, "the score is 5; MM-Vet's are numbers from 0 to 1"),
        ({"score": [None]}, "the score is None"),
        ({"model": ["a", "b"]}, "1 scores, 2 models and 1 contents"),
    ],
)
def test_a_bad_grade_is_named(tmp_path, root, change, said):
    grade = {"model": ["g"], "content": ["1.0"], "score": [1.0]}
    stand_ins.whole(tmp_path / "g.json", {"v1_0": grade, "v1_1": {**grade, **change}, "v1_2": grade})
    with pytest.raises(AnswerFileError, match=rf"g.json, row 2: {said}"):
        of_mmvet(root, nobody()).from_files([tmp_path / "g.json"], False)


# --- MMHal -------------------------------------------------------------------------------------------------


def of_mmhal(root, judge_, **changes) -> mmhal.MmHal:
    folder = root / "mmhal"
    return mmhal.MmHal(str(folder), str(folder / "images"), str(root / "prompts"), judge_, **changes)


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Because. Rating: 5, very informative", 5),
        ("rating: 10", 1),
        ("**Rating:** 5", None),
        ("Rating: 5 or Rating: 2", None),
        ("no idea", None),
    ],
)
def test_the_rating_of_a_reply(reply, rating):
    assert mmhal.rating_in(reply) == rating


def test_scores_by_hand_and_the_image_only_for_the_v_variant(tmp_path, root):
    replies = [f"Rating: {n}" for n in (6, 5, 4, 3, 2, 1, 0)] + ["who knows"]
    said = iter(replies * 2)
    with serving(lambda text: next(said)) as endpoint:
        plain = of_mmhal(root, judge(endpoint, tmp_path))
        found = plain.result(plain.finish(answered(plain)))
        shown = of_mmhal(root, judge(endpoint, tmp_path, image_format="jpeg"), show_image=True)
        with_image = shown.result(shown.finish(answered(shown)))
    assert (
        endpoint.texts[1]
        == "Contents: Dog, Ball\nQuestion: What is number 1?\nTruth: It is 1.\nResponse: An answer.\nRate it."
    )
    assert isinstance(endpoint.bodies[0]["messages"][-1]["content"], str)
    assert isinstance(endpoint.bodies[8]["messages"][-1]["content"], list)
    official = found["official"]
    assert official["average score"] == 2.62  # 21 / 8 = 2.625, which Python rounds to the even digit
    assert official["hallucination rate"] == 0.5
    assert official["score of each type"] == [6, 5, 4, 3, 2, 1, 0, 0]
    assert official["informativeness, percent"] == 37.5  # (3 + 2 + 1 + 0 + 2 + 1 + 0 + 0) / 24
    assert official["replies without one rating"] == 1
    assert found["valid"] == 7 / 8
    assert (found["benchmark"], with_image["benchmark"]) == ("MMHal-Bench", "MMHALBench-V")
    assert with_image["official"] == official


def raw(rating: int) -> dict:
    return {
        "id": "chatcmpl-1",
        "model": "gpt-4-0314",
        "choices": [{"message": {"content": f"Rating: {rating}"}}],
    }


def test_raw_replies_in_order_are_judgements(tmp_path, root, evaluate):
    stand_ins.whole(tmp_path / "eval.json", [raw(n % 7) for n in range(8)])
    found = evaluate.result("benchmark=published/mmhal", f"predictions={tmp_path / 'eval.json'}")
    assert found["official"]["average score"] == round((0 + 1 + 2 + 3 + 4 + 5 + 6 + 0) / 8, 2)
    assert found["judge"]["model"] == ["gpt-4-0314"]
    template = json.loads((root / "mmhal" / "response_template.json").read_text())
    stand_ins.whole(
        tmp_path / "answers.json", [{**row, "model_answer": f"say {n}"} for n, row in enumerate(template)]
    )
    both = f"predictions=[{tmp_path}/answers.json,{tmp_path}/eval.json]"
    assert evaluate.result("benchmark=published/mmhal", both)["official"] == found["official"]
    assert [row["prediction"] for row in evaluate.rows()] == [f"say {n}" for n in range(8)]
    stand_ins.whole(tmp_path / "eval.json", [f"Rating: {n % 7}" for n in range(8)])  # bare texts
    texts = evaluate.result("benchmark=published/mmhal", f"predictions={tmp_path / 'eval.json'}")
    assert texts["official"] == found["official"]
    assert texts["judge"]["model"] == ["not named in the judgement file"]
    stand_ins.whole(tmp_path / "eval.json", [raw(1)] * 7)
    said = evaluate.fails("benchmark=published/mmhal", f"predictions={tmp_path / 'eval.json'}")
    assert "1 questions have no answer (7)" in said


def filled(root, **more) -> list[dict]:
    template = json.loads((root / "mmhal" / "response_template.json").read_text())
    return [{**row, **more} for row in template]


def test_reviews_beside_the_answers(tmp_path, root):
    """RLHF-V's script writes the filled template with gpt4_review in it."""
    benchmark = of_mmhal(root, nobody())
    rows = [
        {**row, "gpt4_review": f"Rating: {n % 7}"} for n, row in enumerate(filled(root, model_answer="Red."))
    ]
    stand_ins.whole(tmp_path / "a.json", rows[::-1])
    found, told = benchmark.from_files([tmp_path / "a.json"], False)
    assert [row["judgements"][0]["score"] for row in found] == [0, 1, 2, 3, 4, 5, 6, 0]
    assert {row["prediction"] for row in found} == {"Red."}
    assert told["a.json"]["holds"] == "answers and judgements"


def test_what_is_an_answer_is_not_taken_for_a_judgement(tmp_path, root):
    benchmark = of_mmhal(root, nobody())
    rows = [
        {"image_id": r["image_id"], "prompt": r["question"], "text": "Its rating: 5"} for r in filled(root)
    ]
    stand_ins.jsonl(tmp_path / "a.jsonl", rows)
    found, told = benchmark.from_files([tmp_path / "a.jsonl"], False)
    assert told["a.jsonl"]["holds"] == "answers"
    assert all("judgements" not in row for row in found)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["An answer."] * 8, "none of 8 texts has a rating"),
        (
            [{"choices": [{"message": {"content": None}}]}] * 8,
            "row 1: a judgement is a response of OpenAI's API",
        ),
        ([{"choices": []}] * 8, "row 1: a judgement is a response of OpenAI's API"),
        (None, "the field model_answer is empty in all 8 rows"),
    ],
)
def test_what_would_be_judged_0_or_paid_for_in_vain_is_refused(tmp_path, root, value, said):
    stand_ins.whole(tmp_path / "a.json", value or filled(root))
    with pytest.raises(AnswerFileError, match=f"a.json.*{said}"):
        of_mmhal(root, nobody()).from_files([tmp_path / "a.json"], False)


# --- Object HalBench ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "objects"),
    [
        ('["dog", "cup"]', ["dog", "cup"]),
        ('Here they are:\n["dog"]', ["dog"]),
        ("[]", []),
        ("dog, cup", None),
        ('["dog"\nnone', None),
    ],
)
def test_the_objects_of_a_reply(reply, objects):
    assert objhal.objects_in(reply) == objects


def test_objects_are_extracted_reduced_and_counted_once(tmp_path, root):
    objects = {"A man and a woman.": '["man", "woman", "man", "seat"]', "Here is a bus.": '["bus"]'}
    refused = []

    def extract(text):
        said = text.split("A: ")[1].split("\n")[0]
        if said not in refused:
            refused.append(said)
            return "I cannot"
        return objects[said]

    with serving(extract) as endpoint:
        benchmark = objhal.ObjectHalBench(
            folder=str(root / "objhalbench"),
            annotations=str(root / "none"),
            prompts=str(root / "prompts"),
            judge=judge(endpoint, tmp_path),
            objects=str(root / "objects.json"),
            words=lambda name, pairs: [name],
        )
        given = [{**row, "prediction": said} for row, said in zip(answered(benchmark), objects, strict=True)]
        rows = benchmark.finish(given)
        short = benchmark.finish(answered(benchmark, "A man here"))
    assert len(endpoint.bodies) == 4  # each is asked again once; three words are not given to the extractor
    assert endpoint.texts[0] == "Q: Describe this image.\nA: A man and a woman.\nList the objects."
    assert endpoint.bodies[0]["messages"][0]["role"] == "system"
    # Image 42 has a dog and a person: man, woman, and a chair that is not there. Image 73 has a bus and a cup.
    assert [row["named"] for row in rows] == [
        [["man", "person"], ["woman", "person"], ["seat", "chair"]],
        [["bus", "bus"]],
    ]
    assert benchmark.result(rows)["official"] == {
        "CHAIRs": 50.0, "CHAIRs_refine": 50.0, "CHAIRi": 25.0, "obj_rec": 50.0,
        "correct_rate": 50.0, "object_correct_rate": 75.0, "avg_word_len": 4.5,
    }  # fmt: skip
    assert [row["named"] for row in short] == [[], []]
    assert benchmark.result(short)["official"]["CHAIRs_refine"] == 0.0


@pytest.mark.parametrize("questions", [True, False])
def test_the_speakers_name_is_no_part_of_an_answer(tmp_path, root, questions):
    benchmark = objhal.ObjectHalBench(str(root / "objhalbench"), "", str(root / "prompts"), nobody())
    if not questions:
        (root / "objhalbench" / "obj_halbench_300_with_image.jsonl").unlink()
    rows = [
        {"image_id": number, "prompt": "?", "text": "Assistant: A dog."} for number in (*stand_ins.COCO, 42)
    ]
    stand_ins.jsonl(tmp_path / "a.jsonl", rows)
    found, report = benchmark.from_files([tmp_path / "a.jsonl"], True)
    assert [row["prediction"] for row in found] == ["A dog."] * 2
    assert report["repeated"] == 1


# --- what can go wrong -------------------------------------------------------------------------------------


def test_without_a_key_the_answers_are_kept_and_the_way_on_is_told(tmp_path, root):
    benchmark = of_mmvet(root, nobody())
    with pytest.raises(JudgeError, match=r"NO_SUCH_KEY is not set.*predictions=FILE"):
        base.finish(benchmark, answered(benchmark), tmp_path / "mmvet.jsonl")
    kept = base.read_jsonl(tmp_path / "mmvet.jsonl")
    assert [row["prediction"] for row in kept] == ["An answer."] * 3
    with serving(lambda text: "1.0") as endpoint:
        asked = replace(benchmark, judge=judge(endpoint, tmp_path))
        rows, _ = asked.from_files([tmp_path / "mmvet.jsonl"], False)
        assert asked.result(asked.finish(rows))["official"]["total"] == 100.0


def test_judgements_that_were_made_are_not_asked_for_again(tmp_path, root):
    with serving(lambda text: "0.5") as endpoint:
        benchmark = of_mmvet(root, judge(endpoint, tmp_path))
        base.finish(benchmark, answered(benchmark), tmp_path / "mmvet.jsonl")
    silent = replace(benchmark, judge=nobody())
    rows, _ = silent.from_files([tmp_path / "mmvet.jsonl"], False)
    assert silent.result(silent.finish(rows))["official"]["total"] == 50.0


def test_items_judged_a_different_number_of_times_are_refused(root):
    benchmark = of_mmvet(root, nobody())
    one = {"judge": "j", "version": None, "text": "1", "score": 1.0, "read": True}
    rows = [{**row, "judgements": [one] * (1 + n)} for n, row in enumerate(answered(benchmark))]
    with pytest.raises(ValueError, match=r"judged 1 times \(v1_0, ...\) and 3 times \(v1_2, ...\)"):
        benchmark.result(rows)


def test_the_official_prompt_is_read_and_not_run(root, capsys):
    folders = [root / "mmhal"]
    assert prompt_text(folders, ["eval_gpt4.py"], "template", "").startswith("Contents: {}")
    assert "never run" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="assigns no text to other"):
        prompt_text(folders, ["eval_gpt4.py"], "other", "")
    with pytest.raises(FileNotFoundError, match="look there"):
        prompt_text(folders, ["none.txt"], "template", "look there")


@needs_files
def test_the_published_prompts_take_what_is_filled_in():
    benchmark = of_mmhal(FILES, nobody())
    [first, *_] = benchmark.examples()
    assert len(benchmark.examples()) == 96
    row = {"prompt": first.prompt, "prediction": "Red.", **first.meta}
    filled = mmhal._filled(benchmark._prompt(), row)
    assert filled.rstrip().endswith("### LMM Response to Evaluate\nRed.")
    assert "### Image Contents\nFire hydrant\n" in filled
    assert of_mmvet(FILES, nobody())._prompt().startswith("Compare the ground truth")
    assert "llava_bench_conv" in of_llava(FILES, nobody())._rule()

"""VLFeedback's pairs by hand, and its best answers corrupted through an endpoint that the test starts."""

import json
import re

import published_rows as rows
import pytest
from photos import write_jsonl
from published_rows import completion, photo

from annotators.api_server import serving, text_of
from mllm_align.datasets.errors import BadDataError
from mllm_align.datasets.published import sets
from mllm_align.datasets.published.corrupted import vlfeedback_corrupted
from mllm_align.records import Preference


@pytest.fixture
def read(tmp_path):
    """Rows -> (Groups, report), with the options of a builder."""

    def read(*found: dict, build=sets.vlfeedback, **options):
        for row in found:
            photo(tmp_path / "merged_images", f"{row['id']}.jpg")
        path = write_jsonl(tmp_path / "v.jsonl", list(found))
        return build(path=str(path), images=[str(tmp_path / "merged_images")], **options)

    return read


def texts(group) -> set[tuple[str, str]]:
    return {(group.responses[p.chosen].text, group.responses[p.rejected].text) for p in group.preferences}


def test_the_best_against_the_worst(read):
    (group,), _ = read(rows.vlfeedback())
    # means: 5, 4, (2 + 5 + 1) / 3 = 2.67, 1
    assert texts(group) == {("Red.", "No idea.")}
    assert [(r.source, r.score) for r in group.responses] == [("gpt4v", 5.0), ("fuyu-8b", 1.0)]
    assert group.example.id == "vlfeedback/llava-conversation-7"


def test_one_aspect_alone(read):
    (group,), _ = read(rows.vlfeedback(), aspects=["Ethical Considerations"])
    assert [r.score for r in group.responses] == [5.0, 1.0]
    assert group.responses[0].text in ("Red.", "Blue.")  # tied in this aspect


def test_all_pairs_as_silkie(read):
    row = rows.vlfeedback()
    row["completions"][1] = completion("llava-v1.5-13b", "Reddish.", "5")  # ties with the first
    (group,), _ = read(row, pairs="all")
    assert len(group.responses) == 4
    assert set(group.preferences) == {Preference(*p, 1 / 5) for p in [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]}


def test_a_rating_that_is_none_leaves_the_answer_out(read):
    row = rows.vlfeedback()
    row["completions"][3] = completion("fuyu-8b", "No idea.", "1", "N/A", "1")
    (group,), report = read(row)
    assert texts(group) == {("Red.", "Blue.")}
    assert report["notes"]["prompts with an answer without a rating (N/A), which is left out"] == 1


def test_an_empty_answer_is_left_out(read):
    row = rows.vlfeedback()
    row["completions"][3] = completion("fuyu-8b", "  ", "1")
    (group,), report = read(row)
    assert texts(group) == {("Red.", "Blue.")}
    assert report["notes"]["prompts with an empty answer, which is left out"] == 1


def test_ties_alone_give_no_pair(read):
    tied = rows.vlfeedback("tied", completions=[completion("a", "x", "3"), completion("b", "y", "3")])
    same = rows.vlfeedback("same", completions=[completion("a", "x", "3"), completion("b", "x", "1")])
    groups, report = read(tied, same, rows.vlfeedback())
    assert len(groups) == 1
    assert report["without_a_pair"] == {"no two answers of unequal rating": 2}


def test_pairs_may_have_to_be_far_apart(read):
    (group,), _ = read(rows.vlfeedback(), pairs="all", min_margin=2.0)
    # 5 against 2.67 and 1, 4 against 1; 4 - 2.67 and 2.67 - 1 are less than 2
    assert set(group.preferences) == {Preference(*p, 1 / 3) for p in [(0, 2), (0, 3), (1, 3)]}


def test_a_random_pair_is_a_decided_one_and_always_the_same(read):
    many = [rows.vlfeedback(f"svit-{i}") for i in range(60)]
    groups, _ = read(*many, pairs="random")
    drawn = [next(iter(texts(group))) for group in groups]
    every = texts(read(rows.vlfeedback(), pairs="all")[0][0])
    assert set(drawn) == every  # of 60 draws each of the six comes up
    assert [next(iter(texts(group))) for group in read(*many, pairs="random")[0]] == drawn


def test_completions_as_an_object_of_lists(read):
    row = rows.vlfeedback()
    answers = row["completions"]
    row["completions"] = {name: [a[name] for a in answers] for name in ("annotations", "model", "response")}
    assert read(row)[0] == read(rows.vlfeedback())[0]


def test_a_tie_for_the_best_does_not_depend_on_the_order(read):
    tied = [completion("a", "x", "5"), completion("b", "y", "5"), completion("c", "z", "1")]
    one = read(*(rows.vlfeedback(f"q-{i}", completions=tied) for i in range(20)))[0]
    other = read(*(rows.vlfeedback(f"q-{i}", completions=tied[::-1]) for i in range(20)))[0]
    assert [texts(group) for group in one] == [texts(group) for group in other]
    assert {group.responses[0].text for group in one} == {"x", "y"}


def test_prompts_and_models_can_be_chosen(read):
    found = [rows.vlfeedback("llava-1"), rows.vlfeedback("llavar-2"), rows.vlfeedback("svit-3")]
    groups, report = read(*found, prompts="(?i)^llava[-_](?!med)", chosen_by="^llava-v")
    assert [group.example.id for group in groups] == ["vlfeedback/llava-1"]
    assert texts(groups[0]) == {("Reddish.", "No idea.")}
    assert report["without_a_pair"] == {"another collection of prompts": 2}


def test_where_nothing_matches_it_says_what_there_is(read):
    found = [rows.vlfeedback("svit-1"), rows.vlfeedback("lrv_2"), rows.vlfeedback("svit-3")]
    with pytest.raises(BadDataError, match=r"another collection.*: 3(.|\n)*begin with svit \(2\), lrv \(1\)"):
        read(*found, prompts="^llava-")
    with pytest.raises(BadDataError, match=r"Models: .*qwen-vl-chat \(3\)"):
        read(*found, chosen_by="^gpt-5$")
    with pytest.raises(BadDataError, match="no regular expression"):
        read(*found, prompts="(")


# --- corrupted ---------------------------------------------------------------------------------------------

TEMPLATE = "Question: {question}\nAnswer: {answer}"


@pytest.fixture
def corrupted(read, tmp_path, monkeypatch):
    """Rows and a rule -> Groups, report and the endpoint that was asked."""
    pytest.importorskip("openai", reason="pip install 'mllm-align[api]'")
    from mllm_align.api.client import Terms

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(worse) as endpoint:

        def corrupted(*found: dict, rule=worse, model=None, **options):
            terms = Terms(cache=str(tmp_path / "cache"), api_key_env=None, retries=0)
            endpoint.rule, endpoint.model = rule, model
            endpoint.bodies.clear()
            asked = {"base_url": endpoint.url, "model": "m", "settings": {"max_tokens": 9}, "terms": terms}
            options = {"template": TEMPLATE, **asked, **options}
            groups, report = read(*found, build=vlfeedback_corrupted, **options)
            return groups, report, endpoint

        yield corrupted


def worse(text: str) -> str:
    return re.sub(r"(?s).*Answer: ", "", text).replace("Red", "Blue")


def test_the_best_answer_is_corrupted(corrupted):
    groups, report, endpoint = corrupted(rows.vlfeedback(), rule=worse)
    assert [texts(group) for group in groups] == [{("Red.", "Blue.")}]
    assert endpoint.texts == ["Question: What colour is the bus?\nAnswer: Red."]
    assert [response.source for response in groups[0].responses] == ["gpt4v", "corrupted"]
    assert groups[0].responses[1].provenance == {"by": "m"}
    assert report["corruption"]["requests"] == 1


def test_corruption_shows_the_image_where_it_should(corrupted):
    _, _, endpoint = corrupted(rows.vlfeedback(), rule=worse, show_image=True)
    assert [image.size for image in endpoint.images] == [(64, 48)]


def test_what_comes_back_unchanged_is_replaced_by_the_next(corrupted):
    found = [rows.vlfeedback(f"q-{i}", completions=[completion("a", f"Red {i}.", "5")]) for i in range(10)]

    def rule(text: str) -> str:
        return re.sub(r"(?s).*Answer: ", "", text) if "Red 3." in text or "Red 5." in text else worse(text)

    groups, report, _ = corrupted(*found, rule=rule, size=8)
    assert len(groups) == 8
    assert not {"vlfeedback/q-3", "vlfeedback/q-5"} & {group.example.id for group in groups}
    assert report["corruption"]["without_a_pair"] == {"given back unchanged": 2}
    small, _, endpoint = corrupted(*found, rule=rule, size=4)
    assert {group.example.id for group in small} < {group.example.id for group in groups}
    assert endpoint.bodies == []  # every answer was paid for before
    with pytest.raises(BadDataError, match=r"dataset\.size=9, but .* gives only 8"):
        corrupted(*found, rule=rule, size=9)


def test_what_was_cut_is_replaced_by_the_next(corrupted):
    """An answer that ends in the middle would be told from the chosen one by that."""
    found = [rows.vlfeedback(f"q-{i}", completions=[completion("a", f"Red {i}.", "5")]) for i in range(10)]

    def model(body: dict) -> tuple[str, str]:
        said = worse(text_of(body))
        return (said[:3], "length") if "3" in said or "5" in said else (said, "stop")

    groups, report, _ = corrupted(*found, model=model, size=8)
    assert {group.responses[1].text for group in groups} == {
        f"Blue {i}." for i in range(10) if i not in (3, 5)
    }
    assert report["corruption"]["without_a_pair"] == {"cut at max_tokens": 2}


def test_texts_with_braces_are_sent_as_they_are(corrupted):
    row = rows.vlfeedback(
        prompt="What is {answer}?", completions=[completion("a", "{x} Red {question}", "5")]
    )
    _, _, endpoint = corrupted(row, rule=worse)
    assert endpoint.texts == ["Question: What is {answer}?\nAnswer: {x} Red {question}"]


def test_a_template_without_its_fields_is_refused(corrupted):
    with pytest.raises(BadDataError, match=r"template has no \{answer\}"):
        corrupted(rows.vlfeedback(), rule=worse, template="{question}")


def test_the_corrupted_set_is_a_stage(tmp_path, read, monkeypatch):
    """Composed as on the command line, built into the store, and found there by the next run."""
    pytest.importorskip("openai", reason="pip install 'mllm-align[api]'")
    from hydra import compose, initialize_config_dir

    from mllm_align.datasets.parquet import read_groups
    from mllm_align.entry import plain
    from mllm_align.paths import conf_dir
    from mllm_align.pipeline import preferences_stage
    from mllm_align.store import Store

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    read(*(rows.vlfeedback(f"{kind}-{i}", prompt=f"{i}?") for kind in ("llava", "svit") for i in range(4)))
    with serving(worse) as endpoint:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = plain(
                compose(
                    "sample",
                    overrides=[
                        "dataset=published/vlfeedback_gpt4v_responses",
                        f"dataset.path={tmp_path}/v.jsonl",
                        f"dataset.images=[{tmp_path}/merged_images]",
                        "dataset.size=3",
                        f"dataset.build.base_url={endpoint.url}",
                        "dataset.build.model=m",
                        "dataset.build.terms.api_key_env=null",
                        f"outputs={tmp_path}/outputs",
                    ],
                )
            )
        store, stage = Store(tmp_path / "outputs" / "store"), preferences_stage(config["dataset"])
        folder = store.get(stage)
        assert len(endpoint.bodies) == 3
    assert Store(tmp_path / "outputs" / "store").get(stage) == folder  # the endpoint is gone
    groups = read_groups(folder / "preferences.parquet")
    assert [texts(group) for group in groups] == [{("Red.", "Blue.")}] * 3
    assert all(group.example.id.startswith("vlfeedback/llava-") for group in groups)
    assert json.loads((folder / "report.json").read_text())["corruption"]["requests"] == 3

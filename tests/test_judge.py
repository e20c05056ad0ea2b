"""`mllm-align judge`: an annotator's accuracy on held-out pairs (Table 10), its interval, ties and position bias."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from mllm_align import stages
from mllm_align.annotators.agreement import accuracy_interval, compare, judged_rows
from mllm_align.annotators.base import Comparison, Judgement
from mllm_align.cli import main
from mllm_align.entry import plain
from mllm_align.judge import told
from mllm_align.paths import conf_dir
from mllm_align.records import Preference
from tiny import make_groups


@pytest.fixture
def config(tmp_path):
    def make(*overrides: str) -> dict:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            return plain(compose("judge", overrides=[f"outputs={tmp_path}", "dataset.size=6", *overrides]))

    return make


def test_the_pairs_are_of_no_preference_set(config):
    rows, figures = stages.judged(config("annotator=oracle"))
    assert figures["accuracy"] == 1.0
    assert (figures["pairs"], figures["ties"], figures["comparisons"], figures["lean"]) == (6, 0, 0, None)
    trained_on, _ = stages.build_dataset({**config()["dataset"]["build"], "split": "preference", "size": 50})
    assert not {row["image"] for row in rows} & {group.example.image.key for group in trained_on}


def test_a_comparing_judge_shows_both_orders(config, tiny_folders):
    rows, figures = stages.judged(config("annotator=large", f"annotator.build.path={tiny_folders['llava']}"))
    assert figures["comparisons"] == 6
    for row in rows:
        ((forward, backward),) = row["orders"]
        assert row["scores"][0] - row["scores"][1] == pytest.approx((forward - backward) / 2)
    json.dumps(figures, allow_nan=False)


def test_a_reward_model_is_trained_for_it(config, tiny_folders):
    small = ["annotator.data.size=4", "annotator.train.epochs=1", "base_model.lora.r=2"]
    small += [f"base_model.path={tiny_folders['llava']}", "dataset@annotator.data=scenes/povid"]
    rows, figures = stages.judged(config("annotator=reward_model", *small))
    assert len(rows) == figures["pairs"] == 6


def test_figures_in_a_line_by_hand():
    groups = make_groups(4)
    judged = [
        Judgement((1.0, 0.0), (Comparison(0, 1, 1.0, -1.0),)),
        Judgement((0.0, 1.0), (Comparison(0, 1, -1.0, 1.0),)),
        Judgement((0.5, 0.0), (Comparison(0, 1, 2.0, 1.0),)),
        Judgement((0.0, 0.0)),
    ]
    rows, found = judged_rows(groups, judged), compare(groups, judged)
    interval = accuracy_interval(rows)
    assert (found.accuracy, found.ties) == (pytest.approx(2 / 3), 1)
    assert interval.value == pytest.approx(2 / 3)
    figures = {**vars(found), "interval": [interval.low, interval.high]}
    line = told(figures)
    assert line.startswith("accuracy 66.7% [")
    assert "of 3 decided pairs, 1 ties, both orders name different winners in 33.3% of 3 comparisons" in line
    assert line.endswith("+0.50 nats for place A")


def test_orders_are_those_of_the_chosen_response_first():
    (group,) = make_groups(1)
    judged = [Judgement((-0.5, 0.5), (Comparison(0, 1, -3.0, 1.0),))]
    for preference, orders in ((Preference(0, 1), [-3.0, 1.0]), (Preference(1, 0), [1.0, -3.0])):
        (row,) = judged_rows([replace(group, preferences=(preference,))], judged)
        assert row["orders"] == [orders]


def test_undecided_comparisons_are_counted_by_themselves_and_votes_are_no_nats():
    groups = make_groups(3)
    judged = [
        Judgement((0.0, 0.0), (Comparison(0, 1, 1.0, 1.0, "votes"),)),
        Judgement((0.0, 0.0), (Comparison(0, 1, 0.0, 0.0, "undecided"),)),
        Judgement((0.5, -0.5), (Comparison(0, 1, 1.0, -1.0, "votes"),)),
    ]
    found = compare(groups, judged)
    assert (found.comparisons, found.undecided, found.conflicting, found.lean) == (2, 1, 0.5, 0.5)
    figures = {**vars(found), "interval": [0.0, 1.0]}
    assert told(figures).endswith("of 2 comparisons, +0.50 votes for place A, 1 comparisons undecided")
    mixed = compare(groups, [*judged[:2], Judgement((1.0, -1.0), (Comparison(0, 1, 2.0, -2.0),))])
    assert math.isnan(mixed.lean)
    assert mixed.unit == "log-odds and votes"
    assert told({**vars(mixed), "lean": None, "interval": [0.0, 1.0]}).endswith("comparisons undecided")


def test_all_ties_have_no_accuracy():
    groups = make_groups(2)
    assert accuracy_interval(judged_rows(groups, [Judgement((0.0, 0.0))] * 2)) is None
    assert told({"accuracy": None, "pairs": 2}) == "2 pairs, all of them ties"


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [(["annotator=none"], "annotator=none judges nothing"), (["dataset=scenes/llava_instruct"], "no pairs")],
)
def test_what_cannot_be_judged_is_refused(tmp_path, capsys, monkeypatch, overrides, advice):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["judge", *overrides, "dataset.size=2"])
    assert stop.value.code == 2
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize(("more", "judged"), [([], 4), (["dataset.size=3"], 3)])
def test_own_data_are_judged_as_they_are(tmp_path, tiny_folders, monkeypatch, more, judged):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("a.png")
    rows = [
        {"image": "a.png", "prompt": "?", "chosen": f"Red {i}.", "rejected": f"A cup {i}."} for i in range(4)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["judge", "dataset=local", "dataset.path=pairs.jsonl", "annotator=self", *more,
          f"base_model.path={tiny_folders['llava']}"])  # fmt: skip
    assert json.loads(Path("outputs/judgements/self/local/judge.json").read_text())["pairs"] == judged

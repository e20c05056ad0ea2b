"""`generation=vllm`: a server with OpenAI's interface, which here answers with our own scenes model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from annotators.api_server import Endpoint, image_of, serving, text_of
from mllm_align import stages
from mllm_align.api.client import Terms
from mllm_align.api.generation import draw_seed
from mllm_align.api.spending import Budget
from mllm_align.benchmarks.vqa import Vqa
from mllm_align.cli import main
from mllm_align.compute.decoding import generate, stop_tokens
from mllm_align.compute.packing import collate
from mllm_align.datasets.parquet import read_groups
from mllm_align.entry import plain
from mllm_align.models.load import Policy, load_policy
from mllm_align.paths import conf_dir
from mllm_align.records import Example

pytest.importorskip("openai", reason="pip install 'mllm-align[api]'")

SMALL = [
    "sampler=policy", "annotator=oracle", "dataset.size=3", "sampler.build.k=3", "sampler.build.max_new_tokens=12",
]  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class Sent:
    """The image of a request."""

    picture: Image.Image
    key: str = "sent"

    def load(self) -> Image.Image:
        return self.picture


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("asset://scenes/base")


@pytest.fixture
def endpoint(policy) -> Iterator[Endpoint]:
    """The scenes model behind an endpoint: what it reads is what was sent, and nothing else."""
    alone = threading.Lock()

    def answer(body: dict) -> tuple[str, str]:
        example = Example("", Sent(image_of(body)), text_of(body))
        with alone:
            [[response]] = generate(
                policy,
                [example],
                max_new_tokens=body["max_tokens"],
                temperature=body["temperature"],
                top_p=body.get("top_p", 1.0),
                seed=body.get("seed", 0),
            )
        # Some servers keep the space that a chat template puts before an answer.
        return f" {response.text}", "stop" if response.token_ids[-1] in stop_tokens(policy) else "length"

    with serving(str, model=answer) as found:
        yield found


def served(endpoint: Endpoint, *overrides: str) -> list[str]:
    """What chooses the server, asked quickly."""
    return [
        "generation=vllm", f"generation.build.base_url={endpoint.url}", "generation.build.model=mine/exported",
        "generation.build.terms.retries=0", "generation.build.terms.timeout=30", *overrides,
    ]  # fmt: skip


def evaluated(out: Path, *overrides: str) -> dict[str, str]:
    """File -> what it holds, of an evaluation."""
    assert main(["evaluate", f"out={out}", f"outputs={out}", *overrides]) == 0
    return {file.name: file.read_text() for file in out.rglob("*.json*")}


def sample(*overrides: str) -> tuple[list, dict]:
    """Groups and report, as `mllm-align sample` makes them."""
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return stages.sampled(plain(compose("sample", overrides=list(overrides))))


def texts(groups) -> list[list[str]]:
    return [[r.text for r in group.responses] for group in groups]


@pytest.fixture
def without_model(monkeypatch) -> None:
    """No model may be loaded."""

    def never(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(stages, "load", never)


# --- evaluation --------------------------------------------------------------------------------------------


def test_a_served_model_answers_what_it_answers_here(endpoint, tmp_path, monkeypatch) -> None:
    asked = ["benchmark=scenes", "benchmark.n=2"]
    here = evaluated(tmp_path / "here", *asked)
    monkeypatch.setattr(stages, "load", None)
    there = evaluated(tmp_path / "there", *asked, *served(endpoint))
    assert there == here
    assert set(here) == {"pope.jsonl", "recall.jsonl", "vqa.jsonl", "metrics.json"}
    assert len(endpoint.bodies) == sum(
        here[f"{name}.jsonl"].count("\n") for name in ("pope", "recall", "vqa")
    )


def test_what_is_sent(endpoint, tmp_path, without_model) -> None:
    evaluated(tmp_path / "out", "benchmark=scenes/vqa", "benchmark.n=1", *served(endpoint))
    examples = Vqa(n=1).examples()
    assert sorted(endpoint.texts) == sorted(example.prompt for example in examples)
    for body in endpoint.bodies:
        [turn] = body["messages"]
        assert (turn["role"], [part["type"] for part in turn["content"]]) == ("user", ["image_url", "text"])
        assert {name: body[name] for name in body if name != "messages"} == {
            "model": "mine/exported", "temperature": 0, "max_tokens": Vqa(n=1).max_new_tokens,
        }  # fmt: skip
        assert image_of(body).format == "PNG"
        assert np.array_equal(np.asarray(image_of(body)), np.asarray(examples[0].image.load()))


def test_several_questions_are_asked_at_once(tmp_path, without_model, caplog) -> None:
    caplog.set_level("INFO")
    with serving(lambda text: " yes ", delay=0.05) as endpoint:
        found = evaluated(tmp_path / "out", "benchmark=scenes/pope", "benchmark.n=2", *served(endpoint))
    assert endpoint.together > 2
    assert "HTTP Request" not in caplog.text  # there may be ten thousand
    assert {json.loads(line)["prediction"] for line in found["pope.jsonl"].splitlines()} == {"yes"}


def test_settings_of_ones_own_go_into_every_request(endpoint, tmp_path, without_model) -> None:
    own = "+generation.build.settings.add_special_tokens=true"
    evaluated(tmp_path / "out", "benchmark=scenes/recall", "benchmark.n=1", *served(endpoint, own))
    assert [body["add_special_tokens"] for body in endpoint.bodies] == [True]


def test_answers_are_kept_only_where_one_asks_for_it(tmp_path, without_model) -> None:
    """A server does not tell that it has other weights under the same name."""
    with serving(lambda text: text) as endpoint:
        asked = ["benchmark=scenes/recall", "benchmark.n=2", *served(endpoint)]
        kept = [*asked, f"generation.build.terms.cache={tmp_path / 'kept'}"]
        found = [evaluated(tmp_path / str(n), *given) for n, given in enumerate([asked, asked, kept, kept])]
    assert len(endpoint.bodies) == 2 + 2 + 2 + 0
    assert all(one == found[0] for one in found)


def test_a_cap_needs_the_folder_that_what_was_spent_is_noted_in() -> None:
    with pytest.raises(ValueError, match="name a folder"):
        Terms(None, None, Budget(max_total_tokens=1))


def test_a_request_that_fails_is_named(tmp_path, capsys, without_model) -> None:
    with serving(str, failures=[(400, {"error": {"message": "the prompt is too long"}})]) as endpoint:
        asked = ["benchmark=scenes/vqa", "benchmark.n=1", "generation.build.terms.concurrency=1"]
        said = refused(capsys, "evaluate", f"out={tmp_path / 'out'}", *asked, *served(endpoint))
    assert f"question about {Vqa(n=1).examples()[0].id}" in said
    assert "the prompt is too long" in said
    assert not list((tmp_path / "out").rglob("*.json*"))


def test_a_server_that_is_not_there(tmp_path, capsys, without_model) -> None:
    with serving(str) as endpoint:
        pass
    said = refused(capsys, "evaluate", f"out={tmp_path / 'out'}", "benchmark.n=1", *served(endpoint))
    assert "cannot be reached" in said
    assert "generation=local" in said


# --- drawing -----------------------------------------------------------------------------------------------


def test_draws_have_seeds_of_their_own_and_repeat(endpoint, without_model) -> None:
    first, _ = sample(*SMALL, *served(endpoint))
    seeds = [body["seed"] for body in endpoint.bodies]
    assert len(seeds) == len(set(seeds)) == 3 * 3
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in endpoint.bodies} == {(1.0, 1.0, 12)}
    again, _ = sample(*SMALL, *served(endpoint))
    other, _ = sample(*SMALL, *served(endpoint, "seed=1"))
    assert first == again
    assert texts(first) != texts(other)
    assert not set(seeds) & {body["seed"] for body in endpoint.bodies[18:]}
    assert len({text for row in texts(first) for text in row}) > len(first)


def test_a_draw_does_not_depend_on_the_others(endpoint, without_model) -> None:
    """Neither on k, nor on the examples beside it: the oracle leaves out ties, so Groups are found by their ids."""
    many, _ = sample(*SMALL, *served(endpoint))
    few, _ = sample(*SMALL, "sampler.build.k=2", "dataset.size=2", *served(endpoint))
    drawn = {group.example.id: texts([group])[0] for group in many}
    known = [group for group in few if group.example.id in drawn]
    assert known
    assert all(texts([group])[0] == drawn[group.example.id][:2] for group in known)


def test_seeds_by_hand() -> None:
    seeds = [draw_seed(s, name, d) for s in (0, 1) for name in ("a", "b") for d in range(3)]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == draw_seed(0, "a", 0)


def test_what_was_cut_is_counted(endpoint, without_model) -> None:
    groups, report = sample(*SMALL, "sampler.build.k=2", *served(endpoint))
    said = [r.provenance for group in groups for r in group.responses]
    assert report["cut at max_new_tokens"] == said.count({"finish": "length"}) > 0


def test_texts_without_tokens_travel(endpoint, policy, tmp_path, without_model) -> None:
    """To the file and back, as data of one's own, and into a batch that is trained on."""
    out = tmp_path / "drawn.parquet"
    assert main(["sample", f"out={out}", f"outputs={tmp_path}", *SMALL, *served(endpoint)]) == 0
    groups = read_groups(out)
    assert all(r.token_ids is None and r.source == "exported" for group in groups for r in group.responses)
    assert all(text == text.strip() for row in texts(groups) for text in row)
    assert all(r.score is not None for group in groups for r in group.responses)
    assert all(group.preferences for group in groups)
    assert "with mine/exported" in out.with_suffix(".html").read_text()
    read, _ = sample("dataset=local", f"dataset.path={out}")
    pairs = [[group.responses[p.chosen].text for p in group.preferences] for group in groups]
    assert [[g.responses[p.chosen].text for p in g.preferences] for g in read] == pairs
    batch = collate(groups, policy.processor)
    ends = batch.response_ids.gather(2, batch.response_mask.sum(2, keepdim=True) - 1).flatten()
    assert set(ends.tolist()) == set(stop_tokens(policy))  # each text ends where its model ended it


def test_a_judge_that_is_the_model_itself_is_loaded(endpoint, policy, monkeypatch) -> None:
    loaded = []
    monkeypatch.setattr(stages, "load", lambda spec, *_, **__: loaded.append(spec["path"]) or policy)
    groups, _ = sample(*SMALL, "annotator=self", "dataset.size=2", *served(endpoint))
    assert loaded == ["asset://scenes/base"]
    assert all(r.source == "exported" for group in groups for r in group.responses)


# --- refusals ----------------------------------------------------------------------------------------------


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("sampler", ["bdhs_attn", "bdhs_noise", "unguided", "povid_distortion"])
def test_what_a_server_cannot_draw_is_refused(endpoint, capsys, without_model, sampler) -> None:
    said = refused(capsys, "sample", f"sampler={sampler}", *served(endpoint))
    assert f"sampler={sampler}" in said
    assert "choose generation=local" in said
    assert endpoint.bodies == []


@pytest.mark.parametrize(
    ("command", "overrides", "advice"),
    [
        ("sample", ["sampler=dataset"], "draws nothing"),
        ("sample", ["sampler=policy", "dataset.size=2"], "choose annotator=oracle"),
        ("evaluate", ["benchmark=scenes/reward"], "choose generation=local"),
        ("evaluate", ["adapter=runs/mine/adapter"], "mllm-align export"),
        ("evaluate", ["generation.build.model=null"], "no model is named"),
        ("evaluate", ["generation.build.terms.api_key_env=MY_KEY"], "export MY_KEY="),
    ],
)
def test_refusals_come_before_any_request(
    endpoint, capsys, without_model, command, overrides, advice
) -> None:
    assert advice in refused(capsys, command, *served(endpoint, *overrides))
    assert endpoint.bodies == []


@pytest.mark.parametrize("name", ["generation/local", "generation/vllm", "export", "evaluate", "sample"])
def test_every_key_has_a_sentence_above_it(name) -> None:
    lines = (Path(conf_dir()) / f"{name}.yaml").read_text().split("\nhydra:")[0].splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        plain = not line.strip() or line.strip().startswith(("#", "-", "_", "defaults:", "outputs:"))
        opened = before.strip().endswith(":") and before.strip() != "settings: {}"
        assert plain or opened or before.strip().startswith("#"), f"{name}.yaml: {line}"

from collections import Counter
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mllm_align.datasets import scenes as sets
from mllm_align.datasets.parquet import read_groups, write_groups
from mllm_align.records import Preference, Response
from mllm_align.scenes.oracle import is_true
from mllm_align.scenes.text import asked, describe
from mllm_align.scenes.world import rng_for
from scene_truth import hallucinated_objects

CONF = Path(__file__).parents[2] / "conf" / "dataset" / "scenes"


class FakeModel:
    """Describes scenes; `noise` is how often it makes things up. Draws depend on the example and the draw."""

    def __init__(self, name: str, noise: float) -> None:
        self.name, self.noise, self.asked = name, noise, Counter()

    def __call__(self, prompts, k, first_draw):
        self.asked.update(p.id for p in prompts for _ in range(k))
        return [tuple(self.answer(p, first_draw + d) for d in range(k)) for p in prompts]

    def answer(self, example, draw):
        rng = rng_for("fake", self.name, example.id, draw)
        return Response(describe(sets.scene_of(example), rng, self.noise), self.name)


@pytest.fixture
def models(monkeypatch):
    made = {}

    def answerer(path, temperature, max_new_tokens, device, name=None):
        noise = {"base": 0.5, "large": 0.1, "weak": 0.9}[path]
        return made.setdefault(path, FakeModel(path, noise))

    monkeypatch.setattr(sets, "_answerer", answerer)
    return made


def pairs(groups):
    for group in groups:
        assert group.preferences == (Preference(0, 1),)
        chosen, rejected = group.responses
        yield group.example, sets.scene_of(group.example), chosen, rejected


def test_povid_rejects_a_false_version_of_the_answer():
    groups, report = sets.povid(150, seed=1)
    assert (len(groups), report["prompts"]) == (150, 150)
    for example, scene, chosen, rejected in pairs(groups):
        assert chosen.text == example.reference
        assert not is_true(rejected.text, scene, example.prompt)
        assert asked(example.prompt) is not None
    tasks = Counter(g.example.meta["task"] for g in groups)
    assert 0.55 < tasks["describe"] / 150 < 0.85
    assert all(g.example.id.startswith("povid/scenes/preference/") for g in groups)
    assert len({g.example.id for g in groups}) == 150


def test_a_smaller_set_is_a_part_of_a_larger_one():
    small, large, other = (sets.povid(n, seed)[0] for n, seed in ((20, 0), (60, 0), (20, 1)))
    assert small == large[:20]
    assert small != other


def test_rlhf_v_corrects_the_response_and_passes_over_true_ones(models):
    groups, report = sets.rlhf_v(60, model="base")
    skipped = report["without_a_pair"]["no error"]
    assert report["prompts"] == 60 + skipped
    assert skipped > 20  # the fake model describes truly in about half of the cases
    for example, scene, chosen, rejected in pairs(groups):
        assert is_true(chosen.text, scene, example.prompt)
        assert rejected.source == "base"
        assert not is_true(rejected.text, scene, example.prompt)


def test_vlfeedback_pairs_the_best_with_the_worst_of_all_models(models):
    paths = {name: name for name in ("base", "large", "weak")}
    groups, _ = sets.vlfeedback(80, models=paths, pool=4, noise=0.0)
    for prompt_id in models["base"].asked:
        assert sum(m.asked[prompt_id] for m in models.values()) == 4
        assert all(m.asked[prompt_id] in (1, 2) for m in models.values())
    chosen, rejected = Counter(), Counter()
    for _, _, best, worst in pairs(groups):
        assert best.score > worst.score
        chosen[best.source] += 1
        rejected[worst.source] += 1
    assert chosen["large"] > chosen["weak"]
    assert rejected["weak"] > rejected["large"]


def test_the_annotators_noise_makes_some_pairs_wrong(models):
    def wrong(noise):
        groups, _ = sets.llava_rlhf(150, model="base", noise=noise)
        return sum(
            len(hallucinated_objects(a.text, s)) > len(hallucinated_objects(b.text, s))
            for _, s, a, b in pairs(groups)
        )

    assert wrong(0.0) < wrong(0.6)
    assert sets.llava_rlhf(20, model="base", noise=0.6) == sets.llava_rlhf(20, model="base", noise=0.6)


def test_too_few_prompts_are_told(models, monkeypatch):
    monkeypatch.setattr(sets, "POOL", 50)
    monkeypatch.setattr(sets, "scene_order", lambda seed: list(range(50)))
    with pytest.raises(ValueError, match=r"size=60: only .* ask for fewer"):
        sets.rlhf_v(60, model="base")


def test_empty_and_equal_responses_give_no_pair():
    example = sets.examples("validation", 1)[0]
    assert sets._pair("x", example, Response("a"), Response(" ")) == "empty response"
    assert sets._pair("x", example, Response("a"), Response("a")) == "equal responses"


def test_examples_have_the_tasks_asked_for():
    found = sets.examples("evaluation", 60, tasks=("colour", "read"))
    assert {e.meta["task"] for e in found} == {"colour", "read"}
    assert all(is_true(e.reference, sets.scene_of(e), e.prompt) for e in found)
    assert {e.image.key.split("/")[1] for e in found} == {"evaluation"}
    with pytest.raises(ValueError, match="caption"):
        sets.examples("evaluation", 1, tasks=("caption",))


def test_groups_survive_parquet(tmp_path):
    groups, _ = sets.povid(5)
    write_groups(tmp_path / "povid.parquet", groups)
    back = read_groups(tmp_path / "povid.parquet")
    assert [g.responses for g in back] == [g.responses for g in groups]
    assert [sets.scene_of(g.example) for g in back] == [sets.scene_of(g.example) for g in groups]
    assert back[0].example.image.load().tobytes() == groups[0].example.image.load().tobytes()


def last(path: str) -> str:
    return path.rpartition("/")[2]


def test_answers_without_pairs_are_those_that_povid_starts_from(tmp_path):
    groups, _ = sets.llava_instruct(12, seed=3)
    assert all(g.example.reference and not g.responses and not g.preferences for g in groups)
    chosen = {last(g.example.id): g.responses[0].text for g in sets.povid(12, seed=3)[0]}
    answers = {last(g.example.id): g.example.reference for g in groups}
    both = chosen.keys() & answers.keys()
    assert len(both) > 8
    assert all(chosen[name] == answers[name] for name in both)
    write_groups(tmp_path / "answers.parquet", groups)
    back = read_groups(tmp_path / "answers.parquet")
    assert [(g.example.reference, g.responses) for g in back] == [(g.example.reference, ()) for g in groups]
    with pytest.raises(ValueError, match="ask for fewer"):
        sets.llava_instruct(sets.POOL + 1)


@pytest.mark.parametrize("name", ["povid", "rlhf_v", "vlfeedback", "llava_rlhf", "llava_instruct"])
def test_configs_build_what_they_say(name, models):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert config.name == f"scenes/{name}"
    config.size = 6
    if "model" in config:
        config.model = last(config.model)
    if "models" in config:
        config.models = {name: last(path) for name, path in config.models.items()}
    groups, report = instantiate(config.build)
    assert len(groups) == 6
    assert report["prompts"] >= 6

"""Every alignment, sampler, annotator and trainer option composed, built and called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from annotating import annotated
from mllm_align.annotators.pairs import best_worst
from tiny import make_groups

CONF = Path(__file__).parents[2] / "conf"
OFFLINE = [
    "ddpo",
    "dpo",
    "ipo",
    "mdpo",
    "simpo",
    "slic",
]  # as they stand, without changing sampler or annotator
# Their annotator needs a server, or a model that has to be trained first: they have tests of their own.
JUDGED_ELSEWHERE = {"api", "reward_model"}

# The groups in the order of conf/train.yaml, without the groups that the tests here have no use for.
PRIMARY = f"""
defaults:
  - sampler: dataset
  - annotator: none
  - alignment: dpo
  - trainer: cpu
  - _self_
  - world: scenes
seed: 0
base_model:
  lr: 1.0e-3
  projector_lr: 1.0e-4
  max_length: null
  max_new_tokens: 12
  batch_size: 4
hydra:
  searchpath: ["file://{CONF}"]
"""


@pytest.fixture
def composed(tmp_path):
    (tmp_path / "primary.yaml").write_text(PRIMARY)

    def composer(*overrides: str):
        with initialize_config_dir(str(tmp_path), version_base=None):
            return compose("primary", overrides=list(overrides))

    return composer


def options(group: str) -> list[str]:
    """The options of a group as the command line names them; `shared` holds what options are made of."""
    files = [path.relative_to(CONF / group).with_suffix("") for path in (CONF / group).rglob("*.yaml")]
    return sorted(file.as_posix() for file in files if "shared" not in file.parts)


def test_the_options_are_the_documented_ones() -> None:
    documented = (CONF.parent / "README.md").read_text()
    for group in ("alignment", "annotator", "sampler", "trainer", "dataset"):
        (line,) = [row for row in documented.splitlines() if row.startswith(f"| `{group}` |")]
        assert sorted(set(re.findall(r"`([a-z_0-9/]+)`", line)) - {group}) == options(group), group


@pytest.mark.parametrize("group", ["alignment", "annotator", "sampler", "trainer"])
def test_every_key_has_a_sentence_above_it(group) -> None:
    for path in (CONF / group).rglob("*.yaml"):
        lines = path.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            key = line.strip().split(":")[0]
            plain = not line.strip() or line.strip().startswith(("#", "-")) or key in ("defaults", "_self_")
            built = (
                key.startswith("_") or "${alignment." in line or "${.." in line or key == "optimise"
            )  # said once where the value is
            opened = before.strip().endswith(":")
            assert plain or built or opened or before.strip().startswith("#"), f"{path.name}: {line}"


@pytest.mark.parametrize("alignment", OFFLINE)
def test_an_offline_method_takes_the_pairs_of_the_dataset(composed, alignment) -> None:
    cfg = composed(f"alignment={alignment}")
    assert (cfg.alignment.name, cfg.sampler.when, cfg.sampler.name, cfg.annotator.name) == (
        alignment, "offline", "dataset", "none",
    )  # fmt: skip


def test_online_dpo_brings_its_sampler_and_annotator(composed) -> None:
    cfg = composed("alignment=online_dpo")
    assert (cfg.sampler.name, cfg.sampler.when, cfg.annotator.name) == ("policy", "online", "large")


def test_the_command_line_still_wins(composed) -> None:
    cfg = composed("alignment=online_dpo", "annotator=oracle", "sampler=dataset", "sampler.when=online")
    assert (cfg.annotator.name, cfg.sampler.name) == ("oracle", "dataset")
    cfg = composed("alignment=online_dpo", "sampler.build.k=4", "alignment.loss.beta=0.2", "alignment.lr=0.5")
    built = OmegaConf.to_container(cfg, resolve=True)
    assert cfg.sampler.build.k == 4
    assert built["alignment"]["module"]["online"]["loss"]["beta"] == 0.2
    assert built["alignment"]["module"]["online"]["optimise"]["lr"] == 0.5


def test_the_learning_rates_come_from_the_base_model(composed) -> None:
    cfg = composed("base_model.lr=0.25", "base_model.projector_lr=0.125")
    optimise = instantiate(cfg.alignment.optimise)
    assert (optimise.lr, optimise.projector_lr) == (0.25, 0.125)


def test_none_builds_nothing(composed) -> None:
    cfg = composed("alignment=none")
    assert cfg.alignment.module is None
    assert instantiate(cfg.annotator.build) is None


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_schedule_can_be_named(composed, schedule) -> None:
    cfg = composed(f"alignment.schedule._target_=mllm_align.modules.schedule.{schedule}")
    assert instantiate(cfg.alignment.optimise).schedule(9, 10) > 0


@pytest.fixture
def policy(tiny_folders):
    from mllm_align.models.load import add_lora, load_policy

    return add_lora(load_policy(tiny_folders["llava"]), r=2, alpha=4)


@pytest.mark.parametrize("alignment", OFFLINE)
@pytest.mark.parametrize("logprobs", ["sum", "mean"])
def test_every_offline_method_trains(composed, policy, tmp_path, alignment, logprobs) -> None:
    from mllm_align.modules.fit import fit
    from mllm_align.modules.reference import reference_logprobs

    cfg = composed(f"alignment={alignment}", f"alignment.logprobs={logprobs}", "alignment.epochs=2")
    groups = instantiate(cfg.sampler.build).sample(policy, make_groups(2), 0)
    if (extend := instantiate(cfg.alignment.extend)) is not None:
        groups = [extend(group) for group in groups]
    needed = {}
    if "reference" in cfg.alignment.needs.offline:
        needed["reference"] = reference_logprobs(policy, groups, batch_size=2)
    module = instantiate(cfg.alignment.module.offline)(policy, **needed)
    told: list[float] = []
    keys = {name: cfg.alignment[name] for name in ("epochs", "batch_size", "accumulate", "gradient_clip")}
    fit(module, groups, tmp_path / "run", **keys, seed=cfg.seed, trainer=instantiate(cfg.trainer),
        scalars=lambda _, values: told.append(values["loss"]))  # fmt: skip
    assert told[1] < told[0]


@pytest.mark.parametrize("alignment", OFFLINE)
def test_every_preference_method_trains_on_what_it_draws(composed, policy, tmp_path, alignment) -> None:
    """Online-IPO, Online-SLiC, Online-SimPO, ...: the method as it stands, with another sampler."""
    from mllm_align.modules.fit import fit
    from scene_groups import scene_groups

    cfg = composed(f"alignment={alignment}", "sampler=policy", "annotator=oracle", "sampler.build.k=2")
    parts = {"sampler": instantiate(cfg.sampler.build), "annotator": JudgeByLength(), "seed": 0}
    assert set(cfg.alignment.needs.online) == set(parts)
    module = instantiate(cfg.alignment.module.online)(policy, **parts)
    told: list[dict[str, float]] = []
    fit(module, scene_groups(2), tmp_path / "run", epochs=1, batch_size=2, seed=0,
        scalars=lambda _, values: told.append(values))  # fmt: skip
    assert told[0]["loss"] > 0
    assert told[0]["grad_norm"] > 0


class JudgeByLength:
    """Prefers what has more tokens, or the first: no draw ties."""

    pairs = staticmethod(best_worst)

    def judge(self, groups):
        from mllm_align.annotators.base import Judgement

        return [
            Judgement(tuple(len(r.token_ids) - 0.1 * i for i, r in enumerate(g.responses))) for g in groups
        ]


def test_ddpo_weighs_the_tokens_of_changed_segments(composed, policy) -> None:
    from mllm_align.records import Group, Preference, Response

    cfg = composed("alignment=ddpo", "alignment.token_weights.weight=3")
    module = instantiate(cfg.alignment.module.offline)(policy, reference={})
    (group,) = make_groups(1)
    responses = (
        Response("a", token_ids=(11, 12, 13, 14, 2)),
        Response("b", token_ids=(11, 12, 13, 15, 16, 2)),
    )
    batch = module.collate([Group(group.example, responses, (Preference(0, 1),))])
    # The end token alone is too short a block to be shared.
    assert batch.token_weights.tolist() == [[[1, 1, 1, 3, 3, 0], [1, 1, 1, 3, 3, 3]]]
    assert torch.equal(batch.token_weights[0] > 0, batch.response_mask[0])


def annotators() -> list[str]:
    return [name for name in options("annotator") if name not in {"none", *JUDGED_ELSEWHERE}]


@pytest.mark.parametrize("annotator", annotators())
@pytest.mark.parametrize("pairs", ["best_worst", "all_pairs"])
def test_every_annotator_annotates(composed, policy, tiny_folders, annotator, pairs) -> None:
    from scene_groups import scene_groups

    cfg = composed(
        f"annotator={annotator}", f"annotator.build.pairs._target_=mllm_align.annotators.pairs.{pairs}"
    )
    if annotator == "large":
        cfg.annotator.build.path = str(tiny_folders["llava_next"])
    built = instantiate(cfg.annotator.build)(policy)
    (group,) = annotated(built, scene_groups(1, 3))
    assert group.preferences
    assert all(r.score is not None for r in group.responses)


def test_the_policy_sampler_samples(composed, policy) -> None:
    cfg = composed("sampler=policy", "sampler.build.max_new_tokens=4", "sampler.build.k=3")
    (group,) = instantiate(cfg.sampler.build).sample(policy, make_groups(1), seed=0)
    assert len(group.responses) == 3


@pytest.mark.parametrize("annotator", ["self", "large"])
def test_the_judge_is_asked_in_the_words_it_was_taught(composed, annotator) -> None:
    from mllm_align.scenes.text import JUDGE_PROMPT

    assert composed(f"annotator={annotator}").annotator.build.template == JUDGE_PROMPT


@pytest.mark.parametrize("trainer", ["cpu", "gpu"])
def test_every_trainer_is_understood(composed, trainer) -> None:
    assert instantiate(composed(f"trainer={trainer}").trainer).accelerator == trainer


@pytest.mark.parametrize("alignment", options("alignment"))
def test_the_real_configuration_takes_every_method(alignment) -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        compose(
            "train", overrides=[f"alignment={alignment}"]
        )  # with the sampler and annotator that it brings
        cfg = compose("train", overrides=[f"alignment={alignment}", "sampler=dataset", "annotator=self"])
        online = compose("train", overrides=["alignment=online_dpo"])
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert (cfg.alignment.name, cfg.sampler.name, cfg.annotator.name) == (alignment, "dataset", "self")
    assert (online.sampler.name, online.annotator.name) == ("policy", "large")

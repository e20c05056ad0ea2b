"""Every alignment, sampler, annotator and trainer option composed, built and called."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tiny import make_examples, make_groups

CONF = Path(__file__).parents[2] / "conf"
OFFLINE = ["dpo", "ipo", "slic"]

# The groups in the order of conf/train.yaml, without the groups that the tests here have no use for.
PRIMARY = f"""
defaults:
  - sampler: dataset
  - annotator: none
  - alignment: dpo
  - trainer: cpu
  - _self_
seed: 0
base_model:
  lr: 1.0e-3
  projector_lr: 1.0e-4
  max_length: null
  max_new_tokens: 12
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
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_the_options_are_the_documented_ones() -> None:
    assert options("alignment") == ["dpo", "ipo", "none", "online_dpo", "slic"]
    assert options("annotator") == ["large", "none", "oracle", "self"]
    assert options("sampler") == ["dataset", "policy"]
    assert options("trainer") == ["cpu", "gpu"]


@pytest.mark.parametrize("group", ["alignment", "annotator", "sampler", "trainer"])
def test_every_key_has_a_sentence_above_it(group) -> None:
    for path in (CONF / group).rglob("*.yaml"):
        lines = path.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            key = line.strip().split(":")[0]
            plain = not line.strip() or line.strip().startswith(("#", "-")) or key in ("defaults", "_self_")
            built = (
                key.startswith("_") or "${alignment." in line or key == "optimise"
            )  # said once where the value is
            opened = before.strip().endswith(":")
            assert plain or built or opened or before.strip().startswith("#"), f"{path.name}: {line}"


@pytest.mark.parametrize("alignment", OFFLINE)
def test_an_offline_method_takes_the_pairs_of_the_dataset(composed, alignment) -> None:
    cfg = composed(f"alignment={alignment}")
    assert (cfg.alignment.name, cfg.alignment.when, cfg.sampler.name, cfg.annotator.name) == (
        alignment, "offline", "dataset", "none",
    )  # fmt: skip


def test_online_dpo_brings_its_sampler_and_annotator(composed) -> None:
    cfg = composed("alignment=online_dpo")
    assert (cfg.sampler.name, cfg.sampler.when, cfg.annotator.name) == ("policy", cfg.alignment.when, "large")


def test_the_command_line_still_wins(composed) -> None:
    cfg = composed("alignment=online_dpo", "annotator=oracle", "sampler=dataset", "sampler.when=online")
    assert (cfg.annotator.name, cfg.sampler.name) == ("oracle", "dataset")
    cfg = composed("alignment=online_dpo", "sampler.build.k=4", "alignment.loss.beta=0.2", "alignment.lr=0.5")
    built = OmegaConf.to_container(cfg, resolve=True)
    assert cfg.sampler.build.k == 4
    assert built["alignment"]["module"]["loss"]["beta"] == 0.2
    assert built["alignment"]["module"]["optimise"]["lr"] == 0.5


def test_the_learning_rates_come_from_the_base_model(composed) -> None:
    cfg = composed("base_model.lr=0.25", "base_model.projector_lr=0.125")
    optimise = instantiate(cfg.alignment.module.optimise)
    assert (optimise.lr, optimise.projector_lr) == (0.25, 0.125)


def test_none_builds_nothing(composed) -> None:
    cfg = composed("alignment=none")
    assert cfg.alignment.module is None
    assert instantiate(cfg.annotator.build) is None


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_schedule_can_be_named(composed, schedule) -> None:
    cfg = composed(f"alignment.schedule._target_=mllm_align.modules.schedule.{schedule}")
    assert instantiate(cfg.alignment.module.optimise).schedule(9, 10) > 0


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
    table = reference_logprobs(policy, groups, batch_size=2)
    module = instantiate(cfg.alignment.module)(policy, reference=table)
    told: list[float] = []
    keys = {name: cfg.alignment[name] for name in ("epochs", "batch_size", "accumulate", "gradient_clip")}
    fit(module, groups, tmp_path / "run", **keys, seed=cfg.seed, trainer=instantiate(cfg.trainer),
        scalars=lambda _, values: told.append(values["loss"]))  # fmt: skip
    assert told[1] < told[0]


def annotators() -> list[str]:
    return [name for name in options("annotator") if name != "none"]


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
    (group,) = built.annotate(scene_groups(1, 3))
    assert group.preferences
    assert all(r.score is not None for r in group.responses)


def test_the_policy_sampler_samples(composed, policy) -> None:
    cfg = composed("sampler=policy", "sampler.build.max_new_tokens=4", "sampler.build.k=3")
    (group,) = instantiate(cfg.sampler.build).sample(policy, make_examples(1), seed=0)
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
        cfg = compose("train", overrides=[f"alignment={alignment}", "sampler=dataset", "annotator=self"])
        online = compose("train", overrides=["alignment=online_dpo"])
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert (cfg.alignment.name, cfg.sampler.name, cfg.annotator.name) == (alignment, "dataset", "self")
    assert (online.sampler.name, online.annotator.name) == ("policy", "large")

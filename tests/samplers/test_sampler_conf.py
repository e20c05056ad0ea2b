"""The samplers' configuration: every option composes, builds and samples."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mllm_align.pipeline import made
from mllm_align.samplers.policy import PolicySampler
from mllm_align.similarity.scenes import SceneClaims
from mllm_align.similarity.sentences import SentenceTransformers
from tiny import make_groups

CONF = Path(__file__).parents[2] / "conf"
OURS = ["bdhs_attn", "bdhs_noise", "povid_distortion", "unguided"]


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("sample", overrides=list(overrides))


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("when", ["offline", "online"])
def test_it_samples(tiny_policy, name, when) -> None:
    cfg = composed(f"sampler={name}", f"sampler.when={when}", "base_model.max_new_tokens=6")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert (cfg.sampler.name, cfg.sampler.asks, cfg.sampler.gives) == (name, "answers", "rejected")
    groups = make_groups(2)
    made = instantiate(cfg.sampler.build).sample(tiny_policy, groups, cfg.sampler.seed)
    assert [g.example for g in made] == [g.example for g in groups]
    assert all(g.responses[1].source == name for g in made)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bdhs_attn", "batch_size=0", "batch_size=0: choose 1"),
        ("povid_distortion", "batch_size=0", "batch_size=0: choose 1"),
        ("bdhs_noise", "swap=1.5", "swap=1.5: it is a probability"),
        ("bdhs_attn", "eps_s=97", "eps_s=97: it bounds a cosine"),
        ("bdhs_attn", "similarity.words=-0.1", "similarity.words=-0.1: it is a share"),
    ],
)
def test_options_out_of_range_are_named(name, change, message) -> None:
    cfg = composed(f"sampler={name}", f"sampler.build.{change}")
    with pytest.raises(ValueError, match=message):
        made(OmegaConf.to_container(cfg, resolve=True)["sampler"]["build"])


def test_the_policy_sampler_needs_a_batch(tiny_policy) -> None:
    with pytest.raises(ValueError, match="batch_size=0 must be positive"):
        PolicySampler(batch_size=0).sample(tiny_policy, make_groups(1), 0)


def test_a_batch_is_what_the_base_model_can_take() -> None:
    for name in [*OURS, "policy"]:
        cfg = composed(f"sampler={name}", "base_model.batch_size=3")
        assert cfg.sampler.build.batch_size == 3


def test_the_embedding_brings_its_bound() -> None:
    paper = composed("sampler=bdhs_attn", "similarity@sampler.build=sentence_transformers").sampler.build
    own = composed("sampler=bdhs_attn").sampler.build
    assert isinstance(instantiate(own).similarity, SceneClaims)
    assert isinstance(instantiate(paper).similarity, SentenceTransformers)
    assert (paper.eps_s, paper.similarity.path) == (0.97, "sentence-transformers/all-mpnet-base-v2")


@pytest.mark.parametrize("path", sorted((CONF / "similarity").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_has_a_sentence_above_it(path) -> None:
    lines = path.read_text().splitlines()
    for before, line in pairwise(lines):
        plain = line.strip().startswith(("#", "_", "-", "defaults:", "similarity:"))
        assert plain or before.strip().startswith("#"), f"{path.name}: {line}"

"""What a config means: which stages it needs, what its key depends on, and what is refused."""

import copy

import pytest
from hydra import compose, initialize_config_dir

from mllm_align.paths import conf_dir
from mllm_align.pipeline import ImpossibleCell, plan_cell
from mllm_align.train import plain


@pytest.fixture(scope="module")
def composed():
    """overrides -> the plain config, as the entry point has it."""

    def make(*overrides: str) -> dict:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            return plain(compose("train", overrides=["alignment=dpo", *overrides]))

    return make


def test_offline_method_needs_pairs_and_their_reference(composed):
    cell = plan_cell(composed())
    assert [stage.name for stage in cell.stages] == ["preferences", "reference_logprobs"]
    assert cell.stages[1].inputs["preferences"].key == cell.stages[0].key
    assert set(cell.benchmarks) == {"pope", "recall", "vqa"}


def test_online_method_needs_prompts_only(composed):
    cell = plan_cell(composed("alignment=online_dpo"))
    assert [stage.name for stage in cell.stages] == ["preferences"]


def test_methods_share_their_stages(composed):
    dpo, ipo = plan_cell(composed()), plan_cell(composed("alignment=ipo"))
    assert [stage.key for stage in dpo.stages] == [stage.key for stage in ipo.stages]
    assert dpo.key != ipo.key


@pytest.mark.parametrize(
    "change",
    ["seed=1", "alignment.loss.beta=0.2", "dataset.size=10", "base_model.lora.r=4", "base_model=scenes/weak"],
)
def test_key_depends_on_what_the_result_depends_on(composed, change):
    assert plan_cell(composed(change)).key != plan_cell(composed()).key


@pytest.mark.parametrize(
    "change",
    ["outputs=elsewhere", "logger=none", "trainer.threads=1", "benchmark.n=10", "base_model.batch_size=1"],
)
def test_key_does_not_depend_on_where_and_how_fast_it_runs(composed, change):
    assert plan_cell(composed(change)).key == plan_cell(composed()).key


def test_another_benchmark_is_asked_without_training_again(composed):
    few, many = plan_cell(composed("benchmark.n=10")), plan_cell(composed("benchmark.n=20"))
    assert few.key == many.key
    assert few.benchmarks["pope"] != many.benchmarks["pope"]


def test_label_is_of_the_config_and_the_folder_of_the_seed(composed):
    first, second = plan_cell(composed("seed=1")), plan_cell(composed("seed=2"))
    assert first.label == second.label
    assert first.label.startswith("dpo-scenes_povid-scenes_base-")
    assert plan_cell(composed("alignment.loss.beta=0.2")).label != first.label


def test_the_untrained_model_has_one_cell_whatever_the_dataset_and_seed(composed):
    cells = [
        plan_cell(composed("alignment=none", *change))
        for change in ([], ["seed=3"], ["dataset=scenes/rlhf_v"])
    ]
    assert len({(cell.label, cell.seed, cell.key) for cell in cells}) == 1


def test_online_method_without_a_judge_is_refused(composed):
    with pytest.raises(ImpossibleCell, match="choose annotator=oracle"):
        plan_cell(composed("alignment=online_dpo", "annotator=none"))


def test_method_and_sampler_must_agree(composed):
    with pytest.raises(ImpossibleCell, match="choose sampler=policy"):
        plan_cell(composed("alignment=online_dpo", "sampler=dataset"))


def test_misspelt_target_is_refused_before_anything_runs(composed):
    config = copy.deepcopy(composed())
    config["alignment"]["loss"]["_target_"] = "mllm_align.losses.dpoo"
    config["alignment"]["module"]["loss"]["_target_"] = "mllm_align.losses.dpoo"
    with pytest.raises(ValueError, match="dpoo"):
        plan_cell(config)

"""What a config means: which stages it needs, what its key depends on, and what is refused."""

import copy

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from mllm_align.checks import ImpossibleCell
from mllm_align.entry import plain
from mllm_align.paths import conf_dir
from mllm_align.pipeline import plan_cell, ready_cell


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


@pytest.mark.parametrize("method", ["ddpo", "slic"])
def test_the_reference_does_not_depend_on_how_a_method_weighs_and_reduces_it(composed, method):
    dpo, other = plan_cell(composed()), plan_cell(composed(f"alignment={method}", "alignment.logprobs=mean"))
    assert dpo.stages[1].key == other.stages[1].key


def test_a_method_without_a_reference_has_no_stage_for_it(composed):
    assert [stage.name for stage in plan_cell(composed("alignment=simpo")).stages] == ["preferences"]


def test_a_method_that_adds_responses_has_a_reference_of_its_own(composed):
    dpo, mdpo = plan_cell(composed()), plan_cell(composed("alignment=mdpo"))
    assert dpo.stages[0].key == mdpo.stages[0].key
    assert dpo.stages[1].key != mdpo.stages[1].key
    again = plan_cell(composed("alignment=mdpo", "alignment.loss.beta=0.3", "seed=1"))
    assert mdpo.stages[1].key == again.stages[1].key


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


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


JUDGED = [("policy", annotator) for annotator in options("annotator") if annotator != "none"]
UNJUDGED = [(sampler, "none") for sampler in options("sampler") if sampler != "policy"]


@pytest.mark.parametrize(("sampler", "annotator"), [*JUDGED, *UNJUDGED])
@pytest.mark.parametrize("when", ["offline", "online"])
def test_seeds_are_of_one_row_and_share_all_stages(composed, sampler, annotator, when):
    overrides = [f"sampler={sampler}", f"annotator={annotator}", f"sampler.when={when}"]
    first, second = (plan_cell(composed(*overrides, f"seed={seed}")) for seed in (0, 1))
    assert first.label == second.label
    assert first.key != second.key
    assert [stage.key for stage in first.stages] == [stage.key for stage in second.stages]


@pytest.mark.parametrize("change", ["base_model.batch_size=1", "sampler.build.batch_size=1"])
@pytest.mark.parametrize("when", ["offline", "online"])
def test_how_many_are_drawn_together_is_in_no_key(composed, when, change):
    overrides = ["sampler=policy", f"sampler.when={when}", "annotator=oracle"]
    one, other = plan_cell(composed(*overrides)), plan_cell(composed(*overrides, change))
    assert one.config["sampler"]["build"]["batch_size"] != other.config["sampler"]["build"]["batch_size"] == 1
    assert (one.key, one.label) == (other.key, other.label)
    assert [stage.key for stage in one.stages] == [stage.key for stage in other.stages]


def test_statistics_of_the_dataset_s_own_responses_do_not_depend_on_a_sampler(composed):
    def statistics(*overrides):
        cell = plan_cell(composed("alignment=rloo", "annotator=oracle", *overrides))
        return next(stage for stage in cell.stages if stage.name == "reward_statistics")

    assert statistics().key == statistics("sampler.build.k=2").key
    drawn = "dataset=scenes/llava_instruct"
    assert statistics(drawn).key != statistics(drawn, "sampler.build.k=2").key


def test_the_untrained_model_has_one_cell_whatever_the_dataset_and_seed(composed):
    cells = [
        plan_cell(composed("alignment=none", *change))
        for change in ([], ["seed=3"], ["dataset=scenes/rlhf_v"])
    ]
    assert len({(cell.label, cell.seed, cell.key) for cell in cells}) == 1


def test_online_method_without_a_judge_is_refused(composed):
    with pytest.raises(ImpossibleCell, match="choose annotator=oracle"):
        plan_cell(composed("alignment=online_dpo", "annotator=none"))


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["alignment=online_dpo", "sampler=dataset"], "or sampler=policy"),
        (["alignment=online_dpo", "sampler.when=offline"], "choose sampler.when=online"),
        (["alignment=mixed_dpo", "sampler=dataset"], "or sampler=policy"),
        (["alignment=averaged_dpo", "sampler=policy", "annotator=oracle"], "choose sampler=bdhs_attn"),
        (["sampler=bdhs_attn", "annotator=large"], "choose annotator=none"),
        (["annotator=oracle"], "would not be asked"),
        (["sampler=policy"], "choose annotator=oracle"),
        (["sampler.when=sometimes"], "choose offline or online"),
        (["dataset.offers=answers"], "choose a dataset with pairs"),
        (["dataset.offers=prompts", "sampler=bdhs_noise"], "sampler=bdhs_noise needs reference answers"),
        (
            ["dataset.offers=answers", "alignment=averaged_dpo"],
            "alignment=averaged_dpo needs chosen and rejected",
        ),
        (["benchmark.of=reward_model"], "choose benchmark=scenes"),
        (["benchmark=scenes/reward"], "choose benchmark=scenes"),
        (["alignment=reward_model", "benchmark=scenes"], "choose benchmark=scenes/reward"),
        (["alignment=reward_model", "sampler.when=online"], "choose sampler.when=offline"),
        (["alignment=reward_model", "dataset=scenes/llava_instruct"], "choose a dataset with pairs"),
        (
            ["alignment=rloo", "sampler=dataset", "annotator=none"],
            "alignment=rloo has no use .* choose sampler=policy",
        ),
        (
            ["alignment=ppo", "sampler=bdhs_attn", "annotator=none"],
            "alignment=ppo has no use .* choose sampler=policy",
        ),
        (["alignment=rloo", "sampler.when=offline", "annotator=oracle"], "choose sampler.when=online"),
        (["alignment=ppo", "annotator=none"], "choose annotator=oracle"),
        (["dataset=scenes/llava_instruct"], "choose a dataset with pairs"),
        (["dataset=scenes/llava_instruct", "alignment=averaged_dpo"], "choose a dataset with pairs"),
        (
            ["dataset=scenes/llava_instruct", "alignment=mixed_dpo", "annotator=oracle"],
            "a dataset with pairs",
        ),
        (["sampler=policy", "annotator=oracle", "sampler.build.k=1"], "choose sampler.build.k=2 or more"),
        (["alignment=rloo", "annotator=oracle", "sampler.build.k=1"], "choose sampler.build.k=2 or more"),
        (["seed=-1"], "seed=-1 cannot seed a random stream; choose a whole number, 0 or more"),
        (["seed=[0,1]"], r"seed=\[0, 1\] cannot seed a random stream.*-m seed=0,1,2"),
        (["seed=null"], "seed=None cannot seed a random stream"),
        (["alignment.logprobs=average"], "choose sum .* or mean"),
        (["trainer.precision=bf16"], "choose 32-true or bf16-mixed"),
        (["trainer.precision=bf16", "alignment=none"], "choose 32-true or bf16-mixed"),
        (["trainer.devices=auto"], r"trainer\.devices is 'auto'; it must be a number"),
        (["trainer.devices=0"], "it must be a number, 1 or more"),
        (["trainer.nodes=-1"], "it must be a number, 1 or more"),
        (["sampler.asks=everything"], r"sampler\.asks is 'everything'; choose pairs, answers or prompts"),
        (["dataset.offers=[pairs]"], "it must be one word"),
        (["alignment.when=offline"], r"it must be a list such as \[offline\]"),
        (["alignment.takes=[pairs,images]"], r"alignment\.takes is 'images'; choose"),
        (["~alignment.when"], "alignment=dpo: its file lacks when"),
        (["~alignment.asks", "~alignment.takes"], "alignment=dpo: its file lacks takes, asks"),
        (["~sampler.gives"], "sampler=dataset: its file lacks gives"),
        (["~annotator.name"], r"annotator=\(without a name\): its file lacks name"),
        (["~alignment.module.offline"], r"its file says nothing under module\.offline"),
    ],
)
def test_what_cannot_work_is_refused_with_advice(composed, overrides, advice):
    with pytest.raises(ImpossibleCell, match=advice):
        plan_cell(composed(*overrides))


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        (["sampler=bdhs_attn"], ["preferences", "samples", "reference_logprobs"]),
        (
            ["sampler=bdhs_attn", "dataset=scenes/llava_instruct"],
            ["preferences", "samples", "reference_logprobs"],
        ),
        (["alignment=simpo", "sampler=bdhs_attn"], ["preferences", "samples"]),
        (["alignment=mdpo", "sampler=policy", "annotator=oracle"], ["preferences"]),
        (["sampler=bdhs_attn", "sampler.when=online"], ["preferences"]),
        (
            ["alignment=online_dpo", "sampler=bdhs_attn", "annotator=none", "sampler.when=online"],
            ["preferences"],
        ),
        (["alignment=averaged_dpo"], ["preferences", "samples", "reference_logprobs"]),
        (["alignment=ipo", "sampler=policy", "annotator=oracle"], ["preferences"]),
        (
            ["sampler=policy", "sampler.when=offline", "annotator=oracle"],
            ["preferences", "samples", "reference_logprobs"],
        ),
    ],
)
def test_the_sampler_decides_what_is_made_before_training(composed, overrides, stages):
    assert [stage.name for stage in plan_cell(composed(*overrides)).stages] == stages


def test_samples_are_shared_by_methods_and_seeds(composed):
    cells = [
        plan_cell(composed("sampler=bdhs_attn", *change))
        for change in ([], ["seed=1"], ["alignment=ipo"], ["alignment.epochs=2"])
    ]
    assert len({cell.stages[1].key for cell in cells}) == 1
    assert len({cell.key for cell in cells}) == 4


def test_ppo_compares_a_response_with_its_value_and_needs_no_other(composed):
    plan_cell(composed("alignment=ppo", "annotator=oracle", "sampler.build.k=1"))


def test_a_reward_model_is_trained_once_for_all_runs_that_ask_it(composed):
    cells = [
        plan_cell(composed(f"alignment={method}", "annotator=reward_model", "dataset=scenes/povid", *change))
        for method in ("rloo", "online_dpo")
        for change in ([], ["seed=1"])
    ]
    models = [[s for s in cell.stages if s.name == "reward_model"] for cell in cells]
    assert {len(found) for found in models} == {1}
    assert len({found[0].key for found in models}) == 1
    given = plan_cell(composed("alignment=rloo", "annotator=reward_model", "annotator.path=some/run"))
    assert "reward_model" not in [stage.name for stage in given.stages]


def test_reinforcement_learning_has_no_reduction_to_choose(composed):
    with pytest.raises(ConfigCompositionException, match="logprobs"):
        composed("alignment=rloo", "annotator=oracle", "alignment.logprobs=mean")


def test_misspelt_target_is_refused_before_anything_runs(composed):
    config = copy.deepcopy(composed())
    config["alignment"]["loss"]["_target_"] = "mllm_align.losses.dpoo"
    config["alignment"]["module"]["offline"]["loss"]["_target_"] = "mllm_align.losses.dpoo"
    with pytest.raises(ValueError, match="dpoo"):
        plan_cell(config)


def test_a_misspelt_class_in_a_module_of_one_s_own_is_refused_too(composed, tmp_path, monkeypatch):
    (tmp_path / "pl_sampler.py").write_text("import nothing_like_it\n\nclass Sampler:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = copy.deepcopy(composed())
    config["sampler"]["build"]["_target_"] = "pl_sampler.Sampler"
    plan_cell(config)
    config["sampler"]["build"]["_target_"] = "pl_sampler.Smapler"
    with pytest.raises(ValueError, match=r"pl_sampler\.Smapler: .* defines no 'Smapler'"):
        plan_cell(config)


def test_a_run_needs_its_model_and_an_estimate_does_not(composed, tmp_path):
    ready_cell(composed())
    ready_cell(composed(f"base_model.path={tmp_path}"))
    missing = f"base_model.path={tmp_path}/none"
    with pytest.raises(
        ImpossibleCell, match="there is no such folder; give the folder of a downloaded model"
    ):
        ready_cell(composed(missing))
    with pytest.raises(ImpossibleCell, match="data fetch base_model=published/llava_1_6_7b"):
        ready_cell(composed("world=published", missing))
    ready_cell(composed(missing, "estimate=true"))
    plan_cell(composed(missing))  # a table looks for runs by keys alone


ASKED = ["alignment=online_dpo", "annotator=api", "annotator.build.model=m"]
JUDGED_ANSWERS = ["benchmark=published/mmhal", "alignment=none"]


@pytest.mark.parametrize(
    ("overrides", "change"),
    [
        (ASKED, "annotator.build.terms.budget.max_total_tokens=2000000"),
        (ASKED, "annotator.build.terms.concurrency=8"),
        (ASKED, "annotator.build.terms.api_key_env=OTHER"),
        (ASKED, "outputs=elsewhere"),
        (JUDGED_ANSWERS, "benchmark.tasks.mmhal.judge.terms.budget.max_total_tokens=2000000"),
        (JUDGED_ANSWERS, "benchmark.tasks.mmhal.judge.terms.retries=9"),
        (["alignment=online_dpo", "annotator=self"], "annotator.build.batch_size=1"),
        (
            ["sampler=bdhs_attn", "similarity@sampler.build=sentence_transformers"],
            "sampler.build.similarity.batch_size=1",
        ),
    ],
)
def test_what_changes_no_answer_is_in_no_key(composed, overrides, change):
    one, other = plan_cell(composed(*overrides)), plan_cell(composed(*overrides, change))
    assert one.config != other.config
    assert (one.key, one.label, one.benchmarks) == (other.key, other.label, other.benchmarks)
    assert [stage.key for stage in one.stages] == [stage.key for stage in other.stages]


def test_what_an_endpoint_is_asked_is_in_the_key(composed):
    settings = plan_cell(composed(*ASKED, "annotator.build.settings.temperature=1"))
    assert settings.key != plan_cell(composed(*ASKED)).key

"""Row names: as short as they can be and never the same for two rows."""

from pathlib import Path

from mllm_align.tables.load import Run
from mllm_align.tables.names import row_names


def run(alignment, dataset="povid", config=None, **axes):
    found = {"alignment": alignment, "dataset": dataset, "base_model": "base", **axes}
    return Run(Path("x"), "x", 0, "finished", found, config or {})


def test_method_and_dataset_are_enough_where_they_differ():
    runs = {
        "a": run("none", "none", sampler="none"),
        "b": run("dpo", sampler="dataset"),
        "c": run("online_dpo", sampler="policy", annotator="oracle"),
    }
    assert row_names(runs) == {"a": "none", "b": "dpo · povid", "c": "online_dpo · povid"}


def test_several_base_models_are_named_everywhere():
    runs = {"a": run("none", "none"), "b": run("dpo", base_model="weak")}
    assert row_names(runs) == {"a": "none · base", "b": "dpo · povid · weak"}


def test_the_annotator_tells_two_rows_apart_and_others_stay_short():
    runs = {
        "a": run("online_dpo", sampler="policy", annotator="oracle"),
        "b": run("online_dpo", sampler="policy", annotator="self"),
        "c": run("dpo", sampler="dataset", annotator="none"),
    }
    assert row_names(runs) == {
        "a": "online_dpo · povid · oracle",
        "b": "online_dpo · povid · self",
        "c": "dpo · povid",
    }


def test_settings_that_differ_tell_the_rest_apart():
    def config(beta, out):
        return {"alignment": {"loss": {"beta": beta, "x": 1}}, "outputs": out, "seed": 3}

    runs = {"a": run("dpo", config=config(0.1, "o1")), "b": run("dpo", config=config(0.5, "o2"))}
    assert row_names(runs) == {"a": "dpo · povid · beta=0.1", "b": "dpo · povid · beta=0.5"}


def test_a_setting_that_follows_another_is_told_once():
    def config(lr):
        return {"base_model": {"lr": lr}, "alignment": {"lr": lr, "epochs": 1}}

    runs = {"a": run("dpo", config=config(1e-4)), "b": run("dpo", config=config(3e-4))}
    assert row_names(runs) == {"a": "dpo · povid · lr=0.0001", "b": "dpo · povid · lr=0.0003"}


def test_the_label_is_the_last_resort():
    assert row_names({"a": run("dpo"), "b": run("dpo")}) == {"a": "dpo · povid · a", "b": "dpo · povid · b"}
    assert row_names({"odd": Run(Path("x"), "odd", -1, "unreadable")}) == {"odd": "odd"}

"""Every option of conf/dataset/published composes, and what it composes can be called."""

import json

import published_rows as rows
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from photos import write_jsonl
from published_rows import NUMBER, photo

from mllm_align import stages
from mllm_align.datasets.errors import BadDataError
from mllm_align.datasets.parquet import read_groups
from mllm_align.datasets.published import sets
from mllm_align.entry import plain
from mllm_align.paths import conf_dir
from mllm_align.pipeline import preferences_stage
from mllm_align.store import Store

OPTIONS = sorted(path.stem for path in (conf_dir() / "dataset" / "published").glob("*.yaml"))
ASKS_A_MODEL = {name for name in OPTIONS if name.startswith("vlfeedback_")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of published files as `data fetch` would leave it, with two rows a set."""
    root = tmp_path_factory.mktemp("data")
    photo(root / "coco" / "train2014", f"COCO_train2014_{NUMBER}.jpg")
    photo(root / "coco" / "train2017", f"{NUMBER}.jpg")
    photo(root / "vlfeedback" / "merged_images", "llava-conversation-7.jpg")
    for folder in ("povid", "rlhf_v", "rlaif_v", "llava_rlhf", "nlf/LVLM_NLF", "stic", "llava_instruct"):
        (root / folder).mkdir(parents=True)
    lists = {
        "povid/POVID_preference_data_for_VLLMs_version_1.json": rows.povid(),
        "llava_rlhf/llava_7b_v1_preference.json": rows.llava_rlhf(),
        "stic/pref_data_new.json": rows.stic(),
        "llava_instruct/llava_instruct_150k.json": rows.llava_instruct(),
    }
    for name, row in lists.items():
        (root / name).write_text(json.dumps([row, row]))
    for name in ("helpfulness_nlf", "hallucination_nlf"):
        write_jsonl(root / "nlf" / "LVLM_NLF" / f"{name}.jsonl", [rows.nlf()])
    write_jsonl(root / "vlfeedback" / "vlfeedback_80k.jsonl", [rows.vlfeedback()] * 2)
    pq.write_table(
        pa.Table.from_pylist([rows.rlhf_v(idx=i) for i in range(2)]),
        root / "rlhf_v" / "RLHF-V-Dataset.parquet",
    )
    for shard in range(2):
        table = pa.Table.from_pylist([rows.rlaif_v(idx=str(shard))])
        pq.write_table(table, root / "rlaif_v" / f"RLAIF-V-Dataset_{shard:03}.parquet")
    return root


def composed(name: str, *overrides: str, primary: str = "sample") -> dict:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return plain(compose(primary, overrides=[f"dataset=published/{name}", *overrides]))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_builds_a_stage(name, root, tmp_path):
    dataset = composed(name, f"dataset.root={root}", f"outputs={tmp_path}")["dataset"]
    assert dataset["name"] == f"published/{name}"
    if name in ASKS_A_MODEL:  # called in test_published_vlfeedback; here what it starts from
        groups, _ = stages.build_dataset({**dataset["check"], "size": None})
        assert [len(group.responses) for group in groups] == [1, 1]
        return
    folder = Store(tmp_path / "store").get(preferences_stage(dataset))
    groups = read_groups(folder / "preferences.parquet")
    report = json.loads((folder / "report.json").read_text())
    assert len(groups) == report["used"] == 2
    assert len({group.example.id for group in groups}) == 2
    assert all(group.example.image.load() for group in groups)
    assert all(bool(group.preferences) == (dataset["offers"] == "pairs") for group in groups)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_place_of_the_files_comes_from_the_environment(name, monkeypatch):
    monkeypatch.setenv("MLLM_ALIGN_DATA", "/big/disk")
    dataset = composed(name)["dataset"]
    places = [dataset["path"], *dataset["images"]]
    assert all(place.startswith("/big/disk/") for place in places)
    assert dataset["build"]["path"] == dataset["path"]


def test_a_reward_model_may_be_trained_on_one(root):
    config = composed(
        "povid", "annotator=reward_model", "dataset@annotator.data=published/vlfeedback", primary="train"
    )
    assert config["annotator"]["data"]["build"]["path"].endswith("vlfeedback/vlfeedback_80k.jsonl")


def test_another_subsample_is_another_stage(root):
    keys = {
        preferences_stage(composed("povid", f"dataset.root={root}", *more)["dataset"]).key
        for more in ([], ["dataset.size=1"], ["dataset.size=1", "dataset.seed=1"])
    }
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (sets.nlf, {"rejected": "x"}),
        (sets.llava_rlhf, {"history": "x"}),
        (sets.llava_instruct, {"rounds": "x"}),
    ],
)
def test_unknown_rules_are_refused(build, option):
    with pytest.raises(BadDataError, match=rf"dataset\.{next(iter(option))}=x is not known\. Use "):
        build(path="rows.json", **option)

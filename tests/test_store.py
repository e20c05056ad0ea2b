import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from mllm_align import store as store_module
from mllm_align.store import MANIFEST, Stage, Store, find_damage, write_json

BUILDERS = """
import os, time
from pathlib import Path

def number(config, inputs, out):
    with open(config["count"], "a") as file:
        file.write(f"number {os.getpid()}\\n")
    time.sleep(config.get("pause", 0))
    (out / "value.txt").write_text(str(config["value"]))
    if config.get("fail"):
        raise ArithmeticError("half-way")
    if config.get("kill"):
        os.kill(os.getpid(), 9)

def double(config, inputs, out):
    (out / "deep").mkdir()
    value = int((inputs["number"] / "value.txt").read_text())
    (out / "deep" / "value.txt").write_text(str(2 * value))

def nothing(config, inputs, out):
    pass
"""


@pytest.fixture
def builders(tmp_path, monkeypatch):
    (tmp_path / "store_builders.py").write_text(BUILDERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "count.txt"
    sys.modules.pop("store_builders", None)


def number(count: Path, value: int = 21, **more) -> Stage:
    return Stage("number", "store_builders.number", {"count": str(count), "value": value, **more})


def double(source: Stage) -> Stage:
    return Stage("double", "store_builders.double", {}, {"number": source})


def builds(count: Path) -> int:
    return len(count.read_text().splitlines()) if count.exists() else 0


def test_inputs_are_built_first_and_everything_once(builders, tmp_path):
    store, stage = Store(tmp_path / "store"), double(number(builders))
    assert not store.has(stage)
    assert (store.get(stage) / "deep" / "value.txt").read_text() == "42"
    assert Store(tmp_path / "store").get(stage) == store.path(stage)
    assert builds(builders) == 1
    assert not list((tmp_path / "store" / "building").iterdir())


def test_a_stored_stage_does_not_need_its_inputs(builders, tmp_path):
    store, source = Store(tmp_path / "store"), number(builders)
    store.get(double(source))
    store.path(source).rename(tmp_path / "gone")
    Store(tmp_path / "store").get(double(source))
    assert builds(builders) == 1


def test_manifest_says_what_was_built(builders, tmp_path):
    store, stage = Store(tmp_path / "store"), number(builders, api_key="sk-secret")
    manifest = json.loads((store.get(stage) / MANIFEST).read_text())
    assert manifest["key"] == stage.key
    # printf 21 | sha256sum
    sha256 = "6f4b6612125fb3a0daecd2799dfd6c9c299424fd920f9b308110a2c1fbd8f443"
    assert manifest["files"] == {"value.txt": {"sha256": sha256, "size": 2}}
    assert manifest["config"]["api_key"] == "[removed]"
    assert store.seconds(stage) == manifest["seconds"]
    assert store.typical_seconds("number") == manifest["seconds"]
    assert store.typical_seconds("other") is None


def test_key_depends_on_name_config_inputs_version_and_code(builders):
    stage = double(number(builders))
    others = [
        double(number(builders)),
        replace(stage, name="twice"),
        replace(stage, build="store_builders.nothing"),
        replace(stage, config={"x": 1}),
        replace(stage, version=2),
        double(number(builders, value=22)),
        replace(stage, config={"x": {"_target_": "store_builders.number"}}),
        replace(stage, config={"x": {"_target_": "store_builders.double"}}),
    ]
    keys = [other.key for other in others]
    assert keys[0] == stage.key
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 24 for key in keys)


def test_what_changes_the_speed_alone_is_in_no_key(builders):
    stage = Stage(
        "a",
        "store_builders.number",
        {"x": 1, "sampler": {"k": 2, "batch_size": 4}},
        free=("sampler.batch_size",),
    )
    faster = replace(stage, config={"x": 1, "sampler": {"k": 2, "batch_size": 8}})
    other = replace(stage, config={"x": 1, "sampler": {"k": 3, "batch_size": 4}})
    assert stage.key == faster.key != other.key
    assert stage.config["sampler"]["batch_size"] == 4
    assert replace(stage, config={"x": 1}).key != replace(stage, config={"batch_size": 1}).key


@pytest.mark.parametrize("harm", ["change", "shorten", "remove", "no_manifest", "bad_manifest"])
def test_damage_is_reported_by_file_and_rebuilt(builders, tmp_path, caplog, harm):
    stage = number(builders)
    entry = Store(tmp_path / "store").get(stage)
    file = entry / ("value.txt" if harm in ("change", "shorten", "remove") else MANIFEST)
    if harm in ("remove", "no_manifest"):
        file.unlink()
    else:
        file.write_text({"change": "22", "shorten": "2", "bad_manifest": "{"}[harm])
    assert not Store(tmp_path / "store").has(stage)
    assert (Store(tmp_path / "store").get(stage) / "value.txt").read_text() == "21"
    assert builds(builders) == 2
    assert str(file) in caplog.text
    assert Store(tmp_path / "store").has(stage)
    assert len(list((tmp_path / "store" / "damaged").iterdir())) == 1


def test_a_build_that_fails_leaves_nothing_and_says_which(builders, tmp_path):
    store, stage = Store(tmp_path / "store"), number(builders, fail=True)
    with pytest.raises(ArithmeticError) as caught:
        store.get(stage)
    assert f"while building stage number ({stage.key})" in caught.value.__notes__[0]
    assert not store.path(stage).exists()
    assert not list((tmp_path / "store" / "building").iterdir())


def test_a_build_that_writes_nothing_is_an_error(builders, tmp_path):
    with pytest.raises(ValueError, match="wrote no file"):
        Store(tmp_path / "store").get(Stage("none", "store_builders.nothing", {}))


def test_a_missing_builder_is_named_before_anything_runs(builders, tmp_path):
    (tmp_path / "store").mkdir()
    with pytest.raises(ValueError, match="defines no 'missing'"):
        Store(tmp_path / "store").get(Stage("x", "store_builders.missing", {}))


def in_process(folder: Path, count: Path, **config) -> subprocess.Popen[str]:
    code = f"""
        import sys
        from mllm_align.store import Stage, Store
        config = {{"count": {str(count)!r}, "value": 21, **{config!r}}}
        print(Store({str(folder / "store")!r}).get(Stage("number", "store_builders.number", config)))
    """
    source = str(Path(store_module.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([source, str(folder)])}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, stdout=pipe, stderr=pipe, text=True
    )


def test_processes_that_want_the_same_stage_build_it_once(builders, tmp_path):
    processes = [in_process(tmp_path, builders, pause=4) for _ in range(4)]
    done = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, done
    assert len({out for out, _ in done}) == 1
    assert builds(builders) == 1
    assert sum("waiting: another process builds stage number" in errors for _, errors in done) == 3


def test_a_builder_that_is_killed_frees_the_stage(builders, tmp_path):
    """What it had written is not taken for a stage."""
    stage = number(builders, kill=True)
    process = in_process(tmp_path, builders, kill=True)
    process.communicate(timeout=60)
    assert process.returncode == -9
    assert (tmp_path / "store" / "building" / f"number-{stage.key}" / "value.txt").exists()
    assert not Store(tmp_path / "store").has(stage)
    assert Store(tmp_path / "store").get(number(builders)).exists()


def test_write_json_is_all_or_nothing(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_links_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="link"):
        store_module.list_files(tmp_path)


def test_find_damage_of_a_whole_folder(tmp_path):
    (tmp_path / "a").write_text("x")
    write_json(tmp_path / MANIFEST, {"files": store_module.list_files(tmp_path)})
    assert find_damage(tmp_path) is None

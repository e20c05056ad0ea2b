import os
from pathlib import Path

import pytest

from mllm_align import fingerprints


def module(folder: Path, name: str, text: str) -> str:
    """A module that can be found under this name; each test takes its own names, since results are kept."""
    (folder / f"{name}.py").write_text(text)
    return name


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_digest_does_not_depend_on_order_or_container():
    assert fingerprints.digest({"a": (1, 2), "b": None}) == fingerprints.digest({"b": None, "a": [1, 2]})
    assert fingerprints.digest({"a": 1}) != fingerprints.digest({"a": True})
    assert fingerprints.digest({"a": 1}) != fingerprints.digest({"a": "1"})


@pytest.mark.parametrize("value", [{1}, object(), b"bytes"])
def test_what_json_cannot_hold_is_named_by_its_place(value):
    with pytest.raises(TypeError, match=r"config\.a\[1\]"):
        fingerprints.digest({"a": [0, value]})


def test_nan_is_refused():
    with pytest.raises(ValueError, match=r"config\.lr"):
        fingerprints.digest({"lr": float("nan")})


def test_paths_count_by_content_and_not_by_place(tmp_path):
    for name, text in {"one": "same", "two": "same", "three": "other"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_text(text)
    keys = [
        fingerprints.digest(fingerprints.keyed({"path": str(tmp_path / n)})) for n in ("one", "two", "three")
    ]
    assert keys[0] == keys[1] != keys[2]
    named = [fingerprints.keyed({"model_path": str(tmp_path / n)}) for n in ("one", "two")]
    assert named[0] == named[1]
    assert fingerprints.keyed({"label": str(tmp_path / "one")}) == {"label": str(tmp_path / "one")}
    assert fingerprints.keyed({"path": "no/such/file"}) == {"path": "no/such/file"}


def test_a_file_changed_in_place_has_a_new_fingerprint(tmp_path):
    file = tmp_path / "data.json"
    file.write_text("aaaa")
    before = fingerprints.content(file)
    file.write_text("bbbb")
    os.utime(file, ns=(1, 1))
    assert fingerprints.content(file) != before


def test_assets_count_by_content(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ASSETS", tmp_path)
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "weights").write_text("1")
    (keyed,) = fingerprints.keyed({"base": "asset://scenes"}).values()
    assert keyed == {"content": fingerprints.content(tmp_path / "scenes")}


def test_source_ignores_comments_docstrings_and_layout(path):
    first = module(path, "fp_first", 'def loss(a, b):\n    """Old words."""\n    # why\n    return a - b\n')
    again = module(path, "fp_again", "def loss(a,\n         b):\n    return (a - b)\n")
    other = module(path, "fp_other", "def loss(a, b):\n    return b - a\n")
    texts = [fingerprints._definitions(path / f"{name}.py")["loss"][0] for name in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]


def test_source_counts_what_the_definition_uses_of_its_own_module(path):
    text = "SCALE = 2\ndef helper(a): return a * SCALE\ndef loss(a): return helper(a)\ndef unused(): pass\n"
    definitions = fingerprints._definitions(path / f"{module(path, 'fp_uses', text)}.py")
    assert fingerprints._closure(definitions, ("loss",)) == {"loss", "helper", "SCALE"}


def test_source_changes_with_a_helper(path):
    text = "SCALE = 2\n\ndef loss(a):\n    return a * SCALE\n"
    module(path, "fp_change", text)
    before = fingerprints.source("fp_change.loss")
    module(path, "fp_change", text.replace("2", "3"))
    fingerprints.source.cache_clear()
    fingerprints._definitions.cache_clear()
    assert fingerprints.source("fp_change.loss") != before


def test_source_imports_nothing(path):
    module(path, "fp_bomb", "raise RuntimeError('imported')\n\ndef build():\n    pass\n")
    assert len(fingerprints.source("fp_bomb.build")) == 64
    (path / "fp_package").mkdir()
    (path / "fp_package" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    module(path / "fp_package", "inner", "class Thing:\n    pass\n")
    assert len(fingerprints.source("fp_package.inner.Thing")) == 64


def test_a_library_that_reexports_counts_by_its_version():
    assert fingerprints.source("filelock.FileLock") != fingerprints.source("filelock.Timeout")


def test_misspelt_targets_are_named():
    with pytest.raises(ValueError, match="no module 'nosuchmodule'"):
        fingerprints.source("nosuchmodule.thing")
    with pytest.raises(ValueError, match="defines no 'Stor'"):
        fingerprints.source("mllm_align.store.Stor")


def test_targets_are_found_at_any_depth():
    config = {"_target_": "a.b", "list": [{"_target_": "c.d", "inner": {"_target_": "e.f"}}]}
    assert list(fingerprints.targets(config)) == ["a.b", "c.d", "e.f"]

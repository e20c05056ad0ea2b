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


def test_a_pattern_counts_by_the_files_that_it_stands_for(tmp_path):
    def keyed(folder: str, pattern: str = "train-*.jsonl"):
        return fingerprints.keyed({"path": str(tmp_path / folder / pattern)})

    for folder in ("one", "[two]"):  # a folder that is there is no pattern
        (tmp_path / folder / "train-x").mkdir(parents=True)
        (tmp_path / folder / "train-0.jsonl").write_text("same")
    first = keyed("one")
    assert first == keyed("[two]") != {"path": str(tmp_path / "one" / "train-*.jsonl")}
    (tmp_path / "one" / "other.jsonl").write_text("not meant")
    assert keyed("one") == first
    (tmp_path / "one" / "train-1.jsonl").write_text("one more")
    second = keyed("one")
    (tmp_path / "one" / "train-1.jsonl").rename(tmp_path / "one" / "train-2.jsonl")
    third = keyed("one")
    (tmp_path / "one" / "train-0.jsonl").write_text("changed")
    assert len({fingerprints.digest(key) for key in (first, second, third, keyed("one"))}) == 4
    for path in (str(tmp_path / "one" / "test-*.jsonl"), "hub://owner/name/train-*.jsonl"):
        assert fingerprints.keyed({"path": path}) == {"path": path}


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


def forget():
    """What is kept of modules as they were."""
    fingerprints.source.cache_clear()
    fingerprints._definitions.cache_clear()


OWN_IMPORTS = {
    "from a module": "from {helper} import scale\n\ndef loss(a):\n    return scale(a)\n",
    "a module": "import {helper} as h\n\ndef loss(a):\n    return h.scale(a)\n",
    "inside the function": "def loss(a):\n    from {helper} import scale\n    return scale(a)\n",
    "all of it": "from {helper} import *\n\ndef loss(a):\n    return scale(a)\n",
    "where it can be had": "try:\n    from {helper} import scale\nexcept ImportError:\n    scale = abs\n\n"
    "def loss(a):\n    return scale(a)\n",
}


@pytest.mark.parametrize("how", OWN_IMPORTS)
def test_source_counts_what_is_imported_from_modules_of_one_s_own(path, how):
    name = f"fp_own_{list(OWN_IMPORTS).index(how)}"
    helper = module(path, f"{name}_helper", "FACTOR = 2\ndef scale(a):\n    return FACTOR * a\n")
    module(path, name, OWN_IMPORTS[how].format(helper=helper))
    before = fingerprints.source(f"{name}.loss")
    forget()
    assert fingerprints.source(f"{name}.loss") == before
    module(path, helper, "FACTOR = 3\ndef scale(a):\n    return FACTOR * a\n")
    forget()
    assert fingerprints.source(f"{name}.loss") != before


def test_source_follows_a_package_of_one_s_own_and_goes_round_no_circle(path):
    folder = path / "fp_pack"
    (folder / "inner").mkdir(parents=True)
    module(folder, "__init__", "from .losses import loss\n")
    module(
        folder, "losses", "import torch\nfrom .inner import deep\n\ndef loss(a):\n    return deep.scale(a)\n"
    )
    module(folder / "inner", "__init__", "")
    module(folder / "inner", "deep", "from ..losses import loss\n\ndef scale(a):\n    return 2 * a\n")
    before = fingerprints.source("fp_pack.loss")
    module(folder / "inner", "deep", "from ..losses import loss\n\ndef scale(a):\n    return 3 * a\n")
    forget()
    assert fingerprints.source("fp_pack.loss") != before


def test_source_does_not_count_what_is_imported_but_not_used(path):
    helper = module(path, "fp_unused_helper", "def scale(a):\n    return 2 * a\n")
    module(path, "fp_unused", f"from {helper} import scale\n\ndef loss(a):\n    return a\n")
    before = fingerprints.source("fp_unused.loss")
    module(path, helper, "def scale(a):\n    return 3 * a\n")
    forget()
    assert fingerprints.source("fp_unused.loss") == before


def test_a_misspelt_name_of_one_s_own_is_named(path):
    module(
        path,
        "fp_spelt",
        "try:\n    import torch\nexcept ImportError:\n    torch = None\nclass Sampler:\n    pass\n",
    )
    fingerprints.source("fp_spelt.Sampler")
    fingerprints.source("fp_spelt.torch")
    with pytest.raises(ValueError, match="defines no 'Smapler'"):
        fingerprints.source("fp_spelt.Smapler")
    (path / "fp_space").mkdir()
    module(path / "fp_space", "losses", "def loss(a): return a\n")
    fingerprints.source("fp_space.losses.loss")
    with pytest.raises(ValueError, match="no module 'lossess'"):
        fingerprints.source("fp_space.lossess.loss")


def test_how_an_endpoint_is_asked_decides_nothing():
    terms = {"_target_": "mllm_align.api.client.Terms", "budget": {"max_spend": 3}}
    config = {"judges": [{"model": "m", "terms": terms}], "terms": "the terms of a question"}
    assert fingerprints.deciding(config) == {"judges": [{"model": "m"}], "terms": "the terms of a question"}

"""Optional packages: what messages and docs say to install is an extra of pyproject.toml, and the other way round."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for pattern in ("README.md", "docs/*.md", "src/**/*.py", "conf/**/*.yaml", "benchmarks/*.py")
    for path in sorted(ROOT.glob(pattern))
}
# A string may be split where its line ends.
ASKED = re.compile(r"""pip install[\s"f]*'mllm-align\[([a-z]+)\]'""")


def test_every_extra_that_is_asked_for_exists():
    asked = {(name, extra) for name, text in TEXTS.items() for extra in ASKED.findall(text)}
    assert len(asked) > 8
    assert {extra for _, extra in asked} <= EXTRAS.keys()


def test_every_extra_is_named_where_it_is_needed():
    asked = {extra for text in TEXTS.values() for extra in ASKED.findall(text)}
    assert EXTRAS.keys() - asked == {"bench"}  # `make bench` installs it


def test_no_text_names_the_package_of_an_extra_instead():
    packages = {re.split("[<>=]", wanted)[0] for extra in EXTRAS.values() for wanted in extra}
    bare = {
        (name, package)
        for name, text in TEXTS.items()
        for package in re.findall(r"pip install ([A-Za-z_-]+)", text)
        if package in packages
    }
    assert not bare

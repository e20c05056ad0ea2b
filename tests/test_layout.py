"""The rules of the house that a linter does not know: imports run downward, and light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "mllm_align"

# From the bottom up: a module may import from its own layer and from the ones before it.
LAYERS = [
    {"records", "paths", "fingerprints", "host", "launch", "redact", "terminal", "entry"},
    {"scenes", "losses", "advantages", "noise", "store", "record", "estimate"},
    {"api", "compute", "models", "datasets", "benchmarks", "similarity"},
    {"samplers", "annotators"},
    {"modules", "loggers", "tables"},
    {"checks", "pipeline", "stages", "runs"},
    {"sweep"},
    {"train", "follow", "sample", "evaluate", "table", "judge", "export", "data", "datacheck", "datafetch"},
    {"cli", "__main__"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
KNOWS_HYDRA = {"entry", "train", "judge", "table", "pipeline", "sweep"}


def imports(path: Path) -> list[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if part(path) != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path):
    for module in imports(path):
        if module.startswith("mllm_align."):
            other = module.split(".")[1]
            assert LAYER[other] <= LAYER[part(path)], f"{part(path)} imports {other}, which lies above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_entry_points_know_hydra(path):
    if part(path) not in KNOWS_HYDRA:
        assert not [name for name in imports(path) if name.split(".")[0] in ("hydra", "omegaconf")]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_init_files_are_empty(path):
    assert path.read_text() == ""


def test_light_modules_do_not_import_torch():
    light = ["cli", "train", "pipeline", "store", "record", "records", "scenes.tasks", "tables.compare"]
    code = "import sys\n" + "\n".join(f"import mllm_align.{name}" for name in light)
    code += "\nprint([m for m in ('torch', 'transformers', 'lightning', 'wandb', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

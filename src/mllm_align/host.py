"""What the machine and the installation are: cores, threads, package versions, the source's git commit."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from functools import lru_cache
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use: its affinity, or a container's quota where that is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or no quota ("max")
        return cores


def threads() -> int:
    """Threads of one operation: torch's own count where it is loaded, else OMP_NUM_THREADS, else cores."""
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    return int(os.environ.get("OMP_NUM_THREADS") or usable_cores())


@lru_cache(maxsize=1)
def source_commit() -> str | None:
    """The git commit of this package's source, `+changes` where files differ; None outside a checkout."""
    here = Path(__file__).parent
    if {"site-packages", "dist-packages"} & set(here.parts):
        return None  # the repository around an installation is somebody else's
    commit = _git(here, "rev-parse", "HEAD")
    changes = _git(here, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{commit}+changes" if commit and changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def package_versions() -> dict[str, str]:
    """Python, this package and what it depends on, without importing any of them."""
    names = ["mllm-align", "torch", "transformers", "peft", "lightning", "tokenizers", "safetensors", "numpy"]
    names += ["hydra-core", "omegaconf", "torchvision", "pillow", "pyarrow", "wandb"]
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

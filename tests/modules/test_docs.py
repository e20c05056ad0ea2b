"""The example of docs/methods.md works as it stands there."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import mllm_align.losses

ROOT = Path(__file__).parents[2]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.DOTALL)


def test_a_method_is_one_function_one_file_and_one_test(tmp_path, monkeypatch) -> None:
    import test_losses

    function, test = blocks("python")
    (file,) = blocks("yaml")
    names = dict(vars(mllm_align.losses))
    exec(function, names)
    monkeypatch.setattr(mllm_align.losses, "cdpo", names["cdpo"], raising=False)

    tests = vars(test_losses) | {"cdpo": names["cdpo"], "partial": partial}
    exec(test, tests)
    tests["test_cdpo"]()

    (tmp_path / "alignment").mkdir()
    (tmp_path / "alignment" / "cdpo.yaml").write_text(file)
    (tmp_path / "primary.yaml").write_text(
        "defaults: [alignment: cdpo, _self_]\n"
        "base_model: {lr: 1.0e-3, projector_lr: 1.0e-4, max_length: null}\n"
        f"hydra: {{searchpath: ['file://{ROOT / 'conf'}']}}\n"
    )
    with initialize_config_dir(str(tmp_path), version_base=None):
        cfg = compose("primary", overrides=["alignment.loss.wrong=0.5"])
    loss = instantiate(cfg.alignment.module.offline).keywords["loss"]
    # Half of the labels wrong and no margin: log 2, and no slope.
    zeros = [torch.zeros(1, requires_grad=True) for _ in range(4)]
    value = loss(*zeros)
    value.sum().backward()
    assert value.item() == pytest.approx(0.6931472)
    assert zeros[0].grad.item() == 0.0
    assert cfg.alignment.module.offline._target_.endswith("PreferenceModule")

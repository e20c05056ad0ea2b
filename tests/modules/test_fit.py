"""Training end to end on tiny models: figures, the adapter, accumulation, and exact resume."""

from __future__ import annotations

import logging
import math
import signal
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mllm_align.compute.packing import collate
from mllm_align.losses import dpo, ipo, slic
from mllm_align.models.load import add_lora, load_policy
from mllm_align.modules.fit import TrainerOptions, fit
from mllm_align.modules.optimise import Optimise
from mllm_align.modules.preference import NonFiniteLoss, PreferenceModule
from mllm_align.modules.reference import reference_logprobs
from mllm_align.modules.schedule import cosine
from mllm_align.records import Group, ImageRef, Preference, Response
from tiny import make_groups


@pytest.fixture
def folder(tiny_folders) -> Path:
    return tiny_folders["llava_next"]


def make_module(
    folder: Path, groups: list[Group], loss=dpo, dropout: float = 0.0, **options
) -> PreferenceModule:
    torch.manual_seed(0)  # LoRA's own initial weights
    policy = add_lora(load_policy(folder), r=4, alpha=8, dropout=dropout)
    table = reference_logprobs(policy, groups, batch_size=2)
    optimise = Optimise(lr=1e-2, projector_lr=1e-3, schedule=partial(cosine, warmup=0.2))
    return PreferenceModule(
        policy, **({"reference": table, "loss": partial(loss, beta=0.1), "optimise": optimise} | options)
    )


def adapter_tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_dpo_learns_the_pairs_and_tells_what_it_does(folder, tmp_path) -> None:
    groups = make_groups(6)
    told: list[tuple[int, dict[str, float]]] = []
    fitted = fit(
        make_module(folder, groups), groups, tmp_path, epochs=4, batch_size=3, seed=0,
        scalars=lambda step, values: told.append((step, values)),
    )  # fmt: skip
    assert (fitted.steps, fitted.resumed_step) == (8, 0)
    assert [step for step, _ in told] == list(range(1, 9))
    first, last = told[0][1], told[-1][1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    # 20% of 8 steps is 2 steps of warm-up; the last step is on the cosine: (1 + cos(5 pi / 6)) / 2 =
    # 0.0669873.
    assert first["lr"] == pytest.approx(0.5e-2)
    assert first["projector_lr"] == pytest.approx(0.5e-3)
    assert last["lr"] == pytest.approx(1e-2 * 0.0669873, rel=1e-5)
    assert last["loss"] < 0.3
    assert last["margin"] > 5
    assert last["accuracy"] == 1.0
    assert last["logp_chosen"] > last["logp_rejected"]
    assert last["kl"] > 0
    assert last["epoch"] == 4.0
    assert all(values["tokens_per_second"] > 0 and values["grad_norm"] > 0 for _, values in told)


def test_the_adapter_is_peft_s_own_and_has_the_projector(folder, tmp_path) -> None:
    groups = make_groups(3)
    module = make_module(folder, groups)
    fitted = fit(module, groups, tmp_path, epochs=2, batch_size=3, seed=0)
    again = PeftModel.from_pretrained(load_policy(folder).model, str(fitted.adapter))
    trained = {n: p for n, p in module.model.named_parameters() if p.requires_grad}
    loaded = dict(again.named_parameters())
    assert any("multi_modal_projector" in name for name in trained)
    assert_same(trained, {name: loaded[name] for name in trained})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]  # no lightning_logs, no checkpoint


@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulating_four_times_one_is_one_times_four(folder, tmp_path, clip) -> None:
    groups = make_groups(6)  # steps of 4 and of 2
    results = []
    for name, size, accumulate in (("whole", 4, 1), ("parts", 1, 4), ("uneven", 3, 1)):
        module = make_module(folder, groups)
        fit(module, groups, tmp_path / name, epochs=2, batch_size=size, accumulate=accumulate, seed=0,
            gradient_clip=clip)  # fmt: skip
        results.append(adapter_tensors(tmp_path / name))
    whole, parts, uneven = results
    assert all(torch.allclose(whole[n], parts[n], atol=2e-5) for n in whole)
    assert not all(torch.allclose(whole[n], uneven[n], atol=2e-5) for n in whole)


class Killed(RuntimeError):
    pass


def kill_at(step: int, told: list[tuple[int, float]]):
    def scalars(now: int, values: dict[str, float]) -> None:
        told.append((now, values["loss"]))
        if now == step:
            raise Killed

    return scalars


@pytest.mark.parametrize(
    ("killed_at", "every", "resumed"), [(3, 2, 2), (7, 2, 6), (5, 1, 4), (2, 5, 0), (8, 4, 4)]
)
def test_a_killed_run_ends_with_the_same_bits(folder, tmp_path, killed_at, every, resumed) -> None:
    """Ten steps in two epochs of five, with dropout, accumulation, warm-up and a ragged last step."""
    groups = make_groups(9)
    options = {"epochs": 2, "batch_size": 1, "accumulate": 2, "seed": 3, "gradient_clip": 1.0}
    whole: list[tuple[int, float]] = []
    fit(
        make_module(folder, groups, dropout=0.2),
        groups,
        tmp_path / "whole",
        **options,
        scalars=kill_at(0, whole),
    )

    trainer = TrainerOptions(checkpoint_every_steps=every)
    parts: list[tuple[int, float]] = []
    with pytest.raises(Killed):
        fit(make_module(folder, groups, dropout=0.2), groups, tmp_path / "parts", **options, trainer=trainer,
            scalars=kill_at(killed_at, parts))  # fmt: skip
    assert not (tmp_path / "parts" / "adapter").exists()
    resumed_at: list[int] = []
    module = make_module(folder, groups, dropout=0.2)
    fitted = fit(module, groups, tmp_path / "parts", **options, trainer=trainer,
                 scalars=kill_at(0, parts), on_resume=resumed_at.append)  # fmt: skip
    assert (fitted.resumed_step, resumed_at) == (resumed, [resumed])
    assert parts[killed_at:] == whole[resumed:]  # the losses after the checkpoint, to the last bit
    assert_same(adapter_tensors(tmp_path / "whole"), adapter_tensors(tmp_path / "parts"))
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["adapter"]


def test_a_run_killed_after_its_last_step_is_only_saved(folder, tmp_path, monkeypatch) -> None:
    groups = make_groups(4)
    options = {"epochs": 1, "batch_size": 2, "seed": 0, "trainer": TrainerOptions(checkpoint_every_steps=1)}
    fit(make_module(folder, groups), groups, tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        patched.setattr("mllm_align.modules.fit.save_adapter", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            fit(make_module(folder, groups), groups, tmp_path / "parts", **options)
    told: list[int] = []
    fitted = fit(
        make_module(folder, groups),
        groups,
        tmp_path / "parts",
        **options,
        scalars=lambda s, _: told.append(s),
    )
    assert (fitted.resumed_step, told) == (2, [])
    assert_same(adapter_tensors(tmp_path / "whole"), adapter_tensors(tmp_path / "parts"))


def killed(folder: Path, groups: list[Group], out: Path) -> None:
    with pytest.raises(Killed):
        fit(make_module(folder, groups), groups, out, epochs=1, batch_size=1, seed=0,
            trainer=TrainerOptions(checkpoint_every_steps=1), scalars=kill_at(2, []))  # fmt: skip


def test_a_checkpoint_of_other_settings_is_refused(folder, tmp_path) -> None:
    groups = make_groups(4)
    killed(folder, groups, tmp_path)
    with pytest.raises(ValueError, match=r"other settings.*delete it"):
        fit(make_module(folder, groups), groups, tmp_path, epochs=1, batch_size=1, seed=1)


@pytest.mark.parametrize("other", ["response", "preference", "beta", "lr"])
def test_a_checkpoint_of_another_method_or_other_pairs_is_refused(folder, tmp_path, other) -> None:
    groups = make_groups(4)
    killed(folder, groups, tmp_path)
    module = make_module(folder, groups)
    if other == "response":
        groups[2] = replace(groups[2], responses=(groups[2].responses[0], Response("dogs")))
        module.reference = reference_logprobs(module.policy, groups, batch_size=2)
    elif other == "preference":
        groups[2] = replace(groups[2], preferences=(Preference(1, 0),))
    elif other == "beta":
        module.loss = partial(dpo, beta=0.2)
    else:
        module.optimise = replace(module.optimise, lr=1e-3)
    with pytest.raises(ValueError, match=r"other settings.*delete it"):
        fit(module, groups, tmp_path, epochs=1, batch_size=1, seed=0)


@dataclass(frozen=True)
class SlowImage:
    """An image that takes its time."""

    image: ImageRef

    @property
    def key(self) -> str:
        return self.image.key

    def load(self):
        time.sleep(0.2)
        return self.image.load()


def test_speed_is_that_of_the_clock_waiting_for_data_included(folder, tmp_path) -> None:
    plain = make_groups(2)
    groups = [replace(g, example=replace(g.example, image=SlowImage(g.example.image))) for g in plain]
    module = make_module(folder, plain)
    batch = collate(plain, module.policy.processor)
    tokens = int(batch.prompt_mask.sum() + batch.response_mask.sum())
    told: list[float] = []
    fit(module, groups, tmp_path, epochs=3, batch_size=2, seed=0,
        scalars=lambda step, values: told.append(tokens / values["tokens_per_second"]))  # fmt: skip
    assert len(told) == 3
    assert min(told) > 0.4


def test_a_damaged_checkpoint_is_said_and_training_starts_again(folder, tmp_path, caplog) -> None:
    groups = make_groups(4)
    killed(folder, groups, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        fitted = fit(make_module(folder, groups), groups, tmp_path, epochs=1, batch_size=1, seed=0)
    assert fitted.resumed_step == 0
    assert "damaged" in caplog.text


def test_loader_workers_change_nothing(folder, tmp_path) -> None:
    groups = make_groups(5)
    for workers in (0, 2):
        fit(make_module(folder, groups), groups, tmp_path / str(workers), epochs=1, batch_size=2, seed=0,
            trainer=TrainerOptions(workers=workers))  # fmt: skip
    assert_same(adapter_tensors(tmp_path / "0"), adapter_tensors(tmp_path / "2"))


@pytest.mark.parametrize(("loss", "first"), [(ipo, 25.0), (slic, 1.0)])
def test_other_losses_start_where_their_equation_says(folder, tmp_path, loss, first) -> None:
    """At h = 0: IPO (0 - 1 / (2 * 0.1))^2 = 25, SLiC max(0, 1 - 0) = 1."""
    groups = make_groups(2)
    told: list[float] = []
    fit(make_module(folder, groups, loss), groups, tmp_path, epochs=3, batch_size=2, seed=0,
        scalars=lambda _, values: told.append(values["loss"]))  # fmt: skip
    assert told[0] == pytest.approx(first, abs=1e-3)
    assert told[-1] < told[0]


def test_bf16_starts_at_the_reference_too(folder, tmp_path) -> None:
    groups = make_groups(2)
    module = make_module(folder, groups)
    module.reference = reference_logprobs(module.policy, groups, batch_size=2, precision="bf16-mixed")
    told: list[dict[str, float]] = []
    fit(module, groups, tmp_path, epochs=1, batch_size=2, seed=0, scalars=lambda _, v: told.append(v),
        trainer=TrainerOptions(precision="bf16-mixed"))  # fmt: skip
    assert told[0]["margin"] == pytest.approx(0, abs=1e-3)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="bf16-mixed"):
        TrainerOptions(precision="16-mixed")


def test_nan_is_raised_with_step_and_examples(folder, tmp_path) -> None:
    groups = make_groups(3)
    module = make_module(folder, groups)
    module.reference["e1"][0] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"nan at step \d, epoch 0, on examples e1"):
        fit(module, groups, tmp_path, epochs=1, batch_size=1, seed=0)
    assert not (tmp_path / "adapter").exists()


def test_ctrl_c_stays_ctrl_c(folder, tmp_path) -> None:
    def interrupt(step: int, values: dict[str, float]) -> None:
        raise KeyboardInterrupt

    groups = make_groups(2)
    with pytest.raises(KeyboardInterrupt):
        fit(make_module(folder, groups), groups, tmp_path, epochs=1, batch_size=1, seed=0, scalars=interrupt)


def test_sigterm_ends_the_run_at_once_as_the_program_wants_it(folder, tmp_path) -> None:
    """Lightning would finish the batch and leave by an exception of its own."""
    steps: list[int] = []

    def terminated(number, frame):
        raise Killed

    def scalars(step: int, values: dict[str, float]) -> None:
        steps.append(step)
        signal.raise_signal(signal.SIGTERM)

    groups = make_groups(3)
    module = make_module(folder, groups)
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        with pytest.raises(Killed):
            fit(module, groups, tmp_path, epochs=1, batch_size=1, seed=0, scalars=scalars)
        assert signal.getsignal(signal.SIGTERM) is terminated
    finally:
        signal.signal(signal.SIGTERM, before)
    assert steps == [1]


def test_it_says_nothing_where_there_is_no_terminal(folder, tmp_path, capfd, recwarn) -> None:
    groups = make_groups(2)
    module = make_module(folder, groups)
    capfd.readouterr()
    recwarn.clear()
    fit(module, groups, tmp_path, epochs=1, batch_size=1, seed=0)
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []

"""`mllm-align export`: one folder that says what base model and adapter say, for plain transformers and for us."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from adapters import make_adapter
from mllm_align import export
from mllm_align.cli import main
from mllm_align.compute.decoding import generate
from mllm_align.models.families import VICUNA_TEMPLATE
from mllm_align.models.load import load_policy, prompt_text
from tiny import KINDS, make_examples, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """kind -> (folder of the base model, adapter), each made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            base = make_tiny(kind, root / "base")
            made[kind] = (base, make_adapter(base, root / "adapter"))
        return made[kind]

    return get


def run(base: Path | str, adapter: Path | str, out: Path | str, *overrides: str) -> None:
    given = ["base_model=local", f"base_model.path={base}", f"adapter={adapter}", f"out={out}"]
    assert main(["export", *given, *overrides]) == 0


def inputs(processor, model) -> dict[str, torch.Tensor]:
    """A prompt and its image as anybody would make them."""
    example = make_examples(1)[0]
    return processor(
        images=[example.image.load()], text=[prompt_text(processor, example.prompt)], return_tensors="pt"
    ).to(model.device)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_says_what_base_and_adapter_say(tiny, tmp_path, capsys, kind) -> None:
    base, adapter = tiny(kind)
    run(base, adapter, tmp_path / "out")
    both = load_policy(base, adapter=adapter)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    given = inputs(processor, model)
    with torch.no_grad():
        ours, before = (p.model(**given).logits for p in (both, load_policy(base)))
        assert torch.allclose(model(**given).logits, ours, atol=1e-5, rtol=1e-5)
        assert (ours - before).abs().max() > 0.01  # the adapter says something else than the base model
        tokens = [m.generate(**given, do_sample=False, max_new_tokens=8) for m in (model, both.model)]
    assert torch.equal(*tokens)
    again = load_policy(tmp_path / "out")
    examples = make_examples(2)
    assert [r.token_ids for (r,) in generate(again, examples, temperature=0, max_new_tokens=8)] == [
        r.token_ids for (r,) in generate(both, examples, temperature=0, max_new_tokens=8)
    ]
    assert f"vllm serve {tmp_path / 'out'}" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["lora", "projector"])
def test_both_lora_and_projector_are_merged(tiny, tmp_path, part) -> None:
    base, adapter = tiny("llava_next")
    run(base, adapter, tmp_path / "out")
    before, after = (tensors(folder) for folder in (base, tmp_path / "out"))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    wanted = {"lora": "q_proj", "projector": "multi_modal_projector"}[part]
    assert any(wanted in name for name in changed)
    assert not [name for name in changed if "vision_tower" in name or "lm_head" in name or "embed" in name]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_has_the_base_model_s_own_files(tiny, tmp_path, kind) -> None:
    """Whatever reads the base model, an older library in a server say, reads the result."""
    base, adapter = tiny(kind)
    (base / "train_log.jsonl").write_text("{}")
    run(base, adapter, tmp_path / "out")
    assert tensors(base).keys() == tensors(tmp_path / "out").keys()
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        assert (base / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    configs = [json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "out")]
    assert configs[0] == configs[1]
    assert not (tmp_path / "out" / "train_log.jsonl").exists()
    assert (
        len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1
    )  # a server may be another user
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    tokenizer = AutoProcessor.from_pretrained(base).tokenizer
    ending = {"qwen2_5_vl": "<|im_end|>"}.get(kind, tokenizer.eos_token)
    assert tokenizer.convert_tokens_to_ids(ending) in ends


def test_the_number_format_is_the_base_model_s(tiny, tmp_path) -> None:
    base, adapter = tiny("llava")
    run(base, adapter, tmp_path / "out", "base_model.dtype=bfloat16")
    assert {tensor.dtype for tensor in tensors(tmp_path / "out").values()} == {torch.bfloat16}
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_base_model_without_template_and_with_sampling_settings(tiny, tmp_path) -> None:
    base, adapter = tiny("llava")
    bare = Path(shutil.copytree(base, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    # transformers finds this invalid (it does not sample), and loads it.
    (bare / "generation_config.json").write_text(json.dumps({"temperature": 0.2, "top_p": 0.7}))
    run(bare, adapter, tmp_path / "out")
    assert AutoProcessor.from_pretrained(tmp_path / "out").chat_template == VICUNA_TEMPLATE
    said = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert said == {"temperature": 0.2, "top_p": 0.7, "eos_token_id": [2]}


def test_the_start_token_that_the_template_leaves_out_is_told(tiny, tmp_path, capsys, monkeypatch) -> None:
    base, adapter = tiny("llava")
    run(base, adapter, tmp_path / "plain")
    assert "add_special_tokens" not in capsys.readouterr().out
    processor = load_policy(base).processor
    monkeypatch.setattr(type(processor.tokenizer), "__call__", lambda *_, **__: {"input_ids": [1, 40]})
    assert export.starts_bare(processor)  # as LLaVA's tokenizer puts it
    processor.chat_template = "{{ '<s>' }}" + VICUNA_TEMPLATE
    assert not export.starts_bare(processor)


def test_evaluating_the_folder_is_evaluating_base_and_adapter(tmp_path, capsys) -> None:
    base = "asset://scenes/base"
    adapter = make_adapter(base, tmp_path / "adapter", noise=0.05)
    assert main(["export", f"adapter={adapter}", f"out={tmp_path / 'out'}"]) == 0
    found = {}
    for name, overrides in {
        "base": [],
        "both": [f"adapter={adapter}"],
        "out": ["base_model=local", f"base_model.path={tmp_path / 'out'}"],
    }.items():
        out = tmp_path / name / "evaluated"
        given = ["benchmark=scenes/vqa", "benchmark.n=3", f"out={out}", f"outputs={tmp_path}"]
        assert main(["evaluate", *given, *overrides]) == 0
        found[name] = [(out / "predictions" / "vqa.jsonl").read_text(), (out / "metrics.json").read_text()]
    assert found["out"] == found["both"]
    assert found["base"][0] != found["both"][0]


# --- refusals ----------------------------------------------------------------------------------------------


def refused(capsys, base: Path | str, adapter: Path | str, out: Path | str, *overrides: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(base, adapter, out, *overrides)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_what_makes_no_sense_is_refused(tiny, tmp_path, capsys) -> None:
    base, adapter = tiny("llava")
    out = tmp_path / "out"
    assert "give adapter=" in refused(capsys, base, "null", out)
    assert "out=FOLDER" in refused(capsys, base, adapter, "null")
    assert "is no PEFT adapter" in refused(capsys, base, tmp_path / "nowhere", out)
    assert f"give adapter={adapter}" in refused(capsys, base, adapter.parent, out)
    assert "base_model.four_bit=false" in refused(capsys, base, adapter, out, "base_model.four_bit=true")
    reward = Path(shutil.copytree(adapter, tmp_path / "reward"))
    (reward / "reward_head.safetensors").write_bytes(b"")
    assert "reward model" in refused(capsys, base, reward, out)
    assert "does not fit base_model" in refused(capsys, "asset://scenes/weak", adapter, out)
    assert not out.exists()


def test_what_lies_in_out_stays(tiny, tmp_path, capsys) -> None:
    base, adapter = tiny("llava")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "holds something already" in refused(capsys, base, adapter, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    run(base, adapter, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_adapter_that_diverged_is_refused(tmp_path, tiny, capsys) -> None:
    base, _ = tiny("llava")
    adapter = make_adapter(base, tmp_path / "diverged", noise=float("nan"))
    assert "did its training diverge" in refused(capsys, base, adapter, tmp_path / "out")


def test_a_failure_leaves_nothing_behind(tiny, tmp_path, monkeypatch) -> None:
    base, _ = tiny("llava")
    (tmp_path / "folder").mkdir()

    def full(*_) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(export.shutil, "copyfile", full)
    with pytest.raises(OSError, match="no space left"):
        export.write(load_policy(base), {"path": str(base), "dtype": "float32"}, tmp_path / "folder" / "out")
    assert not list((tmp_path / "folder").iterdir())

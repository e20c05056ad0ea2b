"""Loading, adapters and the reference policy."""

from __future__ import annotations

import json

import pytest
import torch

from mllm_align.compute.logprobs import response_logprobs
from mllm_align.compute.packing import collate
from mllm_align.models.families import VICUNA_TEMPLATE, of_model
from mllm_align.models.load import (
    add_lora,
    answer_lead,
    load_policy,
    parameter_groups,
    prompt_text,
    reference,
    resolve,
)
from tiny import KINDS, make_groups, make_tiny


@pytest.fixture(scope="module")
def family_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {kind: make_tiny(kind, root / kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tiny_folder(request, family_folders):
    """The tiny model of each family in turn."""
    return family_folders[request.param]


def scores(policy, model=None):
    with torch.no_grad():
        return response_logprobs(model or policy.model, collate(make_groups(3), policy.processor))


def train_a_little(policy):
    optimizer = torch.optim.SGD(parameter_groups(policy, 0.1, 0.05))
    for _ in range(3):
        optimizer.zero_grad()
        response_logprobs(policy.model, collate(make_groups(3), policy.processor)).mean().backward()
        optimizer.step()


def test_reference_is_bitwise_the_base_model_after_training(tiny_folder):
    base = scores(load_policy(tiny_folder))
    policy = add_lora(load_policy(tiny_folder), 4, 8)
    assert torch.equal(scores(policy), base)  # a fresh adapter changes nothing
    policy.model.train()
    train_a_little(policy)
    assert not torch.allclose(scores(policy), base, atol=1e-2)
    flags = {n: p.requires_grad for n, p in policy.model.named_parameters()}
    with reference(policy) as model:
        assert not model.training
        assert torch.equal(response_logprobs(model, collate(make_groups(3), policy.processor)), base)
    assert policy.model.training
    assert {n: p.requires_grad for n, p in policy.model.named_parameters()} == flags


def test_projector_alone_is_part_of_the_adapter(tiny_folder):
    """With LoRA untouched and only the projector changed, the reference still sees the original projector."""
    base = scores(load_policy(tiny_folder))
    policy = add_lora(load_policy(tiny_folder), 4, 8)
    for group in parameter_groups(policy, 1.0):
        if group["name"].startswith("projector"):
            for parameter in group["params"]:
                # Not the same for all: features that come out of a layer norm have sum 0.
                parameter.data.add_(torch.linspace(-0.2, 0.3, parameter.numel()).view_as(parameter))
    assert not torch.allclose(scores(policy), base, atol=1e-3)
    with reference(policy) as model:
        assert torch.equal(scores(policy, model), base)


def test_reference_without_an_adapter_is_the_model(tiny_folder):
    policy = load_policy(tiny_folder)
    with reference(policy) as model:
        assert model is policy.model
    policy.model.train()
    with pytest.raises(ValueError, match="trained without an adapter"), reference(policy):
        pass


def test_saved_adapter_restores_lora_and_projector(tiny_folder, tmp_path):
    from peft import PeftModel

    policy = add_lora(load_policy(tiny_folder), 4, 8)
    train_a_little(policy)
    policy.model.save_pretrained(tmp_path)
    want = scores(policy)
    assert torch.equal(scores(load_policy(tiny_folder, adapter=tmp_path)), want)
    model = PeftModel.from_pretrained(load_policy(tiny_folder).model, str(tmp_path))
    assert torch.equal(scores(policy, model.eval()), want)


def test_only_language_layers_and_projector_are_trained(tiny_folder):
    policy = add_lora(load_policy(tiny_folder), 4, 8)
    trained = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert trained
    family = of_model(policy.model)
    projector = f"{family.projector}.modules_to_save"
    assert any(projector in n for n in trained)
    assert all(family.decoder in n or projector in n for n in trained)
    assert not any("lm_head" in n or (family.vision[0] in n and projector not in n) for n in trained)
    for leaf in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert sum(leaf in n for n in trained) == 4  # A and B in two layers
    frozen = add_lora(load_policy(tiny_folder), 4, 8, target_modules=["q_proj"], train_projector=False)
    assert {n.split(".")[-4] for n, p in frozen.model.named_parameters() if p.requires_grad} == {"q_proj"}


def test_seed_decides_the_adapter_and_nothing_else(tiny_folder):
    def start(seed):
        policy = add_lora(load_policy(tiny_folder), 4, 8, seed=seed)
        return torch.cat([p.flatten() for n, p in policy.model.named_parameters() if "lora_A" in n])

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = start(0), start(0), start(1)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.rand(1), expected)  # the caller's stream is where it was


def test_add_lora_refuses_unknown_layers_and_a_second_adapter(tiny_folder):
    policy = load_policy(tiny_folder)
    with pytest.raises(
        ValueError, match=r"\['qproj'\] are not linear layers of the language model; it has \['down_proj'"
    ):
        add_lora(policy, 4, 8, target_modules=["qproj"])
    policy = add_lora(policy, 4, 8)
    with pytest.raises(ValueError, match="has an adapter already"):
        add_lora(policy, 4, 8)


def test_parameter_groups(tiny_folder):
    policy = add_lora(load_policy(tiny_folder), 4, 8)
    groups = {g["name"]: g for g in parameter_groups(policy, 1e-3, 1e-5, weight_decay=0.1)}
    assert groups["adapter"]["lr"] == 1e-3
    assert groups["projector"]["lr"] == 1e-5
    assert groups["projector"]["weight_decay"] == 0.1
    if of_model(policy.model).decoder == "language_model":  # Idefics3's projector is one matrix
        assert groups["projector_no_decay"]["lr"] == 1e-5
        assert groups["projector_no_decay"]["weight_decay"] == 0.0
    have = sum(len(g["params"]) for g in groups.values())
    assert have == sum(p.requires_grad for p in policy.model.parameters())
    with pytest.raises(ValueError, match="nothing is trained"):
        parameter_groups(load_policy_frozen(tiny_folder), 1e-3)


def load_policy_frozen(folder):
    policy = load_policy(folder)
    policy.model.requires_grad_(False)
    return policy


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_prompt_format(kind, family_folders):
    policy = load_policy(family_folders[kind])
    assert prompt_text(policy, "What is it?") == "USER: <image>\nWhat is it? ASSISTANT:"
    assert answer_lead(policy.processor) == " "
    with pytest.raises(ValueError, match="contains the image token"):
        prompt_text(policy, "<image>\nWhat is it?")


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_folder_without_a_chat_template_gets_vicunas(kind, tmp_path):
    folder = make_tiny(kind, tmp_path)
    (folder / "chat_template.jinja").unlink()
    policy = load_policy(folder)
    assert policy.processor.chat_template == VICUNA_TEMPLATE
    assert prompt_text(policy, "Hi?") == "USER: <image>\nHi? ASSISTANT:"


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "idefics3", "internvl"])
def test_folder_of_a_family_without_a_template_of_its_own_is_refused(kind, tmp_path):
    folder = make_tiny(kind, tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(FileNotFoundError, match=r"no chat template. Copy chat_template\.jinja"):
        load_policy(folder)


def test_what_is_trained_is_float32_and_runs_outside_autocast(tiny_folder, tmp_path):
    """In bfloat16 a step of 1e-6 would change nothing."""
    policy = add_lora(load_policy(tiny_folder, dtype="bfloat16"), 4, 8)
    trained = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.AdamW(parameter_groups(policy, 1e-6, 1e-6))
    response_logprobs(policy.model, collate(make_groups(3), policy.processor)).mean().backward()
    optimizer.step()
    still = [n for n, p in trained.items() if p.grad.abs().max() > 0 and torch.equal(p, before[n])]
    assert not still
    assert any(of_model(policy.model).projector in n for n in trained)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(scores(policy)).all()
    with reference(policy) as model:
        assert torch.isfinite(scores(policy, model)).all()


def test_what_was_trained_in_float32_is_read_in_float32(tiny_folder, tmp_path):
    """Rounded to the base model's bfloat16 a projector that moved by less than an ulp would be where it started."""
    policy = add_lora(load_policy(tiny_folder, dtype="bfloat16"), 4, 8)
    drawn = torch.Generator().manual_seed(0)
    trained = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(1e-2 * torch.randn(parameter.shape, generator=drawn))
    policy.model.save_pretrained(tmp_path)
    again = load_policy(tiny_folder, dtype="bfloat16", adapter=tmp_path)
    read = dict(again.model.named_parameters())
    assert any(of_model(policy.model).projector in n for n in trained)
    assert all(torch.equal(read[n], p) for n, p in trained.items())
    assert not any(p.requires_grad for p in read.values())
    policy.model.eval()
    assert torch.equal(scores(again), scores(policy))
    assert not torch.equal(scores(again), scores(load_policy(tiny_folder, dtype="bfloat16")))
    with reference(again) as model:
        assert torch.equal(scores(again, model), scores(load_policy(tiny_folder, dtype="bfloat16")))


def test_checkpointing_gives_the_same_gradients(tiny_folder):
    def gradients(**options):
        policy = add_lora(load_policy(tiny_folder, **options), 4, 8)
        policy.model.train()
        assert policy.model.is_gradient_checkpointing == options.get("checkpointing", False)
        response_logprobs(policy.model, collate(make_groups(2), policy.processor)).sum().backward()
        return {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}

    plain, again = gradients(), gradients(checkpointing=True)
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[n], again[n], atol=1e-6) for n in plain)


def test_sliding_windows_are_refused(tmp_path):
    policy = load_policy(make_tiny("internvl", tmp_path))
    policy.model.model.language_model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="full_attention, sliding_attention; a shared prompt needs full"):
        scores(policy)


def test_name_and_dtype(tiny_folder):
    policy = load_policy(tiny_folder, dtype="bfloat16")
    assert policy.name == tiny_folder.name
    assert next(policy.model.parameters()).dtype == torch.bfloat16
    assert torch.isfinite(scores(policy)).all()
    assert load_policy(tiny_folder, name="judge").name == "judge"


def test_assets_lie_in_the_package():
    import mllm_align

    assert str(resolve("asset://scenes/base")).startswith(next(iter(mllm_align.__path__)))
    assert resolve("asset://scenes/base").parts[-3:] == ("assets", "scenes", "base")


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="package complete"):
        load_policy("asset://scenes/nothing")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_policy(tmp_path)


def test_other_architecture(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(
        ValueError, match=r"config.json: model_type is 'gpt2'. Supported: LLaVA-1.5 .* Qwen2.5-VL"
    ):
        load_policy(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    folder = make_tiny("llava", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pickled weights \(pytorch_model.bin\), which are refused. Convert"
    ):
        load_policy(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="no weights"):
        load_policy(folder)


def test_missing_processor(tmp_path):
    folder = make_tiny("llava_next", tmp_path)
    for name in (
        "processor_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="Copy"):
        load_policy(folder)


def test_missing_image_processor(tmp_path):
    folder = make_tiny("llava_next", tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="Copy"):
        load_policy(folder)


def test_missing_adapter(tiny_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing"):
        load_policy(tiny_folder, adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="pickled adapters are refused"):
        load_policy(tiny_folder, adapter=tmp_path)

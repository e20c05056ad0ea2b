"""Base models: loading a folder, its LoRA adapter, its prompt format and its reference policy.

A `Policy` is a Hugging Face model of one of `models.families` with its processor. The reference policy of DPO is
never a second copy: it is the same weights with the adapter off (`reference`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mllm_align.models.families import Family, by_model_type, of_model
from mllm_align.models.quantise import four_bit_config

ASSET = "asset://"


@dataclass(frozen=True)
class Policy:
    """A vision-language model, the processor that feeds it, and the name its responses carry as `source`."""

    model: Any
    processor: Any
    name: str


def resolve(path: str | Path) -> Path:
    """The folder behind `path`; `asset://scenes/base` is a model shipped inside the package."""
    text = str(path)
    if not text.startswith(ASSET):
        return Path(text).expanduser()
    return Path(str(files("mllm_align").joinpath("assets", *text.removeprefix(ASSET).split("/"))))


def load_policy(
    path: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    adapter: str | Path | None = None,
    name: str | None = None,
    four_bit: bool = False,
    checkpointing: bool = False,
) -> Policy:
    """Load a folder of one of `models.families` in the Hugging Face format (safetensors only), in `eval` mode.

    `adapter` is a PEFT folder to put on top (frozen, for sampling and evaluation). `name` defaults to the
    folder's name. `four_bit` stores the language model's linear layers in 4 bits and computes in `dtype` (QLoRA).
    With `checkpointing` a layer's activations are made again in the backward pass instead of being kept.

    Raises FileNotFoundError for a missing folder or file, ValueError for another architecture or pickled
    weights, and what `quantise.four_bit_config` raises; each message says what to do.
    """
    folder = resolve(path)
    _check_folder(folder, path)
    options: dict[str, Any] = {}
    if four_bit:
        options = {
            "quantization_config": four_bit_config(_family_of(folder), dtype, device),
            "device_map": {"": device},
        }
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True, **options
    )
    if not four_bit:
        model.to(device)
    model.eval()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(model, load_processor(folder), name or folder.name)
    return policy if adapter is None else _with_adapter(policy, resolve(adapter))


def load_processor(path: str | Path) -> Any:
    """The processor of a model folder, with the Vicuna template where the folder brings none."""
    from transformers import AutoProcessor

    folder = resolve(path)
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{folder}: the processor cannot be loaded ({error}). Copy processor_config.json or "
            "preprocessor_config.json, tokenizer.json and tokenizer_config.json beside the weights."
        ) from error
    if not hasattr(processor, "image_processor"):
        raise FileNotFoundError(
            f"{folder}: it has a tokenizer but no image processor. Copy processor_config.json or "
            "preprocessor_config.json beside the weights."
        )
    if processor.chat_template is None:
        processor.chat_template = _family_of(folder).template
    if processor.chat_template is None:
        raise FileNotFoundError(
            f"{folder}: it has no chat template. Copy chat_template.jinja (or chat_template.json) beside the weights."
        )
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _check_folder(folder: Path, asked: str | Path) -> None:
    if not folder.is_dir():
        hint = (
            "Is the package complete?"
            if str(asked).startswith(ASSET)
            else "Give the path of a downloaded model folder."
        )
        raise FileNotFoundError(f"{asked}: there is no model folder at {folder}. {hint}")
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(
            f"{folder}: config.json is missing, so this is not a Hugging Face model folder."
        )
    _family_of(folder)
    if not any(folder.glob("*.safetensors")):
        found = next(iter(sorted(folder.glob("*.bin"))), None)
        state = f"only pickled weights ({found.name}), which are refused" if found else "no weights"
        raise ValueError(
            f"{folder}: {state}. Convert them once with `model.save_pretrained(folder)`, "
            "which writes model.safetensors."
        )


def _family_of(folder: Path) -> Family:
    config = folder / "config.json"
    try:
        return by_model_type(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from None


def _with_adapter(policy: Policy, folder: Path) -> Policy:
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: adapter_config.json is missing, so this is not a PEFT adapter folder."
        )
    if not (folder / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder}: adapter_model.safetensors is missing (pickled adapters are refused)."
        )
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    model = PeftModel.from_pretrained(policy.model, str(folder))
    if _projector_in_float32(model):  # PEFT read it into a copy in the base model's precision
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        model.requires_grad_(False)
    return replace(policy, model=model.eval())


def add_lora(
    policy: Policy,
    r: int,
    alpha: int,
    dropout: float = 0.0,
    target_modules: list[str] | None = None,
    train_projector: bool = True,
    seed: int = 0,
) -> Policy:
    """Put a fresh LoRA adapter on the language model's linear layers; everything else is frozen.

    `target_modules` are leaf names (`q_proj`, ...), by default all linear layers of the language model; never
    the vision tower and never `lm_head`. What is trained is float32, whatever the base model is: steps of 1e-6 are
    lost in bfloat16. With `train_projector` the projector is trained in full, as a copy
    that belongs to the adapter: it is saved with it, `PeftModel.from_pretrained` restores it, and `reference`
    sees the original. `seed` decides LoRA's random A. Changes `policy.model` in place, as PEFT does.
    """
    from peft import LoraConfig, get_peft_model

    if hasattr(policy.model, "peft_config"):
        raise ValueError(
            f"{policy.name}: the model has an adapter already; merge it or start from its base model."
        )
    family = of_model(policy.model)
    leaves = _language_linears(policy.model, family)
    wanted = leaves if target_modules is None else set(target_modules)
    if wanted - leaves:
        raise ValueError(
            f"target_modules {sorted(wanted - leaves)} are not linear layers of the language model; "
            f"it has {sorted(leaves)}."
        )
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf".*{family.decoder}\.(?:.*\.)?(?:{'|'.join(sorted(wanted))})",
        modules_to_save=[family.projector] if train_projector else None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(policy.model, config)
    _projector_in_float32(model)
    return replace(policy, model=model)


def _projector_in_float32(model: Any) -> bool:
    """Whether the adapter's copy of the projector had to be widened. PEFT keeps LoRA's weights in float32, and copies
    the projector as it is.
    """
    from peft.utils.other import ModulesToSaveWrapper

    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    copies = [copy for wrapper in wrappers for copy in wrapper.modules_to_save.values()]
    narrow = [c for c in copies if next(c.parameters()).dtype in (torch.bfloat16, torch.float16)]
    for copy in narrow:
        copy.float().register_forward_pre_hook(_in_its_precision)
    return bool(narrow)


def _in_its_precision(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, torch.Tensor) else x for x in inputs)


def _language_linears(model: nn.Module, family: Family) -> set[str]:
    pattern = re.compile(rf"(?:.*\.)?{family.decoder}\.(?:.*\.)?([^.]+)")
    matches = ((pattern.fullmatch(name), module) for name, module in model.named_modules())
    return {
        m.group(1) for m, module in matches if m and isinstance(module, nn.Linear) and m.group(1) != "lm_head"
    }


@contextmanager
def reference(policy: Policy) -> Iterator[Any]:
    """The reference policy: the same weights with the adapter off, the original projector, no gradients,
    `eval` mode.

    Raises ValueError for a model in training mode that has no adapter and weights that are trained: they are no
    reference. That base weights were not changed before, nobody checks.
    """
    model = policy.model
    if not hasattr(model, "disable_adapter"):
        trained = [name for name, p in model.named_parameters() if p.requires_grad] if model.training else []
        if trained:
            raise ValueError(
                f"{policy.name}: {trained[0]} is trained without an adapter; use add_lora, "
                "or load a second policy."
            )
    was_training = model.training
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    model.eval()
    try:
        with torch.no_grad(), _adapter_off(model):
            yield model
    finally:
        model.train(was_training)
        # PEFT marks an adapter as trained whenever it is switched on again; keep what the caller had frozen.
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
        torch.clear_autocast_cache()  # see compute.decoding


@contextmanager
def _adapter_off(model: Any) -> Iterator[None]:
    if not hasattr(model, "disable_adapter"):
        yield
        return
    with model.disable_adapter():
        yield


def parameter_groups(
    policy: Policy, lr: float, projector_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Optimiser groups of the trained parameters: `adapter` at `lr`, `projector` at `projector_lr` (default
    `lr`).

    Weight decay applies to matrices only; biases and norms go in groups ending in `_no_decay`. Empty groups
    are left out.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    projector = of_model(policy.model).projector
    for name, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            label = "projector" if projector in name else "adapter"
            label += "" if parameter.ndim > 1 else "_no_decay"
            groups.setdefault(label, []).append(parameter)
    if not groups:
        raise ValueError(f"{policy.name}: nothing is trained; call add_lora first.")
    rates = {"adapter": lr, "projector": lr if projector_lr is None else projector_lr}
    return [
        {
            "name": label,
            "params": parameters,
            "lr": rates[label.removesuffix("_no_decay")],
            "weight_decay": 0.0 if label.endswith("_no_decay") else weight_decay,
        }
        for label, parameters in groups.items()
    ]


def prompt_text(processor: Any, prompt: str) -> str:
    """The text the model reads before it answers: the chat template with the image first and the generation
    prompt.

    Takes a processor or a Policy. Raises ValueError when the prompt itself holds the image token.
    """
    processor = getattr(processor, "processor", processor)
    token = processor.image_token
    if token in prompt:
        raise ValueError(
            f"the prompt {prompt!r} contains the image token {token!r}; remove it, the image is put first."
        )
    text = processor.apply_chat_template(_user_turn(prompt), add_generation_prompt=True, tokenize=False)
    if text.count(token) != 1:
        raise ValueError(f"the chat template writes {text.count(token)} image tokens for one image: {text!r}")
    return text


def without_image_token(processor: Any, text: str) -> str:
    """The text less the image tokens that are spelt in it: a model may write one, and it would stand for an image."""
    return text.replace(processor.image_token, "")


def answer_lead(processor: Any) -> str:
    """What the chat template writes between the generation prompt and the answer: " " for Vicuna, "" for
    ChatML.
    """
    around = _around_answer(processor)
    return " " if around is None else around[0]


def end_token(processor: Any) -> int:
    """The token that ends an answer: the special token that the chat template writes behind one ("<|im_end|>" in
    ChatML), or else the tokenizer's end token.
    """
    tokenizer, around = processor.tokenizer, _around_answer(processor)
    behind = "" if around is None else around[1]
    ends = [token for token in tokenizer.all_special_tokens if token and behind.startswith(token)]
    return tokenizer.convert_tokens_to_ids(max(ends, key=len)) if ends else tokenizer.eos_token_id


def _around_answer(processor: Any) -> tuple[str, str] | None:
    """What the chat template writes before and behind an answer; None where the generation prompt is none of it."""
    probe = "answer"
    start = prompt_text(processor, "question")
    turns = [*_user_turn("question"), {"role": "assistant", "content": [{"type": "text", "text": probe}]}]
    whole = processor.apply_chat_template(turns, tokenize=False)
    if not whole.startswith(start) or probe not in whole[len(start) :]:
        return None
    before, behind = whole[len(start) :].split(probe, 1)
    return before, behind


def _user_turn(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]

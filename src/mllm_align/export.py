"""`mllm-align export`: base model and adapter as one Hugging Face folder, for a server or for others.

Weights are the base model's with the adapter added to them, in the number format of `base_model.dtype`. Everything
else (config, processor, tokenizer, chat template) is the base model's own file, so whatever reads the base model
reads the result.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_align.entry import command

if TYPE_CHECKING:
    from mllm_align.models.load import Policy

# What a model folder holds beside its weights.
COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
DTYPES = (
    "dtype",
    "torch_dtype",
)  # config.json's names for the number format: now, and before transformers 4.56


def _run(config: dict[str, Any]) -> None:
    if not (config["adapter"] and config["out"]):
        raise ValueError(
            "an adapter is merged into its base model: give adapter=outputs/runs/LABEL/seed0/adapter, the base_model "
            "that it was trained on and out=FOLDER"
        )
    base, adapter, out = config["base_model"], Path(config["adapter"]).expanduser(), Path(config["out"])
    check(base, adapter, out)
    policy = merged(base, adapter)
    write(policy, base, out)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {base['name']} with {adapter}, {base['dtype']}, {size / 1e6:,.1f} MB")
    print("\n".join(advice(policy, out)))


def check(base: dict[str, Any], adapter: Path, out: Path) -> None:
    """Refuse what makes no sense, before anything is loaded. Raises ValueError or FileNotFoundError with the remedy."""
    if base.get("four_bit"):
        raise ValueError(
            "base_model.four_bit=true: an adapter is merged into the weights that were not quantised; set "
            "base_model.four_bit=false (it was trained on their 4-bit form, so answers may differ a little)"
        )
    if not (adapter / "adapter_config.json").is_file():
        inside = (adapter / "adapter" / "adapter_config.json").is_file()
        remedy = f"give adapter={adapter / 'adapter'}" if inside else "give the folder `adapter` of a run"
        raise FileNotFoundError(f"{adapter} is no PEFT adapter (it has no adapter_config.json); {remedy}")
    if (adapter / "reward_head.safetensors").is_file():
        raise ValueError(
            f"{adapter} is a reward model's adapter: what it makes is a score and no text, and its head has no place "
            "in a Hugging Face model; give a policy's adapter"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something already; give another out, or remove it first")


def merged(base: dict[str, Any], adapter: Path) -> Policy:
    """The base model with the adapter in its weights, on the CPU.

    Raises ValueError where the adapter does not fit the base model, or leaves weights that are no numbers.
    """
    from dataclasses import replace

    import torch

    from mllm_align import stages

    try:
        policy = stages.load({**base, "checkpointing": False}, "cpu", adapter=adapter)
    except RuntimeError as error:
        raise ValueError(
            f"{adapter} does not fit base_model={base['name']} ({' '.join(str(error).split())[:300]}); give the base "
            "model that it was trained on"
        ) from None
    tied = policy.model.config.tie_word_embeddings
    # The trained projector takes the place of the base model's, and what was trained in float32 is rounded once.
    model = policy.model.merge_and_unload().to(getattr(torch, base["dtype"]))
    if model.config.tie_word_embeddings != tied:
        raise ValueError(
            f"{adapter} changes embeddings that {base['name']} shares with its LM head; that cannot be merged"
        )
    bad = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if bad:
        raise ValueError(f"{adapter}: {bad[0]} is not finite with it; did its training diverge?")
    return replace(policy, model=model)


def write(policy: Policy, base: dict[str, Any], out: Path) -> None:
    """The folder, whole or not at all."""
    from mllm_align.models.load import resolve
    from mllm_align.store import publish

    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        _fill(temporary, policy, resolve(base["path"]), base["dtype"])
        for file in temporary.iterdir():
            shutil.copymode(temporary / "config.json", file)  # safetensors writes for this user alone
            with file.open("rb") as written:
                os.fsync(written.fileno())
        publish(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(folder: Path, policy: Policy, base: Path, dtype: str) -> None:
    from transformers import AutoProcessor, GenerationConfig

    from mllm_align.compute.decoding import stop_tokens

    stops = stop_tokens(policy)
    # Not the base model's own, which transformers may find invalid: its file is copied below.
    policy.model.generation_config = GenerationConfig()
    policy.model.save_pretrained(folder)
    for pattern in COPIED:
        for file in base.glob(pattern):
            if not file.name.endswith(".index.json"):  # of the base model's weights
                shutil.copyfile(file, folder / file.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    _write(folder / "config.json", _in_dtype({"dtype": None, **config}, dtype))
    generation = base / "generation_config.json"
    said = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    _write(folder / "generation_config.json", {**said, "eos_token_id": list(stops)})
    if AutoProcessor.from_pretrained(folder, local_files_only=True).chat_template is None:
        (folder / "chat_template.jinja").write_text(policy.processor.chat_template, encoding="utf-8")


def _in_dtype(config: Any, dtype: str) -> Any:
    """A config.json with this number format, in its parts too."""
    if not isinstance(config, dict):
        return config
    return {name: dtype if name in DTYPES else _in_dtype(value, dtype) for name, value in config.items()}


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def advice(policy: Policy, out: Path) -> list[str]:
    """The commands that serve and ask it."""
    ask = f"mllm-align evaluate generation=vllm generation.build.model={out}"
    if starts_bare(policy.processor):
        ask += " +generation.build.settings.add_special_tokens=true"
    return [f"serve it:  vllm serve {out} --generation-config vllm", f"ask it:    {ask}"]


def starts_bare(processor: Any) -> bool:
    """Whether the tokenizer, and not the chat template, puts the start token: a server does so only when asked."""
    from mllm_align.models.load import prompt_text

    tokenizer, text = processor.tokenizer, prompt_text(processor, "?")
    start = tokenizer.bos_token
    if start is None or text.startswith(start):
        return False
    return tokenizer(text)["input_ids"][0] == tokenizer.bos_token_id


main = command("export", _run)


if __name__ == "__main__":
    sys.exit(main())

"""Memory and time of a run, by arithmetic: bytes and operations of a model on a named GPU.

Memory is counted as the training allocates it (docs/scaling.md has the terms). What a layer keeps for the backward
pass has been checked against what torch saves, on a CPU (tests/estimate); neither memory nor hours have been checked on
a GPU yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mllm_align.estimate.model import Model

GIB = 2**30
# Bytes a parameter in 4 bits, with the scales of its blocks (NF4, double quantisation: 0.127 bit a parameter).
FOUR_BIT = (4 + 0.127) / 8
# torch's context on a device, and what its allocator loses in fragments.
CONTEXT, FRAGMENTS = 0.8 * GIB, 0.08
# Logits held at once, as compute.logprobs holds them; float32 logits, their exponentials, their gradient.
LOGITS_AT_ONCE, LOGITS_COPIES = 2**25, 3
# Share of the peak arithmetic that training and prefill reach, and share of the bandwidth that decoding reaches.
ARITHMETIC, BANDWIDTH = 0.40, 0.50


@dataclass(frozen=True)
class Gpu:
    """memory that a program can have, in GiB; dense bfloat16 arithmetic in 10^12 operations a second; memory
    bandwidth in 10^12 bytes a second.

    Makers' figures, without sparsity.
    """

    name: str
    memory: float
    arithmetic: float
    bandwidth: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", 140.0, 989, 4.8),
        Gpu("h100", 79.0, 989, 3.35),
        Gpu("a100_80gb", 79.0, 312, 2.04),
        Gpu("a100_40gb", 39.5, 312, 1.56),
        Gpu("l40s", 45.0, 362, 0.86),
        Gpu("rtx_4090", 23.6, 165, 1.01),
    )
}


@dataclass(frozen=True)
class Numbers:
    """Bytes of a weight of the base model, of what layers compute in, and whether they are checkpointed.

    `precision` is the trainer's. The adapter's own weights are float32, as PEFT makes them.
    """

    dtype: str = "bfloat16"
    precision: str = "bf16-mixed"
    four_bit: bool = False
    checkpointing: bool = False

    @property
    def weight(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def computed(self) -> int:
        return 4 if self.dtype == "float32" and self.precision == "32-true" else 2

    @property
    def adapter_input(self) -> int:
        """What an adapter reads: cast to its own float32, or by autocast to 16 bits."""
        return 2 if self.precision == "bf16-mixed" else 4


@dataclass(frozen=True)
class Layout:
    """How the processes of a run hold it: each a copy, or the layers split among `processes`."""

    processes: int = 1
    split: bool = False


def weights(model: Model, numbers: Numbers) -> float:
    """Bytes of a frozen model."""
    matrices = model.decoder.matrices
    small = FOUR_BIT if numbers.four_bit else numbers.weight
    return matrices * small + (model.parameters - matrices) * numbers.weight


def trained(model: Model, r: int) -> float:
    """Bytes of adapter and projector copy with gradients and AdamW's two moments, all float32."""
    return (model.decoder.lora(r) + model.projector) * 4 * (1 + 1 + 2)


def layer_activations(model: Model, r: int, numbers: Numbers) -> float:
    """Bytes a token that one decoder layer keeps for the backward pass.

    The base matrices are frozen and keep nothing. Kept are: the input of both norms in float32; what the adapters read
    (q, k and v read the same, unless each makes a cast copy of its own, and so do gate and up); the adapters' inner
    values; queries, keys, values (as wide as the queries) and the attention's output; gate, its activation and up.
    """
    decoder = model.decoder
    h, i, q = decoder.hidden, decoder.intermediate, decoder.heads * decoder.head
    own_copies = numbers.adapter_input != numbers.computed or numbers.precision == "bf16-mixed"
    read = (5 * h + q if own_copies else 2 * h + q) + i
    inner = 7 * r
    return 8 * h + numbers.adapter_input * (read + inner) + numbers.computed * (4 * q + 3 * i)


def activations(
    model: Model, r: int, numbers: Numbers, tokens: int, predicted: int, image_tokens: int
) -> float:
    """Bytes that a forward pass keeps, at its highest: layers, projector and logits.

    tokens: of all packed rows; predicted: response tokens that logits are made for; image_tokens: of all images.
    """
    decoder = model.decoder
    layer = layer_activations(model, r, numbers) * tokens
    if numbers.checkpointing:  # the inputs of all layers, and one layer made again with its gradients
        layers = decoder.layers * decoder.hidden * numbers.weight * tokens + 1.5 * layer
    else:
        layers = decoder.layers * layer
    if numbers.dtype == "float32" and numbers.precision == "bf16-mixed":
        layers += 2 * decoder.matrices  # autocast's copies of the frozen matrices
    projector = image_tokens * (model.vision.hidden + 3 * decoder.hidden) * numbers.weight
    logits = min(predicted * decoder.vocab, LOGITS_AT_ONCE) * 4 * LOGITS_COPIES
    return layers + projector + logits


def cache(model: Model, prompts: int, prompt_tokens: int, draws: int, new_tokens: int) -> float:
    """Bytes of keys and values while `draws` responses to each of `prompts` are written; the prompt is held once."""
    return model.decoder.cache_bytes() * prompts * (prompt_tokens + draws * new_tokens)


def per_device(layout: Layout, model: Model, numbers: Numbers) -> float:
    """Bytes of the base weights on one device; split layers, and two of them gathered at a time."""
    whole = weights(model, numbers)
    if not layout.split or layout.processes == 1:
        return whole
    layers = model.decoder.matrices * (FOUR_BIT if numbers.four_bit else numbers.weight)
    return whole - layers + layers / layout.processes + 2 * layers / model.decoder.layers


def with_overhead(bytes_: float) -> float:
    return bytes_ * (1 + FRAGMENTS) + CONTEXT


# --- time --------------------------------------------------------------------------------------------------


def pass_operations(model: Model, tokens: float, prompt: float) -> float:
    """Multiplications and additions of one forward pass of the decoder: 2 a weight and token, and causal attention.

    tokens: of the packed row; prompt: what each of them sees on average is half of it, and what the row is long.
    """
    decoder = model.decoder
    attention = decoder.layers * 4 * decoder.heads * decoder.head * tokens * prompt / 2
    return 2 * decoder.matrices * tokens + attention


def image_operations(model: Model, tiles: int) -> float:
    return 2 * model.vision.parameters * tiles * model.tower_tokens


def training_seconds(
    model: Model, numbers: Numbers, gpu: Gpu, tokens: float, prompt: float, tiles: int
) -> float:
    """Of one packed row, forward and backward: frozen matrices need no gradient of their own, so the backward pass
    costs as much as the forward pass, and checkpointing makes the forward pass once more.
    """
    passes = 3 if numbers.checkpointing else 2
    operations = passes * pass_operations(model, tokens, prompt) + image_operations(model, tiles)
    return operations / (gpu.arithmetic * 1e12 * ARITHMETIC)


def reading_seconds(model: Model, gpu: Gpu, tokens: float, prompt: float, tiles: int) -> float:
    """Of one packed row, forward only."""
    operations = pass_operations(model, tokens, prompt) + image_operations(model, tiles)
    return operations / (gpu.arithmetic * 1e12 * ARITHMETIC)


def writing_seconds(
    model: Model,
    numbers: Numbers,
    gpu: Gpu,
    prompts: int,
    prompt_tokens: float,
    draws: int,
    new_tokens: float,
) -> float:
    """Of a batch of prompts whose responses are written side by side, after they were read: each token reads every
    weight, and every key and value so far, from memory.
    """
    held = cache(model, prompts, math.ceil(prompt_tokens), draws, math.ceil(new_tokens / 2))
    return new_tokens * (weights(model, numbers) + held) / (gpu.bandwidth * 1e12 * BANDWIDTH)

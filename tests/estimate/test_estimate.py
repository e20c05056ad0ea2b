"""What a run needs: against figures worked out by hand, against transformers' own models, and against torch."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir

from mllm_align.compute.logprobs import response_logprobs
from mllm_align.compute.packing import collate
from mllm_align.entry import plain
from mllm_align.estimate.cost import (
    GIB,
    GPUS,
    Gpu,
    Layout,
    Numbers,
    activations,
    cache,
    layer_activations,
    pass_operations,
    per_device,
    trained,
    training_seconds,
    weights,
    writing_seconds,
)
from mllm_align.estimate.model import PINPOINTS, RELEASED, best_pinpoint, read_model
from mllm_align.estimate.run import Assumed, Run, estimate, gpu_of, lines, model_of
from mllm_align.models.load import Policy, add_lora
from mllm_align.paths import conf_dir
from tiny import make_groups, make_model, make_processor

SEVEN = read_model(RELEASED["published/llava_1_6_7b"])


# --- by hand ------------------------------------------------------------------------------------------------


def test_parameters_of_a_small_decoder_by_hand() -> None:
    """Hidden 8, feed-forward 12, 2 heads of 4, 1 of them for keys and values, 10 words, 3 layers, CLIP of width 4."""
    text = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "vocab_size": 10}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    vision = {
        "hidden_size": 4,
        "intermediate_size": 6,
        "num_hidden_layers": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    model = read_model({"model_type": "llava", "text_config": text, "vision_config": vision})
    # q 64 + k 32 + v 32 + o 64 + three times 96 = 480 a layer.
    assert model.decoder.matrices == 3 * 480
    # two norms of 8 a layer and one at the end; words in and out.
    assert model.decoder.parameters == 1440 + 3 * 16 + 8 + 2 * 80
    # attention 4 (16 + 4), feed-forward 24 + 6 + 24 + 4, norms 16, twice; class 4, patches 3 * 196 * 4, positions
    # 5 * 4, two norms of weight and bias.
    assert model.vision.parameters == 2 * (80 + 58 + 16) + 4 + 2352 + 20 + 16
    assert model.projector == (4 * 8 + 8) + (8 * 8 + 8)
    # r (inputs + outputs): q 16, k 12, v 12, o 16, gate 20, up 20, down 20.
    assert model.decoder.lora(r=2) == 3 * 2 * 116
    # two of 1 head of 4, in 3 layers, 2 bytes each.
    assert model.decoder.cache_bytes() == 48


def test_the_7b_model_is_as_released() -> None:
    assert read_model(RELEASED["published/llava_1_5_7b"]).parameters == 7_063_427_072
    # A copied prompt of 2,990 tokens takes about 1.6 GB: 2 x 32 layers x 4,096 x 2 bytes = 524,288 a token.
    assert SEVEN.decoder.cache_bytes() == 524_288
    assert cache(SEVEN, 1, 2_990, 0, 0) == 2_990 * 524_288
    assert cache(SEVEN, 2, 100, 3, 10) == 2 * (100 + 30) * 524_288
    # 14 GB in 16 bits; in 4 bits 6.476e9 matrix weights at 0.516 bytes, the rest at 2: 4.5 GB.
    assert weights(SEVEN, Numbers()) == 2 * 7_063_431_168
    assert weights(SEVEN, Numbers(four_bit=True)) == pytest.approx(4.515e9, rel=1e-3)
    # 319,815,680 adapter and 20,979,712 projector parameters with gradient and two moments, 4 bytes each.
    assert trained(SEVEN, 128) == (319_815_680 + 20_979_712) * 16


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (672, 672, 576 + 48 * 48 + 48),  # no padding: 2,928, the most
        (640, 480, 576 + 36 * 48 + 36),  # COCO's usual shape
        (336, 1008, 576 + 72 * 24 + 72),
        (1000, 250, 576 + 18 * 72 + 18),  # 1008 x 336, padded above and below
    ],
)
def test_image_tokens_of_anyres_by_hand(width, height, tokens) -> None:
    assert SEVEN.image_tokens(width, height) == tokens


def test_the_best_grid_keeps_most_and_pads_least() -> None:
    pinpoints = [(tall, wide) for tall, wide in PINPOINTS]
    assert best_pinpoint(pinpoints, 640, 480) == (672, 672)
    assert best_pinpoint(pinpoints, 1000, 3000) == (1008, 336)
    assert SEVEN.tiles(640, 480) == 5


def test_seconds_by_hand() -> None:
    """A GPU of 10^12 operations and bytes a second, at the shares that are assumed of them."""
    gpu = Gpu("round", 80, arithmetic=1 / 0.40, bandwidth=1 / 0.50)
    # 2 x 6,476,005,376 weights; attention 32 layers x 4 x 4,096 x 1,000 tokens x 500 seen on average.
    forward = 2 * 6_476_005_376 * 1_000 + 32 * 4 * 4_096 * 1_000 * 500
    assert pass_operations(SEVEN, 1_000, 1_000) == forward
    assert training_seconds(SEVEN, Numbers(), gpu, 1_000, 1_000, tiles=0) == pytest.approx(2 * forward / 1e12)
    checkpointed = Numbers(checkpointing=True)
    assert training_seconds(SEVEN, checkpointed, gpu, 1_000, 1_000, 0) == pytest.approx(3 * forward / 1e12)
    # 100 tokens, each reads 14.13e9 bytes of weights and (1,000 + 2 x 50) cached tokens of 4 prompts.
    bytes_ = 2 * 7_063_431_168 + 4 * 1_100 * 524_288
    assert writing_seconds(SEVEN, Numbers(), gpu, 4, 1_000, 2, 100) == pytest.approx(100 * bytes_ / 1e12)


def test_split_layers_are_held_in_part() -> None:
    whole, layers = weights(SEVEN, Numbers()), 2 * SEVEN.decoder.matrices
    expected = whole - layers + layers / 8 + 2 * layers / 32
    assert per_device(Layout(8, split=True), SEVEN, Numbers()) == pytest.approx(expected)
    assert per_device(Layout(8, split=False), SEVEN, Numbers()) == whole


def test_checkpointing_keeps_a_layer_and_the_inputs_of_all() -> None:
    kept, all_ = (
        activations(SEVEN, 128, Numbers(checkpointing=on), tokens=3_000, predicted=0, image_tokens=0)
        for on in (True, False)
    )
    one = 3_000 * layer_activations(SEVEN, 128, Numbers())
    assert all_ == 32 * one
    assert kept == pytest.approx(32 * 4_096 * 2 * 3_000 + 1.5 * one)


# --- against transformers and torch -------------------------------------------------------------------------


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_are_those_of_the_real_class(name) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = dict(RELEASED[name])
    with torch.device("meta"):
        made = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config))
    assert read_model(config).parameters == sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_a_tiny_model_and_its_adapter_are_counted(tiny_folders, kind) -> None:
    config = json.loads((tiny_folders[kind] / "config.json").read_text())
    model, made = read_model(config), make_model(kind, config["text_config"]["vocab_size"])
    assert model.parameters == sum(p.numel() for p in made.parameters())
    policy = add_lora(Policy(made, make_processor(kind), kind), r=4, alpha=8)
    learnt = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert learnt == model.decoder.lora(4) + model.projector


@pytest.mark.parametrize("size", [(48, 32), (28, 84), (56, 56), (90, 30), (33, 77), (640, 427)])
def test_image_tokens_are_those_that_the_processor_writes(tiny_folders, size) -> None:
    from PIL import Image

    processor = make_processor("llava_next")
    ids = processor(text="<image>", images=Image.new("RGB", size), return_tensors="pt")["input_ids"]
    written = int((ids == processor.tokenizer.convert_tokens_to_ids("<image>")).sum())
    model = read_model(json.loads((tiny_folders["llava_next"] / "config.json").read_text()))
    assert model.image_tokens(*size) == written


MODES = [
    ("float32", "32-true"),
    ("bfloat16", "bf16-mixed"),
    ("bfloat16", "32-true"),
]


@pytest.mark.parametrize(("dtype", "precision"), MODES)
def test_a_layer_keeps_what_torch_saves(dtype, precision) -> None:
    """Bytes a token of one layer more: the difference of what models of one and of two layers save."""
    (first, _), (second, tokens) = (saved_bytes(layers, dtype, precision) for layers in (1, 2))
    model = read_model(wide(1).config.to_dict())
    expected = layer_activations(model, 8, Numbers(dtype, precision))
    assert (second - first) / tokens == pytest.approx(expected, rel=0.02)


def wide(layers: int):
    """A tiny model, wide enough that a layer's activations outweigh the adapter's weights."""
    from transformers import LlavaNextForConditionalGeneration

    config = make_model("llava_next", len(make_processor("llava_next").tokenizer)).config
    sizes = {"num_hidden_layers": layers, "hidden_size": 256, "intermediate_size": 688}
    for name, value in {**sizes, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32}.items():
        setattr(config.text_config, name, value)
    return LlavaNextForConditionalGeneration(config)


def saved_bytes(layers: int, dtype: str, precision: str) -> tuple[int, int]:
    """Bytes that a packed forward pass saves for its backward pass, without weights; and the row's tokens."""
    processor = make_processor("llava_next")
    policy = add_lora(Policy(wide(layers).to(getattr(torch, dtype)).eval(), processor, "wide"), r=8, alpha=16)
    group = make_groups(1)[0]
    longer = tuple(replace(response, text=response.text * 20) for response in group.responses)
    batch = collate([replace(group, responses=longer)], processor)
    own = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    found: dict[int, int] = {}
    kept = []  # or a freed storage's address comes again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    policy.model.train()
    mixed = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), mixed:
        response_logprobs(policy.model, batch)
    tokens = batch.prompt_ids.shape[1] + batch.response_ids.shape[1] * (batch.response_ids.shape[2] - 1)
    return sum(found.values()), tokens


# --- of a run -----------------------------------------------------------------------------------------------

BASE = ["base_model.path=nowhere", "base_model.name=published/llava_1_6_7b", "base_model.dtype=bfloat16"]
BASE += [
    "base_model.lora.r=128",
    "dataset.size=5000",
    "trainer=gpu",
    "alignment.batch_size=4",
    "benchmark=none",
]


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return plain(compose("train", overrides=[*BASE, *overrides]))


def test_offline_dpo_reads_the_reference_once() -> None:
    found = estimate(composed("alignment=dpo", "alignment.epochs=3"), GPUS["h100"])
    assert found.counts["steps"] == 3 * 1_250
    assert found.counts["tokens of a packed row"] == 2_340 + 50 + 2 * 130
    assert found.hours.keys() == {"training", "reference, once"}
    # Forward and backward of three epochs against one forward pass, which is 2 of 6 parts but for the vision tower.
    assert found.hours["training"] / found.hours["reference, once"] == pytest.approx(6, rel=0.05)
    assert found.memory.keys() == {
        "base model",
        "adapter, projector, optimiser",
        "activations, or keys and values",
    }


def test_online_dpo_draws_and_asks_its_judge() -> None:
    large = ["annotator.build.path=nowhere", "annotator.build.dtype=bfloat16"]
    found = estimate(composed("alignment=online_dpo", *large), GPUS["h200"])
    assert found.hours.keys() == {"training", "reference", "drawing", "judging"}
    assert found.memory["judge"] == 2 * 34_752_083_968


def test_mixed_dpo_draws_half_of_it() -> None:
    large = ["annotator.build.path=nowhere", "annotator.build.dtype=bfloat16"]
    all_, half = (
        estimate(composed(f"alignment={name}", *large), GPUS["h200"]) for name in ("online_dpo", "mixed_dpo")
    )
    assert half.hours["drawing"] == pytest.approx(all_.hours["drawing"] / 2)
    assert half.hours["training"] == all_.hours["training"]


def test_reinforcement_learning_trains_its_reward_model() -> None:
    found = estimate(composed("alignment=rloo", "annotator.data.size=1000"), GPUS["h100"])
    assert found.hours["reward model, once"] > 0
    assert found.counts["tokens of a packed row"] == 2_390 + 4 * 200


def test_ppo_takes_every_draw_several_times() -> None:
    """The draws, their rewards and the reference are made once."""
    one, four = (
        estimate(
            composed("alignment=ppo", "annotator.data.size=1000", f"alignment.estimator.passes={n}"),
            GPUS["h100"],
        )
        for n in (1, 4)
    )
    assert four.hours["training"] == pytest.approx(4 * one.hours["training"])
    assert four.counts["steps"] == 4 * one.counts["steps"]
    assert {**four.hours, "training": 0} == {**one.hours, "training": 0}


def test_a_reward_model_is_trained_on_pairs_and_held_beside_the_policy() -> None:
    found = estimate(
        composed("alignment=ppo", "annotator.data.size=5000", "alignment.epochs=1"), GPUS["h100"]
    )
    pairs = estimate(composed("alignment=dpo", "alignment.epochs=4"), GPUS["h100"])  # its 4 epochs
    assert found.hours["reward model, once"] == pytest.approx(pairs.hours["training"])
    assert found.hours["reward statistics, once"] == pytest.approx(pairs.hours["reference, once"])
    assert found.hours["judging"] == pytest.approx(
        found.hours["reference"]
    )  # a row of four responses, read once
    assert found.memory["judge"] == 2 * 7_063_431_168


def test_mdpo_makes_a_second_row_under_the_crop() -> None:
    dpo, mdpo = (estimate(composed(f"alignment={name}"), GPUS["h100"]) for name in ("dpo", "mdpo"))
    # 2,650 tokens of the pair, and 2,390 + 130 of the chosen response under the crop.
    for name in ("training", "reference, once"):
        assert mdpo.hours[name] / dpo.hours[name] == pytest.approx(1 + 2_520 / 2_650, rel=0.01)
    kept = "activations, or keys and values"
    assert mdpo.memory[kept] / dpo.memory[kept] == pytest.approx(1 + 2_520 / 2_650, rel=0.02)


def test_the_average_has_two_rejected_responses() -> None:
    found = estimate(composed("alignment=averaged_dpo"), GPUS["h100"])
    assert found.counts["tokens of a packed row"] == 2_390 + 3 * 200


OFFLINE = ["alignment=dpo", "sampler=policy", "sampler.when=offline", "annotator=large"]
OFFLINE += ["annotator.build.path=nowhere", "annotator.build.dtype=bfloat16"]


def test_offline_drawing_and_judging_are_done_once_by_the_first_process() -> None:
    base = estimate(composed(*OFFLINE, "alignment.epochs=1"), GPUS["h200"])
    more = estimate(
        composed(*OFFLINE, "alignment.epochs=3", "trainer=ddp", "trainer.devices=4"), GPUS["h200"]
    )
    for name in ("drawing, once", "judging, once"):
        assert more.hours[name] == base.hours[name] > 0
    assert more.hours["training"] == pytest.approx(base.hours["training"] * 3 / 4)


def test_offline_drawing_holds_its_prompts_and_its_judge() -> None:
    found = estimate(composed(*OFFLINE, "sampler.build.batch_size=32"), GPUS["h200"])
    assert dict(found.memory) == {
        "base model": 2 * 7_063_431_168,
        "judge": 2 * 34_752_083_968,
        "keys and values": 32 * (2_390 + 2 * 200) * 524_288,
    }
    few = estimate(composed(*OFFLINE[:3], "annotator=oracle", "sampler.build.batch_size=1"), GPUS["h200"])
    assert "adapter, projector, optimiser" in few.memory  # less than the training
    assert "judge" not in few.memory


def test_bdhs_draws_again_what_is_too_much_alike() -> None:
    bdhs = ["alignment=dpo", "sampler=bdhs_noise"]
    one, five = (
        estimate(composed(*bdhs, f"sampler.build.iterations={n}"), GPUS["h100"]).hours["drawing, once"]
        for n in (1, 5)
    )
    assert five == pytest.approx((1 + 4 * 0.26) * one)


def test_bdhs_holds_what_is_left_of_the_image() -> None:
    """1% of 2,340 image tokens, 50 of the question, 130 of the reference and 200 of the drawn answer."""
    attn, noise = (
        Run(config, SEVEN, Numbers(), GPUS["h100"], Assumed())
        for config in (
            composed("sampler=bdhs_attn", "world.rho_th=0.99", "sampler.build.batch_size=32"),
            composed("sampler=bdhs_noise", "sampler.build.batch_size=32"),
        )
    )
    assert attn.keys_and_values() == 32 * (23 + 50 + 130 + 200) * 524_288
    assert noise.keys_and_values() == 32 * (2_390 + 130 + 200) * 524_288
    assert attn.drawing() < noise.drawing()


def test_a_distortion_reads_and_writes_nothing() -> None:
    found = estimate(composed("sampler=povid_distortion"), GPUS["h100"])
    assert found.hours["drawing, once"] < found.hours["reference, once"]
    assert "adapter, projector, optimiser" in found.memory


def test_only_models_that_run_here_are_counted_as_judges() -> None:
    oracle, api = (
        estimate(composed("alignment=online_dpo", f"annotator={name}"), GPUS["h100"])
        for name in ("oracle", "api")
    )
    assert "judging" not in oracle.hours
    assert oracle.left_out == ()
    assert api.left_out == ("annotator api",)
    assert any("not counted: annotator api" in line for line in lines("x", api, GPUS["h100"], 1))


@pytest.mark.parametrize("part", ["generative", "discriminative"])
def test_amber_is_counted_by_its_parts(part) -> None:
    amber = ["world=published", "benchmark=published/amber"]
    whole, half = (
        estimate(composed(*amber, f"benchmark.tasks.amber.part={name}"), GPUS["h100"])
        for name in ("all", part)
    )
    assert 0 < half.hours["benchmarks"] < whole.hours["benchmarks"]
    assert whole.left_out == half.left_out == ()


def test_lmms_evals_tasks_are_named_as_not_counted() -> None:
    found = estimate(
        composed("world=published", "benchmark=lmms_eval", "benchmark.tasks=[mme]"), GPUS["h100"]
    )
    assert found.left_out == ("benchmark mme",)


def test_two_gpus_halve_the_training_and_not_the_stages() -> None:
    one, two = (estimate(composed("trainer=ddp", f"trainer.devices={n}"), GPUS["h100"]) for n in (1, 2))
    assert two.hours["training"] == pytest.approx(one.hours["training"] / 2)
    assert two.hours["reference, once"] == one.hours["reference, once"]
    assert two.memory["activations, or keys and values"] < one.memory["activations, or keys and values"]


def test_what_does_not_fit_is_said() -> None:
    gpu = GPUS["rtx_4090"]
    found = estimate(composed("alignment=dpo"), gpu)
    assert found.peak > gpu.memory * GIB
    assert any("does not fit: a smaller alignment.batch_size" in line for line in lines("dpo", found, gpu, 1))


def test_one_pair_of_a_4_bit_model_fits_24_gb() -> None:
    config = composed("alignment=dpo", "alignment.batch_size=1")
    config["base_model"] |= {"four_bit": True, "checkpointing": True}
    assert estimate(config, GPUS["rtx_4090"]).peak < GPUS["rtx_4090"].memory * GIB


def test_a_model_without_a_config_is_asked_for() -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is all that an estimate needs"):
        model_of({"path": "nowhere", "name": "mine"})


def test_unknown_things_are_named() -> None:
    with pytest.raises(ValueError, match=r"estimate_gpu=v100: choose one of h200"):
        gpu_of("v100")
    with pytest.raises(ValueError, match="no text_config"):
        read_model({"model_type": "clip"})
    with pytest.raises(ValueError, match=r"give dataset\.size"):
        estimate(composed("dataset.size=null"), GPUS["h100"])


def test_every_gpu_has_its_own_figures() -> None:
    assert [gpu.name for gpu in GPUS.values()] == list(GPUS)
    assert all(20 < gpu.memory < 145 and gpu.bandwidth < 5 for gpu in GPUS.values())

"""The scenes family: tokenizer, processors, chat template, stage 1, stage 2 and the shipped folders."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm_align.models.family import calibrate, prior, recipe, rows, vision
from mllm_align.models.family.build import Size, build_llava, build_next, save, world_words
from mllm_align.models.family.parallel import Team, run
from mllm_align.models.family.tokenizer import build_tokenizer
from mllm_align.models.load import resolve
from mllm_align.scenes.draw import render
from mllm_align.scenes.tasks import sft_items
from mllm_align.scenes.world import CONTEXTS, KINDS, Scene, Sign, Thing, sample_scene

TINY = Size(32, 1, 32, 1, 64)
MAKERS = {"llava_next": build_next, "llava": build_llava}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(world_words())


@pytest.fixture(scope="module", params=MAKERS)
def built(request, tokenizer):
    torch.manual_seed(0)
    return MAKERS[request.param](TINY, tokenizer)


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# ---------------------------------------------------------------- tokenizer and chat template


@pytest.mark.parametrize(
    "text", ["", " ", "Is there a cup?\n\t  x", "naïve 猫 🙂 \u200b 12.5% <b>", "USER: a</s>b"]
)
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_every_word_of_the_world_is_one_token(tokenizer):
    for word in world_words():
        for form in (word, " " + word):
            assert len(tokenizer(form)["input_ids"]) == 1, form


def test_answers_of_the_world_have_a_token_a_word_but_for_signs(tokenizer):
    rng = np.random.default_rng(0)
    for index in range(20):
        for prompt, answer, _ in sft_items(sample_scene("sft", index), rng, judge=1):
            for text in (prompt, answer):
                words = re.findall(r"[A-Z]{2,3}\b|\w+|[^\w\s]", text)
                expected = sum(len(w) if re.fullmatch("[A-Z]{2,3}", w) else 1 for w in words)
                assert len(tokenizer(text)["input_ids"]) == expected, text


def test_special_tokens(tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("</s>", "<pad>", None)
    assert tokenizer("<image></s>")["input_ids"] == tokenizer.convert_tokens_to_ids(["<image>", "</s>"])


def test_chat_template_is_exact(built):
    turns = [{"role": "user", "content": [{"type": "text", "text": "Is there a cup?"}, {"type": "image"}]}]
    template = built.processor.apply_chat_template
    assert template(turns, add_generation_prompt=True) == "USER: <image>\nIs there a cup? ASSISTANT:"
    turns += [
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        {"role": "user", "content": "Where?"},
    ]
    assert template(turns, add_generation_prompt=True) == (
        "USER: <image>\nIs there a cup? ASSISTANT: Yes.</s>USER: Where? ASSISTANT:"
    )
    system = [{"role": "system", "content": "Be brief."}, *turns[:1]]
    assert template(system) == "Be brief. USER: <image>\nIs there a cup?"


def test_prompt_and_answer_tokens_concatenate(tokenizer):
    prompt, answer = "USER: <image>\nIs there a cup? ASSISTANT:", " Yes, there is.</s>"
    joined = tokenizer(prompt + answer)["input_ids"]
    assert joined == tokenizer(prompt)["input_ids"] + tokenizer(answer)["input_ids"]


# ---------------------------------------------------------------- processor and model


@pytest.mark.parametrize("shape", [(96, 96), (48, 64), (123, 77), (40, 200), (480, 640), (700, 150)])
def test_processor_counts_the_features(built, shape):
    inputs = built.processor(
        images=[picture(*shape)], text=["USER: <image>\nHi ASSISTANT:"], return_tensors="pt"
    )
    pixels = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_sizes")}
    with torch.no_grad():
        features = built.model.get_image_features(**pixels).pooler_output
        logits = built.model(**inputs).logits
    tokens = int((inputs["input_ids"] == built.model.config.image_token_id).sum())
    assert tokens == sum(len(f) for f in features) > 0
    assert torch.isfinite(logits).all()


def test_saved_folder_loads_by_the_auto_classes(built, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    save(built, str(tmp_path))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert (type(model), type(processor)) == (type(built.model), type(built.processor))
    text = "USER: <image>\nIs there a cup? ASSISTANT:"
    old = built.processor(images=[picture(96, 96)], text=[text], return_tensors="pt")
    new = processor(images=[picture(96, 96)], text=[text], return_tensors="pt")
    assert {k: v.tolist() for k, v in old.items()} == {k: v.tolist() for k, v in new.items()}
    with torch.no_grad():
        assert torch.equal(model(**new).logits, built.model(**old).logits)
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize(("make", "pixels"), [(build_next, vision.tiles_of), (build_llava, vision.view_of)])
def test_training_sees_what_the_processor_makes(tokenizer, make, pixels):
    images = np.stack([render(sample_scene("sft", i)) for i in range(3)])
    processor = make(TINY, tokenizer).processor
    theirs = processor.image_processor([Image.fromarray(i) for i in images], return_tensors="pt")[
        "pixel_values"
    ]
    ours = pixels(torch.from_numpy(images))
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs() * 127.5  # in grey levels: the processor rounds between its two passes
    assert difference.max() < 6
    assert difference.mean() < 0.3


# ---------------------------------------------------------------- stage 1


def test_cell_labels_by_hand():
    scene = Scene("sft", 0, "kitchen", (Thing("cup", "red", 4),), Sign("HK", 8))
    labels = vision.cell_labels(scene)
    nothing = [len(KINDS) + 1, 8, 10, 10, 10]
    assert labels[4].tolist() == [KINDS.index("cup"), 0, 10, 10, 10]
    assert labels[8].tolist() == [len(KINDS), 8, 1, 2, 10]
    assert [labels[i].tolist() for i in (0, 1, 2, 3, 5, 6, 7)] == [nothing] * 7


def test_tile_order_is_the_order_of_the_cells():
    image = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    image[0, 32:64, 64:96] = 255  # row 1, column 2
    tiles = vision.tiles_of(image)[0, 1:]
    assert [round(t.mean().item(), 4) for t in tiles] == [-1.0] * 5 + [1.0] + [-1.0] * 3


def test_view_tokens_belong_to_their_cells(tokenizer):
    """Only the tokens of the cell that changed may change, where no token sees another."""
    tower = build_llava(replace(TINY, vision_layers=0), tokenizer).model.model.vision_tower
    image = torch.full((1, 96, 96, 3), 100, dtype=torch.uint8)
    other = image.clone()
    other[0, 40:56, 72:88] = 255  # well inside row 1, column 2
    with torch.no_grad():
        change = (vision.view_tokens(tower, image) - vision.view_tokens(tower, other)).abs().sum((2, 3))[0]
    assert change.argmax() == 5
    assert (change > 1e-4).sum() == 1


# ---------------------------------------------------------------- stage 2


def test_rows_hold_each_item_once(tokenizer):
    prefix = [7, 8, 9]
    made = rows.make_rows(5, 2, rows.Mix(judge_share=1.0), tokenizer, prefix, seed=0)
    assert made.ids[:, :3].tolist() == [prefix, prefix]
    for row in range(2):
        for number in range(1, int(made.item[row].max()) + 1):
            mine = made.item[row] == number
            ids, targets = made.ids[row][mine].tolist(), made.targets[row][mine].tolist()
            answer = [t for t in targets if t >= 0]
            silent = len(targets) - len(answer)
            assert targets[:silent] == [-1] * silent
            assert (
                ids[silent + 1 :] == answer[:-1]
            )  # each answer token is predicted where the one before stands
            assert tokenizer.decode(ids[: silent + 1]).endswith(" ASSISTANT:")
            assert answer[-1] == tokenizer.eos_token_id
            assert made.positions[row][mine].tolist() == list(range(3, 3 + len(ids)))
            task = rows.TASKS[int(made.tasks[row][mine][-1])]
            expected = rows.Mix().weights.get(task, 1.0)
            assert made.weights[row][mine].sum().item() == pytest.approx(expected, rel=1e-5)
    again = rows.make_rows(5, 2, rows.Mix(judge_share=1.0), tokenizer, prefix, seed=0)
    assert torch.equal(made.ids, again.ids)


def test_block_mask_by_hand():
    mask = rows.block_mask(torch.tensor([[0, 1, 1, 2, -1]]))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]


def test_packed_row_equals_separate_conversations(built):
    """The packed forward gives the logits that the plain model gives for one conversation at a time."""
    prefix = recipe.prefix_ids(built)
    batch = rows.make_rows(0, 1, rows.Mix(), built.processor.tokenizer, prefix, seed=0)
    scene_image = Image.fromarray(batch.images[0].numpy())
    given = built.processor.image_processor([scene_image], return_tensors="pt")
    with torch.no_grad():
        packed = recipe.answer_logits(built.model, batch, given["pixel_values"])
        plain = []
        for number in range(1, int(batch.item.max()) + 1):
            mine = (batch.item[0] == 0) | (batch.item[0] == number)
            logits = built.model(input_ids=batch.ids[:, mine], **given).logits[0]
            plain.append(logits[batch.targets[0][mine] >= 0])
    assert torch.allclose(packed, torch.cat(plain), atol=2e-5)


def test_loss_is_a_mean_over_items_not_tokens():
    targets = torch.tensor([[0, 0, 0, 0, -1, 1]])
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25, 0.0, 1.0]])
    tasks = torch.tensor([[0, 0, 0, 0, -1, 1]])
    none = torch.zeros(1, dtype=torch.long)
    batch = rows.Rows(none, none, none, none, targets, weights, tasks)
    logits = torch.tensor([[0.0, 0.0]] * 4 + [[20.0, 0.0]])  # log 2 on each token of item 1, 20 on item 2
    loss, counted = recipe.loss_and_scores(logits, batch)
    assert loss.item() == pytest.approx((0.693147 + 20.0) / 2, rel=1e-5)
    assert counted["yes_no"] == [0.0, 1]


def test_learning_rate_shape():
    stages = replace(recipe.RECIPES["base"], steps=1000, finish_steps=200, finish_lr=0.5)
    shape = [recipe.learning_rate(stages, step) for step in (15, 300, 999, 1000, 1003, 1060, 1199)]
    assert shape == pytest.approx([0.5, 1.0, 0.02, 0.0, 0.25, 0.5, 0.01], abs=2e-4)


def _average(team: Team, out: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.arange(3.0) * (team.rank + 1)
    team.average([weight])
    Path(out, f"{team.rank}.json").write_text(json.dumps(weight.grad.tolist()))


@pytest.mark.slow
def test_processes_average_their_gradients(tmp_path):
    run(_average, 2, str(tmp_path))
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [0.0, 1.5, 3.0]


def test_stopped_run_goes_on_as_if_it_had_not(tmp_path):
    """Four steps at once, or two, a stop and two more: the same weights."""
    from safetensors.torch import load_file

    short = replace(recipe.quick(recipe.RECIPES["weak"]), save_every=2)
    recipe.train(Team(), short, str(tmp_path / "whole"), "cpu", "")

    class Stop(Exception):
        pass

    def stop_at_two(path, built, optimiser, step, original=recipe.save_state):
        original(path, built, optimiser, step)
        if step == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "save_state", stop_at_two)
        with pytest.raises(Stop):
            recipe.train(Team(), short, str(tmp_path / "parts"), "cpu", "")
    assert (tmp_path / "parts" / "config.json").exists()
    recipe.train(Team(), short, str(tmp_path / "parts"), "cpu", "")
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (tmp_path / "parts" / "resume.safetensors").exists()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "train_log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"vision", "tune", "finish"}


def test_recipe_refuses_what_it_does_not_know():
    with pytest.raises(SystemExit, match="huge"):
        recipe.parse(["name=huge"])
    with pytest.raises(SystemExit, match="stpes=3"):
        recipe.parse(["stpes=3"])


# ---------------------------------------------------------------- calibration


def test_prior_curve_by_hand():
    cases = np.array([(s, 0.01, 0.0) for s in range(40)] + [(s, 0.3, float(s < 10)) for s in range(40)])
    points = prior.curve(cases)
    assert points[:, 1].tolist() == [0.0, 0.25]
    assert points[:, 4].tolist() == [40, 40]
    assert points[1, 2] < 0.25 < points[1, 3]


def test_judge_pairs_hold_a_true_and_a_false_answer():
    from mllm_align.scenes.oracle import check

    pairs = calibrate.judge_pairs(10, "validation")
    assert {p["part"] for p in pairs} == {"describe", "short"}
    for pair in pairs:
        truths = [truth for _, truth in check(pair["true"], pair["scene"], pair["question"])]
        assert False not in truths
        assert False in [truth for _, truth in check(pair["false"], pair["scene"], pair["question"])]


# ---------------------------------------------------------------- what is shipped


@pytest.mark.parametrize("name", ["base", "large", "weak"])
def test_shipped_model_is_of_this_recipe(name, tokenizer):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = resolve(f"asset://scenes/{name}")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    fresh = recipe.RECIPES[name].make(recipe.RECIPES[name].size, tokenizer)
    assert model.num_parameters() == fresh.model.num_parameters()
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab(), "the world's words changed: train again"
    assert processor.chat_template == fresh.processor.chat_template
    assert len(CONTEXTS) == 6


def test_shipped_models_are_small():
    total = sum(f.stat().st_size for f in resolve("asset://scenes/base").parent.rglob("*") if f.is_file())
    assert total < 20 * 2**20

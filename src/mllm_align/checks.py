"""What is refused before anything is loaded: combinations of options that cannot run, and options that lack a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align.fingerprints import ASSET
from mllm_align.launch import PRECISIONS

Config = Mapping[str, Any]


class ImpossibleCell(ValueError):
    """A combination of options that cannot run; the message says what to choose instead."""


# What a dataset offers, each including what stands after it.
OFFERS = ("pairs", "answers", "prompts")
TIMES = ("offline", "online")
GIVEN = ("pairs", "rejected", "responses")
# The keys that an option's file must have; a method that trains nothing needs fewer.
KEYS = {
    "alignment": ("name", "makes", "module"),
    "dataset": ("name", "offers", "build"),
    "sampler": ("name", "when", "asks", "gives", "seed", "build"),
    "annotator": ("name", "build"),
    "benchmark": ("tasks", "of"),
}
TRAINED = ("takes", "asks", "when", "needs", "max_length", "batch_size")
# The words that each key may have.
WORDS = {
    "alignment.makes": ("policy", "reward_model"),
    "alignment.takes": GIVEN,
    "alignment.asks": OFFERS,
    "alignment.when": TIMES,
    "dataset.offers": OFFERS,
    "sampler.when": TIMES,
    "sampler.asks": OFFERS,
    "sampler.gives": GIVEN,
}
LISTS = ("alignment.takes", "alignment.when")


def check(config: Config) -> None:
    """Refuse what cannot work before anything is loaded. Raises ImpossibleCell."""
    seed = config["seed"]
    if type(seed) is not int or seed < 0:
        raise ImpossibleCell(
            f"seed={seed} cannot seed a random stream; choose a whole number, 0 or more (several: -m seed=0,1,2)"
        )
    check_keys(config)
    check_words(config)
    check_devices(config)
    check_benchmarks(config)
    if config["alignment"]["module"] is None:
        return
    check_sampler(config)
    check_when(config)
    check_dataset(config)
    check_annotator(config)
    check_logprobs(config)
    check_trainer(config)


def check_at_hand(config: Config) -> None:
    """Refuse a run whose base model is not there. An estimate does without it."""
    model = config["base_model"]
    path = str(model["path"])
    if config.get("estimate") or path.startswith(ASSET) or Path(path).expanduser().is_dir():
        return
    published = str(model["name"]).startswith("published/")
    advice = (
        f"get it with `mllm-align data fetch base_model={model['name']}`, or give base_model.path=..."
        if published
        else "give the folder of a downloaded model as base_model.path"
    )
    raise ImpossibleCell(f"base_model.path={path}: there is no such folder; {advice}")


def check_keys(config: Config) -> None:
    """An option of one's own may lack what the others have."""
    for axis, keys in KEYS.items():
        wanted = keys
        if axis == "alignment" and config[axis].get("module") is not None:
            wanted = (*keys, *TRAINED, *(["draw"] if "offline" in (config[axis].get("when") or ()) else []))
        if missing := [key for key in wanted if key not in config[axis]]:
            option = config[axis].get("name", "(without a name)")
            raise ImpossibleCell(
                f"{axis}={option}: its file lacks {', '.join(missing)}; see docs/methods.md, and the files that come "
                f"with {axis}"
            )


def check_words(config: Config) -> None:
    """Each of `WORDS` says one of its words, or a list of them."""
    for name, words in WORDS.items():
        axis, _, key = name.partition(".")
        if key not in config[axis]:  # of a method that trains nothing
            continue
        value = config[axis][key]
        if (name in LISTS) != (isinstance(value, Sequence) and not isinstance(value, str)):
            kind = f"a list such as [{words[0]}]" if name in LISTS else "one word"
            raise ImpossibleCell(f"{name} is {value!r}; it must be {kind}")
        if wrong := [word for word in (value if name in LISTS else [value]) if word not in words]:
            raise ImpossibleCell(f"{name} is {wrong[0]!r}; choose {', '.join(words[:-1])} or {words[-1]}")


def check_devices(config: Config) -> None:
    """A number of each: a run's processes are counted before they are started."""
    trainer = config["trainer"]
    for name in ("devices", "nodes"):
        if type(trainer[name]) is not int or trainer[name] < 1:
            raise ImpossibleCell(f"trainer.{name} is {trainer[name]!r}; it must be a number, 1 or more")
    if trainer["precision"] not in PRECISIONS:
        raise ImpossibleCell(
            f"trainer.precision is {trainer['precision']!r}; choose {' or '.join(PRECISIONS)}"
        )


def check_when(config: Config) -> None:
    method, sampler = config["alignment"], config["sampler"]
    name, when = method["name"], sampler["when"]
    if when not in method["when"]:
        raise ImpossibleCell(
            f"alignment={name} is {method['when'][0]}, but sampler={sampler['name']} is {when}; "
            f"choose sampler.when={method['when'][0]}"
        )
    if lacking := [key for key in ("needs", "module") if when not in method[key]]:
        raise ImpossibleCell(
            f"alignment={name}: its file says nothing under {lacking[0]}.{when}; add that, or take {when} out of "
            "its `when`"
        )


def check_sampler(config: Config) -> None:
    method, sampler = config["alignment"], config["sampler"]
    if sampler["gives"] in method["takes"]:
        return check_draws(config)
    suits = {
        "pairs": "sampler=dataset",
        "rejected": "sampler=bdhs_attn (or another that makes rejected responses)",
        "responses": "sampler=policy",
    }
    wanted = " or ".join(suits[gives] for gives in method["takes"])
    raise ImpossibleCell(
        f"alignment={method['name']} has no use for what sampler={sampler['name']} gives; choose {wanted}"
    )


def check_draws(config: Config) -> None:
    """One response a prompt has nothing to be compared with."""
    method, sampler = config["alignment"], config["sampler"]
    drawn, least = sampler["build"].get("k"), method.get("least", 1)
    if sampler["gives"] == "responses" and drawn is not None and drawn < least:
        raise ImpossibleCell(
            f"alignment={method['name']} compares the responses to a prompt, and sampler.build.k is {drawn}; "
            f"choose sampler.build.k={least} or more"
        )


def check_dataset(config: Config) -> None:
    dataset = config["dataset"]
    for axis in ("alignment", "sampler"):
        asks = config[axis]["asks"]
        if OFFERS.index(dataset["offers"]) > OFFERS.index(asks):
            what = {"pairs": "chosen and rejected responses", "answers": "reference answers"}[asks]
            raise ImpossibleCell(
                f"{axis}={config[axis]['name']} needs {what}, and dataset={dataset['name']} has only "
                f"{dataset['offers']}; choose a dataset with {asks}, such as dataset=scenes/povid"
            )


def check_annotator(config: Config) -> None:
    method, sampler, annotator = config["alignment"], config["sampler"], config["annotator"]
    asked = sampler["gives"] == "responses"
    if asked and annotator["build"] is None:
        raise ImpossibleCell(
            f"sampler={sampler['name']} draws responses for alignment={method['name']}, and somebody must judge "
            "them; choose annotator=oracle (scenes only), annotator=self, annotator=large or "
            "annotator=reward_model"
        )
    if not asked and annotator["build"] is not None:
        raise ImpossibleCell(
            f"annotator={annotator['name']} would not be asked: sampler={sampler['name']} gives pairs whose better "
            "side is known; choose annotator=none, or sampler=policy to have responses judged"
        )


def check_logprobs(config: Config) -> None:
    """Methods without the option (reinforcement learning, reward models) have no such key."""
    method = config["alignment"]
    if "logprobs" in method and method["logprobs"] not in ("sum", "mean"):
        raise ImpossibleCell(
            f"alignment.logprobs is {method['logprobs']!r}; choose sum (over a response's tokens) or mean"
        )


def check_trainer(config: Config) -> None:
    """Several processes share every forward pass; those that split the model cannot write on their own."""
    trainer, batch = config["trainer"], config["alignment"]["batch_size"]
    processes = trainer["devices"] * trainer["nodes"]
    if processes > batch:
        raise ImpossibleCell(
            f"trainer.devices={trainer['devices']} times trainer.nodes={trainer['nodes']} are {processes} processes, "
            f"which share the alignment.batch_size={batch} prompts of a forward pass; choose "
            f"alignment.batch_size={processes} or more, and a smaller alignment.accumulate for the same step"
        )
    if trainer["strategy"] == "deepspeed_zero3" and trainer["precision"] != "32-true":
        raise ImpossibleCell(
            f"trainer.precision={trainer['precision']} would have DeepSpeed train bfloat16 parameters, where small "
            "steps are lost; choose trainer.precision=32-true (frozen weights keep base_model.dtype)"
        )
    if processes > 1 and trainer["strategy"] != "ddp" and config["sampler"]["when"] == "online":
        raise ImpossibleCell(
            f"trainer.strategy={trainer['strategy']} splits the model over processes, which then cannot draw responses "
            "on their own inside a step; choose trainer=ddp, or sampler.when=offline where the method has that"
        )


def check_benchmarks(config: Config) -> None:
    """A reward model does not write, and a policy gives no rewards."""
    benchmark, makes = config["benchmark"], config["alignment"]["makes"]
    if benchmark["tasks"] and benchmark["of"] != makes:
        instead = {"policy": "benchmark=scenes", "reward_model": "benchmark=scenes/reward"}[makes]
        raise ImpossibleCell(
            f"alignment={config['alignment']['name']} makes a {makes.replace('_', ' ')}, and the chosen benchmark is "
            f"for a {str(benchmark['of']).replace('_', ' ')}; choose {instead}"
        )

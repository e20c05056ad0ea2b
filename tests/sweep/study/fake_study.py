"""A stand-in for the pipeline: a shared stage, then steps with checkpoints, in numpy and exact on resume."""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mllm_align.fingerprints import digest
from mllm_align.record import RunRecord, typical_seconds
from mllm_align.store import Stage, Store, load, write_json


@dataclass(frozen=True)
class FakeCell:
    label: str
    seed: int
    key: str
    stages: tuple[Stage, ...]
    outputs: str

    def finished(self, outputs):
        return RunRecord.find(outputs, self.label, self.seed, self.key) is not None

    def estimate_seconds(self):
        return typical_seconds(self.outputs, self.label, without=("numbers",))


def slow_sum(values, scale):
    return float(values.sum() * scale)


def slow_square(values, scale):
    return float((values**2).sum() * scale)


def build_numbers(config, inputs, out):
    time.sleep(config["pause"])
    count = out.parents[1] / "built.txt"
    with count.open("a") as file:
        file.write(f"{config['data']} {os.getpid()}\n")
    seed = sum(config["data"].encode())
    np.save(out / "numbers.npy", np.random.default_rng(seed).normal(size=100))


def numbers(config):
    return Stage(
        "numbers", "fake_study.build_numbers", {"data": config["data"], "pause": config["build_pause"]}
    )


def plan_cell(config):
    if config["rate"] < 0:
        raise ValueError(f"rate={config['rate']}: must not be negative")
    stage = numbers(config)
    method = config["method"]["_target_"].rpartition(".")[2]
    wanted = {name: config[name] for name in ("method", "data", "rate", "steps")}
    label = f"{method}-{config['data']}-rate{config['rate']}"
    key = digest([wanted, config["seed"], stage.key])[:16]
    return FakeCell(label, config["seed"], key, (stage,), config["outputs"])


def run_cell(config, overrides):
    cell = plan_cell(config)
    identity = {"label": cell.label, "seed": cell.seed, "key": cell.key}
    with RunRecord.open(config["outputs"], **identity, config=config, overrides=overrides) as record:
        if record.done:
            return record.headline
        with record.stage("numbers"):
            folder = Store(Path(config["outputs"]) / "store").get(cell.stages[0])
        with record.stage("train"):
            result = train(config, record, np.load(folder / "numbers.npy", allow_pickle=False))
        write_json(record.folder / "metrics.json", {"fake": {"result": result}})
        record.note(headline={"result": result})
    return record.headline


def train(config, record, values):
    """Each step draws from a generator whose state is part of the checkpoint."""
    checkpoint = record.folder / "checkpoint" / "last.json"
    rng = np.random.default_rng(config["seed"])
    state = {"step": 0, "weight": 0.0}
    if checkpoint.exists():
        state = json.loads(checkpoint.read_text())
        rng.bit_generator.state = state["rng"]
    method = load(config["method"]["_target_"])
    with record.scalars(state["step"] or None) as scalars:
        for step in range(state["step"] + 1, config["steps"] + 1):
            gradient = method(rng.choice(values, 10), config["method"]["scale"]) - state["weight"]
            weight = state["weight"] + config["rate"] * gradient
            scalars.log(step, {"weight": weight, "gradient": gradient})
            state = {"step": step, "weight": weight, "rng": rng.bit_generator.state}
            print(f"step {step} weight {weight}")
            if step == config["steps"] // 2 and config["fault_seed"] in (None, config["seed"]):
                go_wrong(config["fault"], record)
            if step % 4 == 0:
                write_json(checkpoint, state)
            time.sleep(config["pause"])
    return state["weight"]


def go_wrong(fault, record):
    faults = {
        "raise": lambda: (_ for _ in ()).throw(ArithmeticError("the sum went wrong")),
        "exit0": lambda: sys.exit(0),
        "exit1": lambda: sys.exit(1),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "once": lambda: record.data["attempt"] == 1 and sys.exit("only at the first attempt"),
        "hang": lambda: time.sleep(600),
        None: lambda: None,
    }
    faults[fault]()

"""The W&B mirror: what arrives, that offline is offline, and that it never takes the run down with it."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from offline import read_offline
from PIL import Image
from server import serving

from mllm_align.loggers.wandb import LoggerError, mirror, need_key
from mllm_align.record import RunRecord

SOURCE = Path(__file__).parents[2] / "src"
KEY = "a" * 40


class Picture:
    """An ImageRef."""

    key = "p"

    def load(self) -> Image.Image:
        return Image.fromarray(np.full((800, 1000, 3), 200, np.uint8))


SAMPLES = [
    {"image": Picture(), "prompt": "What is it?", "prediction": "A cup.", "things": [{"kind": "cup"}]},
    {"image": Picture().load(), "prompt": "Where?", "prediction": "On the left.", "score": 0.5},
]


def about(folder: Path) -> dict:
    return {
        "folder": folder,
        "id": "0123456789abcdef" * 4,
        "name": "dpo-povid seed0",
        "group": "grid-7",
        "job_type": "train",
        "tags": ["scenes/povid", "dpo", "dpo"],
        "config": {
            "alignment": {"beta": 0.1, "needs": ["reference"]},
            "logger": {"api_key": "hush"},
            "seed": 0,
        },
    }


def run_once(folder: Path, steps: range = range(1, 6), samples=SAMPLES, **options) -> None:
    with mirror(about(folder), **options) as logger:
        for step in steps:
            logger.log(step, {"loss": 1 / step, "margin": float(step)})
        logger.summarise({"pope/f1": 0.84, "recall/chair": 0.125}, samples)


def losses(history: list[dict]) -> list[tuple[int, float]]:
    return [(row["_step"], row["loss"]) for row in history if "loss" in row]


FIVE = [(step, 1 / step) for step in range(1, 6)]


@pytest.mark.slow
def test_everything_arrives_offline(tmp_path):
    run_once(tmp_path)
    run = read_offline(tmp_path)
    assert losses(run.history) == FIVE
    assert [row["margin"] for row in run.history if "margin" in row] == [1, 2, 3, 4, 5]
    assert run.run.run_id == "0123456789abcdef" * 4
    assert (run.run.run_group, run.run.job_type) == ("grid-7", "train")
    assert (run.run.project, run.run.display_name) == ("mllm-align", "dpo-povid seed0")
    assert sorted(run.run.tags) == ["dpo", "scenes/povid"]
    assert run.config["alignment"] == {"beta": 0.1, "needs": ["reference"]}
    assert run.config["logger"] == {"api_key": "[removed]"}
    assert run.summary["pope/f1"] == 0.84
    assert run.summary["recall/chair"] == 0.125
    assert run.exit_code == 0
    table = run.table("samples")
    assert table["columns"] == ["image", "prompt", "prediction", "things", "score"]
    assert table["data"][0][1:4] == ["What is it?", "A cup.", '[{"kind": "cup"}]']
    assert table["data"][1][4] == 0.5
    (image,) = (
        file for name, file in run.artifact.items() if name.startswith("media/images/")
    )  # twice the same
    assert image.is_relative_to(tmp_path)
    assert Image.open(image).size == (512, 410)


@pytest.mark.slow
def test_two_runs_of_one_process_stay_apart(tmp_path):
    before = dict(os.environ)
    for name in ("one", "two"):
        run_once(tmp_path / name, samples=())
    assert losses(read_offline(tmp_path / "one").history) == FIVE
    assert losses(read_offline(tmp_path / "two").history) == FIVE
    assert dict(os.environ) == before


SCRIPT = """
import sys
from pathlib import Path
made = []
def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1"):
        made.append(arguments[1])
sys.addaudithook(watch)
sys.path.insert(0, {tests!r})
from test_wandb import run_once
run_once(Path(sys.argv[1]))
assert not made, made
"""


def in_empty_home(code: str, tmp_path: Path, url: str, *arguments: str) -> Path:
    """Runs Python code with an empty home, in an empty folder, all of its traffic sent to `url`."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    proxies = {name: url for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy")}
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(SOURCE),
        "TMPDIR": str(here),
    }
    subprocess.run(
        [sys.executable, "-B", "-c", code, *arguments],
        env=environment | proxies,
        cwd=here,
        check=True,
        timeout=300,
    )
    assert not list(home.rglob("*"))
    return here


@pytest.mark.slow
def test_offline_connects_to_nothing_and_writes_only_into_the_run(tmp_path):
    with serving() as proxy:
        here = in_empty_home(
            SCRIPT.format(tests=str(Path(__file__).parent)), tmp_path, proxy.url, str(tmp_path / "run")
        )
    assert proxy.requests == []
    assert not [path for path in here.rglob("*") if path.is_file()]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"wandb"}
    assert losses(read_offline(tmp_path / "run").history) == FIVE


@pytest.mark.slow
def test_the_guard_of_the_test_above_does_see_a_connection(tmp_path):
    """W&B left to itself asks for something even offline; if that ever ends, this control can go."""
    code = "import wandb; run = wandb.init(mode='offline', dir='.'); run.log({'a': 1}); run.finish()"
    home = tmp_path / "home"
    home.mkdir()
    with serving() as proxy:
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "HTTPS_PROXY": proxy.url}
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=300)
    if not proxy.requests:
        pytest.skip("this version of W&B asks for nothing offline")
    assert proxy.requests[0].startswith("CONNECT")


@pytest.mark.slow
def test_everything_arrives_online(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    with serving() as server:
        run_once(tmp_path / "run", mode="online", base_url=server.url)
    assert losses(server.history()) == FIVE
    first = server.variables("UpsertBucket")[0]
    assert (first["name"], first["groupName"], first["jobType"]) == (
        "0123456789abcdef" * 4,
        "grid-7",
        "train",
    )
    assert sorted(first["tags"]) == ["dpo", "scenes/povid"]
    assert '"beta":0.1' in first["config"]
    assert "hush" not in str(server.operations)
    assert b'"pope/f1":0.84' in server.files["wandb-summary.json"]
    assert b"On the left." in server.files["artifact/samples.table.json"]
    assert (
        len([name for name in server.files if name.startswith("artifact/media/images/")]) == 1
    )  # twice the same


@pytest.mark.slow
def test_an_offline_run_can_be_uploaded_later(tmp_path):
    run_once(tmp_path / "run")
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    with serving() as server:
        environment = os.environ | {
            "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "HOME": str(tmp_path), "WANDB_ERROR_REPORTING": "false",
        }  # fmt: skip
        command = [str(Path(sys.executable).parent / "wandb"), "sync", str(offline)]
        subprocess.run(command, env=environment, check=True, timeout=120, cwd=tmp_path)
    assert losses(server.history()) == FIVE
    assert b"On the left." in server.files["artifact/samples.table.json"]


# --- interrupted runs ------------------------------------------------------------------------------------------


def interrupted(folder: Path) -> RunRecord:
    """A run's folder whose record has steps 1 to 3 of an attempt that was killed, and W&B's half of them."""
    run_once(folder, range(1, 3), samples=())
    record = RunRecord(folder, {})
    with record.scalars() as scalars:
        for step in range(1, 4):
            scalars.log(step, {"loss": 1 / step})
    return record


@pytest.mark.slow
def test_a_continued_run_shows_its_whole_history_once(tmp_path):
    interrupted(tmp_path)
    run_once(tmp_path, range(4, 6), samples=())
    assert losses(read_offline(tmp_path).history) == FIVE


@pytest.mark.slow
def test_a_finished_run_that_gets_another_benchmark_keeps_its_history(tmp_path):
    interrupted(tmp_path)
    run_once(tmp_path, range(0), samples=())
    run = read_offline(tmp_path)
    assert losses(run.history) == FIVE[:3]
    assert run.summary["pope/f1"] == 0.84


# --- failures --------------------------------------------------------------------------------------------------


def test_a_missing_key_is_told_before_anything_runs(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(
        LoggerError, match=r"needs a key for api\.wandb\.ai.*wandb login.*logger\.mode=offline"
    ):
        mirror(about(tmp_path / "run"), mode="online").__enter__()
    assert not (tmp_path / "run").exists()
    (tmp_path / "netrc").write_text(f"machine my.server login user password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    need_key("https://my.server:8080")
    with pytest.raises(LoggerError, match="needs a key for other"):
        need_key("https://other")


def test_an_unknown_mode_is_told(tmp_path):
    with pytest.raises(LoggerError, match=r"logger\.mode=on is not known. Use online, offline or disabled"):
        mirror(about(tmp_path), mode="on").__enter__()


def test_disabled_writes_nothing(tmp_path):
    run_once(tmp_path, mode="disabled")
    assert not list(tmp_path.iterdir())


def test_a_wandb_that_does_not_start_is_only_told(tmp_path, monkeypatch, caplog):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("no service")))
    run_once(tmp_path)
    assert "did not start: no service" in caplog.text


class Broken:
    """A W&B run whose every call fails."""

    step = 0

    def log(self, *_: object, **__: object) -> None:
        raise OSError("connection lost")

    finish = property(lambda self: self.log)
    summary = property(lambda self: self.log())


def test_a_wandb_that_breaks_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    with caplog.at_level(logging.WARNING):
        run_once(tmp_path, range(1, 50))
    assert caplog.text.count("a step could not be logged (connection lost)") == 1
    assert "the summary could not be logged" in caplog.text


@pytest.mark.slow
def test_an_error_of_the_run_passes_through_and_ends_the_copy_as_failed(tmp_path):
    def broken() -> None:
        with mirror(about(tmp_path)) as logger:
            logger.log(1, {"loss": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert read_offline(tmp_path).exit_code == 1


@pytest.mark.slow
def test_a_server_that_is_not_there_costs_little_and_the_copy_is_kept_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("mllm_align.loggers.wandb.PATIENCE", 4)
    begun = time.monotonic()
    run_once(tmp_path, mode="online", base_url="http://127.0.0.1:9", samples=())
    assert time.monotonic() - begun < 40
    assert "W&B (online) did not start" in caplog.text
    assert losses(read_offline(tmp_path).history) == FIVE


@pytest.mark.slow
def test_a_server_that_goes_away_costs_little(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("mllm_align.loggers.wandb.PATIENCE", 4)
    with serving() as server:
        logger = mirror(about(tmp_path), mode="online", base_url=server.url)
        run = logger.__enter__()
    begun = time.monotonic()
    for step in range(100):
        run.log(step, {"loss": 1.0})
    assert time.monotonic() - begun < 2
    run.summarise({"f1": 1.0}, SAMPLES)
    logger.__exit__(None, None, None)
    assert time.monotonic() - begun < 60

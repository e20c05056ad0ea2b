"""`logger=wandb`: mirrors a run's record to Weights & Biases, offline unless told otherwise.

The record is the truth and this its copy: nothing here raises after the run has begun, and what an
interrupted attempt had logged is read back from the record, so that one W&B run shows the whole history.

Offline means no connection at all and nothing written outside the run's folder. W&B reads some of what that
takes from the environment only, so it is set around the run and put back afterwards.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from mllm_align.loggers.silent import Logger, Silent
from mllm_align.record import read_scalars
from mllm_align.redact import redact

log = logging.getLogger(__name__)

HOST = "https://api.wandb.ai"
SAMPLES = 16
PIXELS = 512  # the longest side of a sample's image
# Seconds that a server which does not answer may cost a run at its start, and twice that at its end.
PATIENCE = 30


class LoggerError(ValueError):
    """The logger's configuration cannot work; the message says what to do."""


@contextmanager
def mirror(
    about: Mapping[str, Any],
    *,
    mode: str = "offline",
    project: str = "mllm-align",
    entity: str | None = None,
    base_url: str | None = None,
) -> Iterator[Logger]:
    """The W&B run of one run folder.

    `about`: folder, id (a hash of the config), name, group (the sweep), job_type (the stage), tags (the axes),
    config. Raises LoggerError before the run begins, for an unknown mode or a missing key.
    """
    if mode not in ("online", "offline", "disabled"):
        raise LoggerError(f"logger.mode={mode} is not known. Use online, offline or disabled.")
    if mode == "disabled":
        yield Silent()
        return
    if mode == "online":
        need_key(base_url or os.environ.get("WANDB_BASE_URL") or HOST)
    folder = Path(about["folder"]).resolve()
    with _environment(folder, mode):
        run = _Mirror(folder, _start(about, folder, mode, project, entity, base_url))
        try:
            yield run
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish(exit_code=0)


def need_key(base_url: str) -> None:
    """Raises LoggerError where no key for the server is to be found."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return
    host = urlparse(base_url).hostname or base_url
    try:
        if netrc(os.environ.get("NETRC")).authenticators(host):
            return
    except (OSError, NetrcParseError):
        pass
    raise LoggerError(
        f"logger.mode=online needs a key for {host}. Run `wandb login`, or set WANDB_API_KEY, "
        "or choose logger.mode=offline (and `wandb sync` later)."
    )


class _Mirror:
    """A Logger around a W&B run; None where it could not start. Every call is tried, a failure only told."""

    def __init__(self, folder: Path, run: Any) -> None:
        self._folder, self._run = folder, run
        self._replayed = False
        self._failed: set[str] = set()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._replay(step)
        self._try("a step", lambda: self._run.log(dict(figures), step=step))

    def summarise(self, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        self._replay(None)
        if samples:
            self._try("the samples", lambda: self._run.log({"samples": table(samples[:SAMPLES])}))
        self._try("the summary", lambda: self._run.summary.update(dict(metrics)))

    def finish(self, exit_code: int) -> None:
        import wandb

        self._try("the end", lambda: self._run.finish(exit_code=exit_code))
        # W&B's helper process keeps the folders that it was started with: the next run needs its own
        self._try("the shutdown", wandb.teardown)

    def _replay(self, before: int | None) -> None:
        """What earlier attempts at this run logged: W&B loses the last seconds of a killed process."""
        if not self._replayed:
            self._replayed = True
            self._try("earlier steps", lambda: self._send_earlier(before))

    def _send_earlier(self, before: int | None) -> None:
        steps: dict[int, dict[str, float]] = {}
        for name, points in read_scalars(self._folder).items():
            for step, value in points:
                if self._run.step <= step and (before is None or step < before):
                    steps.setdefault(step, {})[name] = value
        for step, figures in sorted(steps.items()):
            self._run.log(figures, step=step)

    def _try(self, what: str, action: Callable[[], Any]) -> None:
        if self._run is None:
            return
        try:
            action()
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                log.warning("W&B: %s could not be logged (%s); the run's own record has it", what, error)


def table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A wandb.Table with the columns of all rows; images are shrunk, nested values become JSON."""
    import wandb

    columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
    return wandb.Table(
        columns=columns, data=[[_cell(row.get(str(name))) for name in columns] for row in rows]
    )


def _cell(value: Any) -> Any:
    import wandb
    from PIL.Image import Image

    if hasattr(value, "load"):
        picture = value if isinstance(value, Image) else value.load()
        picture = picture.convert("RGB")
        picture.thumbnail((PIXELS, PIXELS))
        return wandb.Image(picture)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _start(
    about: Mapping[str, Any], folder: Path, mode: str, project: str, entity: str | None, base_url: str | None
) -> Any:
    """The W&B run; offline where the server does not answer; None where W&B does not start at all."""
    import wandb

    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return _init(about, folder, attempt, project, entity, base_url)
        except Exception as error:
            log.warning("W&B (%s) did not start: %s; the run goes on with its own record", attempt, error)
            wandb.teardown()  # or the failed attempt would still hold the run's id
    return None


def _init(
    about: Mapping[str, Any], folder: Path, mode: str, project: str, entity: str | None, base_url: str | None
) -> Any:
    import wandb

    if mode == "offline":
        _remove_earlier(folder)
    return wandb.init(
        project=project,
        entity=entity,
        id=str(about["id"])[:64],
        name=about.get("name"),
        group=about.get("group"),
        job_type=about.get("job_type", "train"),
        tags=[str(tag)[:64] for tag in dict.fromkeys(about.get("tags") or ())],
        config=redact(about.get("config") or {}),
        dir=str(folder),
        mode="online" if mode == "online" else "offline",
        resume="allow" if mode == "online" else None,
        settings=_settings(mode, base_url),
    )


def _settings(mode: str, base_url: str | None) -> Any:
    """Quiet, and without what the record has already: console, packages, commit, code, machine.

    System metrics stay off: their sampler asks a cloud's metadata address.
    """
    import wandb

    wanted = {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "disable_job_creation": True,
        "symlink": False,
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        "x_disable_viewer": mode == "offline",
        "init_timeout": PATIENCE,
        "finish_timeout": 2 * PATIENCE if mode == "online" else 0,
        "base_url": base_url,
    }
    known = wandb.Settings.model_fields  # older versions lack some of them
    given = {key: value for key, value in wanted.items() if key in known and value is not None}
    return wandb.Settings.model_validate(given)


def _remove_earlier(folder: Path) -> None:
    """The offline copies that earlier attempts at this run left: the new one has all that they have."""
    for earlier in (folder / "wandb").glob("offline-run-*"):
        shutil.rmtree(earlier, ignore_errors=True)


@contextmanager
def _environment(folder: Path, mode: str) -> Iterator[None]:
    own = folder / "wandb"
    wanted = {
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DIR": str(folder),
        "WANDB_DATA_DIR": str(own / "data"),
        "WANDB_CACHE_DIR": str(own / "cache"),
        "WANDB_ARTIFACT_DIR": str(own / "artifacts"),
    }
    if mode == "offline":  # online, the person's own settings (server, entity) count
        wanted["WANDB_CONFIG_DIR"] = str(own / "config")
    own.mkdir(parents=True, exist_ok=True)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

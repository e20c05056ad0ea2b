"""Blanking of secrets in what is written to disk: config values and overrides whose name gives them away."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

BLANK = "[removed]"
SECRET_WORDS = {
    "key",
    "keys",
    "apikey",
    "token",
    "password",
    "passwd",
    "secret",
    "secrets",
    "credential",
    "credentials",
}
HARMLESS = {"eos_token", "bos_token", "pad_token", "unk_token", "image_token"}


def is_secret(name: str) -> bool:
    """Whether a config key's last part says key, token, password or secret.

    `*_env` does not count: it names a variable, not its value.
    """
    last = re.split(r"[./@]", name.lstrip("+~"))[-1].lower()
    words = re.split(r"[_\-]", last)
    return bool(SECRET_WORDS & set(words)) and last not in HARMLESS and words[-1] != "env"


def redact(config: Any) -> Any:
    """`config` as plain data, secrets blanked."""
    if isinstance(config, Mapping):
        return {
            name: BLANK if is_secret(name) and isinstance(value, str) and value else redact(value)
            for name, value in config.items()
        }
    if isinstance(config, list | tuple):
        return [redact(value) for value in config]
    return _without_login(config) if isinstance(config, str) else config


def redact_overrides(overrides: Sequence[str]) -> list[str]:
    """`name=value` overrides, secrets blanked."""
    parts = [override.partition("=") for override in overrides]
    return [
        name + equals + (BLANK if value and is_secret(name) else _without_login(value))
        for name, equals, value in parts
    ]


def _without_login(text: str) -> str:
    return re.sub(r"(\w+://)[^/@\s]+@", rf"\1{BLANK}@", text)

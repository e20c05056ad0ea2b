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
# As shells and the systems that start jobs write the names of variables; a key has small letters or dashes.
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


def is_secret(name: str, value: object = None) -> bool:
    """Whether a config key's last part says key, token, password or secret.

    `*_env` does not count, as it names a variable: unless `value` is text that no variable is called, which
    is then the secret itself, put in the wrong place.
    """
    last = re.split(r"[./@]", name.lstrip("+~"))[-1].lower()
    words = re.split(r"[_\-]", last)
    if not SECRET_WORDS & set(words) or last in HARMLESS:
        return False
    return words[-1] != "env" or (isinstance(value, str) and not is_variable(value))


def is_variable(text: str) -> bool:
    """Whether an environment variable may be called so (or null in an override)."""
    return text in ("", "null") or VARIABLE.fullmatch(text) is not None


def redact(config: Any) -> Any:
    """`config` as plain data, secrets blanked."""
    if isinstance(config, Mapping):
        return {
            name: BLANK if is_secret(name, value) and isinstance(value, str) and value else redact(value)
            for name, value in config.items()
        }
    if isinstance(config, list | tuple):
        return [redact(value) for value in config]
    return _without_login(config) if isinstance(config, str) else config


def redact_overrides(overrides: Sequence[str]) -> list[str]:
    """`name=value` overrides, secrets blanked."""
    parts = [override.partition("=") for override in overrides]
    return [
        name + equals + (BLANK if value and is_secret(name, value) else _without_login(value))
        for name, equals, value in parts
    ]


def _without_login(text: str) -> str:
    return re.sub(r"(\w+://)[^/@\s]+@", rf"\1{BLANK}@", text)

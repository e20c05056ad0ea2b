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
    "authorization",
}
HARMLESS = {"eos_token", "bos_token", "pad_token", "unk_token", "image_token"}
# As shells and the systems that start jobs write the names of variables; a key has small letters or dashes.
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
# `name: value` in a mapping that is written in one line; a value in brackets or quotes is taken as a whole.
ENTRY = re.compile(
    r"(?P<name>[\w.\-]+)(?P<colon>[\"']?\s*:\s*)"
    r"(?P<value>\[[^\]]*\]|\{[^}]*\}|\"[^\"]*\"|'[^']*'|[^,}\]]*)"
)
HEADER = re.compile(r"((?i:authorization)['\"]?\s*[:=]\s*['\"]?(?:\w+ )?|\bBearer )[^\s'\",}]+")
# `?name=value` or `&name=value` of an address.
QUERY = re.compile(r"(?P<name>[?&][\w.\-]+)=(?P<value>[^&#\s\"',}]+)")


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
    """`config` as plain data, secrets blanked: every text under a secret's name, and what a text shows of logins."""
    if isinstance(config, Mapping):
        return {
            name: _blanked(value) if is_secret(name, value) else redact(value)
            for name, value in config.items()
        }
    if isinstance(config, list | tuple):
        return [redact(value) for value in config]
    return _without_login(config) if isinstance(config, str) else config


def _blanked(value: Any) -> Any:
    """Every text in `value` blanked; numbers and nulls tell nothing."""
    if isinstance(value, Mapping):
        return {name: _blanked(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_blanked(item) for item in value]
    return BLANK if isinstance(value, str) and value else value


def redact_overrides(overrides: Sequence[str]) -> list[str]:
    """`name=value` overrides, secrets blanked, also those inside a value that is a mapping or a list."""
    parts = [override.partition("=") for override in overrides]
    return [
        name + equals + (BLANK if value and is_secret(name, value) else _redact_value(value))
        for name, equals, value in parts
    ]


def _redact_value(text: str) -> str:
    return _without_login(_without_entries(text) if text.lstrip().startswith(("{", "[")) else text)


def _without_entries(text: str) -> str:
    """Text with `name: value` entries, as in `{api_key: sk-1}`, less the values whose name is a secret's."""

    def blanked(entry: re.Match[str]) -> str:
        name, colon, value = entry["name"], entry["colon"], entry["value"]
        return name + colon + (BLANK if is_secret(name, value.strip("\"' ")) else _without_entries(value))

    return ENTRY.sub(blanked, text)


def _without_login(text: str) -> str:
    """Text less `user:password@`, the secrets of a query (`?api_key=...`) and of an Authorization header."""
    text = re.sub(r"(\w+://)[^/@\s]+@", rf"\1{BLANK}@", text)
    text = HEADER.sub(rf"\1{BLANK}", text)
    return QUERY.sub(
        lambda part: part["name"] + "=" + (BLANK if is_secret(part["name"][1:]) else part["value"]), text
    )

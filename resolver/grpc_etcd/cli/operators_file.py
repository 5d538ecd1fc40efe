"""Read what the operator's settings file says of one registry, by the names that the settings have here."""

from typing import Any

import yaml

# What the file says of a registry, and how it is called here.
OPERATORS_KEYS = {
    "endpoints": "endpoints",
    "ca": "ca",
    "cert": "cert",
    "key": "key",
    "serverName": "server_name",
    "user": "user",
    "passwordFile": "password_file",
}


def parse_operators_file(text: str, name: str, where: str) -> dict[str, Any]:
    """Read one registry; `where` names the file in the ValueError that says what is wrong with it."""
    document = yaml.safe_load(text)
    registries = document.get("registries") if isinstance(document, dict) else None
    if not isinstance(registries, dict) or not isinstance(registries.get(name), dict):
        raise ValueError(f"{where} has no registry {name!r}: it is not in the mapping `registries`")  # noqa: TRY004
    named = {OPERATORS_KEYS[key]: value for key, value in registries[name].items() if key in OPERATORS_KEYS}
    found = named | {"prefix": document.get("prefix")}
    return {key: _text(value) for key, value in found.items() if value}


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)

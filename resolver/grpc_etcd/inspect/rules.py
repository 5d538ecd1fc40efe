"""The rules of the CRD that are written in CEL, each by the message with which the API server refuses. Pure.

A test compares these with the CRD, and another one asks the API server about manifests that keep or break each.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_PORT = 65_535
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def is_requirement(value: Mapping[str, Any]) -> bool:
    """Return whether an operator has values exactly if it needs some."""
    return (value.get("operator") in {"In", "NotIn"}) == bool(value.get("values"))


def is_port(value: Any) -> bool:
    """Return whether a value is a port's number, or can be a container port's name."""
    return 0 < value <= MAX_PORT if isinstance(value, int) else bool(PORT_NAME.fullmatch(str(value)))


def is_hashing(value: Mapping[str, Any]) -> bool:
    """Return whether a header to hash stands where something is hashed."""
    return "hashHeader" not in value or value.get("type") == "RingHash"


def is_routable(value: Mapping[str, Any]) -> bool:
    """Return whether routes are written in a layout that has some."""
    return not value.get("routes") or "jupiter" in value.get("layouts", ["jupiter"])


def is_selecting_once(value: Mapping[str, Any]) -> bool:
    """Return whether Pods are selected in one way: by a selector, or by that of a Service."""
    return ("selector" in value) != ("serviceRef" in value)


def _has_short_keys(longest: int) -> Callable[[Mapping[str, Any]], bool]:
    return lambda value: all(len(key) <= longest for key in value)


# Of maps: the longest keys, in characters. A label's, a group's, and those of a host with its port.
LONGEST_KEYS = {"matchLabels": 317, "metadata": 317, "matchMetadata": 317, "groups": 253, "addresses": 259}

RULES: Mapping[str, Callable[[Any], bool]] = {
    "In and NotIn need values; Exists and DoesNotExist take none": is_requirement,
    "an empty selector would register every Pod of the namespace; name at least one label": lambda value: bool(
        value.get("matchLabels") or value.get("matchExpressions")
    ),
    "a port is a number from 1 to 65535 or a container port's name": is_port,
    "only RingHash hashes; set type to RingHash or remove hashHeader": is_hashing,
    "a route needs groups or addresses to choose from": lambda value: bool(
        value.get("groups") or value.get("addresses")
    ),
    "give exactly one of selector and serviceRef": is_selecting_once,
    "routes are written as Jupiter configurators; add jupiter to layouts or remove routes": is_routable,
    **{
        f"a key of {field} has at most {longest} characters": _has_short_keys(longest)
        for field, longest in LONGEST_KEYS.items()
    },
}

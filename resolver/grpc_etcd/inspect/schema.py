"""Check an object of JSON against the part of OpenAPI v3 that schemas of CRDs consist of. Pure.

What a CRD has rules in CEL for is decided by functions, which are looked up by the rules' messages.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from grpc_etcd.inspect.rules import RULES

TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (Mapping,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "number": (int, float),
}


DURATION = r"^([0-9]+h)?([0-9]+m)?([0-9]+(\.[0-9]+)?s)?([0-9]+(\.[0-9]+)?ms)?$"
MOST_SECONDS = 100_000  # arbitrary: as seconds, more is hardly meant
DNS_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
LABEL_VALUE = "([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
DASHED = "lower-case letters, digits and hyphens, with a letter or digit first and last"
SPOTTED = "letters, digits, hyphens, underscores and dots, with a letter or digit first and last"
# Each pattern of the schema, and of metadata, as people read it; a test finds one that is missing.
PATTERNS: Mapping[str, str] = {
    f"^{DNS_LABEL}$": DASHED,
    "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$": DASHED,
    rf"^{DNS_LABEL}(\.{DNS_LABEL})*$": "lower-case letters, digits, hyphens and dots, a letter or digit at each end",
    f"^{LABEL_VALUE}$": SPOTTED,
    DURATION: "a duration with its unit, as 500ms, 30s or 1m30s",
    r"^[^/\s\x00-\x1f\x7f]+$": "anything without a slash, whitespace or control characters",
    r"^[^\s\x00-\x1f\x7f]+$": "anything without whitespace or control characters",
    "^[a-z][a-z0-9+.-]*$": "lower-case letters, digits, plus signs, dots and hyphens, with a letter first",
    "^[a-z0-9_.-]+$": "lower-case letters, digits, underscores, dots and hyphens",
    r"^/[^/\s]+/[^/\s]+$": "a gRPC method, as /package.Service/Method",
    "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$": SPOTTED,
    "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$": "letters, digits, underscores, commas and colons, with a letter first",
}


class Mistake(NamedTuple):
    """What is wrong at a path. `is_unknown`: there is no such field; `near` may be meant where `wrong` is written."""

    path: str
    problem: str
    is_unknown: bool = False
    near: str = ""
    wrong: str = ""


def find_mistakes(schema: Mapping[str, Any], value: Any, path: str = "") -> Iterator[Mistake]:
    """Report what a schema does not allow."""
    kinds = ("integer", "string") if schema.get("x-kubernetes-int-or-string") else (schema.get("type") or "",)
    if kinds != ("",) and not any(_is_a(value, kind) for kind in kinds):
        near = _write_duration(value) if schema.get("pattern") == DURATION else ""
        yield Mistake(path, f"{value!r} is not of type {' or '.join(kinds)}", near=near, wrong=str(value))
        return
    found = [mistake for check in (_fields, _items, _bounds) for mistake in check(schema, value, path)]
    yield from found or _rules(schema, value, path)  # rules count on what they look at


def _write_duration(value: Any) -> str:
    """Write a number as the seconds that are most likely meant."""
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_SECONDS
    return f'"{value}s"' if is_number else ""


def _is_a(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and isinstance(value, bool) == (kind == "boolean")


def _fields(schema: Mapping[str, Any], value: Any, path: str) -> Iterator[Mistake]:
    if not isinstance(value, Mapping):
        return
    known, others = schema.get("properties") or {}, schema.get("additionalProperties")
    for name in schema.get("required") or ():
        if name not in value:
            yield Mistake(_join(path, name), "it is required and missing")
    for name, inner in value.items():
        where = _join(path, str(name))
        if name in known or others:
            yield from find_mistakes(known.get(name) or others or {}, inner, where)
        elif known:
            near = difflib.get_close_matches(str(name), known, 1, cutoff=0.5)
            yield Mistake(
                where, "there is no such field", is_unknown=True, near=near[0] if near else "", wrong=str(name)
            )


def _items(schema: Mapping[str, Any], value: Any, path: str) -> Iterator[Mistake]:
    if not isinstance(value, list):
        return
    for number, item in enumerate(value):
        yield from find_mistakes(schema.get("items") or {}, item, f"{path}[{number}]")
    if schema.get("x-kubernetes-list-type") == "set" and len({repr(each) for each in value}) < len(value):
        yield Mistake(path, "an entry is duplicated")
    keys = schema.get("x-kubernetes-list-map-keys") or ()
    named = [tuple(each.get(key) for key in keys) for each in value if isinstance(each, Mapping)]
    if keys and len({repr(each) for each in named}) < len(named):
        yield Mistake(path, f"two entries have the same {', '.join(keys)}")


# Limits, how they are called in a schema, and what of a value they are compared with.
LIMITS: Sequence[tuple[str, Callable[[Any], Any], Callable[[Any, Any], bool], str]] = (
    ("minimum", lambda value: value, lambda value, limit: value >= limit, "{value} is less than {limit}"),
    ("maximum", lambda value: value, lambda value, limit: value <= limit, "{value} is more than {limit}"),
    ("minLength", len, lambda value, limit: value >= limit, "it is shorter than {limit} characters"),
    ("maxLength", len, lambda value, limit: value <= limit, "it is longer than {limit} characters"),
    ("minItems", len, lambda value, limit: value >= limit, "it has fewer than {limit} entries"),
    ("maxItems", len, lambda value, limit: value <= limit, "it has more than {limit} entries"),
    ("maxProperties", len, lambda value, limit: value <= limit, "it has more than {limit} entries"),
)


def _bounds(schema: Mapping[str, Any], value: Any, path: str) -> Iterator[Mistake]:
    if "enum" in schema and value not in schema["enum"]:
        near = difflib.get_close_matches(str(value), schema["enum"], 1)
        problem = f"{value!r} is not one of {', '.join(schema['enum'])}"
        yield Mistake(path, problem, near=near[0] if near else "", wrong=str(value))
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield Mistake(path, f"{value!r} does not match what is allowed: {PATTERNS[schema['pattern']]}")
    for name, measure, holds, words in LIMITS:
        is_measured = name in schema and (measure is not len or hasattr(value, "__len__"))
        if is_measured and not holds(measure(value), schema[name]):
            yield Mistake(path, words.format(value=value, limit=schema[name]))


def _rules(schema: Mapping[str, Any], value: Any, path: str) -> Iterator[Mistake]:
    for rule in schema.get("x-kubernetes-validations") or ():
        holds = RULES.get(rule["message"])
        if holds and not holds(value):
            shown = f"{value!r}: " if isinstance(value, str | int) else ""
            yield Mistake(path, f"{shown}{rule['message']}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

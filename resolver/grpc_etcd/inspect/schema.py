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


class Mistake(NamedTuple):
    """What is wrong at a path. `is_unknown` says that there is no such field; `near` is one that may be meant."""

    path: str
    problem: str
    is_unknown: bool = False
    near: str = ""


def find_mistakes(schema: Mapping[str, Any], value: Any, path: str = "") -> Iterator[Mistake]:
    """Report what a schema does not allow."""
    kinds = ("integer", "string") if schema.get("x-kubernetes-int-or-string") else (schema.get("type") or "",)
    if kinds != ("",) and not any(_is_a(value, kind) for kind in kinds):
        yield Mistake(path, f"{value!r} is not of type {' or '.join(kinds)}")
        return
    found = [mistake for check in (_fields, _items, _bounds) for mistake in check(schema, value, path)]
    yield from found or _rules(schema, value, path)  # rules count on what they look at


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
            yield Mistake(where, "there is no such field", is_unknown=True, near=near[0] if near else "")


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
        yield Mistake(path, f"{value!r} is not one of {', '.join(schema['enum'])}", near=near[0] if near else "")
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield Mistake(path, f"{value!r} does not match {schema['pattern']}")
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

"""JSON as Go's encoding/json writes and reads it.

The registries' Go programs compare bytes and drop what does not fit their structs, so both directions must be theirs:
struct order, sorted map keys, `<`, `>`, `&` and the two line separators escaped, floats in Go's form; keys matched
without regard to case, null as zero value, wrong types refused. Checked against Go 1.26 (encoding/json, `encode.go`,
`decode.go`, `fold.go`). Layouts compose their text from the pieces here and end with `to_bytes`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, Never

UINT8_MAX = 255
INT64_MAX = 2**63 - 1
_EXACT = 2.0**53  # below this every whole float64 is that integer and no other


class GoJsonError(ValueError):
    """A value that a Go reader's json.Unmarshal would refuse; the text says why."""


# -- writing ---------------------------------------------------------------------------------------------------------

quoted: Callable[[str], str] = json.encoder.encode_basestring
"""Write one string; `to_bytes` escapes the rest, for these characters occur only inside strings."""

_ESCAPES = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def quoted_map(texts: Mapping[str, str] | None) -> str:
    """Write a `map[string]string`: keys sorted by code point, None as null."""
    if texts is None:
        return "null"
    return "{" + ",".join([f"{quoted(key)}:{quoted(texts[key])}" for key in sorted(texts)]) + "}"


def boolean(value: bool) -> str:  # noqa: FBT001  # the value to write is the only argument
    """Write a bool."""
    return "true" if value else "false"


def number(value: float) -> str:
    """Write a finite float64: the shortest digits that read back, an exponent only below 1e-6 and from 1e21 on."""
    magnitude = abs(value)
    if magnitude < _EXACT and value == int(value):
        return str(int(value))
    if not 1e-6 <= magnitude < 1e21:  # noqa: PLR2004  # Go's floatEncoder switches the form at these two
        return _without_leading_zero(repr(float(value)))
    return _without_exponent(repr(float(value)))


def _without_leading_zero(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{exponent[0]}{exponent[1:].lstrip('0')}"


def _without_exponent(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        return text.removesuffix(".0")
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    shift = int(exponent)
    if shift < 0:
        return f"{sign}0.{'0' * (-shift - 1)}{whole}{fraction}"
    return f"{sign}{whole}{fraction.ljust(shift, '0')}"


def to_bytes(text: str) -> bytes:
    """Finish composed JSON text: Go's escapes, then UTF-8; what is not Unicode becomes an escaped U+FFFD, as in Go."""
    for character, escape in _ESCAPES.items():  # a call per character took a second for a megabyte of them
        text = text.replace(character, escape)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub(r"\\ufffd", text).encode()


# -- reading ---------------------------------------------------------------------------------------------------------


def _refuse_constant(name: str) -> Never:
    raise GoJsonError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse(value: bytes) -> Any:
    """Read JSON; a byte that is not UTF-8 and half a surrogate pair become U+FFFD, as in Go."""
    try:
        return _parse_text(value.decode())
    except UnicodeDecodeError:
        return _parse_text(_SURROGATE.sub("\ufffd", value.decode(errors="surrogateescape")))


def _parse_text(text: str) -> Any:
    try:
        parsed = _decode(text)
        return _mended(parsed) if "\\ud" in text or "\\uD" in text else parsed
    except RecursionError:
        raise GoJsonError("it is nested too deeply") from None
    except GoJsonError:
        raise
    except ValueError as error:
        raise GoJsonError(f"it is not JSON: {error}") from error


def _mended(parsed: Any) -> Any:
    match parsed:
        case str():
            return _SURROGATE.sub("\ufffd", parsed)
        case list():
            return [_mended(item) for item in parsed]
        case dict():
            return {_mended(key): _mended(item) for key, item in parsed.items()}
        case _:
            return parsed


class Fields(NamedTuple):
    """The field names of a struct, and the same by their folded form."""

    names: AbstractSet[str]
    by_folded: Mapping[str, str]


def fold_names(*names: str) -> Fields:
    """Make the table of a struct's field names."""
    return Fields(frozenset(names), {_folded(name): name for name in names})


def parse_struct(value: bytes, fields: Fields) -> dict[str, Any]:
    """Read an object whose field names are `fields`; null is the empty struct, as in Go."""
    return as_struct(parse(value), fields)


def as_struct(parsed: Any, fields: Fields) -> dict[str, Any]:
    """Return the known fields of a parsed object under their right names; others may be there and mean nothing."""
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise GoJsonError(f"it is {_kind(parsed)}, not an object")
    if parsed.keys() <= fields.names:
        return parsed
    known: dict[str, Any] = {}
    for name, item in parsed.items():
        field = fields.by_folded.get(_folded(name))
        if field is not None and (item is not None or field not in known):
            known[field] = item
    return known


def _folded(name: str) -> str:
    # Unicode's simple folding knows two letters beyond ASCII that fold onto ASCII ones: K (Kelvin) and long s.
    return name.lower().replace("\u017f", "s")


def text(struct: Mapping[str, Any], field: str) -> str:
    """Read a string field; missing and null are empty."""
    item = struct.get(field)
    if item is None:
        return ""
    if not isinstance(item, str):
        raise _mismatch(field, item, "a string")
    return item


def flag(struct: Mapping[str, Any], field: str) -> bool:
    """Read a bool field; missing and null are false."""
    item = struct.get(field)
    if item is None:
        return False
    if not isinstance(item, bool):
        raise _mismatch(field, item, "true or false")
    return item


def real(struct: Mapping[str, Any], field: str) -> float:
    """Read a float64 field, an int where it is one; missing and null are 0."""
    item = struct.get(field)
    if item is None:
        return 0
    if type(item) is int and -_EXACT < item < _EXACT:
        return item
    if type(item) not in {int, float}:
        raise _mismatch(field, item, "a number")
    try:
        finite = math.isfinite(item)
    except OverflowError:
        finite = False
    if not finite:
        raise GoJsonError(f"{field} is beyond a float64")
    return int(item) if abs(item) < _EXACT and item == int(item) else float(item)


def integer(struct: Mapping[str, Any], field: str, lowest: int = -INT64_MAX - 1, highest: int = INT64_MAX) -> int:
    """Read an integer field, written without point or exponent and within its Go type; missing and null are 0."""
    item = struct.get(field)
    if item is None:
        return 0
    if isinstance(item, bool) or not isinstance(item, int):
        raise _mismatch(field, item, "an integer")
    if not lowest <= item <= highest:
        raise GoJsonError(f"{field} is {item}, beyond {lowest}..{highest}")
    return item


def text_map(struct: Mapping[str, Any], field: str) -> dict[str, str] | None:
    """Read a `map[string]string` field; missing and null are None, a null inside is the empty string."""
    item = struct.get(field)
    if item is None:
        return None
    if not isinstance(item, dict):
        raise _mismatch(field, item, "an object")
    for key, value in item.items():
        if value is None:
            item = {**item, key: ""}
        elif not isinstance(value, str):
            raise _mismatch(f"{field}.{key}", value, "a string")
    return item


def integer_map(struct: Mapping[str, Any], field: str) -> dict[str, int] | None:
    """Read a `map[string]int` field; missing and null are None, a null inside is 0."""
    item = struct.get(field)
    if item is None:
        return None
    if not isinstance(item, dict):
        raise _mismatch(field, item, "an object")
    return {key: integer(item, key) for key in item}


def texts(struct: Mapping[str, Any], field: str) -> list[str] | None:
    """Read a `[]string` field; missing and null are None, a null inside is the empty string."""
    item = struct.get(field)
    if item is None:
        return None
    if not isinstance(item, list):
        raise _mismatch(field, item, "an array")
    for part in item:
        if part is not None and not isinstance(part, str):
            raise _mismatch(f"{field}[]", part, "a string")
    return [part or "" for part in item]


def _mismatch(field: str, item: Any, wanted: str) -> GoJsonError:
    return GoJsonError(f"{field} is {_kind(item)}, not {wanted}")


def _kind(item: Any) -> str:
    kinds = {bool: "a bool", int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object"}
    return kinds.get(type(item), "null")

"""The protobuf wire format, as far as xDS needs it: bytes out of fields, fields out of bytes.

Written by hand because the generated xDS messages (PyPI's xds-protos) bring 1,800 files into an application and
overwrite some of googleapis-common-protos. Every function returns bytes; a message is the concatenation of its fields.
Pure.
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MORE = 0x80
_LONGEST_VARINT = 10  # bytes: 64 bits (protobuf.dev, "Encoding"); without end each byte would cost more than the last
# A client that follows 100,000 services names them all in each request; whoever reads it serves the others meanwhile.
_MOST_FIELDS = 250_000


class MalformedMessageError(ValueError):
    """Bytes that are not a protobuf message."""


def varint(number: int) -> bytes:
    """Write a number that is not negative."""
    out = bytearray()
    while number >= _MORE:
        out.append(number & 0x7F | _MORE)
        number >>= 7
    out.append(number)
    return bytes(out)


def integer(field: int, number: int) -> bytes:
    """Write an integer, boolean or enum field; zero is the default and takes no bytes."""
    return varint(field << 3 | _VARINT) + varint(number) if number else b""


def message(field: int, body: bytes) -> bytes:
    """Write a field that holds a message; an empty message is still present."""
    return varint(field << 3 | _LENGTH) + varint(len(body)) + body


def text(field: int, value: str) -> bytes:
    """Write a string field; the empty string is the default and takes no bytes."""
    return message(field, value.encode()) if value else b""


def uint32_value(field: int, number: int) -> bytes:
    """Write a google.protobuf.UInt32Value, which unlike an integer distinguishes zero from absent."""
    return message(field, integer(1, number))


def duration(field: int, seconds: float) -> bytes:
    """Write a google.protobuf.Duration that is not negative."""
    whole, nanos = divmod(round(seconds * 1_000_000_000), 1_000_000_000)
    return message(field, integer(1, whole) + integer(2, nanos))


def packed_any(field: int, type_name: str, body: bytes) -> bytes:
    """Write a google.protobuf.Any."""
    return message(field, text(1, f"type.googleapis.com/{type_name}") + message(2, body))


def read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Read a message as (field number, integer or bytes), in the order in which the fields stand."""
    position = count = 0
    while position < len(data):
        if (count := count + 1) > _MOST_FIELDS:
            raise MalformedMessageError(f"more than {_MOST_FIELDS} fields")
        tag, position = _read_varint(data, position)
        value, position = _read_value(data, position, tag & 7)
        yield tag >> 3, value


def _read_value(data: bytes, position: int, wire_type: int) -> tuple[int | bytes, int]:
    if wire_type == _VARINT:
        return _read_varint(data, position)
    if wire_type == _LENGTH:
        size, position = _read_varint(data, position)
    elif wire_type in (_FIXED64, _FIXED32):
        size = 8 if wire_type == _FIXED64 else 4
    else:
        raise MalformedMessageError(f"wire type {wire_type} at byte {position}")
    if position + size > len(data):
        raise MalformedMessageError(f"a field of {size} bytes ends beyond the message")
    return data[position : position + size], position + size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    for byte in data[position : position + _LONGEST_VARINT]:
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < _MORE:
            return number, position
        shift += 7
    raise MalformedMessageError("a number ends beyond the message, or has more than 64 bits")

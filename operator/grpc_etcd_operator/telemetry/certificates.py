"""When the certificates in TLS files expire, for the metrics only.

The standard library reports the dates of CA certificates alone, and `cryptography` weighs more than the rest of the
operator; so the one date that is wanted is read from the certificate's DER encoding (X.690) by its place in the
structure (RFC 5280, 4.1). Nothing is verified here: gRPC does that.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

# As OpenSSL takes them: beside the usual name an old one, and one with trust settings behind the certificate.
_BLOCK = re.compile(
    r"-----BEGIN (?P<kind>(?:X509 |TRUSTED )?CERTIFICATE)-----(?P<body>.*?)-----END (?P=kind)-----", re.DOTALL
)
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18  # DER tags
_CENTURY_TURN = 50  # RFC 5280, 4.1.2.5.1: years of two digits below it belong to this century
_FOR_EVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280, 4.1.2.5: no well-defined end


def expiries(*files: Path | None) -> Iterator[tuple[str, float]]:
    """Return each file's name and when (Unix time) its first certificate expires; what is unreadable is left out."""
    for file in files:
        if file and (found := [*_expiries(_read(file))]):
            yield str(file), min(found).timestamp()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _expiries(pem: str) -> Iterator[datetime]:
    for block in _BLOCK.finditer(pem):
        try:
            yield not_after(base64.b64decode("".join(block["body"].split()), validate=True))
        except (ValueError, binascii.Error):
            continue


class _Element(NamedTuple):
    tag: int
    content: bytes


def not_after(certificate: bytes) -> datetime:
    """Read the end of a certificate's validity from its DER encoding; ValueError when it is none."""
    signed = _first(_first(certificate).content)
    fields = [field for field in _elements(signed.content, most=5) if field.tag != _VERSION]
    _, _, _, validity, *_ = fields  # serial number, signature algorithm, issuer, validity
    _, end = _elements(validity.content, most=2)
    return _parse_time(end)


def _first(data: bytes) -> _Element:
    return next(_elements(data, most=1))


def _elements(data: bytes, most: int) -> Iterator[_Element]:
    """Split DER into at most so many elements; ValueError when there is none or one is cut off."""
    if not data:
        raise ValueError("there is no element")
    at = 0
    while at < len(data) and most > 0:
        tag, start, end = _header(data, at)
        if end > len(data):
            raise ValueError("an element is cut off")
        yield _Element(tag, data[start:end])
        at, most = end, most - 1


def _header(data: bytes, at: int) -> tuple[int, int, int]:
    """Read an element's tag, and where its content begins and ends."""
    head = data[at : at + 2]
    if len(head) < 2:  # noqa: PLR2004  tag and length
        raise ValueError("an element is cut off")
    tag, length = head
    start = at + 2
    if length & 0x80:  # the length is in so many bytes of its own
        start += length & 0x7F
        length = int.from_bytes(data[at + 2 : start], "big")
    return tag, start, start + length


def _parse_time(element: _Element) -> datetime:
    text = element.content.decode("ascii")
    match element.tag:
        case tag if tag == _UTC_TIME:
            century = "20" if int(text[:2]) < _CENTURY_TURN else "19"
            return _parse_digits(century + text)
        case tag if tag == _GENERALIZED_TIME:
            return _parse_digits(text)
    raise ValueError("the validity holds no time")


def _parse_digits(text: str) -> datetime:
    if text == f"{_FOR_EVER:%Y%m%d%H%M%S}Z":
        return _FOR_EVER
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)

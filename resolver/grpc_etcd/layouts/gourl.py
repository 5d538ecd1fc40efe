"""URLs as Go's net/url.Parse takes them.

Jupiter puts URLs into its keys and drops a record whose key does not parse, so we read by the same rules, those of
`net/url/url.go` (checked against Go 1.26). Only what decides a record's fate is here: scheme, host and path, or that
there is none.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes


class Url(NamedTuple):
    """The parts of a parsed URL; `host` holds the port, if any."""

    scheme: str
    host: str
    path: str


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ASCII_ESCAPE = re.compile(r"%(?!25)[0-7]")
_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:\[\]<>\"%-]*")
_ZONE = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:\[\]<>\"% \\^`{|}-]*")
_USER = re.compile(r"[A-Za-z0-9._:~!$&'()*+,;=%@-]*")
_OPTIONAL_PORT = re.compile(r"(:[0-9]*)?")
_PLAIN = re.compile(r"([a-z][a-z0-9+.-]*)://([A-Za-z0-9._-]+:[0-9]+)")


def parse_url(text: str) -> Url | None:
    """Parse an absolute URL or say None where Go reports an error or finds no scheme."""
    if plain := _PLAIN.fullmatch(text):
        return Url(plain[1], plain[2], "")
    match = _SCHEME.match(text)
    if match is None or _CONTROL.search(text):
        return None
    before_fragment, _, fragment = text[match.end() :].partition("#")
    if _BROKEN_ESCAPE.search(fragment):
        return None
    rest = before_fragment.partition("?")[0]
    scheme = match[1].lower()
    if not rest.startswith("/"):
        return Url(scheme, "", "")  # opaque, such as "grpc:" itself: no error, but no host and no path either
    if not rest.startswith("//"):
        return _with_path(scheme, "", rest)
    authority, slash, path = rest[2:].partition("/")
    host = _parse_authority(authority)
    return None if host is None else _with_path(scheme, host, slash + path)


def _with_path(scheme: str, host: str, path: str) -> Url | None:
    return None if _BROKEN_ESCAPE.search(path) else Url(scheme, host, _unescaped(path))


def _parse_authority(authority: str) -> str | None:
    user, _, host = authority.rpartition("@")
    if not _USER.fullmatch(user) or _BROKEN_ESCAPE.search(user):
        return None
    return _parse_bracketed(host) if host.startswith("[") else _parse_host(host)


def _parse_bracketed(host: str) -> str | None:
    literal, bracket, port = host.rpartition("]")
    if not bracket or not _OPTIONAL_PORT.fullmatch(port):
        return None
    address, percent, zone = literal.partition("%25")
    if _parse_plain(address) is None or not _ZONE.fullmatch(_ascii(zone)) or _BROKEN_ESCAPE.search(zone):
        return None
    return _unescaped(address + percent + zone) + bracket + port


def _parse_host(host: str) -> str | None:
    _, colon, port = host.rpartition(":")
    return _parse_plain(host) if not colon or _OPTIONAL_PORT.fullmatch(colon + port) else None


def _parse_plain(host: str) -> str | None:
    broken = _BROKEN_ESCAPE.search(host) or _ASCII_ESCAPE.search(host)
    return None if broken or not _HOST.fullmatch(_ascii(host)) else _unescaped(host)


def _ascii(text: str) -> str:
    return "".join(character for character in text if character.isascii())


def _unescaped(text: str) -> str:
    return unquote_to_bytes(text.encode(errors="surrogateescape")).decode(errors="replace") if "%" in text else text

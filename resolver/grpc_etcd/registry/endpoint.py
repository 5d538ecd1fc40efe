"""What a registry is about: endpoints.

An `Endpoint` is a value: one dialable address of one service, with the attributes that some registry format carries.
Nothing here knows keys, bytes or etcd; the layouts beside this module turn endpoints into records and back.
"""

import enum
import ipaddress
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from grpc_etcd.registry.frozen import FrozenDict

EMPTY: Mapping[str, str] = FrozenDict({})

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def _empty() -> Mapping[str, str]:
    return EMPTY


class Kind(enum.IntEnum):
    """What a Jupiter application offers at an address; the numbers are Jupiter's (pkg/constant/service.go, v0.2.7)."""

    UNKNOWN = 0
    PROVIDER = 1
    GOVERNOR = 2
    CONSUMER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDescription:
    """One proto service that an endpoint says it offers (Jupiter's `server.Service`)."""

    namespace: str = ""
    name: str = ""
    labels: Mapping[str, str] | None = field(default=None, hash=False)
    methods: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One dialable address of one service: `Endpoint(name="greeter", address="10.0.0.1:50051")`.

    `name` has no '/', whitespace or control characters. `address` is `host:port`, with an IPv6 host in brackets; it
    may be empty only where `bind` sets it. `weight` (a finite number of at least 0) is relative to those of the other
    endpoints; 0 means no new calls. With `enable=False` the endpoint is drained: it is listed, but not called. The same
    applies to `healthy=False`, the result of the endpoint's own health check. `instance` is an identity that stays the
    same when the lease changes and is unique among the endpoints of a service (such as a Pod's UID and port), for
    layouts whose keys have an id instead of the address; if empty, it is derived from the address. Raises TypeError or
    ValueError, which name the field.
    """

    name: str
    address: str
    scheme: str = "grpc"
    weight: float = 100
    enable: bool = True
    healthy: bool = True
    metadata: Mapping[str, str] = field(default_factory=lambda: EMPTY, hash=False)
    region: str = ""
    zone: str = ""
    kind: Kind = Kind.PROVIDER
    deployment: str = ""
    group: str = ""
    app_id: str = ""
    services: Mapping[str, ServiceDescription] | None = field(default=None, hash=False)
    instance: str = ""

    def __post_init__(self) -> None:
        for value, name in zip(_texts(self), _TEXT_FIELDS, strict=True):  # made for each record that is read
            if type(value) is not str and not isinstance(value, str):
                raise TypeError(f"the endpoint's {name} is {value!r}, which is not a string")
        if fault := name_fault(self.name) or (address_fault(self.address) if self.address else None):
            raise ValueError(fault)
        _check_weight(self.weight)
        if self.enable is not True and self.enable is not False:
            raise TypeError(f"the endpoint's enable is {self.enable!r}, which is neither True nor False")
        if self.healthy is not True and self.healthy is not False:
            raise TypeError(f"the endpoint's healthy is {self.healthy!r}, which is neither True nor False")
        if not isinstance(self.kind, Kind):
            raise TypeError(f"the endpoint's kind is {self.kind!r}, which is not a Kind")
        if self.metadata is not EMPTY:
            _check_metadata(self.metadata)

    @property
    def is_callable(self) -> bool:
        """Whether new calls may go to this endpoint: it is enabled and healthy, and its weight is above 0."""
        return self.enable and self.healthy and self.weight > 0


_TEXT_FIELDS = ("name", "address", "scheme", "region", "zone", "deployment", "group", "app_id", "instance")
_texts = operator.attrgetter(*_TEXT_FIELDS)


def _check_weight(weight: object) -> None:
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise TypeError(f"the endpoint's weight is {weight!r}, which is not a number")
    if not 0 <= weight < math.inf:
        raise ValueError(f"the endpoint's weight is {weight}; it must be a finite number of at least 0")


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, Mapping):
        raise TypeError(f"the endpoint's metadata is {metadata!r}, which is not a mapping of strings")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"the endpoint's metadata has {key!r}: {value!r}; both must be strings")


_FORBIDDEN_IN_NAME = re.compile(r"[/\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_HOST = re.compile(r"[A-Za-z0-9._~-]{1,254}")  # RFC 1035 section 2.3.4, with a dot at the end
_PORT = re.compile(r"[0-9]{1,5}")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
MAX_PORT = 65535


@lru_cache(maxsize=1024)  # the name of a service is that of all its endpoints
def name_fault(name: str) -> str | None:
    """Return why `name` cannot be a service's name in any registry; None means that it can."""
    if not name:
        return "the name is empty"
    if match := _FORBIDDEN_IN_NAME.search(name):
        return f"the name {name!r} contains {match.group()!r}; '/', whitespace and control characters are not allowed"
    return None


def scheme_fault(scheme: str) -> str | None:
    """Return why `scheme` cannot stand in front of '://' (RFC 3986 section 3.1, lower case); None means that it can."""
    return None if _SCHEME.fullmatch(scheme) else f"the scheme {scheme!r} is not of the form [a-z][a-z0-9+.-]*"


@lru_cache(maxsize=4096)  # an address is looked at by its layout, by the endpoint, and again with each change
def split_address(address: str) -> tuple[str, int] | None:
    """Split `host:port` or `[v6]:port` into a host without brackets and a port; None if it is neither.

    A bare IPv6 address with a port glued to it is refused: nobody can say where the port begins.
    """
    host, _, port = address.rpartition(":")
    if not _PORT.fullmatch(port) or not 0 < int(port) <= MAX_PORT:
        return None
    if host.startswith("[") and host.endswith("]"):
        return (host[1:-1], int(port)) if is_ipv6(host[1:-1]) else None
    return (host, int(port)) if _HOST.fullmatch(host) else None


def join_address(host: str, port: int) -> str:
    """Join a host without brackets and a port; an IPv6 host gets its brackets."""
    return f"{join_host(host)}:{port}"


def join_host(host: str) -> str:
    """Write a host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def address_fault(address: str) -> str | None:
    """Return why nobody can dial `address`; None means that it is `host:port` or `[v6]:port`."""
    return None if split_address(address) else f"the address {address!r} is neither host:port nor [IPv6]:port"


def parse_ip(host: str) -> IPAddress | None:
    """Parse an IP address; an IPv4 address in IPv6 clothes (::ffff:10.0.0.1) is the IPv4 address."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (ip.version == 6 and ip.ipv4_mapped) or ip  # noqa: PLR2004 - IP versions


def unroutable(host: str) -> str | None:
    """Return what is wrong with a host for everybody else; None means: nothing that can be known from here."""
    ip = parse_ip(host)
    if ip is None:
        return "a loopback name" if host.lower().rstrip(".") == "localhost" else None
    kinds = {
        "a wildcard": ip.is_unspecified,
        "a loopback address": ip.is_loopback,
        "a link-local address": ip.is_link_local,
        "a multicast address": ip.is_multicast,
    }
    return next((kind for kind, matches in kinds.items() if matches), None)


def is_ipv6(host: str) -> bool:
    """Return whether `host`, without brackets, is an IPv6 address; one with a zone (`%eth0`) holds on one host only."""
    if ":" not in host or "%" in host:
        return False
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True

"""How clients are asked to call one service: balancing, retry, outlier detection, zones, a default timeout, a subset.

A policy is written by people in a GrpcService (`spec.policy`), kept in etcd by the operator, read by clients, and may
be given in code, which wins field by field. The JSON names are camelCase and the same everywhere; durations are strings
such as `250ms`, `10s` or `1m30s`. Parsing never raises: it returns what was good and one sentence per fault, so that
the operator can refuse a policy and a client can live with the rest of it.
"""

import enum
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

LEAST_RETRY_SECONDS = 0.01


class Balancing(enum.StrEnum):
    """How one call chooses its endpoint."""

    ROUND_ROBIN = "RoundRobin"  # each in turn, whatever its weight
    WEIGHTED = "Weighted"  # each in turn, as often as its weight says
    RING_HASH = "RingHash"  # the same value of a metadata key goes to the same endpoint


class RetryOn(enum.StrEnum):
    """The status codes that gRPC's xDS retry knows (gRFC A44)."""

    UNAVAILABLE = "Unavailable"
    CANCELLED = "Cancelled"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    INTERNAL = "Internal"
    RESOURCE_EXHAUSTED = "ResourceExhausted"


class ZonePreference(enum.StrEnum):
    """Whether endpoints of the client's own zone come first."""

    NONE = "None"
    PREFER_ZONE = "PreferZone"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancing:
    """`hash_header` is the metadata key that RingHash hashes; without one, calls are spread at random."""

    type: Balancing = Balancing.WEIGHTED
    hash_header: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """`attempts` counts all tries, the first one too; gRPC allows 2 to 5.

    The wait before a try is random, up to `base_interval`, then doubled each time up to `max_interval`; a maximum below
    the base counts as the base.
    """

    attempts: int = 3
    retry_on: tuple[RetryOn, ...] = (RetryOn.UNAVAILABLE,)
    base_interval_seconds: float = 0.025
    max_interval_seconds: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """Takes an endpoint out for a while when too large a share of its calls fails (gRFC A50).

    The while grows by `base_ejection` each time, up to `max_ejection`, which is at least the base.
    Each `interval`, endpoints with at least `request_volume` calls are judged, if there are `minimum_hosts` of them.
    The defaults of hosts and volume are lower than Envoy's (5 and 50), so that a service of three Pods profits too.
    """

    interval_seconds: float = 10
    base_ejection_seconds: float = 30
    max_ejection_seconds: float = 300
    max_ejection_percent: int = 10
    failure_percentage: int = 85
    minimum_hosts: int = 3
    request_volume: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityPreference:
    """With PreferZone, calls leave the client's zone only while no endpoint in it can be reached."""

    mode: ZonePreference = ZonePreference.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All wishes for one service; None is no wish. `subset` is the largest number of endpoints that a client takes."""

    load_balancing: LoadBalancing | None = None
    retry: Retry | None = None
    outlier_detection: OutlierDetection | None = None
    locality_preference: LocalityPreference | None = None
    timeout_seconds: float | None = None
    subset: int | None = None

    def over(self, other: "Policy") -> "Policy":
        """Give this policy, with the wishes of `other` where this one has none."""
        mine = ((field.name, getattr(self, field.name)) for field in fields(self))
        return Policy(**{name: getattr(other, name) if wish is None else wish for name, wish in mine})


class ParsedPolicy(NamedTuple):
    """What could be read, and one sentence per fault; no faults means that all of it could."""

    policy: Policy
    faults: tuple[str, ...]


class _FaultyValueError(ValueError):
    """A value that cannot be taken; the text says why and holds no path."""


_Read = Callable[[object], Any]
_Write = Callable[[Any], object]
_Word = TypeVar("_Word", bound=enum.StrEnum)

_DURATION = re.compile(r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?!s))?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+(?:\.\d+)?)ms)?")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_HEADER = re.compile(r"[a-z0-9_.-]+")


def parse_duration(text: str) -> float | None:
    """Read `250ms`, `10s`, `1m30s`, `2h` as seconds; None if it is none of these."""
    match = _DURATION.fullmatch(text)
    if not text or not match:
        return None
    total = sum(float(number) * _SECONDS[unit] for unit, number in match.groupdict().items() if number)
    return round(total, 9)


def format_duration(seconds: float) -> str:
    """Write seconds as a duration of one unit: whole or broken seconds, or milliseconds below one second."""
    return f"{seconds:.12g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:.12g}ms"


def _duration(low: float, high: float) -> tuple[_Read, _Write]:
    def read(raw: object) -> float:
        seconds = parse_duration(raw) if isinstance(raw, str) else None
        if seconds is None:
            raise _FaultyValueError(f"{raw!r} is not a duration such as 250ms or 10s")
        if not low <= seconds <= high:
            raise _FaultyValueError(f"{raw} is not between {format_duration(low)} and {format_duration(high)}")
        return seconds

    return read, format_duration


def _integer(low: int, high: int) -> tuple[_Read, _Write]:
    def read(raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise _FaultyValueError(f"{raw!r} is not a whole number")
        if not low <= raw <= high:
            raise _FaultyValueError(f"{raw} is not between {low} and {high}")
        return raw

    return read, int


def _one_of(words: type[_Word]) -> tuple[_Read, _Write]:
    def read(raw: object) -> _Word:
        if not isinstance(raw, str) or raw not in list(words):
            raise _FaultyValueError(f"{raw!r} is none of {', '.join(words)}")
        return words(raw)

    return read, str


def _some_of(words: type[_Word]) -> tuple[_Read, _Write]:
    read_one, _ = _one_of(words)

    def read(raw: object) -> tuple[_Word, ...]:
        if not isinstance(raw, list) or not raw:
            raise _FaultyValueError(f"{raw!r} is not a list of {', '.join(words)}")
        return tuple(dict.fromkeys(read_one(word) for word in raw))

    return read, lambda chosen: [str(word) for word in chosen]


def _read_header(raw: object) -> str:
    if not isinstance(raw, str) or not _HEADER.fullmatch(raw):
        raise _FaultyValueError(f"{raw!r} is not a metadata key: lower-case letters, digits, '_', '.', '-'")
    if raw.endswith("-bin"):
        raise _FaultyValueError(f"{raw!r} is a binary metadata key, which gRPC cannot hash")
    return raw


# JSON name -> (attribute, reader, writer). Bounds without a source are there to catch slips of the unit.
_FIELDS: Mapping[type, Mapping[str, tuple[str, _Read, _Write]]] = {
    LoadBalancing: {
        "type": ("type", *_one_of(Balancing)),
        "hashHeader": ("hash_header", _read_header, str),
    },
    Retry: {
        "attempts": ("attempts", *_integer(2, 5)),  # gRPC caps at 5 (gRFC A6)
        "retryOn": ("retry_on", *_some_of(RetryOn)),
        # gRPC waits a random share of the interval, and where that rounds to 0 ms the try never comes (grpcio 1.85).
        "baseInterval": ("base_interval_seconds", *_duration(LEAST_RETRY_SECONDS, 60)),
        "maxInterval": ("max_interval_seconds", *_duration(LEAST_RETRY_SECONDS, 600)),
    },
    OutlierDetection: {
        "interval": ("interval_seconds", *_duration(0.1, 3600)),
        "baseEjectionTime": ("base_ejection_seconds", *_duration(0.1, 3600)),
        "maxEjectionTime": ("max_ejection_seconds", *_duration(0.1, 86400)),
        "maxEjectionPercent": ("max_ejection_percent", *_integer(0, 100)),
        "failurePercentage": ("failure_percentage", *_integer(1, 100)),
        "minimumHosts": ("minimum_hosts", *_integer(1, 10000)),
        "requestVolume": ("request_volume", *_integer(1, 1000000)),
    },
    LocalityPreference: {"mode": ("mode", *_one_of(ZonePreference))},
}
_PARTS: Mapping[str, tuple[str, type]] = {
    "loadBalancing": ("load_balancing", LoadBalancing),
    "retry": ("retry", Retry),
    "outlierDetection": ("outlier_detection", OutlierDetection),
    "localityPreference": ("locality_preference", LocalityPreference),
}
_SCALARS: Mapping[str, tuple[str, _Read, _Write]] = {
    "timeout": ("timeout_seconds", *_duration(0.001, 86400)),
    "subset": ("subset", *_integer(1, 100000)),
}


def parse_policy(raw: object) -> ParsedPolicy:
    """Read a policy's JSON object (as `json.loads` or the API server gives it)."""
    faults: list[str] = []
    if not isinstance(raw, Mapping):
        return ParsedPolicy(Policy(), (f"{raw!r} is not an object",))
    found = _read_fields(raw, _SCALARS, "", faults, also=_PARTS)
    for name, (attribute, part) in _PARTS.items():
        if raw.get(name) is not None:
            found[attribute] = _read_part(part, raw[name], name, faults)
    policy = Policy(**found)
    faults.extend(_contradictions(policy))
    return ParsedPolicy(policy, tuple(faults))


def read_policy(value: bytes) -> ParsedPolicy:
    """Read a policy as it is kept in etcd."""
    try:
        raw = json.loads(value)
    except ValueError as error:
        return ParsedPolicy(Policy(), (f"not JSON: {error}",))
    return parse_policy(raw)


def format_policy(policy: Policy) -> dict[str, object]:
    """Write a policy as a JSON object in the names of `spec.policy`, without what is not wished."""
    parts = {
        name: _write_fields(getattr(policy, attribute), _FIELDS[part])
        for name, (attribute, part) in _PARTS.items()
        if getattr(policy, attribute) is not None
    }
    return parts | _write_fields(policy, _SCALARS)


def write_policy(policy: Policy) -> bytes:
    """Write a policy as it is kept in etcd: equal policies give equal bytes."""
    return json.dumps(format_policy(policy), separators=(",", ":"), sort_keys=True).encode()


def _read_part(part: type, raw: object, path: str, faults: list[str]) -> object | None:
    if not isinstance(raw, Mapping):
        faults.append(f"{path}: {raw!r} is not an object")
        return None
    built: object = part(**_read_fields(raw, _FIELDS[part], f"{path}.", faults))
    return built


def _read_fields(
    raw: Mapping[Any, object],
    known: Mapping[str, tuple[str, _Read, _Write]],
    path: str,
    faults: list[str],
    also: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    found = {}
    for name, value in raw.items():
        if name not in known:
            if name not in (also or {}):
                faults.append(f"{path}{name}: unknown field")
        elif value is not None:
            attribute, read, _ = known[name]
            try:
                found[attribute] = read(value)
            except _FaultyValueError as fault:
                faults.append(f"{path}{name}: {fault}")
    return found


def _write_fields(holder: object, known: Mapping[str, tuple[str, _Read, _Write]]) -> dict[str, object]:
    values = ((name, getattr(holder, attribute), write) for name, (attribute, _, write) in known.items())
    return {name: write(value) for name, value, write in values if value is not None and value != ""}


def _contradictions(policy: Policy) -> list[str]:
    balancing = policy.load_balancing
    if balancing and balancing.hash_header and balancing.type is not Balancing.RING_HASH:
        return ["loadBalancing.hashHeader: only RingHash hashes"]
    return []

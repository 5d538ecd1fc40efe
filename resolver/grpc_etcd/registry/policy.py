"""How clients are asked to call one service: balancing, retry, outlier detection, zones, slow start, a selection.

A policy is written by people in a GrpcService (`spec.policy`), kept in etcd by the operator, read by clients, and may
be given in code, which wins field by field. One table holds the bounds of every field for both: a value in code that
breaks them is a TypeError or ValueError where it is made, which names the field. The JSON names are camelCase and the
same everywhere; durations are strings such as `250ms`, `10s` or `1m30s`. Parsing never raises: it returns what was good
and one sentence per fault, so that the operator can refuse a policy and a client can live with the rest of it.
"""

import enum
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from dataclasses import field as with_options
from typing import Any, ClassVar, NamedTuple, TypeVar

from grpc_etcd.registry.keywords import suggesting_fields

LEAST_RETRY_SECONDS = 0.01


class Balancing(enum.StrEnum):
    """How the endpoint of a call is chosen."""

    ROUND_ROBIN = "RoundRobin"  # all endpoints in turn, regardless of weights
    WEIGHTED = "Weighted"  # in proportion to the weights
    RING_HASH = "RingHash"  # calls with the same value of a metadata key go to the same endpoint


class RetryOn(enum.StrEnum):
    """The status codes after which gRPC can retry the calls of an xDS channel (gRFC A44)."""

    UNAVAILABLE = "Unavailable"
    CANCELLED = "Cancelled"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    INTERNAL = "Internal"
    RESOURCE_EXHAUSTED = "ResourceExhausted"


class ZonePreference(enum.StrEnum):
    """Whether endpoints of the client's own zone or cluster are preferred."""

    NONE = "None"
    PREFER_ZONE = "PreferZone"
    PREFER_CLUSTER = "PreferCluster"  # prefers endpoints whose metadata `cluster` is the client's, then its zone


@suggesting_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancing:
    """How calls are distributed: `LoadBalancing(type=Balancing.RING_HASH, hash_header="x-user")`.

    `type` may also be given by its name (`"RingHash"`). `hash_header` is the metadata key that RingHash hashes, in
    upper or lower case; a binary key (`-bin`) is refused, because gRPC cannot hash it. Calls without that key, and all
    calls if `hash_header` is empty, go to random endpoints. With any other type, `hash_header` is refused. Raises
    ValueError or TypeError, which name the field.
    """

    type: Balancing = Balancing.WEIGHTED
    hash_header: str = ""

    def __post_init__(self) -> None:
        _check_fields(self)


@suggesting_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Which failed calls are retried: `Retry(attempts=3, retry_on=(RetryOn.UNAVAILABLE,))`.

    `attempts` is the maximum number of attempts, including the first: 1 to 5 (gRPC's own limit); 1 disables retries, as
    does `Retry.OFF`. `retry_on` takes RetryOn, `grpc.StatusCode` or their names, one or several. The backoff before a
    retry is random, at first up to `base_interval_seconds` (0.01 to 60), then doubled each time up to
    `max_interval_seconds` (0.01 to 600); a maximum below the base counts as the base. With RingHash every attempt goes
    to the same endpoint. Raises ValueError or TypeError, which name the field.
    """

    OFF: ClassVar["Retry"]  # no retry, whatever the registry says

    attempts: int = 3
    retry_on: tuple[RetryOn, ...] = (RetryOn.UNAVAILABLE,)
    base_interval_seconds: float = 0.025
    max_interval_seconds: float = 0.25

    def __post_init__(self) -> None:
        _check_fields(self)


@suggesting_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """Ejects an endpoint for some time if too many of its calls fail (gRFC A50).

    The time grows by `base_ejection_seconds` (0.1 to 3600) with each ejection, up to `max_ejection_seconds` (0.1 to
    86400), which is at least the base. Every `interval_seconds` (0.1 to 3600), endpoints with at least `request_volume`
    calls (1 to 1000000) are evaluated, if there are at least `minimum_hosts` of them (1 to 10000). An endpoint is
    ejected if at least `failure_percentage` (1 to 100) of its calls failed, but never more than `max_ejection_percent`
    (0 to 100) of all endpoints at once; 0 ejects none, as does `OutlierDetection.OFF`. The defaults of `minimum_hosts`
    and `request_volume` are lower than Envoy's (5 and 50), so that a service of three Pods is covered too. Raises
    ValueError or TypeError, which name the field.
    """

    OFF: ClassVar["OutlierDetection"]  # none is taken out, whatever the registry says

    interval_seconds: float = 10
    base_ejection_seconds: float = 30
    max_ejection_seconds: float = 300
    max_ejection_percent: int = 10
    failure_percentage: int = 85
    minimum_hosts: int = 3
    request_volume: int = 20

    def __post_init__(self) -> None:
        _check_fields(self)


@suggesting_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityPreference:
    """With PreferZone, calls stay in the client's zone, unless it has too few endpoints or none can be reached.

    Too few means fewer than `min_endpoints` (1 to 100000), or less than `min_percent` (0 to 100) of all endpoints that
    can be called. Then calls also go to the next nearest ones (those of the region, finally all), before the last
    endpoint of the zone is overloaded or gone. PreferCluster does the same for the client's Kubernetes cluster, and
    prefers the client's zone within it. `mode` may also be given by its name. `LocalityPreference()` disables the
    preference, even if the registry's policy has one. Raises ValueError or TypeError, which name the field.
    """

    mode: ZonePreference = ZonePreference.NONE
    min_endpoints: int = 1
    min_percent: int = 0

    def __post_init__(self) -> None:
        _check_fields(self)


@suggesting_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class SlowStart:
    """Increases the weight of a new endpoint over the window, from `min_weight_percent` (1 to 100) to 100 percent.

    `window_seconds` is 1 to 3600. Endpoints in the first set that a client receives of a service have their full weight
    at once. `SlowStart.OFF` disables slow start, even if the registry's policy has it. Raises ValueError or TypeError,
    which name the field.
    """

    OFF: ClassVar["SlowStart"]  # whole weights at once, whatever the registry says

    window_seconds: float = 30
    min_weight_percent: int = 10

    def __post_init__(self) -> None:
        _check_fields(self)


@suggesting_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How one service is called; where a field is None, the policy in the registry applies.

    `timeout_seconds` (0.001 to 86400) is the timeout of calls with a single response that set none themselves;
    `math.inf` means no timeout, even if the registry's policy has one. `subset` (1 to 100000) is the maximum number of
    endpoints that a client connects to. `Retry.OFF`, `OutlierDetection.OFF`, `LocalityPreference()`, `LoadBalancing()`,
    `SlowStart.OFF` and `match_metadata={}` disable that part of the registry's policy. With `match_metadata` (at most
    16 entries) only endpoints whose metadata have all these values are called; if no endpoint matches, all are called.
    Raises ValueError or TypeError, which name the field.
    """

    load_balancing: LoadBalancing | None = None
    retry: Retry | None = None
    outlier_detection: OutlierDetection | None = None
    locality_preference: LocalityPreference | None = None
    slow_start: SlowStart | None = None
    timeout_seconds: float | None = None
    subset: int | None = None
    match_metadata: Mapping[str, str] | None = with_options(default=None, hash=False)

    def __post_init__(self) -> None:
        for name, (attribute, part) in _PARTS.items():
            wish = getattr(self, attribute)
            if wish is not None and not isinstance(wish, part):
                raise TypeError(
                    f"Policy.{attribute}: {wish!r} is not of type {part.__name__} ({name} of a GrpcService)"
                )
        if self.timeout_seconds != math.inf:
            _check_field(self, "timeout_seconds", _SCALARS["timeout"])
        _check_field(self, "subset", _SCALARS["subset"])
        _check_field(self, "match_metadata", _SCALARS["matchMetadata"])

    def over(self, other: "Policy") -> "Policy":
        """Return this policy, with the fields of `other` where those of this one are None."""
        mine = ((field.name, getattr(self, field.name)) for field in fields(self))
        return Policy(**{name: getattr(other, name) if wish is None else wish for name, wish in mine})


class ParsedPolicy(NamedTuple):
    """What could be read, and one sentence per fault; no faults means that all of it could."""

    policy: Policy
    faults: tuple[str, ...]


_Check = Callable[[object], Any]  # a value in code -> the value that is kept; raises TypeError or ValueError
_Read = Callable[[object], Any]  # a JSON value -> a value in code; raises the same
_Write = Callable[[Any], object]
_Word = TypeVar("_Word", bound=enum.StrEnum)


class _Field(NamedTuple):
    """One field of a policy: its name in code, its bounds there, and how JSON says it."""

    attribute: str
    check: _Check
    read: _Read
    write: _Write


_DURATION = re.compile(r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?!s))?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+(?:\.\d+)?)ms)?")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_MOST_METADATA = 16  # arbitrary: what a selection may compare
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


def _number(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise TypeError(f"{raw!r} is not a number of seconds")
    return raw


def _seconds(attribute: str, low: float, high: float) -> _Field:
    def check(raw: object) -> float:
        if not low <= (seconds := _number(raw)) <= high:  # nan is not either
            raise ValueError(f"{raw} s is not between {low:g} and {high:g} seconds")
        return seconds

    def read(raw: object) -> float:
        seconds = parse_duration(raw) if isinstance(raw, str) else None
        if seconds is None:
            raise ValueError(f"{raw!r} is not a duration such as 250ms or 10s")
        if not low <= seconds <= high:
            raise ValueError(f"{raw} is not between {format_duration(low)} and {format_duration(high)}")
        return seconds

    return _Field(attribute, check, read, format_duration)


def _integer(attribute: str, low: int, high: int) -> _Field:
    def check(raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise TypeError(f"{raw!r} is not a whole number")
        if not low <= raw <= high:
            raise ValueError(f"{raw} is not between {low} and {high}")
        return raw

    return _Field(attribute, check, check, int)


def _one_of(attribute: str, words: type[_Word]) -> _Field:
    return _Field(attribute, lambda raw: _word(words, raw), lambda raw: _exact_word(words, raw), str)


def _some_of(attribute: str, words: type[_Word]) -> _Field:
    def check(raw: object) -> tuple[_Word, ...]:
        if isinstance(raw, str | enum.Enum):
            return (_word(words, raw),)
        if not isinstance(raw, Iterable):
            raise TypeError(f"{raw!r} is not a tuple of {', '.join(words)}")
        if not (chosen := tuple(dict.fromkeys(_word(words, each) for each in raw))):
            raise ValueError(f"it is empty; give some of {', '.join(words)}")
        return chosen

    def read(raw: object) -> tuple[_Word, ...]:
        if not isinstance(raw, list) or not raw:
            raise ValueError(f"{raw!r} is not a list of {', '.join(words)}")
        return tuple(dict.fromkeys(_exact_word(words, word) for word in raw))

    return _Field(attribute, check, read, lambda chosen: [str(word) for word in chosen])


def _exact_word(words: type[_Word], raw: object) -> _Word:
    if not isinstance(raw, str) or raw not in list(words):
        raise ValueError(f"{raw!r} is not one of {', '.join(words)}")
    return words(raw)


def _word(words: type[_Word], raw: object) -> _Word:
    """Take a word, its name in Python, or another enum's member of that name, such as grpc.StatusCode's."""
    if isinstance(raw, str):
        return words.__members__[raw] if raw in words.__members__ else _exact_word(words, raw)
    if isinstance(raw, enum.Enum):
        if raw.name in words.__members__:
            return words.__members__[raw.name]
        raise ValueError(f"{raw} is not one of {', '.join(words.__members__)}")
    raise TypeError(f"{raw!r} is not one of {', '.join(words)}")


def _read_metadata(raw: object) -> Mapping[str, str]:
    if not isinstance(raw, Mapping):
        raise TypeError(f"{raw!r} is not an object of strings")
    if len(raw) > _MOST_METADATA:
        raise ValueError(f"{len(raw)} entries exceed the limit of {_MOST_METADATA}")
    for name, value in raw.items():
        if not isinstance(name, str) or not name or not isinstance(value, str):
            raise TypeError(f"{name!r}: {value!r} is not a string under a name")
    return dict(raw)


def _read_header(raw: object) -> str:
    if not isinstance(raw, str):
        raise TypeError(f"{raw!r} is not a metadata key")
    if not _HEADER.fullmatch(raw):
        raise ValueError(f"{raw!r} is not a metadata key: lower-case letters, digits, '_', '.', '-'")
    if raw.endswith("-bin"):
        raise ValueError(f"{raw!r} is a binary metadata key, which gRPC cannot hash")
    return raw


def _check_header(raw: object) -> str:
    return "" if raw == "" else _read_header(raw.lower() if isinstance(raw, str) else raw)


# By JSON name. Bounds without a source are there to catch mistakes in the unit.
_FIELDS: Mapping[type, Mapping[str, _Field]] = {
    LoadBalancing: {
        "type": _one_of("type", Balancing),
        "hashHeader": _Field("hash_header", _check_header, _read_header, str),
    },
    Retry: {
        "attempts": _integer("attempts", 1, 5),  # gRPC caps at 5 (gRFC A6); one attempt is no retry
        "retryOn": _some_of("retry_on", RetryOn),
        # gRPC waits a random share of the interval, and where that rounds to 0 ms the try never comes (grpcio 1.85).
        "baseInterval": _seconds("base_interval_seconds", LEAST_RETRY_SECONDS, 60),
        "maxInterval": _seconds("max_interval_seconds", LEAST_RETRY_SECONDS, 600),
    },
    OutlierDetection: {
        "interval": _seconds("interval_seconds", 0.1, 3600),
        "baseEjectionTime": _seconds("base_ejection_seconds", 0.1, 3600),
        "maxEjectionTime": _seconds("max_ejection_seconds", 0.1, 86400),
        "maxEjectionPercent": _integer("max_ejection_percent", 0, 100),
        "failurePercentage": _integer("failure_percentage", 1, 100),
        "minimumHosts": _integer("minimum_hosts", 1, 10000),
        "requestVolume": _integer("request_volume", 1, 1000000),
    },
    LocalityPreference: {
        "mode": _one_of("mode", ZonePreference),
        "minEndpoints": _integer("min_endpoints", 1, 100000),
        "minPercent": _integer("min_percent", 0, 100),
    },
    SlowStart: {
        "window": _seconds("window_seconds", 1, 3600),
        "minWeightPercent": _integer("min_weight_percent", 1, 100),
    },
}
_PARTS: Mapping[str, tuple[str, type]] = {
    "loadBalancing": ("load_balancing", LoadBalancing),
    "retry": ("retry", Retry),
    "outlierDetection": ("outlier_detection", OutlierDetection),
    "localityPreference": ("locality_preference", LocalityPreference),
    "slowStart": ("slow_start", SlowStart),
}
_SCALARS: Mapping[str, _Field] = {
    "timeout": _seconds("timeout_seconds", 0.001, 86400),
    "subset": _integer("subset", 1, 100000),
    "matchMetadata": _Field("match_metadata", _read_metadata, _read_metadata, dict),
}


def _check_fields(holder: object) -> None:
    """Replace each value by the one that is kept; TypeError or ValueError name the field."""
    for field in _FIELDS[type(holder)].values():
        _set_checked(holder, field)
    values = {field.name: getattr(holder, field.name) for field in fields(holder)}  # type: ignore[arg-type]  # one is
    if clash := _contradiction(type(holder), values):
        raise ValueError(f"{type(holder).__name__}.{clash.attribute}: {clash.reason}")


def _check_field(holder: object, attribute: str, field: _Field) -> None:
    """Check one that may be None."""
    if getattr(holder, attribute) is not None:
        _set_checked(holder, field)


def _set_checked(holder: object, field: _Field) -> None:
    try:
        object.__setattr__(holder, field.attribute, field.check(getattr(holder, field.attribute)))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{type(holder).__name__}.{field.attribute}: {error}") from None


class _Contradiction(NamedTuple):
    """A value that cannot stand beside another one."""

    attribute: str
    json_name: str
    reason: str


def _contradiction(part: type, values: Mapping[str, Any]) -> _Contradiction | None:
    if part is LoadBalancing and values.get("hash_header") and values.get("type") is not Balancing.RING_HASH:
        return _Contradiction("hash_header", "hashHeader", "only RingHash hashes")
    return None


Retry.OFF = Retry(attempts=1)
OutlierDetection.OFF = OutlierDetection(max_ejection_percent=0)
SlowStart.OFF = SlowStart(min_weight_percent=100)


def parse_policy(raw: object) -> ParsedPolicy:
    """Read a policy's JSON object (as `json.loads` or the API server gives it)."""
    faults: list[str] = []
    if not isinstance(raw, Mapping):
        return ParsedPolicy(Policy(), (f"{raw!r} is not an object",))
    found = _read_fields(raw, _SCALARS, "", faults, also=_PARTS)
    for name, (attribute, part) in _PARTS.items():
        if raw.get(name) is not None:
            found[attribute] = _read_part(part, raw[name], name, faults)
    return ParsedPolicy(Policy(**found), tuple(faults))


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
    found = _read_fields(raw, _FIELDS[part], f"{path}.", faults)
    if clash := _contradiction(part, found):
        faults.append(f"{path}.{clash.json_name}: {clash.reason}")
        del found[clash.attribute]
    built: object = part(**found)
    return built


def _read_fields(
    raw: Mapping[Any, object],
    known: Mapping[str, _Field],
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
            field = known[name]
            try:
                found[field.attribute] = field.read(value)
            except (TypeError, ValueError) as fault:
                faults.append(f"{path}{name}: {fault}")
    return found


def _write_fields(holder: object, known: Mapping[str, _Field]) -> dict[str, object]:
    values = ((name, getattr(holder, field.attribute), field.write) for name, field in known.items())
    return {name: write(value) for name, value, write in values if value not in (None, "", math.inf)}

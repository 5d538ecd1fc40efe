"""Why a service is as it is, in a sentence that says what to do: for failed calls, waits, stats and log lines. Pure.

The first row that fits counts:

    something unforeseen went wrong                     INTERNAL
    endpoints of the last good set are kept             UNVOUCHED
    nothing is known, and the keys may not be read      DENIED
    the first answer is waited for                      PENDING, with what is wrong meanwhile
    etcd is unavailable                                UNREACHABLE, by its error: TLS, UNKNOWN_HOST, AUTHENTICATION
    nothing is known                                    PENDING
    nothing is listed                                   MISSING, with names that are nearly the same
    only records that cannot be read                    BROKEN, with the first one's reason
    all endpoints are disabled, unhealthy or weigh 0    DISABLED
    the host names of the others are being looked up    PENDING
    no endpoint has an address that can be dialled      UNUSABLE
    some keys may not be read                           DENIED
    all is well                                         NONE, no message
"""

import difflib
import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from grpc_etcd.discovery.state import ResolverState, Source
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.escaping import quote_argument
from grpc_etcd.registry.layout import Rejected
from grpc_etcd.registry.own import describe_grant
from grpc_etcd.registry.snapshot import Snapshot

_MOST_NAMES = 3  # arbitrary
# A user who may read one prefix only is refused at a misspelt one: nobody should widen a role for a misspelling.
MISSPELT = "; or correct the prefix (GRPC_ETCD_PREFIX), the layout or the name, if nothing is registered there"
_PERMISSION = "permission denied"  # etcd's own words
_CERTIFICATE = ("certificate", "handshake", "ssl", "tls", "tsi_")
_NAME = (
    "dns resolution failed",
    "errors resolving",
    "name resolution",
    "name or service not known",
    "domain name",
    "getaddrinfo",
)


class Cause(enum.StrEnum):
    """What kind of thing is wrong."""

    NONE = "none"
    INTERNAL = "internal error"
    UNCONFIRMED = "unconfirmed"
    DENIED = "permission denied"
    UNREACHABLE = "etcd unreachable"
    TLS = "TLS to etcd failed"
    UNKNOWN_HOST = "unknown host name"
    AUTHENTICATION = "login refused"
    PENDING = "not known yet"
    MISSING = "no such service"
    BROKEN = "only broken records"
    DISABLED = "no endpoint accepts calls"
    UNUSABLE = "no endpoint can be dialled"


OUTAGES = frozenset({Cause.UNREACHABLE, Cause.TLS, Cause.UNKNOWN_HOST, Cause.AUTHENTICATION})


class Reason(NamedTuple):
    """A cause, and the sentence about it; the sentence of `NONE` is empty."""

    cause: Cause
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All that an explanation goes by. `since` (Unix seconds) is when etcd was lost, or last responded."""

    view: ResolverState
    whereabouts: str = ""
    error: str = ""
    remedy: str = ""
    since: float = 0.0
    last_seen_at: float = 0.0  # when the set was last known to be etcd's (Unix seconds); 0: never
    fault: str = ""
    unusable: Mapping[str, str] | None = None
    advice: str = ""  # what to do where nothing is listed, if it is not the usual
    names: tuple[str, ...] = ()  # services that there are, as far as that was looked up
    is_waiting: bool = False  # for the registry's first answer
    awaited: tuple[str, ...] = ()  # addresses whose host names channels wait for

    @property
    def callables(self) -> int:
        """Count the endpoints that calls may go to and that can be dialled."""
        snapshot, unusable = self.view.snapshot, self.unusable or {}
        return sum(each.is_callable and each.address not in unusable for each in snapshot.endpoints) if snapshot else 0


def explain(service: str, facts: Facts) -> Reason:
    """Return what is wrong with a service and what to do about it."""
    view = facts.view
    if facts.fault:
        return Reason(Cause.INTERNAL, f"{facts.fault}; retrying; the log has the traceback")
    if view.source is Source.STALE:
        return Reason(Cause.UNCONFIRMED, view.reason)
    if view.is_denied:
        return _denied(view, MISSPELT)
    if facts.error and not facts.is_waiting:
        return _unreachable(facts)
    if facts.is_waiting or view.snapshot is None:
        return _pending(service, facts)
    return _lacking(service, facts, view.snapshot) or _half_denied(view)


def describe_shortfall(facts: Facts, at_least: int, usable: int) -> str:
    """Return how many endpoints were waited for, how many channels have, and what keeps the others out.

    Names at most three of the others: those that cannot be dialled or decoded before those that accept no calls.
    """
    out = list(_left_out(facts))
    names = [f"{name} ({why})" for name, why in out[:_MOST_NAMES]]
    if more := len(out) - len(names):
        names.append(f"{more} more")
    tail = f"; not counted: {', '.join(names)}" if names else ""
    under_way = facts.callables - usable
    late = f" ({under_way} more not passed on to channels yet)" if under_way > 0 else ""
    return f"calls can go to {usable} of at least {at_least} endpoints that were waited for{late}{tail}"


def _left_out(facts: Facts) -> Iterator[tuple[str, str]]:
    snapshot, unusable = facts.view.snapshot, facts.unusable or {}
    if snapshot is None:
        return
    yield from ((each.address, unusable[each.address]) for each in snapshot.endpoints if each.address in unusable)
    yield from ((key.decode(errors="replace"), why) for key, why in sorted(snapshot.rejected.items()))
    for each in snapshot.endpoints:
        if not each.is_callable and each.address not in unusable:
            yield each.address, _why_no_calls(each)


def _why_no_calls(endpoint: Endpoint) -> str:
    if not endpoint.enable:
        return "disabled"
    return "weight 0" if endpoint.healthy else "not healthy"


def _pending(service: str, facts: Facts) -> Reason:
    remedy = f". {facts.remedy.rstrip('.')}" if facts.remedy else ""
    error = f": {facts.error.rstrip('.')}; retrying{remedy}" if facts.error else ""
    return Reason(Cause.PENDING, f"etcd has not answered yet about {facts.whereabouts or service}{error}")


def _lacking(service: str, facts: Facts, snapshot: Snapshot) -> Reason | None:
    if not snapshot.endpoints:
        return _broken(snapshot.rejected) if snapshot.rejected else _missing(service, facts)
    if not facts.view.callables:
        count = len(snapshot.endpoints)
        return Reason(
            Cause.DISABLED,
            f"all {count} registered endpoints are disabled, not healthy or have weight 0: enable one, or add another",
        )
    if facts.awaited:
        return Reason(
            Cause.PENDING, f"these host names have not been resolved yet: {', '.join(facts.awaited[:_MOST_NAMES])}"
        )
    if facts.unusable and not facts.callables:
        address, why = next(iter(sorted(facts.unusable.items())))
        return Reason(Cause.UNUSABLE, f"no registered endpoint can be dialled; {address}: {why}")
    return None


def _missing(service: str, facts: Facts) -> Reason:
    # Its own name is among them where its last endpoint has gone since they were looked up.
    others = [name for name in facts.names if name != service]
    near = difflib.get_close_matches(service, others, _MOST_NAMES)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif facts.advice:
        hint = facts.advice
    else:
        command = f"grpc-etcd check {quote_argument(service)}"
        hint = f"check the name, the prefix and the layout: {command} says what is wrong"
    return Reason(Cause.MISSING, f"the registry has 0 endpoints under {facts.whereabouts or service}; {hint}")


def _broken(rejected: Mapping[bytes, str]) -> Reason:
    key, why = next(iter(sorted(rejected.items())))
    count = f"all {len(rejected)} records are" if len(rejected) > 1 else "the only record is"
    name = Rejected(key.decode(errors="replace")).reason  # a key may be as long as a value
    return Reason(Cause.BROKEN, f"{count} broken; {name}: {why}")


def _denied(view: ResolverState, tail: str) -> Reason:
    names = " and ".join(prefix.decode(errors="replace") for prefix, _ in view.refused)
    why = view.refused[0][1].rstrip(".")
    lacking = [prefix for prefix, said in view.refused if _PERMISSION in said]
    grant = f". {describe_grant('read', *lacking)}" if lacking else ""
    return Reason(Cause.DENIED, f"etcd denies reading {names} with these credentials: {why}{grant}{tail}")


def _half_denied(view: ResolverState) -> Reason:
    return _denied(view, "; everything else is used") if view.refused else Reason(Cause.NONE, "")


def _unreachable(facts: Facts) -> Reason:
    known = ""
    if facts.view.snapshot is not None:
        age = f" of {_time(facts.last_seen_at)}" if facts.last_seen_at else ""
        known = f"; the last known endpoints{age} are used ({len(facts.view.snapshot.endpoints)} endpoints)"
    cause = _cause(facts.error)
    remedy = _REMEDIES.get(cause, facts.remedy).rstrip(".")
    text = f"{_WORDS[cause]} since {_time(facts.since)}: {facts.error.rstrip('.')}. {remedy}{known}"
    return Reason(cause, text)


_WORDS = {
    Cause.UNREACHABLE: "etcd cannot be watched",
    Cause.TLS: "etcd cannot be watched, because TLS to it fails,",
    Cause.UNKNOWN_HOST: "etcd cannot be watched, because its host name cannot be resolved,",
    Cause.AUTHENTICATION: "etcd cannot be watched, because it rejects the login,",
}


_REMEDIES = {
    Cause.TLS: "Check whether etcd uses TLS, then the CA, the client's certificate and key, and the server name",
    Cause.UNKNOWN_HOST: "Check the names in etcd's endpoints (some resolve in one namespace only), and the DNS server",
}


def _cause(error: str) -> Cause:
    """Report errors of the connection apart; gRPC does by their text alone."""
    text = error.lower()
    if any(word in text for word in _NAME):
        return Cause.UNKNOWN_HOST
    if any(word in text for word in _CERTIFICATE):
        return Cause.TLS
    if "authentication" in text or "password" in text or "user name" in text or "auth token" in text:
        return Cause.AUTHENTICATION
    return Cause.UNREACHABLE


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S UTC")


def nearest(service: str, keys: Iterable[bytes], prefixes: Iterable[bytes]) -> tuple[str, ...]:
    """Return the services whose keys stand where those of `service` would, by the place of its name in the prefixes."""
    found: dict[str, None] = {}
    for prefix in prefixes:
        head, name, tail = prefix.rpartition(service.encode())
        if not name or not tail:
            continue
        for key in keys:
            rest = key.removeprefix(head)
            if rest != key and tail in rest:
                found[rest.split(tail, 1)[0].decode(errors="replace")] = None
    return tuple(found)

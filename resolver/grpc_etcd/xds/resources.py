"""The xDS v3 messages that a gRPC client asks for, and the two that carry them.

Only the fields that gRPC clients read are here. The values come from `localities` and `service`, which decide; this
module only writes them down. Timeouts are left out on purpose: gRPC applies those of xDS one to two seconds early
(https://github.com/grpc/grpc/issues/40633). Pure; tests compare every message with the generated classes of xds-protos.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from grpc_etcd.registry.policy import (
    LEAST_RETRY_SECONDS,
    Balancing,
    LoadBalancing,
    OutlierDetection,
    Policy,
    Retry,
    RetryOn,
)
from grpc_etcd.xds import wire

_ENVOY = "type.googleapis.com/envoy"
LISTENER = f"{_ENVOY}.config.listener.v3.Listener"
CLUSTER = f"{_ENVOY}.config.cluster.v3.Cluster"
ASSIGNMENT = f"{_ENVOY}.config.endpoint.v3.ClusterLoadAssignment"
_LB = "envoy.extensions.load_balancing_policies"
_HEALTHY = 1  # envoy.config.core.v3.HealthStatus
_EDS = 3  # envoy.config.cluster.v3.Cluster.DiscoveryType
_XX_HASH = 1  # the only hash function that gRPC accepts (gRFC A42)
_RETRY_WORDS = {
    RetryOn.UNAVAILABLE: "unavailable",
    RetryOn.CANCELLED: "cancelled",
    RetryOn.DEADLINE_EXCEEDED: "deadline-exceeded",
    RetryOn.INTERNAL: "internal",
    RetryOn.RESOURCE_EXHAUSTED: "resource-exhausted",
}


class Socket(NamedTuple):
    """An IP address (no host name: gRPC refuses the whole set for one) and a port."""

    ip: str
    port: int


class Target(NamedTuple):
    """One endpoint as gRPC dials it: its sockets, the likeliest first, and a weight that only ring hash reads."""

    sockets: tuple[Socket, ...]
    weight: int = 1


class Locality(NamedTuple):
    """Targets that are balanced among each other; its weight counts against those of the same priority, 0 the first."""

    region: str
    zone: str
    sub_zone: str
    weight: int
    priority: int
    targets: tuple[Target, ...]


class ClusterShare(NamedTuple):
    """A cluster and its share of a route's calls."""

    cluster: str
    weight: int


@dataclass(frozen=True, slots=True)
class Route:
    """Where the calls go whose path is `path`, or begins with it if `is_prefix`."""

    path: str
    is_prefix: bool
    shares: tuple[ClusterShare, ...]
    retry: Retry | None = None


def listener(name: str, virtual_hosts: Iterable[bytes]) -> bytes:
    """Write the Listener of a target with its routes inside: a channel takes the virtual host of its authority."""
    hosts = b"".join(wire.message(2, host) for host in virtual_hosts)
    route_configuration = wire.text(1, name) + hosts
    router = wire.text(1, "router") + wire.packed_any(4, "envoy.extensions.filters.http.router.v3.Router", b"")
    manager = wire.message(4, route_configuration) + wire.message(5, router)
    manager_type = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    return wire.text(1, name) + wire.message(19, wire.packed_any(1, manager_type, manager))


def virtual_host(domain: str, routes: Iterable[Route], policy: Policy) -> bytes:
    """Write a VirtualHost for an authority (`*`: for any): the first route that matches a call takes it."""
    actions = b"".join(wire.message(3, _route(route, policy)) for route in routes)
    return wire.text(1, domain) + wire.text(2, domain) + actions


def _route(route: Route, policy: Policy) -> bytes:
    kind = 1 if route.is_prefix else 2
    match = wire.message(kind, route.path.encode())  # a present but empty prefix matches everything
    return wire.message(1, match) + wire.message(2, _route_action(route.shares, route.retry, policy))


def _route_action(shares: tuple[ClusterShare, ...], retry: Retry | None, policy: Policy) -> bytes:
    if len(shares) == 1:
        action = wire.text(1, shares[0].cluster)
    else:
        weighted = (wire.text(1, share.cluster) + wire.uint32_value(2, share.weight) for share in shares)
        action = wire.message(3, b"".join(wire.message(1, share) for share in weighted))
    if retry and retry.attempts > 1:  # gRPC refuses a number of retries of 0
        action += wire.message(9, _retry(retry))
    if policy.load_balancing and policy.load_balancing.hash_header:
        header = wire.message(1, wire.text(1, policy.load_balancing.hash_header))
        action += wire.message(15, header)
    return action


def _retry(retry: Retry) -> bytes:
    shortest = max(LEAST_RETRY_SECONDS, retry.base_interval_seconds)
    longest = max(shortest, retry.max_interval_seconds)
    back_off = wire.duration(1, shortest) + wire.duration(2, longest)
    words = ",".join(_RETRY_WORDS[code] for code in retry.retry_on)
    return wire.text(1, words) + wire.uint32_value(2, retry.attempts - 1) + wire.message(8, back_off)


def cluster(name: str, assignment_name: str, policy: Policy, *, weighted: bool) -> bytes:
    """Write the Cluster whose endpoints come from the assignment of that name over the same stream.

    `weighted`: the weights of localities count, else all endpoints of one priority get the same share.
    """
    from_same_stream = wire.message(3, b"")  # core.v3.ConfigSource.ads
    discovery = wire.message(1, from_same_stream) + wire.text(2, assignment_name)
    body = wire.text(1, name) + wire.integer(2, _EDS) + wire.message(3, discovery)
    if policy.outlier_detection and policy.outlier_detection.max_ejection_percent:
        body += wire.message(19, _outlier_detection(policy.outlier_detection))
    return body + wire.message(41, _balancing(policy.load_balancing or LoadBalancing(), weighted=weighted))


def _outlier_detection(wish: OutlierDetection) -> bytes:
    longest = max(wish.base_ejection_seconds, wish.max_ejection_seconds)
    return (
        wire.duration(2, wish.interval_seconds)
        + wire.duration(3, wish.base_ejection_seconds)
        + wire.uint32_value(4, wish.max_ejection_percent)
        + wire.uint32_value(6, 0)  # success rate: off
        + wire.uint32_value(16, wish.failure_percentage)
        + wire.uint32_value(17, 100)  # percent of the found outliers that are ejected
        + wire.uint32_value(19, wish.minimum_hosts)
        + wire.uint32_value(20, wish.request_volume)
        + wire.duration(21, longest)
    )


def _balancing(wish: LoadBalancing, *, weighted: bool) -> bytes:
    if wish.type is Balancing.RING_HASH:
        return _balancing_policy(f"{_LB}.ring_hash.v3.RingHash", wire.integer(1, _XX_HASH))
    round_robin = _balancing_policy(f"{_LB}.round_robin.v3.RoundRobin", b"")
    if not weighted:  # two decisions less for each call: 2 % of the calls per second of one thread (measured)
        return round_robin
    return _balancing_policy(f"{_LB}.wrr_locality.v3.WrrLocality", wire.message(1, round_robin))


def _balancing_policy(type_name: str, body: bytes) -> bytes:
    extension = wire.text(1, type_name) + wire.packed_any(2, type_name, body)
    return wire.message(1, wire.message(4, extension))


def assignment(name: str, localities: Iterable[Locality]) -> bytes:
    """Write the ClusterLoadAssignment: the endpoints of a cluster."""
    return wire.text(1, name) + b"".join(wire.message(2, _locality(locality)) for locality in localities)


def _locality(locality: Locality) -> bytes:
    place = wire.text(1, locality.region) + wire.text(2, locality.zone) + wire.text(3, locality.sub_zone)
    return (
        wire.message(1, place)
        + b"".join(map(_target, locality.targets))
        + wire.uint32_value(3, locality.weight)
        + wire.integer(5, locality.priority)
    )


@lru_cache(maxsize=20_000)  # twice the largest set that is measured: an update writes only what is new
def _target(target: Target) -> bytes:
    first, *others = target.sockets
    endpoint = wire.message(1, _address(first))
    endpoint += b"".join(wire.message(4, wire.message(1, _address(other))) for other in others)
    body = wire.message(1, endpoint) + wire.integer(2, _HEALTHY) + wire.uint32_value(4, target.weight)
    return wire.message(2, body)


def _address(socket: Socket) -> bytes:
    return wire.message(1, wire.text(2, socket.ip) + wire.integer(3, socket.port))


@dataclass(frozen=True, slots=True)
class DiscoveryRequest:
    """What a client says on its stream: the names it wants of one type, or why it refused the last answer.

    `version` is that of the last answer it has taken, maybe on another stream.
    """

    type_url: str
    names: tuple[str, ...] = ()
    nonce: str = ""
    refusal: str = ""
    version: str = ""


# Field numbers of envoy.service.discovery.v3.DiscoveryRequest and of google.rpc.Status.
_VERSION, _NAMES, _TYPE_URL, _NONCE, _ERROR_DETAIL = 1, 3, 4, 5, 6
_STATUS_MESSAGE = 2
_LONGEST_REFUSAL = 64 << 10  # characters that are looked at; arbitrary: each name is looked for in them


def read_request(data: bytes) -> DiscoveryRequest:
    """Read a DiscoveryRequest; raises MalformedMessageError."""
    found: dict[int, list[bytes]] = {_VERSION: [b""], _NAMES: [], _TYPE_URL: [b""], _NONCE: [b""], _ERROR_DETAIL: []}
    for field, value in wire.read_fields(data):
        if isinstance(value, bytes) and field in found:
            found[field].append(value)
    return DiscoveryRequest(
        type_url=found[_TYPE_URL][-1].decode(),
        names=tuple(name.decode() for name in found[_NAMES]),
        nonce=found[_NONCE][-1].decode(),
        refusal=_status_message(found[_ERROR_DETAIL][-1]) if found[_ERROR_DETAIL] else "",
        version=found[_VERSION][-1].decode(),
    )


def _status_message(status: bytes) -> str:
    fields = ((field, value) for field, value in wire.read_fields(status) if isinstance(value, bytes))
    texts = [value.decode(errors="replace") for field, value in fields if field == _STATUS_MESSAGE]
    return texts[-1][:_LONGEST_REFUSAL] if texts else "refused without a reason"


def response(version: int, type_url: str, nonce: str, bodies: Iterable[bytes]) -> bytes:
    """Write a DiscoveryResponse."""
    packed = (wire.message(2, wire.text(1, type_url) + wire.message(2, body)) for body in bodies)
    return wire.text(1, str(version)) + b"".join(packed) + wire.text(4, type_url) + wire.text(5, nonce)

"""All that the channels of one service are sent: its clusters, its routes, its policy. Pure.

A cluster is a selection of the service's endpoints: all of them, a group, or one address. Routes send the calls of a
method to groups or addresses by weight (a canary); a share without a callable endpoint is left out, and a route without
any share falls back to all endpoints, because a route must never be the reason for a failed call.
"""

import enum
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Policy
from grpc_etcd.xds import resources
from grpc_etcd.xds.localities import NO_PAST, Dialable, Here, Past, choose_localities, is_callable
from grpc_etcd.xds.names import ResourceName, Selection
from grpc_etcd.xds.resources import ClusterShare, Locality, Route
from grpc_etcd.xds.retries import apply_retries, read_retries


@dataclass(frozen=True, slots=True)
class MethodRoute:
    """Where the calls of `method` go: groups and single addresses, by weight (whole numbers, at least 0).

    `method` is `/package.Service/Method`, or a prefix if it ends in `/` or `*`; if empty, the route applies to all
    methods.
    """

    method: str = ""
    groups: Mapping[str, int] = field(default_factory=dict, hash=False)
    addresses: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("groups", "addresses"):
            if not isinstance(value := getattr(self, name), Mapping):
                raise TypeError(f"MethodRoute.{name}: {value!r} is not a mapping such as {{'canary': 10}}")
            object.__setattr__(self, name, dict(value))  # what is changed later changes no route


class Part(NamedTuple):
    """A selection of a service's endpoints."""

    selection: Selection
    selected: str = ""

    def holds(self, dialable: Dialable) -> bool:
        """Return whether an endpoint is of this part."""
        if self.selection is Selection.GROUP:
            return dialable.endpoint.group == self.selected
        return self.selection is Selection.ALL or dialable.endpoint.address == self.selected


ALL = Part(Selection.ALL)
_MOST_WEIGHT = 2**32 - 1  # of all clusters of a route together; gRPC refuses the listener for more
_LONGEST_SELECTED = 500  # characters of a group's or an address's name; arbitrary, as it is in each message
_LONGEST_METHOD = 8192  # gRPC refuses the headers of a call with a longer path
_IDLE_SECONDS = 900.0  # how long gRPC itself keeps the connections of a cluster that nothing leads to
_MOST_IDLE = 16  # arbitrary
_ROOM_BYTES = 16 << 10  # arbitrary: of the 64 KiB that a virtual host may have; where routes take more, none is held
_MOST_FAULTS = 20  # arbitrary: of routes, that are reported
_LONGEST_SHOWN = 100  # characters of what a route names; arbitrary
_SHARE_BYTES = 100  # about what a share of a route takes besides the name
_Shares = tuple[tuple[Part, int], ...]


class Gap(enum.Enum):
    """Why nothing is known of a service."""

    OUTAGE = enum.auto()  # etcd has not answered, and may soon
    OWN = enum.auto()  # not everybody's, and may last: a denied permission, or one of several registries down


@dataclass(frozen=True, slots=True)
class ServiceResources:
    """One service as xDS sees it. `clusters` of None: the endpoints are unknown, which is not the same as none.

    `reason` says in a sentence what is wrong with the service and what to do, for the details of failed calls; empty
    where all is well. `in_words`: see ResourceName.explain. `turns`, `idle`: see Turns. `gap`: why the clusters are
    empty though nothing, or not all, is known of the service.
    """

    policy: Policy = field(default_factory=Policy)
    routes: tuple[tuple[str, _Shares], ...] = ()
    clusters: Mapping[Part, tuple[Locality, ...]] | None = None
    reason: str = ""
    in_words: bool = False
    turns: Mapping[Part, int] = field(default_factory=dict)
    idle: tuple[Part, ...] = ()
    gap: Gap | None = None

    @property
    def is_known(self) -> bool:
        """Return whether the registry has said what there is."""
        return self.clusters is not None and self.gap is None

    def spared(self) -> "ServiceResources | None":
        """Return what leaves a client the endpoints that it has; None: only to send nothing, of others neither."""
        return replace(self, clusters=None, reason="") if self.gap is Gap.OWN else None

    @property
    def parts(self) -> frozenset[Part]:
        """Return what the routes lead to by name; all endpoints are never left."""
        return frozenset(part for _, shares in self.routes for part, _ in shares)

    @property
    def size(self) -> int:
        """Count the endpoints that are sent."""
        chosen = self.clusters.get(ALL, ()) if self.clusters else ()
        return sum(len(locality.targets) for locality in chosen)

    def answer(self, type_url: str, requested: str, name: ResourceName) -> bytes | None:
        """Write the resource under the very name it was requested by; None means that it cannot be known yet."""
        match type_url:
            case resources.LISTENER:
                return resources.listener(requested, [self.virtual_host(name, "*")])
            case resources.CLUSTER:
                weighted = any(locality.weight != len(locality.targets) for locality in self._localities(name))
                return resources.cluster(requested, self._assignment(name), self.policy, weighted=weighted)
            case resources.ASSIGNMENT if self.clusters is not None:
                return resources.assignment(requested, self._localities(name))
        return None

    def _assignment(self, name: ResourceName) -> str:
        """Name the assignment of a cluster: gRPC puts that name into the details of calls while it is empty."""
        if self.reason and self.clusters is not None and not self._localities(name):
            return name.explain(resources.ASSIGNMENT, self.reason, in_words=self.in_words)
        return name.format(resources.ASSIGNMENT)

    def virtual_host(self, name: ResourceName, domain: str) -> bytes:
        """Write the part of a listener that serves the authority `domain` (`*`: any)."""
        return resources.virtual_host(domain, self._routes(name), self.policy)

    def plain(self) -> "ServiceResources":
        """Return the same endpoints without a wish, for a gRPC that refuses what is wished."""
        everyone = {ALL: self.clusters.get(ALL, ())} if self.clusters is not None else None
        return ServiceResources(clusters=everyone, reason=self.reason, in_words=self.in_words, gap=self.gap)

    def _localities(self, name: ResourceName) -> tuple[Locality, ...]:
        """Return a cluster's endpoints; those of all to one that no route leads to any more.

        Calls may be on their way to it that were given it a moment before gRPC learned of the other routes.
        """
        clusters = self.clusters or {}
        return clusters.get(Part(name.selection, name.selected), clusters.get(ALL, ()))

    def _routes(self, name: ResourceName) -> Iterable[Route]:
        routes = list(self._own_routes(name))
        retries = read_retries(name.selected) if name.selection is Selection.RETRIES else None
        return [*(apply_retries(routes, retries) if retries else routes), *self._idle_route(name)]

    def _idle_route(self, name: ResourceName) -> Iterator[Route]:
        """Refer to clusters that no call is to go to: all calls match the route before this one."""
        if self.idle:
            shares = (ClusterShare(self._cluster(name, part), 1) for part in self.idle)
            yield Route("", is_prefix=True, shares=tuple(shares))

    def _own_routes(self, name: ResourceName) -> Iterator[Route]:
        for method, shares in (*self.routes, ("", ((ALL, 1),))):
            clusters = (ClusterShare(self._cluster(name, part), weight) for part, weight in shares)
            is_prefix = method == "" or method[-1] in "/*"
            yield Route(method.rstrip("*"), is_prefix, tuple(clusters), self.policy.retry)

    def _cluster(self, name: ResourceName, part: Part) -> str:
        return name.select(*part, self.turns.get(part, 0)).format(resources.CLUSTER)


class Turns:
    """Of one service: by which number each part goes that its routes lead to. No part has the same number twice.

    A cluster that comes back into the routes just when the last call that was given it ends is taken up again by gRPC
    after it was let go, and the process dies when it is let go again (grpcio 1.85.3). Under another name it is another,
    with connections of its own, beside those that gRPC keeps of the one before. So a part that leaves the routes while
    it has endpoints is held as idle, for as long as gRPC would keep it: if it comes back by then, it is the same one.
    """

    def __init__(self) -> None:
        self._numbers: Mapping[Part, int] = {}
        self._left_at: Mapping[Part, float] = {}
        self._departures = 0
        self.has_departed = False  # with what was noted last: gRPC keeps what it has left for 15 minutes

    def known(self, now: float) -> tuple[Part, ...]:
        """Return the parts that are to be held if the routes no longer lead to them, those that left last first."""
        held = [part for part in self._numbers if now - self._left_at.get(part, now) < _IDLE_SECONDS]
        return tuple(sorted(held, key=lambda part: self._left_at.get(part, now), reverse=True))

    @property
    def due(self) -> float:
        """Return when the next part has been idle for so long that it is held no more."""
        return min(self._left_at.values(), default=math.inf) + _IDLE_SECONDS

    def note(self, made: ServiceResources, now: float) -> ServiceResources:
        """Number the parts of what is sent next."""
        parts = made.parts.union(made.idle)
        self.has_departed = bool(self._numbers.keys() - parts)
        self._departures += self.has_departed
        self._numbers = {part: self._numbers.get(part, self._departures) for part in parts}
        self._left_at = {part: self._left_at.get(part, now) for part in made.idle}
        return replace(made, turns=self._numbers)


@dataclass(frozen=True, slots=True)
class SharedResources:
    """A listener that several services share: a virtual host for each, and one for calls of who is not there yet.

    A channel may be quicker than the news that its service has joined the listener. Its calls then go to a cluster
    whose endpoints are never known, where they wait until the service's own virtual host is there.
    """

    virtual_hosts: tuple[bytes, ...] = ()
    is_known: ClassVar[bool] = True

    def answer(self, type_url: str, requested: str, name: ResourceName) -> bytes | None:
        """Write the listener, or the cluster of who is not there yet."""
        match type_url:
            case resources.LISTENER:
                return resources.listener(requested, [*self.virtual_hosts, _UNKNOWN.virtual_host(name, "*")])
            case resources.CLUSTER:
                return _UNKNOWN.answer(type_url, requested, name)
        return None

    def spared(self) -> None:
        """Return nothing: it is known."""

    def plain(self) -> "SharedResources":
        """Return itself: what is at fault in it is a member's."""
        return self


_UNKNOWN = ServiceResources()


def make_service_resources(  # noqa: PLR0913 - each is decided elsewhere
    dialables: Sequence[Dialable],
    policy: Policy,
    routes: Iterable[MethodRoute],
    here: Here,
    past: Past = NO_PAST,
    *,
    earlier: Iterable[Part] = (),
) -> ServiceResources:
    """Decide everything for one service from its endpoints and wishes; `earlier` parts are held if they have any."""
    callables = [dialable for dialable in dialables if is_callable(dialable.endpoint)]
    shares = tuple((route.method, _shares(route, callables)) for route in routes)
    chosen = dict.fromkeys(part for _, parts in shares for part, _ in parts)
    idle = _idle((part for part in earlier if part not in chosen), callables, sum(map(_route_bytes, shares)))
    parts = [ALL, *chosen, *idle]
    clusters = {part: choose_localities(filter(part.holds, callables), policy, here, past) for part in parts}
    return ServiceResources(policy, _exact_first(shares), MappingProxyType(clusters), idle=idle)


def route_faults(routes: Iterable[MethodRoute], endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    """Report which routes no call can match, and which of the groups and addresses that they name nobody has."""
    groups, addresses = set[str](), set[str]()
    for endpoint in endpoints:
        groups.add(endpoint.group)
        addresses.add(endpoint.address)
    found: list[str] = []
    for route in routes:
        faults = [] if _can_match(route.method) else ["no call can have such a method"]
        for text, weights, known in (
            ("no endpoint is in the group", route.groups, groups),
            ("no endpoint has the address", route.addresses, addresses),
        ):
            faults += [f"{text} {_shown(name)}" for name, weight in weights.items() if weight > 0 and name not in known]
        method = _shown(route.method) if route.method else "all methods"
        found += [f"the route of {method}: {fault}" for fault in faults[: _MOST_FAULTS - len(found)]]
    return tuple(found)


def match_faults(wanted: Mapping[str, str], endpoints: Sequence[Endpoint]) -> tuple[str, ...]:
    """Report that no endpoint has the metadata that the policy selects, so that all are called."""
    if not wanted or not endpoints or any(wanted.items() <= each.metadata.items() for each in endpoints):
        return ()
    shown = ", ".join(_shown(f"{key}={value}") for key, value in sorted(wanted.items()))
    return (f"match_metadata: no endpoint has the metadata {shown}, so all are called",)


def _shown(text: str) -> str:
    return f"{text[:_LONGEST_SHOWN]!r}{'...' if len(text) > _LONGEST_SHOWN else ''}"


def _idle(earlier: Iterable[Part], callables: Sequence[Dialable], taken_bytes: int) -> tuple[Part, ...]:
    """Choose what is held: parts with endpoints, as many as leave room for routes."""
    held: list[Part] = []
    for part in earlier:
        taken_bytes += _share_bytes(part)
        if taken_bytes > _ROOM_BYTES or len(held) == _MOST_IDLE:
            break
        if any(part.holds(each) for each in callables):
            held.append(part)
    return tuple(held)


def _route_bytes(route: tuple[str, _Shares]) -> int:
    method, shares = route
    return len(method) + sum(_share_bytes(part) for part, _ in shares)


def _share_bytes(part: Part) -> int:
    return _SHARE_BYTES + 3 * len(part.selected.encode())  # as most of it may be escaped


def _shares(route: MethodRoute, callables: Sequence[Dialable]) -> _Shares:
    wished = [(Part(Selection.GROUP, group), weight) for group, weight in route.groups.items()]
    wished += [(Part(Selection.ADDRESS, address), weight) for address, weight in route.addresses.items()]
    usable = [(part, weight) for part, weight in wished if weight > 0 and _can_be_named(part.selected)]
    if not _can_match(route.method):
        return ()
    return _scaled([(part, weight) for part, weight in usable if any(part.holds(each) for each in callables)])


def _can_be_named(selected: str) -> bool:
    """Return whether a resource's name can hold it: JSON can hold lone halves of pairs, which are not Unicode."""
    return len(selected) <= _LONGEST_SELECTED and not any("\ud800" <= character <= "\udfff" for character in selected)


def _can_match(method: str) -> bool:
    """Return whether calls can have such a path; gRPC refuses some of those that cannot."""
    is_path = method.startswith("/") and method.isascii() and method.isprintable()
    return method in ("", "*") or (is_path and len(method) <= _LONGEST_METHOD)


def _scaled(shares: Sequence[tuple[Part, int]]) -> _Shares:
    """Scale weights down where their sum is more than gRPC takes; none becomes 0."""
    total = sum(weight for _, weight in shares)
    if total <= _MOST_WEIGHT:
        return tuple(shares)
    room = _MOST_WEIGHT - len(shares)
    return tuple((part, max(1, int(weight * room // total))) for part, weight in shares)


def _exact_first(shares: tuple[tuple[str, _Shares], ...]) -> tuple[tuple[str, _Shares], ...]:
    """Order routes so that the most special one matches first: whole names, then long prefixes before short ones."""
    usable = [(method, chosen) for method, chosen in shares if chosen]
    return tuple(sorted(usable, key=lambda route: (route[0][-1:] in ("", "/", "*"), -len(route[0]), route[0])))

"""From what is known of services to what their channels are told: one thread per registry.

The first change of a service goes out at once. What follows is gathered for a while that grows with the set, because an
update costs gRPC time in proportion to it (6 ms of CPU at 10 endpoints, 0.1 s at 1,000): a registry that changes a
thousand times a second must not eat a client's CPU.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from grpc_etcd.feed import ViewSource
from grpc_etcd.registry.configurators import RouteConfig
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Policy
from grpc_etcd.xds.hosts import HostNames, read_socket
from grpc_etcd.xds.localities import Dialable, Here
from grpc_etcd.xds.resources import Socket
from grpc_etcd.xds.service import MethodRoute, ServiceResources, make_service_resources

_LOG = logging.getLogger("grpc_etcd")
_PAUSE_SECONDS = 0.01
_PAUSE_SECONDS_PER_ENDPOINT = (
    0.0003  # three times what an update costs gRPC: it never takes more than a third of a core
)
_SWEEP_SECONDS = 10.0  # arbitrary: how often followed services are looked at whether anybody still wants them


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the program asks for one service; it goes before what the registry says."""

    policy: Policy = field(default_factory=Policy)
    routes: tuple[MethodRoute, ...] | None = None
    strict_removal: bool = False


class FollowedService:
    """One service of one registry: its feed, the program's wishes, and what was published last."""

    def __init__(
        self,
        name: str,
        make_feed: Callable[[Callable[[], None]], ViewSource],
        changed: Callable[["FollowedService"], None],
    ) -> None:
        self.name = name
        self.wishes = Wishes()
        self.feed = make_feed(lambda: changed(self))
        self.published: ServiceResources | None = None
        self.policy = Policy()
        self.unusable: Mapping[str, str] = {}
        self.updates = 0
        self.refusals = 0
        self.last_refusal = ""
        self.needed_at = time.monotonic()
        self.pins = 0
        self.not_before = 0.0
        self._sockets: frozenset[Socket] = frozenset()
        self._generation = 0

    def __repr__(self) -> str:
        return f"<FollowedService {self.name!r} updates={self.updates} {self.feed!r}>"

    def hosts(self) -> set[str]:
        """Give the host names among the addresses."""
        snapshot = self.feed.view.snapshot
        read = (read_socket(endpoint.address) for endpoint in snapshot.endpoints) if snapshot else ()
        return {found[0] for found in read if found and not isinstance(found, Socket)}

    def render(self, names: HostNames, here: Here) -> ServiceResources | None:
        """Decide what the channels are told now; None means: nothing yet."""
        view = self.feed.view
        self.policy = self.wishes.policy.over(view.policy)
        if view.snapshot is None:
            return ServiceResources(self.policy, clusters={}) if self.feed.freshness.error else None
        dialables, unusable, pending = _resolve(view.snapshot.endpoints, names)
        self._report(unusable)
        if pending and not dialables:
            return None
        self._note_sockets(frozenset(socket for dialable in dialables for socket in dialable.sockets))
        routes = map(_method_route, view.routes) if self.wishes.routes is None else self.wishes.routes
        return make_service_resources(dialables, self.policy, routes, here, self._generation)

    def pause_seconds(self) -> float:
        """Say how long the next update has to wait after this one."""
        told = self.published.size if self.published else 0
        return _PAUSE_SECONDS + _PAUSE_SECONDS_PER_ENDPOINT * told

    def explain(self, timeout_seconds: float | None) -> str:
        """Say why the service is not there, to somebody who has waited for it."""
        view, fresh = self.feed.view, self.feed.freshness
        if fresh.error:
            reason = f"etcd cannot be followed: {fresh.error}"
        elif view.snapshot is None:
            reason = "etcd has not answered yet"
        else:
            found, broken = len(view.snapshot.endpoints), len(view.snapshot.rejected)
            reason = f"the registry has {found} endpoints, and {broken} records that cannot be read"
        return f"{self.name!r} is not there after {timeout_seconds} s: {reason}"

    def note_refusal(self, reason: str) -> None:
        """Take note that gRPC refused a set whole, and stays on the one before."""
        self.refusals += 1
        self.last_refusal = reason
        _LOG.error("%s: gRPC refused the set it was told: %s", self.name, reason)

    def _note_sockets(self, sockets: frozenset[Socket]) -> None:
        """With strict removal, a set without a survivor is a new generation: the old one is left at once.

        Otherwise gRPC goes on with the removed endpoints until one of the new set can be reached, at most 20 s.
        """
        if self.wishes.strict_removal and self._sockets and sockets and not self._sockets & sockets:
            self._generation += 1
        self._sockets = sockets

    def _report(self, unusable: Mapping[str, str]) -> None:
        for address in unusable.keys() - self.unusable.keys():
            _LOG.warning("%s: the endpoint %s is left out: %s", self.name, address, unusable[address])
        self.unusable = unusable


def _method_route(config: RouteConfig) -> MethodRoute:
    return MethodRoute(config.uri, config.groups or {}, config.nodes or {})


def _resolve(endpoints: Iterable[Endpoint], names: HostNames) -> tuple[list[Dialable], dict[str, str], bool]:
    """Give what can be dialled, why the rest cannot be, and whether some host names are still being looked up."""
    dialables: list[Dialable] = []
    unusable: dict[str, str] = {}
    pending = False
    for endpoint in endpoints:
        match read_socket(endpoint.address):
            case Socket() as socket:
                dialables.append(Dialable(endpoint, (socket,)))
            case None:
                unusable[endpoint.address] = f"{endpoint.address!r} is not host:port with a port of 1 to 65535"
            case host, port:
                dialables.extend([Dialable(endpoint, sockets)] if (sockets := names.sockets(host, port)) else ())
                pending |= names.is_pending(host)
                if fault := names.fault(host):
                    unusable[endpoint.address] = fault
    return dialables, unusable, pending


class Publisher:
    """Renders changed services and hands them on. `publish` and `sweep` are called by this object's thread."""

    def __init__(
        self, here: Here, publish: Callable[[FollowedService, ServiceResources], None], sweep: Callable[[], None]
    ) -> None:
        self._here = here
        self._publish = publish
        self._sweep = sweep
        self._names = HostNames(self._names_changed)
        self._condition = threading.Condition()
        self._dirty: dict[FollowedService, None] = {}
        self._services: tuple[FollowedService, ...] = ()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="grpc-etcd-publisher", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def close(self) -> None:
        """Publish no more."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._names.close()

    def follow(self, services: Iterable[FollowedService]) -> None:
        """Say which services there are now."""
        self._services = tuple(services)

    def changed(self, service: FollowedService) -> None:
        """Have a service published soon. Returns at once; any thread may call it."""
        with self._condition:
            self._dirty[service] = None
            self._condition.notify()

    def _names_changed(self) -> None:
        for service in self._services:
            if service.hosts():
                self.changed(service)

    def _run(self) -> None:
        next_sweep = time.monotonic() + _SWEEP_SECONDS
        while not self._closed:
            due = self._wait(next_sweep)
            for service in due:
                self._render(service)
            if time.monotonic() >= next_sweep:
                next_sweep = time.monotonic() + _SWEEP_SECONDS
                self._sweep()

    def _wait(self, until: float) -> list[FollowedService]:
        """Wait for a service that is due, and take those that are."""
        with self._condition:
            now = time.monotonic()
            soonest = min((service.not_before for service in self._dirty), default=until)
            if soonest > now and not self._closed:
                self._condition.wait(min(soonest, until) - now)
            now = time.monotonic()
            due = [service for service in self._dirty if service.not_before <= now]
            for service in due:
                del self._dirty[service]
            return due

    def _render(self, service: FollowedService) -> None:
        if service.hosts() or self._names.in_use:
            self._names.use({host for each in {*self._services, service} for host in each.hosts()})
        resources = service.render(self._names, self._here)
        if resources is None or resources == service.published:
            return
        service.published = resources
        service.updates += 1
        self._publish(service, resources)
        service.not_before = time.monotonic() + service.pause_seconds()

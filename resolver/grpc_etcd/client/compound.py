"""Several registries as one: channels follow the union of their endpoints.

A registry that is down never holds up another: what the others know is used, and what it said last is kept. Where two
name the same address, the registry given first is believed; its policy goes before the others' field by field too.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import grpc

from grpc_etcd import options as checks
from grpc_etcd import settings
from grpc_etcd.client.aio import AioCompoundRegistry
from grpc_etcd.client.base import Following
from grpc_etcd.client.targets import service_name
from grpc_etcd.discovery.state import Source, View
from grpc_etcd.discovery.subscription import ViewSource
from grpc_etcd.discovery.waiting import OVER
from grpc_etcd.etcd import EtcdError
from grpc_etcd.registration.registrar import RegisterOptions, Registration, register_all, withdraw_all
from grpc_etcd.registration.server import DRAIN_SECONDS, Binding, BoundServer, check_server
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Policy
from grpc_etcd.registry.snapshot import Snapshot
from grpc_etcd.xds.localities import Here

if TYPE_CHECKING:
    from grpc_etcd.client.registry import Registry
    from grpc_etcd.discovery.publisher import FollowedService

_LOG = logging.getLogger("grpc_etcd")
_ReadT = TypeVar("_ReadT")


class CompoundRegistry(Following):
    """`CompoundRegistry([here, there])`; the parts stay the caller's to close."""

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self,
        parts: Iterable["Registry"],
        *,
        name: str | None = None,
        zone: str = "",
        region: str = "",
        cluster: str = "",
        client_id: str = "",
    ) -> None:
        self.parts = tuple(parts)
        if not self.parts:
            raise ValueError("a compound registry needs at least one registry")
        if wrong := [part for part in self.parts if not callable(getattr(part, "pinned", None))]:
            raise TypeError(f"{wrong[0]!r} is no Registry; a compound registry is made of some")
        told = {"name": name, "zone": zone, "region": region, "cluster": cluster, "client_id": client_id}
        checks.check_options(told)
        zone = zone or next((part.here.zone for part in self.parts if part.here.zone), "")
        region = region or next((part.here.region for part in self.parts if part.here.region), "")
        cluster = cluster or next((part.here.cluster for part in self.parts if part.here.cluster), "")
        super().__init__(name, Here(zone, region, client_id or settings.host_name(), cluster))

    def __repr__(self) -> str:
        return f"<CompoundRegistry {self.name!r} of {[part.name for part in self.parts]}>"

    @property
    def aio(self) -> AioCompoundRegistry:
        """The same registry for asyncio."""
        return AioCompoundRegistry(self)

    def list_services(self, service: str) -> tuple[Endpoint, ...]:
        """Do what `read_endpoints` does, whose older name this is; `services` lists the services."""
        return self.read_endpoints(service)

    def read_endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """Read the service's endpoints now, in all parts at once.

        A part that cannot be read is logged and left out; raises its EtcdError when none can be read.
        """
        read = self._read_parts(service, lambda part: part.read_endpoints(service))
        return _by_address(read)

    def services(self) -> Mapping[str, tuple[Endpoint, ...]]:
        """Read all services now, in all parts at once: their endpoints by name. A part may fail as above."""
        read = self._read_parts("all services", lambda part: part.services())
        names = sorted({name for services in read for name in services})
        found = {name: _by_address([services.get(name, ()) for services in read]) for name in names}
        return MappingProxyType(found)

    def _read_parts(self, what: str, read: "Callable[[Registry], _ReadT]") -> "list[_ReadT]":
        with ThreadPoolExecutor(len(self.parts)) as pool:
            readings = [pool.submit(read, part) for part in self.parts]
        failures = [error for reading in readings if (error := reading.exception())]
        for error in failures:
            if not isinstance(error, EtcdError) or len(failures) == len(readings):
                raise error
            _LOG.warning(
                "%s: one of several registries cannot be read: %s", what, error, extra={"event": "registry_unreadable"}
            )
        return [reading.result() for reading in readings if not reading.exception()]

    @checks.taking(RegisterOptions, "CompoundRegistry.register")
    def register(self, endpoint: Endpoint, **options: Unpack[RegisterOptions]) -> tuple[Registration, ...]:
        """Keep an endpoint registered in every part; returns at once, so one that is down holds up none.

        Each registration says for itself where it stands and what is wrong, in the order of the parts.
        """
        return register_all([part.registrar.prepare(endpoint, **options) for part in self.parts])

    def unregister(
        self, registrations: Iterable[Registration], timeout_seconds: float | None = None
    ) -> tuple[bool, ...]:
        """Withdraw what `register` gave, in all parts at once; says of each whether etcd confirmed it in time."""
        return withdraw_all(tuple(registrations), timeout_seconds)

    @checks.taking(RegisterOptions, "CompoundRegistry.registered")
    @contextmanager
    def registered(self, endpoint: Endpoint, **options: Unpack[RegisterOptions]) -> Iterator[tuple[Registration, ...]]:
        """Keep an endpoint registered in every part for as long as the block runs."""
        registrations = self.register(endpoint, **options)
        try:
            yield registrations
        finally:
            self.unregister(registrations)

    @checks.taking(RegisterOptions, "CompoundRegistry.bind")
    def bind(
        self,
        server: grpc.Server,
        endpoint: Endpoint | str,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        health: bool | str = False,
        **options: Unpack[RegisterOptions],
    ) -> BoundServer:
        """Give a server that is registered in every part from its `start` to its `stop`, as `Registry.bind` says."""
        check_server(server, is_aio=False)
        endpoint = service_name(endpoint) if isinstance(endpoint, str) else endpoint
        return BoundServer(server, self.make_binding(endpoint, options, drain_seconds, health))

    def make_binding(
        self,
        endpoint: Endpoint | str,
        options: RegisterOptions,
        drain_seconds: float,
        health: bool | str,  # noqa: FBT001 - as `bind` has it
    ) -> Binding:
        """Say what a bound server registers."""
        return Binding(
            lambda: [part.registrar for part in self.parts],
            endpoint,
            options,
            drain_seconds=drain_seconds,
            stop_seconds=max(part.stop_seconds for part in self.parts),
            health=health,
        )

    def _open(self) -> Any:
        return None

    def _close(self, opened: Any) -> None:
        pass

    def _make_feed(self, service: str, changed: Callable[[], None]) -> "UnionFeed":
        return UnionFeed(service, self.parts, changed)


class UnionFeed(ViewSource):
    """The feeds of one service in all parts, seen as one."""

    def __init__(self, service: str, parts: Sequence["Registry"], on_change: Callable[[], None]) -> None:
        super().__init__()
        self._service = service
        self._parts = parts
        self._on_change = on_change
        self._followed: tuple[FollowedService, ...] = ()
        self._pins = ExitStack()
        self._merging = threading.Lock()
        self.whereabouts = f"{len(parts)} registries"
        self._is_waiting = True

    def __repr__(self) -> str:
        return f"<UnionFeed {self._service!r} of {len(self._parts)}>"

    @property
    def waits_until(self) -> float:
        """Whether to wait: the parts say when that changes."""
        return math.inf if self._is_waiting else OVER

    def start(self) -> None:
        """Begin to follow the service in every part."""
        self._followed = tuple(self._pins.enter_context(part.pinned(self._service)) for part in self._parts)
        self.whereabouts = ", and under ".join(followed.feed.whereabouts for followed in self._followed)
        for followed in self._followed:
            self._pins.enter_context(followed.feed.notifying(self._merge))
        self._merge()

    def close(self) -> None:
        """Stop following."""
        self._pins.close()
        super().close()

    def _merge(self) -> None:
        """Join what the parts know; many threads call, and one at a time reads and tells."""
        with self._merging:
            feeds = [followed.feed for followed in self._followed]
            self.freshness = min((feed.freshness for feed in feeds), key=lambda fresh: (fresh.connected, fresh.since))
            self.heard_at = min(feed.heard_at for feed in feeds)
            self.fault = "; ".join(feed.fault for feed in feeds if feed.fault)
            self.names = tuple(dict.fromkeys(name for feed in feeds for name in feed.names))
            waiting = [feed.is_waiting for feed in feeds]  # before the views: whoever answers meanwhile calls again
            views = [feed.view for feed in feeds]
            self._is_waiting = is_waiting(views, waiting)
            self._announce(merge_views(self._service, views, [not each for each in waiting]))
        self._on_change()


def is_waiting(views: Sequence[View], waiting: Sequence[bool]) -> bool:
    """Tell whether a part may yet say whom to call, and none that waits no longer knows anybody."""
    known = any(view.callables for view, waits in zip(views, waiting, strict=True) if not waits)
    return any(waiting) and not known


def _by_address(read: Sequence[Sequence[Endpoint]]) -> tuple[Endpoint, ...]:
    """Join sets; where two name the same address, the first is believed."""
    endpoints = {endpoint.address: endpoint for found in reversed(read) for endpoint in found}
    return tuple(endpoints[address] for address in sorted(endpoints))


def merge_views(service: str, views: Sequence[View], failed: Sequence[bool] = ()) -> View:
    """Join what several registries say of one service.

    Unknown while all of them are; also while those that have answered know no endpoint that may be called, and another
    one has neither answered nor failed.
    """
    known = [(view, view.snapshot) for view in views if view.snapshot is not None]
    refused = tuple(each for view in views for each in view.refused)
    has_failed = [*failed, *[False] * (len(views) - len(failed))]
    is_open = any(view.snapshot is None and not gone for view, gone in zip(views, has_failed, strict=True))
    if not known or (is_open and not any(view.callables for view, _ in known)):
        return View(refused=refused, is_denied=not is_open and any(view.is_denied for view in views))
    endpoints = {each.address: each for _, snapshot in reversed(known) for each in snapshot.endpoints}
    snapshot = Snapshot(
        service,
        max(snapshot.revision for _, snapshot in known),
        tuple(endpoints[address] for address in sorted(endpoints)),
        {key: reason for _, snapshot in reversed(known) for key, reason in snapshot.rejected.items()},
    )
    policy = Policy()
    for view, _ in known:
        policy = policy.over(view.policy)
    return View(
        source=next((view.source for view, _ in known if view.source is not Source.REGISTRY), Source.REGISTRY),
        snapshot=snapshot,
        policy=policy,
        policy_faults=tuple(fault for view, _ in known for fault in view.policy_faults),
        routes=next((view.routes for view, _ in known if view.routes), ()),
        reason="; ".join(view.reason for view, _ in known if view.reason),
        refused=refused,
    )

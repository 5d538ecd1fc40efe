"""Several registries as one: channels follow the union of their endpoints.

A registry that is down never holds up another: what the others know is used, and what it said last is kept. Where two
name the same address, the registry given first is believed; its policy goes before the others' field by field too.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Unpack

import grpc

from grpc_etcd import settings
from grpc_etcd.aio import AioCompoundRegistry
from grpc_etcd.etcd import EtcdError
from grpc_etcd.feed import ViewSource
from grpc_etcd.following import Following
from grpc_etcd.registering.bound import DRAIN_SECONDS, Binding, BoundServer
from grpc_etcd.registering.registrar import RegisterOptions, Registration, withdraw_all
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Policy
from grpc_etcd.registry.snapshot import Snapshot
from grpc_etcd.view import Source, View
from grpc_etcd.xds.localities import Here

if TYPE_CHECKING:
    from grpc_etcd.client import Registry
    from grpc_etcd.publishing import FollowedService

_LOG = logging.getLogger("grpc_etcd")


class CompoundRegistry(Following):
    """`CompoundRegistry([here, there])`; the parts stay the caller's to close."""

    def __init__(
        self,
        parts: Iterable["Registry"],
        *,
        name: str | None = None,
        zone: str = "",
        region: str = "",
        client_id: str = "",
    ) -> None:
        self.parts = tuple(parts)
        if not self.parts:
            raise ValueError("a compound registry needs at least one registry")
        super().__init__(name, Here(zone, region, client_id or settings.host_name()))

    def __repr__(self) -> str:
        return f"<CompoundRegistry {self.name!r} of {[part.name for part in self.parts]}>"

    @property
    def aio(self) -> AioCompoundRegistry:
        """The same registry for asyncio."""
        return AioCompoundRegistry(self)

    def list_services(self, service: str) -> tuple[Endpoint, ...]:
        """Read the service's endpoints now, in all parts at once.

        A part that cannot be read is logged and left out; raises its EtcdError when none can be read.
        """
        with ThreadPoolExecutor(len(self.parts)) as pool:
            readings = [pool.submit(part.list_services, service) for part in self.parts]
        failures = [error for reading in readings if (error := reading.exception())]
        for error in failures:
            if not isinstance(error, EtcdError) or len(failures) == len(readings):
                raise error
            _LOG.warning("%s: one of several registries cannot be read: %s", service, error)
        read = [reading.result() for reading in readings if not reading.exception()]
        endpoints = {endpoint.address: endpoint for found in reversed(read) for endpoint in found}
        return tuple(endpoints[address] for address in sorted(endpoints))

    def register(self, endpoint: Endpoint, **options: Unpack[RegisterOptions]) -> tuple[Registration, ...]:
        """Keep an endpoint registered in every part; returns at once, so one that is down holds up none.

        Each registration says for itself where it stands and what is wrong, in the order of the parts.
        """
        return tuple(part.register(endpoint, **options) for part in self.parts)

    def unregister(self, registrations: Iterable[Registration], timeout_seconds: float = 5.0) -> tuple[bool, ...]:
        """Withdraw what `register` gave, in all parts at once; says of each whether etcd confirmed it in time."""
        return withdraw_all(tuple(registrations), timeout_seconds)

    @contextmanager
    def registered(self, endpoint: Endpoint, **options: Unpack[RegisterOptions]) -> Iterator[tuple[Registration, ...]]:
        """Keep an endpoint registered in every part for as long as the block runs."""
        registrations = self.register(endpoint, **options)
        try:
            yield registrations
        finally:
            self.unregister(registrations)

    def bind(
        self,
        server: grpc.Server,
        endpoint: Endpoint | str,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        **options: Unpack[RegisterOptions],
    ) -> BoundServer:
        """Give a server that is registered in every part from its `start` to its `stop`."""
        return BoundServer(server, Binding(lambda each: self.register(each, **options), endpoint, drain_seconds))

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

    def __repr__(self) -> str:
        return f"<UnionFeed {self._service!r} of {len(self._parts)}>"

    def start(self) -> None:
        """Begin to follow the service in every part."""
        self._followed = tuple(self._pins.enter_context(part.pinned(self._service)) for part in self._parts)
        for followed in self._followed:
            self._pins.enter_context(followed.feed.notifying(self._merge))
        self._merge()

    def close(self) -> None:
        """Stop following."""
        self._pins.close()
        super().close()

    def _merge(self) -> None:
        parts = [followed.feed.freshness for followed in self._followed]
        self.freshness = min(parts, key=lambda part: (part.connected, part.since))
        self._announce(merge_views(self._service, [followed.feed.view for followed in self._followed]))
        self._on_change()


def merge_views(service: str, views: Sequence[View]) -> View:
    """Join what several registries say of one service; unknown only while all of them are."""
    known = [(view, view.snapshot) for view in views if view.snapshot is not None]
    if not known:
        return View()
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
    )

"""A part of every service, chosen by metadata: `registry.select(metadata={"version": "v2"})`.

It is a registry that follows another one and leaves out what does not match, so channels, policies and callbacks work
with it as with any. Where nothing matches there is no endpoint: a selection never falls back to the others.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from grpc_etcd.client.aio import AioRegistry
from grpc_etcd.client.base import Following
from grpc_etcd.client.writable import WritableRegistry
from grpc_etcd.discovery.state import ResolverState
from grpc_etcd.discovery.subscription import StateSource
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.xds.localities import Here


class SelectedRegistry(Following):
    """The services of a registry, with only the endpoints whose metadata match, as `Registry.select` returns them.

    `configure` of the original registry does not apply to it; it has its own. It is closed with the original registry.
    """

    def __init__(self, parent: WritableRegistry[Any], metadata: Mapping[str, str], here: Here) -> None:
        self._parent = parent
        self.metadata = check_metadata(metadata)
        super().__init__(None, here)

    @property
    def aio(self) -> "AioSelectedRegistry":
        """The same registry for asyncio."""
        return AioSelectedRegistry(self)

    def read_endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """Read the service's matching endpoints from etcd now."""
        return tuple(each for each in self._parent.read_endpoints(service) if matches(each, self.metadata))

    def services(self) -> Mapping[str, tuple[Endpoint, ...]]:
        """Read all services with matching endpoints from etcd now: these endpoints by name."""
        narrowed = {
            name: tuple(each for each in endpoints if matches(each, self.metadata))
            for name, endpoints in self._parent.services().items()
        }
        return MappingProxyType({name: endpoints for name, endpoints in narrowed.items() if endpoints})

    def __repr__(self) -> str:
        return f"<SelectedRegistry {self.name!r} of {self._parent.name!r} where {self.metadata}>"

    def _make_feed(self, service: str, changed: Callable[[], None]) -> "SelectedSubscription":
        return SelectedSubscription(service, self._parent, self.metadata, changed)


class AioSelectedRegistry(AioRegistry):
    """The methods of a `SelectedRegistry` for asyncio, from `SelectedRegistry.aio`."""

    def __init__(self, registry: SelectedRegistry) -> None:
        super().__init__(registry)
        self._selected = registry

    async def read_endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """As `SelectedRegistry.read_endpoints`."""
        return await asyncio.to_thread(self._selected.read_endpoints, service)

    async def services(self) -> Mapping[str, tuple[Endpoint, ...]]:
        """As `SelectedRegistry.services`."""
        return await asyncio.to_thread(self._selected.services)


class SelectedSubscription(StateSource):
    """The feed of another registry, narrowed."""

    def __init__(
        self, service: str, parent: Following, metadata: Mapping[str, str], on_change: Callable[[], None]
    ) -> None:
        super().__init__()
        self._service = service
        self._parent = parent
        self._metadata = metadata
        self._on_change = on_change
        self._pins = ExitStack()
        self._narrowing = threading.Lock()
        self._source: StateSource | None = None
        self._source_waits_until = math.inf

    def __repr__(self) -> str:
        return f"<SelectedSubscription {self._service!r} where {self._metadata}>"

    @property
    def waits_until(self) -> float:
        """Until when the other feed waits, or this one: of what is on the disk nothing may match."""
        return max(self._source_waits_until, super().waits_until)

    def start(self) -> None:
        """Begin to follow the service."""
        self._source = self._pins.enter_context(self._parent.pinned(self._service)).feed
        self._pins.enter_context(self._source.notifying(self._narrow))
        self._narrow()

    def close(self) -> None:
        """Stop following."""
        self._pins.close()
        super().close()

    def _narrow(self) -> None:
        if self._source is None:
            return
        with self._narrowing:
            source = self._source
            self.freshness, self.last_seen_at, self.fault = source.freshness, source.last_seen_at, source.fault
            self.begun, self.lost_at, self.looking_since = source.begun, source.lost_at, source.looking_since
            self._source_waits_until = source.waits_until
            wanted = ", ".join(f"{key}={value}" for key, value in sorted(self._metadata.items()))
            others = len(source.view.snapshot.endpoints) if source.view.snapshot else 0
            beside = f", and {others} without it" if others else ""
            self.whereabouts = f"{source.whereabouts} with the metadata {wanted}{beside}"
            self.advice = "correct the metadata, or give it to an endpoint" if others else source.advice
            self.names = source.names
            self._announce(narrow(source.view, self._metadata))
        self._on_change()


def narrow(view: ResolverState, metadata: Mapping[str, str]) -> ResolverState:
    """Leave out the endpoints that do not match."""
    if view.snapshot is None:
        return view
    endpoints = tuple(each for each in view.snapshot.endpoints if matches(each, metadata))
    return replace(view, snapshot=replace(view.snapshot, endpoints=endpoints))


def matches(endpoint: Endpoint, metadata: Mapping[str, str]) -> bool:
    """Return whether an endpoint has all of the metadata."""
    return metadata.items() <= endpoint.metadata.items()


def check_metadata(metadata: object) -> dict[str, str]:
    """Refuse what no endpoint can have."""
    if not isinstance(metadata, Mapping) or not metadata:
        raise TypeError(f"metadata: {metadata!r} is not a mapping such as {{'version': 'v2'}}")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata: {key!r}: {value!r} are not strings, which all metadata are")
    return dict(metadata)

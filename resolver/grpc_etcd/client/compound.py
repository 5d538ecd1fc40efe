"""Several registries as one: channels follow the union of their endpoints, as `client.union` makes it."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TypeVar, Unpack

from grpc_etcd import options as checks
from grpc_etcd import settings
from grpc_etcd.client.registry import Registry
from grpc_etcd.client.union import UnionSubscription
from grpc_etcd.client.writable import AioWritableRegistry, WritableRegistry
from grpc_etcd.etcd import EtcdError
from grpc_etcd.registration.registrar import (
    RegisterOptions,
    Registrar,
    Registration,
    deregister_all,
    deregister_all_async,
    register_all,
)
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.xds.localities import Here

_LOG = logging.getLogger("grpc_etcd")
_ReadT = TypeVar("_ReadT")


class CompoundRegistry(WritableRegistry[tuple[Registration, ...]]):
    """Several registries as one: `CompoundRegistry([here, there])`. The caller closes the parts."""

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self,
        parts: Iterable[Registry],
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
        if wrong := [part for part in self.parts if not callable(getattr(part, "all_registrars", None))]:
            raise TypeError(f"{wrong[0]!r} is not a Registry; a compound registry consists of registries")
        sent = {"name": name, "zone": zone, "region": region, "cluster": cluster, "client_id": client_id}
        checks.check_options(sent)
        zone = zone or next((part.here.zone for part in self.parts if part.here.zone), "")
        region = region or next((part.here.region for part in self.parts if part.here.region), "")
        cluster = cluster or next((part.here.cluster for part in self.parts if part.here.cluster), "")
        self.stop_seconds = max(part.stop_seconds for part in self.parts)
        super().__init__(name, Here(zone, region, client_id or settings.host_name(), cluster))

    def __repr__(self) -> str:
        return f"<CompoundRegistry {self.name!r} of {[part.name for part in self.parts]}>"

    @property
    def aio(self) -> "AioCompoundRegistry":
        """The same registry for asyncio."""
        return AioCompoundRegistry(self)

    def read_endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """Read the service's endpoints now, from all parts in parallel.

        A part that cannot be read is logged and skipped; raises its EtcdError if no part can be read.
        """
        read = self._read_parts(service, lambda part: part.read_endpoints(service))
        return _by_address(read)

    def services(self) -> Mapping[str, tuple[Endpoint, ...]]:
        """Read all services now, from all parts in parallel: their endpoints by name.

        A part that cannot be read is logged and skipped; raises its EtcdError if no part can be read.
        """
        read = self._read_parts("all services", lambda part: part.services())
        names = sorted({name for services in read for name in services})
        found = {name: _by_address([services.get(name, ()) for services in read]) for name in names}
        return MappingProxyType(found)

    def _read_parts(self, what: str, read: Callable[[Registry], _ReadT]) -> list[_ReadT]:
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

    @checks.taking(RegisterOptions, ".register")
    def register(self, endpoint: Endpoint, **options: Unpack[RegisterOptions]) -> tuple[Registration, ...]:
        """Keep an endpoint registered in every part; returns at once, so a part that is down does not delay the others.

        Returns a registration for each part, in their order, each with its own status.
        """
        return register_all([registrar.prepare(endpoint, **options) for registrar in self.all_registrars()])

    def unregister(
        self, registrations: Iterable[Registration], timeout_seconds: float | None = None
    ) -> tuple[bool, ...]:
        """Deregister in all parts in parallel; returns for each registration whether etcd confirmed it in time."""
        return deregister_all(tuple(registrations), timeout_seconds)

    def all_registrars(self) -> Sequence[Registrar]:
        """Return those of each part, which may be several registries itself."""
        return [registrar for part in self.parts for registrar in part.all_registrars()]

    def known_registrars(self) -> Sequence[Registrar]:
        """Return those of the parts that are in use."""
        return [registrar for part in self.parts for registrar in part.known_registrars()]

    def _make_feed(self, service: str, changed: Callable[[], None]) -> UnionSubscription:
        return UnionSubscription(service, self.parts, changed)


class AioCompoundRegistry(AioWritableRegistry[tuple[Registration, ...]]):
    """The methods of a `CompoundRegistry` for asyncio, from `CompoundRegistry.aio`."""

    async def unregister(
        self, registrations: Iterable[Registration], timeout_seconds: float | None = None
    ) -> tuple[bool, ...]:
        """As `CompoundRegistry.unregister`; takes effect even if the task is cancelled."""
        return await deregister_all_async(tuple(registrations), timeout_seconds)


def _by_address(read: Sequence[Sequence[Endpoint]]) -> tuple[Endpoint, ...]:
    """Join sets; where two name the same address, the first is believed."""
    endpoints = {endpoint.address: endpoint for found in reversed(read) for endpoint in found}
    return tuple(endpoints[address] for address in sorted(endpoints))

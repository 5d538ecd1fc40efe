"""What a registry has besides channels where it can be written to: its services are read, and servers are registered.

An etcd and several of them as one have it in common; they differ in what `register` returns.
"""

import abc
import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar, Unpack

import grpc
from grpc import aio

from grpc_etcd.client.aio import AioRegistry
from grpc_etcd.client.base import Following
from grpc_etcd.client.stats import RegistryStats
from grpc_etcd.client.targets import service_name
from grpc_etcd.options import taking
from grpc_etcd.registration.registrar import (
    RegisterOptions,
    Registrar,
    Registration,
    State,
    deregister_all,
    deregister_all_async,
)
from grpc_etcd.registration.server import DRAIN_SECONDS, Binding, BoundAioServer, BoundServer, check_server
from grpc_etcd.registry.endpoint import Endpoint

RegisteredT = TypeVar("RegisteredT", Registration, tuple[Registration, ...])


class WritableRegistry(Following, Generic[RegisteredT]):
    """Reads services and registers servers, in one etcd or in several."""

    stop_seconds: float

    @abc.abstractmethod
    def all_registrars(self) -> Sequence[Registrar]:
        """Return what keeps endpoints registered, one for each etcd."""

    @abc.abstractmethod
    def known_registrars(self) -> Sequence[Registrar]:
        """Return those of them that are in use; none is made, nor etcd connected to."""

    def stats(self) -> RegistryStats:
        """Return the state of each followed service, and those of this process's registrations."""
        states: dict[str, tuple[State, ...]] = {}
        for registrar in self.known_registrars():
            for registration in registrar.registrations:
                name: str = registration.endpoint.name
                states[name] = (*states.get(name, ()), registration.status.state)
        return replace(super().stats(), registrations=states)

    @abc.abstractmethod
    def read_endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """Read the service's endpoints now."""

    @abc.abstractmethod
    def services(self) -> Mapping[str, tuple[Endpoint, ...]]:
        """Read all services now: their endpoints by name."""

    @abc.abstractmethod
    def register(self, endpoint: Endpoint, **options: Unpack[RegisterOptions]) -> RegisteredT:
        """Keep an endpoint registered from now on; returns at once."""

    def list_services(self, service: str) -> tuple[Endpoint, ...]:
        """Do the same as `read_endpoints`, under its older name; `services` lists all services."""
        return self.read_endpoints(service)

    @taking(RegisterOptions, ".registered")
    @contextmanager
    def registered(self, endpoint: Endpoint, **options: Unpack[RegisterOptions]) -> Iterator[RegisteredT]:
        """Keep an endpoint registered while the block runs; the block gets what `register` returns."""
        made = self.register(endpoint, **options)
        try:
            yield made
        finally:
            deregister_all(_each(made))

    @taking(RegisterOptions, ".bind")
    def bind(
        self,
        server: grpc.Server,
        endpoint: Endpoint | str,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        health: bool | str = False,
        **options: Unpack[RegisterOptions],
    ) -> BoundServer:
        """Return a server that is registered, as with `register`, from its `start` to its `stop`.

        If `endpoint` is a name, or has an empty address, the first port that is added to the server is registered.
        `stop` deregisters, waits `drain_seconds` so that clients stop calling, then stops the server. With `health` the
        server is registered only while its health service (grpc.health.v1) reports SERVING: with True for the server as
        a whole, with a name for that service.
        """
        check_server(server, is_aio=False)
        return BoundServer(server, self.make_binding(endpoint, options, drain_seconds, health))

    def make_binding(
        self,
        endpoint: Endpoint | str,
        options: RegisterOptions,
        drain_seconds: float,
        health: bool | str,  # noqa: FBT001 - as `bind` has it
    ) -> Binding:
        """Return what a bound server registers."""
        return Binding(
            self.all_registrars,
            service_name(endpoint) if isinstance(endpoint, str) else endpoint,
            options,
            drain_seconds=drain_seconds,
            stop_seconds=self.stop_seconds,
            health=health,
        )


class AioWritableRegistry(AioRegistry, Generic[RegisteredT]):
    """The same for asyncio."""

    def __init__(self, registry: WritableRegistry[RegisteredT]) -> None:
        super().__init__(registry)
        self._writable: WritableRegistry[RegisteredT] = registry

    async def register(self, endpoint: Endpoint, **options: Unpack[RegisterOptions]) -> RegisteredT:
        """As `Registry.register`; a thread keeps the lease alive, so a blocked event loop does not lose it."""
        return self._writable.register(endpoint, **options)  # returns at once, so it cannot be cancelled halfway

    @asynccontextmanager
    async def registered(self, endpoint: Endpoint, **options: Unpack[RegisterOptions]) -> AsyncIterator[RegisteredT]:
        """Keep an endpoint registered while the block runs; the block gets what `register` returns."""
        made = await self.register(endpoint, **options)
        try:
            yield made
        finally:
            await deregister_all_async(_each(made))

    @taking(RegisterOptions, "aio.bind")
    def bind(
        self,
        server: aio.Server,
        endpoint: Endpoint | str,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        health: bool | str = False,
        **options: Unpack[RegisterOptions],
    ) -> BoundAioServer:
        """Do the same as `Registry.bind`, for a `grpc.aio.Server`."""
        check_server(server, is_aio=True)
        return BoundAioServer(server, self._writable.make_binding(endpoint, options, drain_seconds, health))

    async def list_services(self, service: str) -> tuple[Endpoint, ...]:
        """Do the same as `read_endpoints`, under its older name; `services` lists all services."""
        return await self.read_endpoints(service)

    async def read_endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """As `Registry.read_endpoints`."""
        return await asyncio.to_thread(self._writable.read_endpoints, service)

    async def services(self) -> Mapping[str, tuple[Endpoint, ...]]:
        """As `Registry.services`."""
        return await asyncio.to_thread(self._writable.services)


def _each(made: Any) -> tuple[Registration, ...]:
    return made if isinstance(made, tuple) else (made,)

"""Servers that are registered exactly while they serve.

`bind` wraps a server: `start` starts it and then registers it; `stop` withdraws it first, waits until callers have
heard of that, and only then stops it, so that a rollout fails no call. Everything else is the server's own.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc
from grpc import aio

from grpc_etcd.registering.registrar import CLOSE_SECONDS, Registration, withdraw_all
from grpc_etcd.registry.endpoint import Endpoint, split_address

# Arbitrary: callers hear of a withdrawal within milliseconds; readers that poll (kitex) take 5 s and need more.
DRAIN_SECONDS = 2.0
GRACE_SECONDS = 25.0  # Kubernetes kills after 30 s

Register = Callable[[Endpoint], Sequence[Registration]]


class Binding:
    """What a bound server registers, where, and how long it drains."""

    def __init__(self, register: Register, endpoint: Endpoint | str, drain_seconds: float) -> None:
        self._register = register
        self._endpoint = Endpoint(name=endpoint, address="") if isinstance(endpoint, str) else endpoint
        self.drain_seconds = drain_seconds
        self.registrations: tuple[Registration, ...] = ()

    def __repr__(self) -> str:
        return f"{self._endpoint.name} at {self._endpoint.address or 'no port yet'}"

    def opened(self, address: str, port: int) -> int:
        """Note a port; the first one is what is registered, unless the endpoint names an address."""
        parts = split_address(address.rpartition(":")[0] + f":{port}") if port else None
        if parts and not self._endpoint.address:
            self._endpoint = replace(self._endpoint, address=f"{address.rpartition(':')[0]}:{port}")
        return port

    def register(self) -> None:
        """Register the endpoint; the address is checked here, before anybody relies on it."""
        self.registrations = tuple(self._register(self._endpoint))

    def withdraw(self) -> bool:
        """Withdraw the endpoint everywhere; False when there was nothing to withdraw."""
        registrations, self.registrations = self.registrations, ()
        withdraw_all(registrations, CLOSE_SECONDS)
        return bool(registrations)


class BoundServer(grpc.Server):
    """A `grpc.Server` that is registered from `start` to `stop`."""

    def __init__(self, server: grpc.Server, binding: Binding) -> None:
        self._server = server
        self._binding = binding
        self._stopping = threading.Lock()

    def __repr__(self) -> str:
        return f"<BoundServer {self._binding!r}>"

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """What is registered; empty before `start` and from `stop` on."""
        return self._binding.registrations

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        """As grpc.Server."""
        self._server.add_generic_rpc_handlers(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """As grpc.Server."""
        self._server.add_registered_method_handlers(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        """As grpc.Server; the first port is the one that is registered."""
        return self._binding.opened(address, self._server.add_insecure_port(address))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """As grpc.Server; the first port is the one that is registered."""
        return self._binding.opened(address, self._server.add_secure_port(address, server_credentials))

    def start(self) -> None:
        """Start serving, then register; an address that may not be registered stops the server again."""
        self._server.start()
        try:
            self._binding.register()
        except ValueError:
            self._server.stop(None)
            raise

    def stop(self, grace: float | None) -> threading.Event:
        """Withdraw, drain, stop; returns at once. The event is set when all calls have ended, as grpc.Server's is."""
        stopped = threading.Event()
        threading.Thread(target=self._stop, args=(grace, stopped), name="grpc-etcd-drain", daemon=True).start()
        return stopped

    def _stop(self, grace: float | None, stopped: threading.Event) -> None:
        with self._stopping:
            if self._binding.withdraw():
                threading.Event().wait(self._binding.drain_seconds)
            self._server.stop(grace).wait()
        stopped.set()

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """As grpc.Server."""
        return self._server.wait_for_termination(timeout)


class BoundAioServer(aio.Server):
    """A `grpc.aio.Server` that is registered from `start` to `stop`."""

    def __init__(self, server: aio.Server, binding: Binding) -> None:
        self._server = server
        self._binding = binding
        self._stopping = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<BoundAioServer {self._binding!r}>"

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """What is registered; empty before `start` and from `stop` on."""
        return self._binding.registrations

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        """As grpc.aio.Server."""
        self._server.add_generic_rpc_handlers(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """As grpc.aio.Server."""
        self._server.add_registered_method_handlers(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        """As grpc.aio.Server; the first port is the one that is registered."""
        return self._binding.opened(address, self._server.add_insecure_port(address))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """As grpc.aio.Server; the first port is the one that is registered."""
        return self._binding.opened(address, self._server.add_secure_port(address, server_credentials))

    async def start(self) -> None:
        """Start serving, then register; an address that may not be registered stops the server again."""
        await self._server.start()
        try:
            await asyncio.to_thread(self._binding.register)
        except ValueError:
            await self._server.stop(None)
            raise

    async def stop(self, grace: float | None) -> None:
        """Withdraw, drain, stop."""
        async with self._stopping:
            if await asyncio.to_thread(self._binding.withdraw):
                await asyncio.sleep(self._binding.drain_seconds)
            await self._server.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as grpc.aio
        """As grpc.aio.Server."""
        return await self._server.wait_for_termination(timeout)


def stop_on_sigterm(server: grpc.Server, grace_seconds: float = GRACE_SECONDS) -> None:
    """Make SIGTERM and SIGINT stop the server, which ends its `wait_for_termination`. For the main thread only."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop(grace_seconds) and None)


def stop_aio_on_sigterm(server: aio.Server, grace_seconds: float = GRACE_SECONDS) -> None:
    """Do the same for a `grpc.aio.Server`, from inside the main thread's running loop."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def stop() -> None:
        task = loop.create_task(_stop_quietly(server, grace_seconds))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


async def _stop_quietly(server: aio.Server, grace_seconds: float) -> None:
    """Stop; the loop may be closing already once `wait_for_termination` has returned."""
    with contextlib.suppress(asyncio.CancelledError):
        await server.stop(grace_seconds)

"""Servers that are registered exactly while they serve.

`bind` wraps a server: `start` starts it and then registers it; `stop` deregisters it first, waits until callers have
learned of that, and only then stops it, so that a rollout fails no call. Where etcd does not confirm the
deregistration, callers cannot have learned of it, and nothing is waited for. Everything else is the server's own.
"""

import asyncio
import contextlib
import logging
import signal
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
from grpc import aio

from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registration.address import NO_PORT, Machine, advertised_address, listening_address
from grpc_etcd.registration.health import HealthSocket, HealthWatch
from grpc_etcd.registration.loop_end import WholeServer, stop_at_end
from grpc_etcd.registration.offloop import in_own_thread
from grpc_etcd.registration.registrar import (
    STOP_SECONDS,
    RegisterOptions,
    Registrar,
    Registration,
    check_changes,
    deregister_all,
    register_all,
)
from grpc_etcd.registry.endpoint import Endpoint, name_fault
from grpc_etcd.registry.layout import Rejected
from grpc_etcd.threads import start_thread
from grpc_etcd.xds.streams import start_server

_LOG = logging.getLogger("grpc_etcd")
STOPPED_BEFORE = "%s is not started: it was stopped before, as by a signal"

# Arbitrary: callers learn of a deregistration within milliseconds; readers that poll (kitex) take 5 s and need more.
DRAIN_SECONDS = 2.0
# Kubernetes kills after 30 s: 5 s to deregister and drain (STOP_SECONDS), 20 s for calls, the rest to close and exit.
GRACE_SECONDS = 20.0
AGES_SECONDS = 1e9  # for "no timeout", where gRPC would take the end of whoever waits for that of the server
LOOK_SECONDS = 0.1  # arbitrary: how often a server is looked at that was asked to stop before it has started


class Binding:
    """What a bound server registers, where, and how long it drains. Thread-safe.

    `stop_seconds` is what deregistering and draining may take together. With `health` there are registrations only
    while the server's health service says SERVING: True asks for the server as a whole, a name for that service.
    """

    def __init__(  # noqa: PLR0913 - what `bind` was given
        self,
        registrars: Callable[[], Sequence[Registrar]],
        endpoint: Endpoint | str,
        options: Mapping[str, Any],
        *,
        drain_seconds: float = DRAIN_SECONDS,
        stop_seconds: float = STOP_SECONDS,
        health: bool | str = False,
    ) -> None:
        check_binding(endpoint, options, health)
        self._registrars = registrars
        self._endpoint = Endpoint(name=endpoint, address="") if isinstance(endpoint, str) else endpoint
        self._options = options
        self._fault = NO_PORT
        self._lock = threading.Lock()
        self._served_by: Callable[[], object] = lambda: None
        self.is_over = False  # from `stop` on, or where `start` has failed
        self.health = health
        self.stop_seconds = stop_seconds
        self.drain_seconds = choose_drain(drain_seconds, stop_seconds)
        self.registrations: tuple[Registration, ...] = ()

    def __repr__(self) -> str:
        return f"{self._endpoint.name} at {self._endpoint.address or 'no port yet'}"

    @property
    def name(self) -> str:
        """The service's name."""
        return self._endpoint.name

    def opened(self, address: str, port: int) -> int:
        """Record a port; the first one that others can dial is registered, unless the endpoint names an address."""
        if port and not self._endpoint.address:
            listening = listening_address(address, port)
            if isinstance(listening, Rejected):
                self._fault = listening.reason
            else:
                self._endpoint = replace(self._endpoint, address=listening)
        return port

    def check(self) -> None:
        """Raise ValueError for what can never be registered, before anybody relies on it."""
        self._prepare()

    def register(self, server: object = None) -> None:
        """Register what is served from now on; with `health`, the first answer decides.

        A `server` that is given lives for as long as it is registered.
        """
        if server is not None:
            self._served_by = weakref.ref(server)
        if not self.health:
            self.set_serving(is_serving=True)

    def set_serving(self, *, is_serving: bool) -> None:
        """Register the endpoint, or begin to deregister it, while the server is neither stopped nor that already."""
        with self._lock:
            if self.is_over or is_serving == bool(self.registrations):
                return
            if is_serving:
                self.registrations = register_all(self._prepare())
                for each in self.registrations:
                    each.served_by = self._served_by()
            else:
                self._release()

    def update(self, changes: Mapping[str, Any]) -> None:
        """Change what is registered, or will be; ValueError and TypeError change nothing."""
        check_changes(changes)
        with self._lock:
            prepared = [each.prepare(changes) for each in self.registrations]
            self._endpoint = replace(self._endpoint, **changes)
            for change in prepared:
                change()

    def begin_deregistration(self) -> tuple[Registration, ...]:
        """Begin to deregister the endpoint everywhere, for good; returns at once."""
        with self._lock:
            self.is_over = True
            return self._release()

    def is_confirmed(self, registrations: Sequence[Registration]) -> bool:
        """Wait until a deregistration is confirmed somewhere; False when none is: then there is nobody to wait for."""
        return any(deregister_all(registrations, self.stop_seconds - self.drain_seconds))

    def _release(self) -> tuple[Registration, ...]:
        registrations, self.registrations = self.registrations, ()
        for each in registrations:
            each.release()
            each.served_by = None
        return registrations

    def _prepare(self) -> list[Callable[[], Registration]]:
        if not self._endpoint.address:
            raise ValueError(self._fault)
        return [registrar.prepare(self._endpoint, **self._options) for registrar in self._registrars()]


class Health:
    """The health of a bound server, from its start to its stop; nothing where nobody asked for it."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._socket: HealthSocket | None = None
        self._watch: HealthWatch | None = None
        self._is_closed = False

    def open(self, add_port: Callable[[str], int]) -> None:
        """Add the port by which the server is asked."""
        if self._binding.health:
            self._socket = HealthSocket()
            add_port(self._socket.address)

    def follow(self) -> None:
        """Follow the health service of the server, which has been started."""
        if self._socket and not self._is_closed:
            service = self._binding.health if isinstance(self._binding.health, str) else ""
            self._watch = HealthWatch(self._binding.name, self._socket.address, service, self._changed)
            self._watch.start()

    def close(self) -> None:
        """Follow it no more."""
        self._is_closed = True
        if self._watch:
            self._watch.close()
        if self._socket:
            self._socket.close()

    def _changed(self, is_serving: bool) -> None:  # noqa: FBT001 - a callback of one fact
        self._binding.set_serving(is_serving=is_serving)


def _abandon(binding: Binding, health: Health) -> None:
    health.close()
    binding.begin_deregistration()


class _Bound:
    """What both kinds of server that are registered have in common. The first port is the one that is registered."""

    def __init__(self, server: Any, binding: Binding) -> None:
        self._server = server
        self._binding = binding
        self._health = Health(binding)
        self._is_begun = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._binding!r}>"

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """The registrations of this server; empty before `start`, after `stop`, and with `health` while not SERVING."""
        return self._binding.registrations

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        """As gRPC's."""
        self._server.add_generic_rpc_handlers(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """As gRPC's."""
        self._server.add_registered_method_handlers(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        """As gRPC's."""
        return self._binding.opened(address, self._server.add_insecure_port(address))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """As gRPC's."""
        return self._binding.opened(address, self._server.add_secure_port(address, server_credentials))

    def update(self, **changes: Any) -> None:
        """Change the registered endpoint, or before `start` the one to register, as `Registration.update` does."""
        self._binding.update(changes)

    def _is_never_to_start(self) -> bool:
        return self._binding.is_over and not self._is_begun


class BoundServer(_Bound, grpc.Server):
    """A `grpc.Server` that is registered from `start` to `stop`; `Registry.bind` returns it."""

    def __init__(self, server: grpc.Server, binding: Binding) -> None:
        super().__init__(server, binding)
        self._turn = threading.RLock()  # of starting and stopping: a signal may ask for one in the midst of the other

    def start(self) -> None:
        """Start serving, then register. Raises ValueError, without starting, if the server cannot be registered.

        Does nothing after `stop`: the signal that ends a program may come while it still prepares.
        """
        with self._turn:
            if self._is_never_to_start():
                _LOG.info(STOPPED_BEFORE, self, extra={"event": "server_not_started"})
            elif self._is_begun:
                self._server.start()  # gRPC refuses that, and serves on
            else:
                self._start()

    def _start(self) -> None:
        self._binding.check()
        self._is_begun = True
        self._health.open(self._server.add_insecure_port)
        try:
            start_server(self._server)
            self._binding.register(self)
            self._health.follow()
        except BaseException:
            _abandon(self._binding, self._health)
            self._server.stop(None)
            raise

    def stop(self, grace: float | None) -> threading.Event:
        """Deregister, drain, stop; returns at once. The event is set when all calls have ended, as grpc.Server's is."""
        stopped = threading.Event()
        try:
            start_thread(self._stop, grace, stopped, name="grpc-etcd-drain")
        except RuntimeError:  # no further thread may be started: stopping is what may end some
            self._stop(grace, stopped)
        return stopped

    def _stop(self, grace: float | None, stopped: threading.Event) -> None:
        with self._turn:
            self._health.close()
            deregistered = self._binding.begin_deregistration()
            if self._binding.is_confirmed(deregistered):
                threading.Event().wait(self._binding.drain_seconds)
        try:  # outside the lock: a second stop may shorten the grace of the first
            self._server.stop(grace).wait()
        except RuntimeError:  # no thread to wait for the grace in
            self._server.stop(None).wait()
        stopped.set()

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """As grpc.Server; returns at once if `stop` was called before `start`."""
        return not self._is_never_to_start() and self._server.wait_for_termination(timeout)


class BoundAioServer(_Bound, aio.Server):
    """A `grpc.aio.Server` that is registered from `start` to `stop`; `bind` of `registry.aio` returns it."""

    def __init__(self, server: aio.Server, binding: Binding) -> None:
        super().__init__(server, binding)
        self._turn = asyncio.Lock()  # of starting and stopping
        self._whole = WholeServer(server)
        self._stopped = asyncio.Event()

    async def start(self) -> None:
        """Start serving, then register. Raises ValueError, without starting, if the server cannot be registered.

        Does nothing after `stop`: the signal that ends a program may come while it still prepares.
        """
        async with self._turn:
            if self._is_never_to_start():
                _LOG.info(STOPPED_BEFORE, self, extra={"event": "server_not_started"})
            else:
                await self._start()

    async def _start(self) -> None:
        self._binding.check()
        self._is_begun = True
        self._health.open(self._server.add_insecure_port)
        try:
            await self._whole.start()
            self._binding.register()
            self._health.follow()
            await stop_at_end(self, self._whole, self._stopped, partial(_abandon, self._binding, self._health))
        except BaseException:
            _abandon(self._binding, self._health)
            await self._whole.stop_now()
            raise

    async def stop(self, grace: float | None) -> None:
        """Deregister, drain, stop. If cancelled, it stops at once; the deregistration takes effect in any case."""
        self._health.close()
        deregistered = self._binding.begin_deregistration()
        try:
            async with self._turn:
                is_confirmed = await self._is_confirmed(deregistered)
                if is_confirmed:
                    await asyncio.sleep(self._binding.drain_seconds)
            # Outside the lock: a second stop may shorten the grace of the first.
            await self._whole.stop(grace)
        except asyncio.CancelledError:
            await self._whole.stop_now()
            raise
        finally:
            self._stopped.set()

    async def _is_confirmed(self, deregistered: Sequence[Registration]) -> bool:
        try:
            return await in_own_thread(lambda: self._binding.is_confirmed(deregistered))
        except RuntimeError:  # no thread to wait in: callers are given the time to learn of it all the same
            return bool(deregistered)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as grpc.aio
        """As grpc.aio.Server; returns at once if `stop` was called before `start`."""
        if self._is_never_to_start():
            return False
        return bool(await self._server.wait_for_termination(AGES_SECONDS if timeout is None else timeout))


def check_server(server: object, *, is_aio: bool) -> None:
    """Refuse a server of the other kind: nobody would await its `start`, and it would be registered without serving."""
    if isinstance(server, aio.Server) and not is_aio:
        raise TypeError("this is a grpc.aio.Server: use registry.aio.bind(...), and await its start()")
    if isinstance(server, grpc.Server) and is_aio:
        raise TypeError("this is a grpc.Server: use registry.bind(...), not registry.aio.bind(...)")
    if not callable(getattr(server, "add_insecure_port", None)):
        raise TypeError(f"bind takes a gRPC server, such as grpc.server(ThreadPoolExecutor(8)), not {server!r}")


# What any wildcard may become, for the checks that are made before this machine is looked at.
_ANY_MACHINE = Machine(pod_ip="192.0.2.1", ipv6="2001:db8::1")


def check_binding(endpoint: object, options: Mapping[str, Any], health: object) -> None:
    """Refuse at once what `start` would stumble over."""
    if not isinstance(endpoint, Endpoint | str):
        raise TypeError(f"bind takes a service's name or an Endpoint, not {endpoint!r}")
    if unknown := [name for name in options if name not in RegisterOptions.__annotations__]:
        raise TypeError(
            f"bind has no option {unknown[0]!r}; weight, zone and the like are the endpoint's: "
            "bind(server, Endpoint(name='greeter', address='', weight=50)) registers the server's first port"
        )
    if not isinstance(health, bool | str):
        raise TypeError(
            f"health is {health!r}: give True to ask the health service of the server for the server as a whole, "
            "or the name of one of its services"
        )
    name, address = (endpoint, "") if isinstance(endpoint, str) else (endpoint.name, endpoint.address)
    if fault := name_fault(name):
        raise ValueError(fault)
    is_anything = bool(options.get("allow_unroutable"))
    chosen = advertised_address(address, _ANY_MACHINE, allow_unroutable=is_anything) if address else ""
    if isinstance(chosen, Rejected):
        raise ValueError(chosen.reason)  # noqa: TRY004 - the text is at fault, not its type
    layouts = options.get("layouts") or ()
    for layout in (layouts,) if isinstance(layouts, str) else layouts:
        if isinstance(layout, str):
            make_layout(layout)


def choose_drain(drain_seconds: float, stop_seconds: float) -> float:
    """Return the time to drain, a part of what a stop may take."""
    if isinstance(drain_seconds, bool) or not isinstance(drain_seconds, int | float) or not drain_seconds >= 0:
        raise ValueError(f"drain_seconds is {drain_seconds!r}: give seconds of at least 0")
    if drain_seconds < stop_seconds or drain_seconds == 0:
        return drain_seconds
    if drain_seconds == DRAIN_SECONDS:
        return stop_seconds / 2
    raise ValueError(
        f"drain_seconds is {drain_seconds:g}, which leaves nothing of the registry's stop_seconds={stop_seconds:g} for "
        "the deregistration itself: give Registry(..., stop_seconds=...) a larger one"
    )


def stop_on_sigterm(server: grpc.Server, grace_seconds: float = GRACE_SECONDS) -> None:
    """Stop the server on SIGTERM or SIGINT, so that `wait_for_termination` returns. Call it in the main thread."""
    check_stop(server, grace_seconds, is_aio=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stop_for_certain(server, grace_seconds))


def _stop_for_certain(server: grpc.Server, grace_seconds: float) -> None:
    """Stop a server now, or as soon as it has started: gRPC forgets a `stop` that comes before.

    By a thread, since the one that a signal interrupts may hold a lock of the server.
    """
    if server.stop(grace_seconds).is_set():
        with contextlib.suppress(RuntimeError):  # no thread may be started, as at the end of the program
            start_thread(_stop_once_started, server, grace_seconds, name="grpc-etcd-stop")


def _stop_once_started(server: grpc.Server, grace_seconds: float) -> None:
    while server.wait_for_termination(LOOK_SECONDS) and server.stop(grace_seconds).is_set():
        pass


def stop_aio_on_sigterm(server: aio.Server, grace_seconds: float = GRACE_SECONDS) -> None:
    """Do the same as `stop_on_sigterm` for a `grpc.aio.Server`; call it in the running loop of the main thread."""
    check_stop(server, grace_seconds, is_aio=True)
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def stop() -> None:
        task = loop.create_task(_stop_quietly(server, grace_seconds))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def check_stop(server: object, grace_seconds: object, *, is_aio: bool) -> None:
    """Refuse what a signal could not stop: it would be swallowed, and the server ended by force while registered."""
    if isinstance(server, aio.Server) and not is_aio:
        raise TypeError("this is a grpc.aio.Server: use stop_aio_on_sigterm(server), inside its running loop")
    if isinstance(server, grpc.Server) and is_aio:
        raise TypeError("this is a grpc.Server: use stop_on_sigterm(server)")
    if isinstance(grace_seconds, bool) or not isinstance(grace_seconds, int | float) or not grace_seconds >= 0:
        raise ValueError(f"grace_seconds is {grace_seconds!r}: give seconds of at least 0")


async def _stop_quietly(server: aio.Server, grace_seconds: float) -> None:
    """Stop; the loop may be closing already once `wait_for_termination` has returned."""
    with contextlib.suppress(asyncio.CancelledError):
        await server.stop(grace_seconds)
        while await server.wait_for_termination(LOOK_SECONDS):  # gRPC forgets a `stop` that comes before the start
            await server.stop(grace_seconds)

"""The registry for asyncio: the same one, with `grpc.aio` channels and awaits in place of blocking.

Feeds and the ADS server are threads in either world, so a blocked event loop never makes a channel deaf, and one
registry serves any number of loops.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, Unpack

import grpc
from grpc import aio

from grpc_etcd.channels import Renewable, StreamedAnswer, UnaryAnswer
from grpc_etcd.feed import ViewSource
from grpc_etcd.registering.bound import DRAIN_SECONDS, Binding, BoundAioServer
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.snapshot import Snapshot
from grpc_etcd.view import View

if TYPE_CHECKING:
    from grpc_etcd.client import Registry
    from grpc_etcd.compound import CompoundRegistry
    from grpc_etcd.following import ChannelOptions, Following
    from grpc_etcd.registering.registrar import RegisterOptions, Registration


class UnaryUnary(UnaryAnswer, aio.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    """One request, one answer."""


class StreamUnary(UnaryAnswer, aio.StreamUnaryMultiCallable):  # type: ignore[type-arg, misc]
    """Many requests, one answer."""


class UnaryStream(StreamedAnswer, aio.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    """One request, many answers."""


class StreamStream(StreamedAnswer, aio.StreamStreamMultiCallable):  # type: ignore[type-arg]
    """Many requests, many answers."""


class FollowingAioChannel(aio.Channel):
    """A `grpc.aio.Channel` that follows a service of a registry."""

    def __init__(self, channel: Renewable[aio.Channel]) -> None:
        self._channel = channel

    def __repr__(self) -> str:
        return f"<FollowingAioChannel {self._channel.service!r}>"

    def unary_unary(self, *args: Any, **kwargs: Any) -> UnaryUnary:
        """As grpc.aio.Channel."""
        return UnaryUnary(self._channel, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> UnaryStream:
        """As grpc.aio.Channel."""
        return UnaryStream(self._channel, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> StreamUnary:
        """As grpc.aio.Channel."""
        return StreamUnary(self._channel, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> StreamStream:
        """As grpc.aio.Channel."""
        return StreamStream(self._channel, "stream_stream", args, kwargs)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002 - as grpc
        """As grpc.aio.Channel."""
        return self._channel.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """As grpc.aio.Channel."""
        await self._channel.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """As grpc.aio.Channel."""
        await self._channel.current().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """As grpc.aio.Channel; a channel inherited through a fork is left to the process that made it."""
        if self._channel.is_current:
            await self._channel.native.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


class AioRegistry:
    """What `Registry.aio` gives; it lives and is closed with its registry."""

    def __init__(self, registry: "Following") -> None:
        self._registry = registry

    def __repr__(self) -> str:
        return f"<AioRegistry of {self._registry!r}>"

    def insecure_channel(
        self,
        service: str,
        options: "ChannelOptions | None" = None,
        compression: grpc.Compression | None = None,
        interceptors: Sequence[aio.ClientInterceptor] | None = None,
    ) -> aio.Channel:
        """Give a channel to the service that follows the registry; as `grpc.aio.insecure_channel` otherwise."""
        return self._channel(
            service,
            lambda target, more: aio.insecure_channel(  # by keyword, which is where OpenTelemetry adds its own
                target, [*more, *(options or ())], compression, interceptors=interceptors
            ),
        )

    def secure_channel(
        self,
        service: str,
        credentials: grpc.ChannelCredentials,
        options: "ChannelOptions | None" = None,
        compression: grpc.Compression | None = None,
        interceptors: Sequence[aio.ClientInterceptor] | None = None,
    ) -> aio.Channel:
        """Give a channel over TLS; the name that the servers' certificates must carry is the service's."""
        return self._channel(
            service,
            lambda target, more: aio.secure_channel(
                target, credentials, [*more, *(options or ())], compression, interceptors=interceptors
            ),
        )

    def _channel(self, service: str, make: Callable[[str, "ChannelOptions"], aio.Channel]) -> aio.Channel:
        registry = self._registry
        return FollowingAioChannel(Renewable(registry, service, lambda: make(*registry.prepare_channel(service))))

    async def endpoints(self, service: str, timeout_seconds: float | None = 5.0) -> Snapshot:
        """As `Registry.endpoints`."""
        return await self._wait(service, lambda view: view.snapshot is not None, timeout_seconds)

    async def wait_for_endpoints(
        self, service: str, timeout_seconds: float | None = None, *, at_least: int = 1
    ) -> Snapshot:
        """As `Registry.wait_for_endpoints`."""
        return await self._wait(service, lambda view: view.has_endpoints(at_least), timeout_seconds)

    async def _wait(self, service: str, is_enough: Callable[[View], bool], timeout_seconds: float | None) -> Snapshot:
        with self._registry.pinned(service) as followed:
            try:
                async with asyncio.timeout(timeout_seconds):
                    async for view in _views(followed.feed):
                        if view.snapshot and is_enough(view):
                            return view.snapshot
            except TimeoutError:
                pass
            raise TimeoutError(followed.explain(timeout_seconds))

    async def watch_services(self, service: str) -> AsyncIterator[Snapshot]:
        """As `Registry.watch_services`."""
        with self._registry.pinned(service) as followed:
            last: Snapshot | None = None
            async for view in _views(followed.feed):
                if view.snapshot is not None and view.snapshot != last:
                    last = view.snapshot
                    yield last


class AioEtcdRegistry(AioRegistry):
    """The part that only a registry with an etcd of its own has."""

    def __init__(self, registry: "Registry") -> None:
        super().__init__(registry)
        self._etcd_registry = registry

    async def register(self, endpoint: Endpoint, **options: "Unpack[RegisterOptions]") -> "Registration":
        """As `Registry.register`; a thread keeps it, so a blocked event loop never loses the lease."""
        return await asyncio.to_thread(self._etcd_registry.register, endpoint, **options)

    async def unregister(self, which: "Registration | Endpoint", timeout_seconds: float = 5.0) -> bool:
        """As `Registry.unregister`."""
        return await asyncio.to_thread(self._etcd_registry.unregister, which, timeout_seconds)

    @contextlib.asynccontextmanager
    async def registered(
        self, endpoint: Endpoint, **options: "Unpack[RegisterOptions]"
    ) -> "AsyncIterator[Registration]":
        """As `Registry.registered`."""
        registration = await self.register(endpoint, **options)
        try:
            yield registration
        finally:
            await registration.unregister_async()

    def bind(
        self,
        server: aio.Server,
        endpoint: Endpoint | str,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        **options: "Unpack[RegisterOptions]",
    ) -> BoundAioServer:
        """As `Registry.bind`, for a `grpc.aio.Server`."""
        registry = self._etcd_registry
        return BoundAioServer(
            server, Binding(lambda each: (registry.register(each, **options),), endpoint, drain_seconds)
        )

    async def list_services(self, service: str) -> tuple[Endpoint, ...]:
        """As `Registry.list_services`."""
        return await asyncio.to_thread(self._etcd_registry.list_services, service)


class AioCompoundRegistry(AioRegistry):
    """The part that several registries have as one."""

    def __init__(self, compound: "CompoundRegistry") -> None:
        super().__init__(compound)
        self._compound = compound

    async def register(self, endpoint: Endpoint, **options: "Unpack[RegisterOptions]") -> "tuple[Registration, ...]":
        """As `CompoundRegistry.register`; threads keep it, so a blocked event loop never loses the leases."""
        return await asyncio.to_thread(self._compound.register, endpoint, **options)

    async def unregister(
        self, registrations: "Iterable[Registration]", timeout_seconds: float = 5.0
    ) -> tuple[bool, ...]:
        """As `CompoundRegistry.unregister`."""
        return await asyncio.to_thread(self._compound.unregister, registrations, timeout_seconds)

    @contextlib.asynccontextmanager
    async def registered(
        self, endpoint: Endpoint, **options: "Unpack[RegisterOptions]"
    ) -> "AsyncIterator[tuple[Registration, ...]]":
        """As `CompoundRegistry.registered`."""
        registrations = await self.register(endpoint, **options)
        try:
            yield registrations
        finally:
            await self.unregister(registrations)

    def bind(
        self,
        server: aio.Server,
        endpoint: Endpoint | str,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        **options: "Unpack[RegisterOptions]",
    ) -> BoundAioServer:
        """As `CompoundRegistry.bind`, for a `grpc.aio.Server`."""
        compound = self._compound
        return BoundAioServer(server, Binding(lambda each: compound.register(each, **options), endpoint, drain_seconds))

    async def list_services(self, service: str) -> tuple[Endpoint, ...]:
        """As `CompoundRegistry.list_services`."""
        return await asyncio.to_thread(self._compound.list_services, service)


def insecure_channel(
    target: str,
    options: "ChannelOptions | None" = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[aio.ClientInterceptor] | None = None,
) -> aio.Channel:
    """Give a channel of the default registry to `etcd:///name`, or just `name`."""
    registry, service = _default_registry(target)
    return registry.aio.insecure_channel(service, options, compression, interceptors)


def secure_channel(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: "ChannelOptions | None" = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[aio.ClientInterceptor] | None = None,
) -> aio.Channel:
    """Give a channel of the default registry over TLS to `etcd:///name`, or just `name`."""
    registry, service = _default_registry(target)
    return registry.aio.secure_channel(service, credentials, options, compression, interceptors)


def _default_registry(target: str) -> "tuple[Registry, str]":
    from grpc_etcd import default  # noqa: PLC0415 - it needs the registries, which need this module

    return default.default_registry(), default.service_of(target)


async def _views(feed: ViewSource) -> AsyncIterator[View]:
    """Give the present view and each newer one, until the feed is closed; what comes too fast is left out."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # a loop that was closed under an unfinished iteration
            loop.call_soon_threadsafe(changed.set)

    with feed.notifying(wake):
        while not feed.closed:
            changed.clear()
            yield feed.view
            await changed.wait()

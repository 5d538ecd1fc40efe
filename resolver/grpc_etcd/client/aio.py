"""The registry for asyncio: the same one, with `grpc.aio` channels and awaits in place of blocking.

Feeds and the ADS server are threads in either world, so a blocked event loop never makes a channel deaf, and one
registry serves any number of loops.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self

import grpc
from grpc import aio

from grpc_etcd.client.base import ChannelOptions, Following
from grpc_etcd.client.channels import FIRST_ANSWER_SECONDS, Methods, Renewable, StreamedAnswer, UnaryAnswer
from grpc_etcd.client.configuration import OF_POLICY, check_least, read_wait
from grpc_etcd.client.stats import RegistryStats
from grpc_etcd.client.targets import service_name
from grpc_etcd.discovery.publisher import FollowedService
from grpc_etcd.discovery.state import WAIT_SECONDS, ResolverState
from grpc_etcd.discovery.subscription import StateSource
from grpc_etcd.registration.offloop import in_own_thread
from grpc_etcd.registry.keywords import suggesting
from grpc_etcd.registry.policy import Policy
from grpc_etcd.registry.snapshot import Snapshot
from grpc_etcd.xds.service import MethodRoute


class _AioUnaryAnswer(UnaryAnswer):
    """The first calls of a channel may come before the registry has said what their timeout is.

    A call must be returned at once, and an event loop must not be held up. So these calls go over a second channel to
    the same target, whose innermost interceptor waits for the registry; from its answer on there are none.
    """

    def __init__(self, channel: "AioChannel", kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(channel, kind, args, kwargs)
        self._asked = channel

    def _bounded(self, native: Any, timeout: float | None) -> tuple[Any, float | None]:
        if timeout is None and self._limit is None and not self._channel.knows_timeout():
            kind, args, kwargs = self._what
            return getattr(self._asked.first.current(), kind)(*args, **kwargs), None
        return native, self._timeout(timeout)


class UnaryUnary(_AioUnaryAnswer, aio.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # no generic when it runs
    """One request, one answer."""


class StreamUnary(_AioUnaryAnswer, aio.StreamUnaryMultiCallable):  # type: ignore[type-arg]  # no generic when it runs
    """Many requests, one answer."""

    def __call__(self, request_iterator: Any = None, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # gRPC's name
        """Make the call; without an iterator the requests are written to it one by one."""
        return super().__call__(request_iterator, *args, **kwargs)


class UnaryStream(StreamedAnswer, aio.UnaryStreamMultiCallable):  # type: ignore[type-arg]  # no generic when it runs
    """One request, many answers."""


class StreamStream(StreamedAnswer, aio.StreamStreamMultiCallable):  # type: ignore[type-arg]  # no generic when it runs
    """Many requests, many answers."""


class AioChannel(Renewable[aio.Channel]):
    """A native channel, and the one for calls before the registry has answered, made when there is such a call."""

    closed_error = aio.UsageError

    def __init__(
        self,
        registry: Following,
        service: str,
        options: ChannelOptions,
        make: Callable[[str, ChannelOptions, list[Any]], aio.Channel],
    ) -> None:
        self._all = registry, service, options, make
        self._first: Renewable[aio.Channel] | None = None
        super().__init__(registry, service, options, lambda target, more: make(target, more, []))

    @property
    def first(self) -> Renewable[aio.Channel]:
        """Return the channel for such calls."""
        if self._first is None:
            registry, service, options, make = self._all
            waiting = [_UnaryWaiting(registry, service), _StreamWaiting(registry, service)]
            self._first = Renewable(registry, service, options, lambda target, more: make(target, more, waiting))
        return self._first

    async def close(self, grace: float | None) -> None:
        """Close both; what was inherited through a fork is left to the process that made it."""
        self.is_closed = True
        for channel in (self, self._first):
            if channel and channel.is_current:
                await channel.native.close(grace)
                channel.release()


class _Waiting:
    """Gives a call without a timeout the service's default, once the registry has answered or is unavailable."""

    def __init__(self, registry: Following, service: str) -> None:
        self._registry = registry
        self._service = service

    async def _bounded(self, details: aio.ClientCallDetails) -> aio.ClientCallDetails:
        if details.timeout is not None:
            return details
        begun = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ANSWER_SECONDS):
                await self._wait()
        timeout = self._registry.default_timeout(self._service)
        if timeout is None:
            return details
        left = max(0.0, timeout - (time.monotonic() - begun))
        return aio.ClientCallDetails(
            details.method, left, details.metadata, details.credentials, details.wait_for_ready
        )

    async def _wait(self) -> None:
        followed = self._registry.find_followed(self._service)  # for as long as the channel is open
        if followed is None:
            return  # the registry has been closed since the call began
        async with contextlib.aclosing(_views(followed.feed)) as views:
            async for _ in views:
                if self._registry.is_policy_known(self._service):
                    return


class _UnaryWaiting(_Waiting, aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(await self._bounded(client_call_details), request)


class _StreamWaiting(_Waiting, aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: aio.ClientCallDetails, request_iterator: Any
    ) -> Any:
        return await continuation(await self._bounded(client_call_details), request_iterator)


class FollowingAioChannel(Methods, aio.Channel):
    """A `grpc.aio.Channel` that follows a service of a registry."""

    _fronts = UnaryUnary, UnaryStream, StreamUnary, StreamStream
    _channel: AioChannel

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
        await self._channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


class AioRegistry:
    """The methods of a registry for asyncio, from its `aio`; closed with the registry."""

    def __init__(self, registry: Following) -> None:
        self._registry = registry

    def __repr__(self) -> str:
        return f"<AioRegistry of {self._registry!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Registry.close`, but in a thread: during an etcd outage, deregistering may take seconds."""
        await in_own_thread(self._registry.close)

    @suggesting("configure", OF_POLICY)
    def configure(
        self,
        service: str,
        policy: Policy | None = None,
        *,
        routes: Iterable[MethodRoute] | None = None,
        strict_removal: bool | None = None,
    ) -> None:
        """As `Registry.configure`; does not block."""
        self._registry.configure(service, policy, routes=routes, strict_removal=strict_removal)

    def stats(self) -> RegistryStats:
        """As `Registry.stats`; does not block."""
        return self._registry.stats()

    def ready(self) -> bool:
        """As `Registry.ready`; does not block."""
        return self._registry.ready()

    @property
    def closed(self) -> bool:
        """As `Registry.closed`."""
        return self._registry.closed

    def target(self, service: str) -> str:
        """As `Registry.target`; does not block."""
        return self._registry.target(service)

    def insecure_channel(
        self,
        service: str,
        options: ChannelOptions | None = None,
        compression: grpc.Compression | None = None,
        interceptors: Sequence[aio.ClientInterceptor] | None = None,
    ) -> aio.Channel:
        """Return a channel to the service that follows the registry; otherwise like `grpc.aio.insecure_channel`."""
        service = service_name(service)
        return self._channel(
            service,
            options,
            lambda target, more, waiting: aio.insecure_channel(  # by keyword, where OpenTelemetry adds its own
                target, more, compression, interceptors=[*(interceptors or ()), *waiting]
            ),
        )

    def secure_channel(
        self,
        service: str,
        credentials: grpc.ChannelCredentials,
        options: ChannelOptions | None = None,
        compression: grpc.Compression | None = None,
        interceptors: Sequence[aio.ClientInterceptor] | None = None,
    ) -> aio.Channel:
        """Return a channel over TLS; the servers' certificates must contain the service name."""
        service = service_name(service)
        return self._channel(
            service,
            options,
            lambda target, more, waiting: aio.secure_channel(
                target, credentials, more, compression, interceptors=[*(interceptors or ()), *waiting]
            ),
        )

    def _channel(
        self,
        service: str,
        options: ChannelOptions | None,
        make: Callable[[str, ChannelOptions, list[Any]], aio.Channel],
    ) -> aio.Channel:
        return FollowingAioChannel(AioChannel(self._registry, service, options or (), make))

    @suggesting("endpoints")
    async def endpoints(self, service: str, timeout_seconds: float | None = 5.0) -> Snapshot:
        """As `Registry.endpoints`."""
        with self._registry.pinned(service) as followed:
            return await _wait(followed, followed.feed, lambda view: view.snapshot is not None, timeout_seconds)

    @suggesting("wait_for_endpoints")
    async def wait_for_endpoints(
        self, service: str, timeout_seconds: float | None = WAIT_SECONDS, *, at_least: int = 1
    ) -> Snapshot:
        """As `Registry.wait_for_endpoints`."""
        check_least(at_least)
        with self._registry.pinned(service) as followed:
            source = followed.sent
            enough = partial(source.has_endpoints, at_least=at_least)
            return await _wait(followed, source, enough, timeout_seconds, at_least)

    def watch_services(self, service: str) -> AsyncIterator[Snapshot]:
        """Do the same as `watch`, under its older name."""
        return self.watch(service)

    async def watch(self, service: str) -> AsyncIterator[Snapshot]:
        """As `Registry.watch`."""
        with self._registry.pinned(service) as followed:
            last: Snapshot | None = None
            async with contextlib.aclosing(_views(followed.feed)) as views:
                async for view in views:
                    if view.snapshot is not None and view.snapshot != last:
                        last = view.snapshot
                        yield last


async def _wait(
    followed: FollowedService,
    source: StateSource,
    is_enough: Callable[[ResolverState], bool],
    timeout_seconds: float | None,
    at_least: int = 1,
) -> Snapshot:
    try:
        async with asyncio.timeout(read_wait(timeout_seconds)), contextlib.aclosing(_views(source)) as views:
            async for view in views:
                if view.snapshot and is_enough(view):
                    return view.snapshot
    except TimeoutError:
        pass
    raise TimeoutError(followed.explain(timeout_seconds, at_least))


async def _views(feed: StateSource) -> AsyncGenerator[ResolverState, None]:
    """Return the present view and each newer one, until the feed is closed; what comes too fast is left out.

    Whoever stops early closes it: what is merely dropped leaves a task to the loop, which may have no turn left for it.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # a loop that was closed under an unfinished iteration
            loop.call_soon_threadsafe(changed.set)

    with feed.notifying(wake):
        while not feed.closed:
            changed.clear()
            yield feed.view
            await changed.wait()

"""The channels that are handed out: native `xds:` channels behind a thin front of the same type.

The front does two things that gRPC cannot. A call without a timeout gets the service's default one, exactly (gRPC
applies those of xDS one to two seconds early, grpc/grpc#40633); calls that stream their answer get none, because a
stream has no usual length. And a channel that a forked child has inherited is replaced there by one of the child's own
at the next call. Everything else is the native channel's.
"""

from collections.abc import Callable
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc

from grpc_etcd.xds.plane import this_process

NativeT = TypeVar("NativeT")


class Origin(Protocol):
    """Where channels come from."""

    def default_timeout(self, service: str) -> float | None:
        """Give the timeout in seconds of calls that name none."""


class Renewable(Generic[NativeT]):
    """The native channel of this process; one that was inherited through a fork is put aside and never touched."""

    def __init__(self, origin: Origin, service: str, make: Callable[[], NativeT]) -> None:
        self.process = this_process()
        self._origin = origin
        self.service = service
        self._make = make
        self._aside: list[object] = []
        self.generation = self.process.forks
        self.native = make()

    def current(self) -> NativeT:
        """Give the native channel that this process may use."""
        if not self.is_current:
            self._aside.append(self.native)
            self.generation = self.process.forks
            self.native = self._make()
        return self.native

    @property
    def is_current(self) -> bool:
        """Tell whether the channel was made by this process."""
        return self.generation == self.process.forks

    def timeout(self) -> float | None:
        """Give the default timeout as it is now."""
        return self._origin.default_timeout(self.service)


class Front:
    """One method of a channel: the native callable, made anew when the channel is."""

    def __init__(self, channel: Renewable[Any], kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._channel = channel
        self._process = channel.process
        self._what = kind, args, kwargs
        self._bind()

    def _bind(self) -> Any:
        kind, args, kwargs = self._what
        native = self._channel.current()
        self._generation = self._channel.generation
        self._native = getattr(native, kind)(*args, **kwargs)
        return self._native

    def _callable(self) -> Any:
        return self._native if self._generation == self._process.forks else self._bind()


class UnaryAnswer(Front):
    """A call with one answer: it has a usual length."""

    def __call__(  # noqa: PLR0913, PLR0917 - as in grpc
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,  # noqa: FBT001 - as in grpc
        compression: grpc.Compression | None = None,
    ) -> Any:
        """Make the call; a timeout of None is the service's default."""
        if timeout is None:
            timeout = self._channel.timeout()
        # What `_callable` does, without the call: this is the one function that every call goes through.
        native = self._native if self._generation == self._process.forks else self._bind()
        return native(
            request,
            timeout=timeout,
            metadata=metadata,
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )


class _SyncUnaryAnswer(UnaryAnswer):
    """What the synchronous API has besides."""

    def with_call(self, request: Any, timeout: float | None = None, *args: Any, **kwargs: Any) -> Any:
        """Make the call and give its Call object too."""
        timeout = self._channel.timeout() if timeout is None else timeout
        return self._callable().with_call(request, timeout, *args, **kwargs)

    def future(self, request: Any, timeout: float | None = None, *args: Any, **kwargs: Any) -> Any:
        """Make the call in the background."""
        timeout = self._channel.timeout() if timeout is None else timeout
        return self._callable().future(request, timeout, *args, **kwargs)


class StreamedAnswer(Front):
    """A call with many answers."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make the call."""
        return self._callable()(*args, **kwargs)


class UnaryUnary(_SyncUnaryAnswer, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg, misc, unused-ignore]
    """One request, one answer."""


class StreamUnary(_SyncUnaryAnswer, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg, misc]
    """Many requests, one answer."""


class UnaryStream(StreamedAnswer, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    """One request, many answers."""


class StreamStream(StreamedAnswer, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]
    """Many requests, many answers."""


class FollowingChannel(grpc.Channel):
    """A `grpc.Channel` that follows a service of a registry."""

    def __init__(self, channel: Renewable[grpc.Channel]) -> None:
        self._channel = channel

    def __repr__(self) -> str:
        return f"<FollowingChannel {self._channel.service!r}>"

    def unary_unary(self, *args: Any, **kwargs: Any) -> UnaryUnary:
        """As grpc.Channel."""
        return UnaryUnary(self._channel, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> UnaryStream:
        """As grpc.Channel."""
        return UnaryStream(self._channel, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> StreamUnary:
        """As grpc.Channel."""
        return StreamUnary(self._channel, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> StreamStream:
        """As grpc.Channel."""
        return StreamStream(self._channel, "stream_stream", args, kwargs)

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:  # noqa: FBT001, FBT002 - as grpc.Channel
        """As grpc.Channel."""
        self._channel.current().subscribe(callback, try_to_connect=bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """As grpc.Channel."""
        self._channel.current().unsubscribe(callback)

    def close(self) -> None:
        """As grpc.Channel; a channel inherited through a fork is left to the process that made it."""
        if self._channel.is_current:
            self._channel.native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

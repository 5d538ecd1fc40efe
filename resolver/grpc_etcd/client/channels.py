"""The channels that are handed out: native `xds:` channels behind a thin front of the same type.

The front does three things that gRPC cannot. A call without a timeout gets the service's default one, exactly (gRPC
applies those of xDS one to two seconds early, grpc/grpc#40633), from the first call on; calls that stream their answer
get none, because a stream has no usual length. What the program's own `grpc.service_config` says of a method is
applied, which gRPC ignores on an xDS channel. And a channel that a forked child has inherited is replaced there by one
of the child's own at the next call. Everything else is the native channel's.
"""

import time
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NoReturn, Protocol, Self, TypeVar

import grpc

from grpc_etcd.client.service_config import split_options
from grpc_etcd.xds.control_plane import Lead, Options, this_process
from grpc_etcd.xds.retries import MethodRetries

FIRST_ANSWER_SECONDS = 15.0  # for which gRPC itself waits for a resource
_WAIT_FOR_READY = 3
NativeT = TypeVar("NativeT")


class Origin(Protocol):
    """Where channels come from."""

    def lead(self, service: str, options: Options, retries: MethodRetries) -> Lead:
        """Return how a channel gets to a service."""

    def default_timeout(self, service: str) -> float | None:
        """Return the timeout in seconds of calls that name none."""

    def is_policy_known(self, service: str) -> bool:
        """Return whether the registry has answered, so that the default timeout is known."""

    def wait_for_policy(self, service: str, timeout_seconds: float) -> None:
        """Wait until it is."""


class Renewable(Generic[NativeT]):
    """The native channel of this process; one that was inherited through a fork is put aside and never touched."""

    closed_error: ClassVar[type[Exception]] = ValueError  # what gRPC raises for a call on a closed channel

    def __init__(self, origin: Origin, service: str, options: Options, make: Callable[[str, Options], NativeT]) -> None:
        self.process = this_process()
        self._origin = origin
        self.service = service
        self.config, self._options = split_options(options)
        self._make = make
        self._aside: list[object] = []
        self.is_closed = False
        self._open()

    def current(self) -> NativeT:
        """Return the native channel that this process may use; a closed one stays so in forked children."""
        if not self.is_current:
            if self.is_closed:
                raise self.closed_error("Cannot invoke RPC on closed channel!")
            with self.process.channels_lock:
                if not self.is_current:
                    self._aside.append(self.native)
                    self._open()
        return self.native

    def _open(self) -> None:
        self._is_known = False
        generation = self.process.forks
        lead = self._origin.lead(self.service, self._options, self.config.retries)
        try:
            self.native = self._make(lead.target, lead.options)
        except BaseException:
            lead.release()
            raise
        self.release = weakref.finalize(self, lead.release)
        self.release.atexit = False
        self.generation = generation  # at last: whoever sees it takes the channel

    @property
    def is_current(self) -> bool:
        """Return whether the channel was made by this process."""
        return self.generation == self.process.forks

    def knows_timeout(self) -> bool:
        """Return whether the default timeout is known, or of no use; once it is, that is all that is asked."""
        if not self._is_known:
            self._is_known = self.is_closed or self._origin.is_policy_known(self.service)
        return self._is_known

    def timeout(self) -> float | None:
        """Return the default timeout as it is now."""
        return self._origin.default_timeout(self.service)

    def wait_for_timeout(self) -> float | None:
        """Return the default timeout of a call that begins now, once the registry has answered or is unavailable.

        The call could not begin before that either. What has been waited is taken off.
        """
        begun = time.monotonic()
        self._origin.wait_for_policy(self.service, FIRST_ANSWER_SECONDS)
        timeout = self.timeout()
        return None if timeout is None else max(0.0, timeout - (time.monotonic() - begun))


class Front:
    """One method of a channel: the native callable, recreated when the channel is."""

    def __init__(self, channel: Renewable[Any], kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._channel = channel
        self._process = channel.process
        self._what = kind, args, kwargs
        config = channel.config.of(str(args[0] if args else kwargs.get("method", "")))
        self._limit = config.timeout_seconds
        self._waits = config.wait_for_ready
        self._bind()

    def _bind(self) -> Any:
        kind, args, kwargs = self._what
        generation = self._process.forks
        native = getattr(self._channel.current(), kind)(*args, **kwargs)
        self._native = native
        self._generation = generation  # at last: whoever sees it takes the callable
        return native

    def _callable(self) -> Any:
        return self._native if self._generation == self._process.forks else self._bind()

    def _default_timeout(self) -> float | None:
        """Return the timeout of a call that names none."""
        return self._channel.timeout()

    def _waiting(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Add what the channel's service config says of `wait_for_ready`, where the call says nothing.

        It is the third argument behind the timeout in every kind of call.
        """
        if self._waits is None or len(args) >= _WAIT_FOR_READY or kwargs.get("wait_for_ready") is not None:
            return kwargs
        return kwargs | {"wait_for_ready": self._waits}

    def _timeout(self, given: float | None) -> float | None:
        """Return a call's timeout: what it names, at most what the channel's own service config says."""
        if self._limit is not None:
            return self._limit if given is None else min(given, self._limit)
        return self._default_timeout() if given is None else given


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
        # What `_callable` does, without the call: this is the one function that every call goes through.
        native = self._native if self._generation == self._process.forks else self._bind()
        if timeout is None or self._limit is not None:
            native, timeout = self._bounded(native, timeout)
        return native(
            request,
            timeout=timeout,
            metadata=metadata,
            credentials=credentials,
            wait_for_ready=self._waits if wait_for_ready is None else wait_for_ready,
            compression=compression,
        )

    def _bounded(self, native: Any, timeout: float | None) -> tuple[Any, float | None]:
        """Return what makes a call, and the timeout that it gets, of one that has none or may have too much."""
        return native, self._timeout(timeout)


class _SyncUnaryAnswer(UnaryAnswer):
    """What the synchronous API has besides."""

    def with_call(self, request: Any, timeout: float | None = None, *args: Any, **kwargs: Any) -> Any:
        """Make the call and give its Call object too."""
        return self._callable().with_call(request, self._timeout(timeout), *args, **self._waiting(args, kwargs))

    def future(self, request: Any, timeout: float | None = None, *args: Any, **kwargs: Any) -> Any:
        """Make the call in the background."""
        return self._callable().future(request, self._timeout(timeout), *args, **self._waiting(args, kwargs))

    def _default_timeout(self) -> float | None:
        channel = self._channel
        return channel.timeout() if channel.knows_timeout() else channel.wait_for_timeout()


class StreamedAnswer(Front):
    """A call with many answers: it has no usual length, so only the channel's own service config bounds it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make the call."""
        if self._limit is not None:
            given = args[1] if len(args) > 1 else kwargs.pop("timeout", None)
            args = (*args[:1], self._timeout(given), *args[2:]) if args else args
            kwargs = kwargs if args else {**kwargs, "timeout": self._timeout(given)}
        return self._callable()(*args, **self._waiting(args[2:], kwargs))


class UnaryUnary(_SyncUnaryAnswer, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg, misc, unused-ignore]  # no generic when it runs
    """One request, one answer."""


class StreamUnary(_SyncUnaryAnswer, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]  # no generic when it runs
    """Many requests, one answer: gRPC calls the first argument by another name."""

    def __call__(self, request_iterator: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # gRPC's name
        """Make the call; a timeout of None is the service's default."""
        return super().__call__(request_iterator, *args, **kwargs)

    def with_call(self, request_iterator: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # gRPC's name
        """Make the call and give its Call object too."""
        return super().with_call(request_iterator, *args, **kwargs)

    def future(self, request_iterator: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # gRPC's name
        """Make the call in the background."""
        return super().future(request_iterator, *args, **kwargs)


class UnaryStream(StreamedAnswer, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]  # no generic when it runs
    """One request, many answers."""


class StreamStream(StreamedAnswer, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]  # no generic when it runs
    """Many requests, many answers."""


class Methods:
    """The methods of a channel, each called through a front of the kind's own class."""

    _fronts: tuple[type[Front], type[Front], type[Front], type[Front]]

    def __init__(self, channel: Renewable[Any]) -> None:
        self._channel = channel

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._channel.service!r}>"

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As gRPC's."""
        return self._fronts[0](self._channel, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As gRPC's."""
        return self._fronts[1](self._channel, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As gRPC's."""
        return self._fronts[2](self._channel, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As gRPC's."""
        return self._fronts[3](self._channel, "stream_stream", args, kwargs)


class FollowingChannel(Methods, grpc.Channel):
    """A `grpc.Channel` that follows a service of a registry."""

    _fronts = UnaryUnary, UnaryStream, StreamUnary, StreamStream
    _channel: Renewable[grpc.Channel]

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:  # noqa: FBT001, FBT002 - as grpc.Channel
        """As grpc.Channel."""
        self._channel.current().subscribe(callback, try_to_connect=bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """As grpc.Channel."""
        self._channel.current().unsubscribe(callback)

    def close(self) -> None:
        """As grpc.Channel; a channel inherited through a fork is left to the process that made it."""
        self._channel.is_closed = True
        if self._channel.is_current:
            self._channel.native.close()
            self._channel.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} is a grpc.Channel; for asyncio write `async with registry.aio.insecure_channel(...)`, or "
            "`grpc_etcd.aio.insecure_channel(...)`"
        )

    async def __aexit__(self, *error: object) -> None:
        """Be never called; without it Python would not call `__aenter__`."""

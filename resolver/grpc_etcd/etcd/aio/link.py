"""The way to etcd for asyncio: the current channel, the token, unary calls and streams. Belongs to one event loop."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from grpc_etcd.etcd import errors
from grpc_etcd.etcd.calls import Call, Method, Steps
from grpc_etcd.etcd.credentials import HAS_LEADER, Credentials, Metadata
from grpc_etcd.etcd.dialing import Dialer, Facts, Lookout
from grpc_etcd.etcd.translating import translate

T = TypeVar("T")


class Line:
    """One channel with its callables, and the facts that it was made from."""

    def __init__(self, channel: grpc.aio.Channel, facts: Facts | None) -> None:
        self.channel = channel
        self.facts = facts
        self._unary: dict[str, Callable[..., Any]] = {}

    def unary(self, method: Method) -> Callable[..., Any]:
        """Return the callable of a unary method."""
        known = self._unary.get(method.path)
        if known is None:
            known = self.channel.unary_unary(method.path, method.serialize, method.parse)
            self._unary[method.path] = known
        return known

    def stream(self, method: Method) -> Callable[..., Any]:
        """Return the callable of a streaming method."""
        return self.channel.stream_stream(method.path, method.serialize, method.parse)


class Link:
    """What a client and its streams share."""

    def __init__(
        self,
        dialer: Dialer | None,
        credentials: Credentials,
        timeout_seconds: float,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        self._dialer = dialer
        self._lookout = Lookout()
        self._credentials = credentials
        self._timeout_seconds = timeout_seconds
        self._line = Line(channel, None) if channel else None
        self._line_lock = asyncio.Lock()
        self._log_in_lock = asyncio.Lock()
        self.closed = False

    async def run(self, steps: Steps[T]) -> T:
        """Make the calls that some steps ask for."""
        reply = None
        while True:
            try:
                call = steps.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            reply = await self.call(call)

    def call(self, call: Call[T]) -> Coroutine[Any, Any, T]:
        """Make one call. Without a user that is one coroutine less, which each call feels."""
        return self._call_as_user(call) if self._credentials.user else self._send(call, ())

    async def _call_as_user(self, call: Call[T]) -> T:
        """Log in before a call where needed, and once more when the token is refused."""
        token = self._credentials.token
        if token is None:
            token = await self._log_in()
        try:
            return await self._send(call, token)
        except errors.TokenRefused:
            self._credentials.drop(token)
            return await self._send(call, await self._log_in())

    async def stream(self, method: Method) -> Any:
        """Open a stream without a deadline."""
        metadata = (*await self._log_in(), *HAS_LEADER)
        stream = (await self._current_line()).stream(method)
        try:
            return stream(metadata=metadata)
        except grpc.aio.UsageError as error:  # grpcio's answer on a channel that was closed meanwhile
            raise errors.Closed(str(error)) from error

    def drop_token(self) -> None:
        """Log in again before the next call."""
        self._credentials.drop(self._credentials.token)

    def suspect(self) -> None:
        """Look soon whether files or names have changed."""
        self._lookout.suspect()

    async def close(self) -> None:
        """Close the channel, unless it was adopted."""
        self.closed = True
        line, self._line = self._line, None
        if line and self._dialer:
            await line.channel.close()

    async def _send(self, call: Call[T], metadata: Metadata) -> T:
        line = self._line if self._is_current() else await self._current_line()
        assert line is not None  # noqa: S101  as _is_current() says
        try:
            answer = line.unary(call.method)(call.request, timeout=self._timeout_seconds, metadata=metadata)
            if call.meanwhile is not None:
                await asyncio.sleep(0)  # only now the request goes out
                call.meanwhile()
            reply = await answer
        except grpc.RpcError as error:
            self._lookout.suspect()
            raise self._explain(error) from error
        except grpc.aio.UsageError as error:  # grpcio's answer on a channel that was closed meanwhile
            raise errors.Closed(str(error)) from error
        except asyncio.CancelledError as error:
            if not self.closed:
                raise
            raise errors.Closed("the client was closed during the call") from error
        return call.read(reply)

    def _explain(self, error: grpc.RpcError) -> errors.EtcdError:
        return errors.Closed("the client was closed during the call") if self.closed else translate(error)

    async def _log_in(self) -> Metadata:
        async with self._log_in_lock:
            token = self._credentials.token
            return self._credentials.accept(await self._fetch_token()) if token is None else token

    async def _fetch_token(self) -> str:
        try:
            return await self._send(self._credentials.log_in(), ())
        except errors.AuthNotEnabled:
            return ""

    def _is_current(self) -> bool:
        if self._line is None:
            return False
        return not (self._dialer and self._dialer.may_change and self._lookout.is_due(time.monotonic()))

    async def _current_line(self) -> Line:
        async with self._line_lock:
            if self.closed:
                raise errors.Closed("the client has been closed")
            if self._line is None or not self._is_current():
                self._line = await self._look()
            return self._line

    async def _look(self) -> Line:
        """Return a line for the facts as they are; the old one ends with its last stream."""
        assert self._dialer is not None  # noqa: S101  an adopted channel is never replaced
        self._lookout.looked(time.monotonic())
        try:
            facts = await asyncio.to_thread(self._dialer.facts) if self._dialer.may_block else self._dialer.facts()
        except errors.EtcdError:
            if self._line is None:
                raise
            return self._line  # files are being replaced right now, or no name server answers
        if self._line and self._line.facts == facts:
            return self._line
        return Line(self._dialer.aio_channel(facts), facts)

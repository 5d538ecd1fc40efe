"""The way to etcd for asyncio: channels to its members, the token, unary calls and streams.

Belongs to one event loop.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio

from grpc_etcd.etcd import errors
from grpc_etcd.etcd.calls import Call, Method, Steps
from grpc_etcd.etcd.connection import BaseConnection, BaseMemberConnection
from grpc_etcd.etcd.credentials import HAS_LEADER, Credentials, Metadata
from grpc_etcd.etcd.dialing import Dialer, Facts

T = TypeVar("T")


async def close_client(connection: "Connection", streams: Iterable[Any]) -> None:
    """End a client's streams, then its channels."""
    await close_all([*(stream.close for stream in streams), connection.close])


class MemberConnection(BaseMemberConnection[grpc.aio.Channel]):
    """One member."""

    async def close(self) -> None:
        """Close the channels."""
        await close_all(channel.close for channel in self.channels())


def is_being_cancelled() -> bool:
    """Return whether the task that runs has been cancelled, and not only the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def close_all(closes: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Close one after another, and the rest also when the task that closes is cancelled meanwhile."""
    rest = iter(closes)
    for close in rest:
        try:
            await close()
        except BaseException:
            await close_all(rest)
            raise


class Connection(BaseConnection[MemberConnection]):
    """What a client and its streams share."""

    def __init__(
        self,
        dialer: Dialer | None,
        credentials: Credentials,
        timeout_seconds: float,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        super().__init__(dialer, credentials, timeout_seconds, MemberConnection(lambda: channel) if channel else None)
        self._log_in_lock = asyncio.Lock()

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
        """Log in before a call where needed, and once more when the token is refused, all in one time."""
        end = self._end()
        token = self._credentials.token
        if token is None:
            token = await self._log_in(end)
        try:
            return await self._send(call, token, end)
        except (errors.TokenRefused, errors.PermissionDenied) as error:
            if not self._credentials.is_refused(token, error):
                raise
            self._credentials.drop(token)
            return await self._send(call, await self._log_in(end), end)
        except errors.DeadlineExceeded:
            self._credentials.drop(token)
            raise

    async def stream(self, method: Method) -> Any:
        """Open a stream without a deadline; how it fails is to be reported."""
        self._credentials.forget_that_nobody_was_asked()  # a stream stands for one user as long as it lives
        metadata = (*await self._log_in(self._end()), *HAS_LEADER)
        try:
            return self._current_members()[self._rotation.current].open(method, metadata)
        except grpc.aio.UsageError as error:  # grpcio's answer on a channel that was closed meanwhile
            raise errors.Closed(str(error)) from error

    async def close(self) -> None:
        """Close the channels, unless it was adopted."""
        self.closed = True
        lines, self._members = self._members, ()
        if self._dialer:
            await close_all(line.close for line in lines)

    def _end(self) -> float:
        return time.monotonic() + self._timeout_seconds

    async def _send(self, call: Call[T], metadata: Metadata, end: float | None = None) -> T:
        """Make a call at the current member, or at another one if it was certainly not sent."""
        lines = self._members if self._is_current() else self._current_members()
        member, tried = self._rotation.current, list[int]()
        end = self._end() if end is None else end
        while True:
            try:
                reply = await self._send_to(lines[member], call, metadata, end)
            except errors.EtcdError as error:
                tried.append(member)
                following = self._note_failure(member, lines[member], error, tried)
                if following is None or time.monotonic() >= end:
                    lines = ()  # whoever keeps the error keeps no channel by it, which would dial forever
                    raise error.with_traceback(None) from error.__cause__
                member, lines = following, self._current_members()
            else:
                if self._rotation.silent:
                    self._give_up_on_silent(member)
                return reply

    async def _send_to(self, line: MemberConnection, call: Call[T], metadata: Metadata, end: float) -> T:
        try:
            timeout = end - time.monotonic()
            answer = line.unary(call.method)(call.request, timeout=timeout, metadata=metadata)
            if call.meanwhile is not None:
                await asyncio.sleep(0)  # only now the request goes out
                call.meanwhile()
            reply = await answer
        except grpc.RpcError as error:
            self._recheck.suspect()
            raise self._explain(error) from error
        except grpc.aio.UsageError as error:  # grpcio's answer on a channel that was closed meanwhile
            raise errors.Closed(str(error)) from error
        except asyncio.CancelledError as error:  # of the task, or of the call: grpcio reports both alike
            if is_being_cancelled():
                raise
            if self.closed:
                raise errors.Closed("the client was closed during the call") from error
            # Else its caller's task would end silently.
            raise errors.Unavailable("the call was cancelled") from error.with_traceback(None)
        return call.read(reply)

    async def _log_in(self, end: float) -> Metadata:
        await self._take_turn(end)
        try:
            token = self._credentials.token
            return self._credentials.accept(await self._fetch_token(end)) if token is None else token
        finally:
            self._log_in_lock.release()

    async def _take_turn(self, end: float) -> None:
        """Wait until no other call logs in, for no longer than this one may take."""
        try:
            async with asyncio.timeout(end - time.monotonic()):
                await self._log_in_lock.acquire()
        except TimeoutError as error:
            raise errors.DeadlineExceeded("a login that another call has begun has not been answered") from error

    async def _fetch_token(self, end: float) -> str:
        try:
            return await self._send(self._credentials.log_in(), (), end)
        except errors.AuthNotEnabled:
            return ""

    def _make_members(self, dialer: Dialer, facts: Facts) -> tuple[MemberConnection, ...]:
        return tuple(MemberConnection(partial(dialer.aio_channel, each, facts)) for each in dialer.targets)

"""What the ways to etcd for threads and for asyncio have in common: members, their channels, and whom to ask next."""

import abc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import grpc

from grpc_etcd.etcd import errors
from grpc_etcd.etcd.calls import Method
from grpc_etcd.etcd.credentials import Credentials, Metadata
from grpc_etcd.etcd.dialing import Dialer, Facts, RecheckSchedule
from grpc_etcd.etcd.list_watch import WATCH_PATH
from grpc_etcd.etcd.rotation import Rotation
from grpc_etcd.etcd.translating import translate

ChannelT = TypeVar("ChannelT")
MemberT = TypeVar("MemberT", bound="BaseMemberConnection[Any]")


class BaseMemberConnection(Generic[ChannelT]):
    """One member: a channel for calls and leases, and one for watches, so that neither fills the other's connection.

    Thread-safe.
    """

    def __init__(self, dial: Callable[[], ChannelT]) -> None:
        self._dial = dial
        self._lock = threading.Lock()
        self._calls: ChannelT | None = None
        self._watches: ChannelT | None = None
        self._unary: dict[str, Any] = {}
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()

    def unary(self, method: Method) -> Any:
        """Return the callable of a unary method."""
        known = self._unary.get(method.path)
        if known is None:
            with self._lock:
                known = self._channel().unary_unary(method.path, method.serialize, method.parse)
                self._unary[method.path] = known
        return known

    def open(self, method: Method, metadata: Metadata, *requests: Any) -> Any:
        """Open a stream."""
        with self._lock:
            channel = self._watch_channel() if method.path == WATCH_PATH else self._channel()
            stream = channel.stream_stream(method.path, method.serialize, method.parse)(*requests, metadata=metadata)
            self._streams.add(stream)
        return stream

    def forget(self, stream: Any) -> bool:
        """Let a stream be of this member no longer; return whether it was."""
        with self._lock:
            if is_known := stream in self._streams:
                self._streams.discard(stream)
        return is_known

    def forked(self) -> None:
        """Be a forked child's: a thread that is not there may have held the lock."""
        self._lock = threading.Lock()

    def hang_up(self) -> None:
        """End all streams."""
        with self._lock:
            streams = tuple(self._streams)
        for stream in streams:
            stream.cancel()

    def channels(self) -> list[ChannelT]:
        """Return the channels that have been made."""
        with self._lock:
            return [channel for channel in (self._calls, self._watches) if channel is not None]

    def _channel(self) -> Any:
        if self._calls is None:
            self._calls = self._dial()
        return self._calls

    def _watch_channel(self) -> Any:
        if self._watches is None:
            self._watches = self._dial()
        return self._watches


class BaseConnection(abc.ABC, Generic[MemberT]):
    """What a client and its streams share. What is here is thread-safe."""

    def __init__(
        self, dialer: Dialer | None, credentials: Credentials, timeout_seconds: float, adopted: MemberT | None
    ) -> None:
        self._dialer = dialer
        self._recheck = RecheckSchedule()
        self._credentials = credentials
        self._timeout_seconds = timeout_seconds
        self._facts: Facts | None = None
        self._members: tuple[MemberT, ...] = (adopted,) if adopted else ()
        self._rotation = Rotation(len(dialer.targets) if dialer else 1)
        self._member_lock = threading.Lock()
        self.closed = False

    @abc.abstractmethod
    def _make_members(self, dialer: Dialer, facts: Facts) -> tuple[MemberT, ...]:
        """Make a line to each member."""

    def report(self, stream: Any, error: errors.EtcdError) -> None:
        """Record that a stream has failed: look soon whether files have changed, and ask another member.

        Each stream counts once, and none that was hung up before. Without a stream nothing is recorded.
        """
        for member, line in enumerate(self._members):
            if line.forget(stream):
                self._recheck.suspect()
                self._note_failure(member, line, error)

    def hang_up(self, stream: Any) -> None:
        """End a stream that is needed no longer: that it ends is no failure of its member's."""
        for line in self._members:
            line.forget(stream)
        stream.cancel()

    def drop_token(self) -> None:
        """Log in again before the next call."""
        self._credentials.drop(self._credentials.token)

    def _note_failure(
        self, member: int, line: MemberT, error: errors.EtcdError, tried: Sequence[int] = ()
    ) -> int | None:
        """Record that a member has failed; return which one to try next, if some were tried and one is left."""
        with self._member_lock:
            self._rotation.failed(member, error)
            if (
                self._rotation.is_to_be_dialled_again(error)
                and self._dialer
                and self._facts
                and self._members == (line,)
            ):
                self._members = self._make_members(self._dialer, self._facts)  # the old one ends with its last stream
            return self._rotation.next(tried, error) if tried else None

    def _give_up_on_silent(self, answering: int) -> None:
        """End the streams of members that are silent while this one answers."""
        with self._member_lock:
            silent, lines = self._rotation.answered(answering), self._members
        for member, line in enumerate(lines):
            if member in silent:
                line.hang_up()

    def _explain(self, error: grpc.RpcError) -> errors.EtcdError:
        return errors.Closed("the client was closed during the call") if self.closed else translate(error)

    def _is_current(self) -> bool:
        if not self._members:
            return False
        return not (self._dialer and self._dialer.may_change and self._recheck.is_due(time.monotonic()))

    def _current_members(self) -> tuple[MemberT, ...]:
        with self._member_lock:
            if self.closed:
                raise errors.Closed("the client has been closed")
            if not self._is_current():
                self._look()
            return self._members

    def _look(self) -> None:
        """Make lines for the facts as they are; the old ones end with their last stream."""
        assert self._dialer is not None  # noqa: S101  an adopted channel is never replaced
        self._recheck.looked(time.monotonic())
        try:
            facts = self._dialer.facts()
        except errors.EtcdError:
            if not self._members:
                raise
            return  # files are being replaced right now
        if facts != self._facts:
            self._facts = facts
            self._members = self._make_members(self._dialer, facts)

"""Puts the flush keys of one registry: after a burst they make its readers publish all of it (registry.pace).

One that etcd refuses stays owed: retrying after pauses that grow, and as soon as a permission is back. Those of
services that are gone are deleted now and then: the lease that all share lives as long as anybody leads.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from grpc_etcd.etcd import compare, ops
from grpc_etcd.etcd.errors import EtcdError, LeaseNotFound, Unavailable
from grpc_etcd.etcd.model import Event
from grpc_etcd.layouts.rate_limits import RateLimitedQueue
from grpc_etcd_operator.controller.applier import OPERATIONS
from grpc_etcd_operator.controller.parts import Parts
from grpc_etcd_operator.core.backoff import Backoff
from grpc_etcd_operator.core.leases import SETTLED, lease_id
from grpc_etcd_operator.registry.refusals import REFUSED, grant
from grpc_etcd_operator.registry.trouble import Trouble

log = logging.getLogger(__name__)
BACKOFF = Backoff((5.0, 10.0, 20.0, 40.0, 60.0))  # before one that was refused is tried again. Arbitrary
REFUSED_AT_ONCE = 16  # that are tried again together, each by itself. Arbitrary
TIDY_SECONDS = 300.0  # between two looks for those of services that are gone. Arbitrary


@dataclass(slots=True)
class Refused:
    """A touch that etcd has refused: how often in a row, and when retrying."""

    failures: int = 0
    until: float = 0.0


class FlushKeys:
    """The flush keys of all streams; `queue` knows when each is due."""

    def __init__(
        self,
        parts: Parts,
        queue: RateLimitedQueue[bytes, str],
        trouble: Trouble,
        wake: Callable[[], None],
        *,
        tidy_seconds: float = TIDY_SECONDS,
    ) -> None:
        self._parts, self._queue, self._trouble, self._wake = parts, queue, trouble, wake
        self._tidy_seconds, self._tidy_at = tidy_seconds, time.monotonic() + tidy_seconds
        self._under_way: set[bytes] = set()
        self._refused: dict[bytes, Refused] = {}
        self._own: dict[bytes, int] = {}  # leases of streams whose touch is not taken under that which all share
        self._ended = 0  # how many refusals of other keys have ended

    @property
    def are_owed(self) -> bool:
        """Return whether readers wait for a touch of this replica that etcd has not refused, the first of a burst."""
        is_any = bool(self._under_way) or self._queue.has_bursts
        return is_any and self._parts.election.is_leading

    def note_events(self, events: Iterable[Event]) -> None:
        """Take what readers are notified while another replica leads: whoever takes over owes them its touches."""
        if self._parts.election.is_leading:
            return
        now = time.monotonic()
        for event in events:
            if stream := self._parts.streams.find(event.key):
                flush = self._flush_of(stream)
                if flush and event.key == flush[0]:
                    self._refused.pop(stream, None)
                    self._queue.note_flush(stream, now)
                else:
                    self._queue.note(stream, 1, now)

    def take_up_again(self) -> None:
        """Record that a run which failed took those down that were under way."""
        self._owe(self._under_way)
        self._under_way.clear()

    def start(self, group: asyncio.TaskGroup, term: int) -> bool:
        """Start the flush keys that are due; return whether there are any."""
        now = time.monotonic()
        if now >= self._tidy_at and self._parts.facts.has_seen_all():
            self._tidy_at = now + self._tidy_seconds
            group.create_task(self._tidy(term))
        due = [stream for stream in self._queue.flushes_due(now) if stream not in self._refused]
        flushes = {stream: self._flush_of(stream) for stream in (*due, *self._take_refused(now))}
        records = {stream: record for stream, record in flushes.items() if record}
        if records:
            self._under_way.update(records)
            group.create_task(self._put(records, term))
        return bool(records)

    def next_at(self) -> float:
        """Return when the next touch is due; infinity: none is."""
        at = self._queue.flush_at()
        waiting = (each.until for stream, each in self._refused.items() if stream not in self._under_way)
        return min(math.inf if at is None else at, *waiting, math.inf)

    def _take_refused(self, now: float) -> list[bytes]:
        """Return some of those that were refused and are to be tried again; forget those of services that are gone."""
        if self._ended != (ended := self._parts.refusing.refusals.ended):
            self._ended = ended
            for each in self._refused.values():
                each.until = min(each.until, now)
        for stream in [stream for stream in self._refused if not self._flush_of(stream)]:
            del self._refused[stream]
        due = (stream for stream, each in self._refused.items() if each.until <= now)
        return [stream for stream in due if stream not in self._under_way][:REFUSED_AT_ONCE]

    def _refuse(self, stream: bytes) -> None:
        """Record that etcd refuses a touch."""
        refused = self._refused.setdefault(stream, Refused())
        if not refused.failures:
            text = "etcd denies the flush key of a service, whose clients may miss changes; retrying"
            log.warning(
                text,
                extra={
                    "event": "flush_key_refused",
                    "fields": {"registry": self._parts.registry, "remedy": grant(stream)},
                },
            )
        refused.failures += 1
        refused.until = time.monotonic() + BACKOFF.after(refused.failures)

    def _take_as_put(self, streams: Iterable[bytes]) -> None:
        for stream in streams:
            self._refused.pop(stream, None)

    async def _put(self, records: Mapping[bytes, tuple[bytes, bytes]], term: int) -> None:
        """Put the flush keys under a lease of their own, so that they expire with everything else."""
        lease = lease_id(self._parts.cluster, SETTLED)
        waiting = list(records)
        try:
            await self._parts.leases.ensure([lease])
            while waiting:
                some = waiting[:OPERATIONS]
                puts = [ops.put(key, value, lease=lease) for key, value in map(records.__getitem__, some)]
                result = await self._parts.etcd.transaction(self._parts.election.fence(term), puts)
                if not result.succeeded:
                    break  # of a term that is over; readers wait for it still, should this replica lead again
                self._trouble.end()
                self._take_as_put(some)
                self._let_go(some)
                del waiting[:OPERATIONS]
        except LeaseNotFound:  # one that was adopted on trust
            self._parts.leases.forget(lease)
        except REFUSED as error:
            self._trouble.count(error)
            waiting = await self._put_singly(waiting, records, term)
        except EtcdError as error:
            self._trouble.note(error)
        except Exception as error:  # noqa: BLE001  nobody foresaw it; what it concerned is touched with its next change
            self._parts.isolation.caught("touch", "", error)
            waiting = []
        self._under_way.difference_update(records)
        self._owe(each for each in waiting if each not in self._refused)
        self._put_off(records)
        self._wake()

    def _put_off(self, streams: Iterable[bytes]) -> None:
        """Let those of some touches that were refused before wait for their next try, whatever became of this one."""
        for refused in filter(None, map(self._refused.get, streams)):
            refused.until = max(refused.until, time.monotonic() + BACKOFF.after(1))

    def _owe(self, streams: Iterable[bytes]) -> None:
        for stream in streams:
            self._queue.flush_again(stream, time.monotonic())

    async def _put_singly(
        self, streams: Sequence[bytes], records: Mapping[bytes, tuple[bytes, bytes]], term: int
    ) -> list[bytes]:
        """Put each touch by itself, and note those that are refused; return those that are to be tried again soon.

        etcd takes no put under a lease with a key that the operator may not write any more, as another stream's touch
        may be by now. So a touch that is refused is tried once more under a lease of its stream alone.
        """
        shared, again = lease_id(self._parts.cluster, SETTLED), []
        for stream in streams:
            own = lease_id(self._parts.cluster, f"{SETTLED} {stream.hex()}")
            try:
                if await self._is_taken(records[stream], shared, term):
                    self._let_go([stream])
                else:
                    self._own[stream] = own
                    await self._parts.leases.ensure([own])
                    if not await self._is_taken(records[stream], own, term):
                        self._refuse(stream)
                        continue
                self._take_as_put([stream])
            except LeaseNotFound:
                self._parts.leases.forget(shared)
                self._parts.leases.forget(own)
                again.append(stream)
            except EtcdError:
                again.append(stream)
        return again

    def _let_go(self, streams: Iterable[bytes]) -> None:
        """Keep leases of some streams' own alive no longer: nothing more comes under them, and what is there goes."""
        for lease in filter(None, [self._own.pop(stream, None) for stream in streams]):
            self._parts.leases.let_run_out(lease)

    async def _is_taken(self, record: tuple[bytes, bytes], lease: int, term: int) -> bool:
        """Put one touch; return whether etcd takes it."""
        try:
            put = ops.put(*record, lease=lease)
            result = await self._parts.etcd.transaction(self._parts.election.fence(term), [put])
        except REFUSED:
            return False
        if not result.succeeded:
            raise Unavailable("leadership ended before the flush key was written")
        return True

    async def _tidy(self, term: int) -> None:
        """Delete what is left. What fails is tried again with the next look."""
        try:
            await self._delete_left(term)
        except EtcdError:
            pass
        except Exception as error:  # noqa: BLE001  nobody foresaw it; no other flush key is to wait for it
            self._parts.isolation.caught("touch", "", error)

    async def _delete_left(self, term: int) -> None:
        """Delete the flush keys of services that are gone."""
        self._let_go([stream for stream in self._own if not self._flush_of(stream)])
        shared = lease_id(self._parts.cluster, SETTLED)
        found = await self._parts.etcd.time_to_live(shared, keys=True)
        for key in filter(self._is_left, found.keys if found else ()):
            fence = *self._parts.election.fence(term), compare.lease(key, "==", shared)
            with contextlib.suppress(*REFUSED):  # which keeps none of the others
                await self._parts.etcd.transaction(fence, [ops.delete(key)])

    def _is_left(self, key: bytes) -> bool:
        """Return whether a flush key is of no stream that is written, or may be."""
        stream = self._parts.streams.find(key)
        flush = self._flush_of(stream) if stream else None
        return flush is None or flush[0] != key

    def _flush_of(self, stream: bytes) -> tuple[bytes, bytes] | None:
        return self._parts.streams.flush(stream, self._parts.cluster)

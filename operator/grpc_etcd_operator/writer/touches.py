"""Puts the settling touches of one registry: after a burst they make its readers publish all of it (registry.pace)."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.errors import EtcdError, LeaseNotFound
from grpc_etcd.etcd.model import Event
from grpc_etcd.layouts.pace import PacedQueue
from grpc_etcd_operator.core.leases import SETTLED, lease_id
from grpc_etcd_operator.writer.applier import OPERATIONS
from grpc_etcd_operator.writer.parts import Parts
from grpc_etcd_operator.writer.refusing import REFUSED
from grpc_etcd_operator.writer.trouble import Trouble


class Touches:
    """The touches of all streams; `queue` knows when each is due."""

    def __init__(self, parts: Parts, queue: PacedQueue[bytes, str], trouble: Trouble, wake: Callable[[], None]) -> None:
        self._parts, self._queue, self._trouble, self._wake = parts, queue, trouble, wake
        self._under_way: set[bytes] = set()

    @property
    def are_owed(self) -> bool:
        """Say whether readers wait for a touch of this replica."""
        is_any = bool(self._under_way) or self._queue.touch_at() is not None
        return is_any and self._parts.election.is_leading

    def note_events(self, events: Iterable[Event]) -> None:
        """Take what readers are told while another replica leads: whoever takes over owes them its touches."""
        if self._parts.election.is_leading:
            return
        now = time.monotonic()
        for event in events:
            if stream := self._parts.streams.find(event.key):
                touch = self._touch_of(stream)
                if touch and event.key == touch[0]:
                    self._queue.note_touch(stream, now)
                else:
                    self._queue.note(stream, 1, now)

    def take_up_again(self) -> None:
        """Take it that a run which failed took those down that were under way."""
        self._owe(self._under_way)
        self._under_way.clear()

    def start(self, group: asyncio.TaskGroup, term: int) -> bool:
        """Start the settling touches that are due; say whether there are any."""
        due = {stream: self._touch_of(stream) for stream in self._queue.touches_due(time.monotonic())}
        records = {stream: record for stream, record in due.items() if record}
        if records:
            self._under_way.update(records)
            group.create_task(self._put(records, term))
        return bool(records)

    async def _put(self, records: Mapping[bytes, tuple[bytes, bytes]], term: int) -> None:
        """Put the touches under a lease of their own, so that they run out with everything else."""
        lease = lease_id(self._parts.cluster, SETTLED)
        waiting = list(records)
        try:
            await self._parts.leases.ensure([lease])
            while waiting:
                some = waiting[:OPERATIONS]
                puts = [ops.put(key, value, lease=lease) for key, value in map(records.__getitem__, some)]
                result = await self._parts.etcd.transaction([self._parts.election.fence(term)], puts)
                if not result.succeeded:
                    break  # of a term that is over; readers wait for it still, should this replica lead again
                self._trouble.end()
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
        self._owe(waiting)
        self._wake()

    def _owe(self, streams: Iterable[bytes]) -> None:
        for stream in streams:
            self._queue.touch_again(stream, time.monotonic())

    async def _put_singly(
        self, streams: Sequence[bytes], records: Mapping[bytes, tuple[bytes, bytes]], term: int
    ) -> list[bytes]:
        """Put each touch by itself, and give up those that are refused; give those that are to be tried again.

        etcd takes no put under a lease with a key that the operator may not write any more, as another stream's touch
        may be by now. So a touch that is refused is tried once more under a lease of its stream alone.
        """
        shared, again = lease_id(self._parts.cluster, SETTLED), []
        for stream in streams:
            own = lease_id(self._parts.cluster, f"{SETTLED} {stream.hex()}")
            try:
                if not await self._is_taken(records[stream], shared, term):
                    await self._parts.leases.ensure([own])
                    await self._is_taken(records[stream], own, term)
            except LeaseNotFound:
                self._parts.leases.forget(shared)
                self._parts.leases.forget(own)
                again.append(stream)
            except EtcdError:
                again.append(stream)
        return again

    async def _is_taken(self, record: tuple[bytes, bytes], lease: int, term: int) -> bool:
        """Put one touch; say whether etcd takes it."""
        try:
            put = ops.put(*record, lease=lease)
            await self._parts.etcd.transaction([self._parts.election.fence(term)], [put])
        except REFUSED:
            return False
        return True

    def _touch_of(self, stream: bytes) -> tuple[bytes, bytes] | None:
        return self._parts.streams.touch(stream, self._parts.cluster)

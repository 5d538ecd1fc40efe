"""The writer of one registry: brings each unit's records from current to desired, by transactions that are fenced.

    enqueue(uid) -> plan from desired and mirror -> paced queue -> lease -> one transaction for several units -> mirror

Level-triggered: a UID says only that something may have changed. Withdrawals go first. This is the work queue, one of
the two places that try again: whatever fails comes back here after a pause. Without leadership plans are made (a
standby is warm, and knows what is registered) and nothing is sent.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import EtcdError, InvalidRequest, LeaseNotFound
from grpc_etcd.etcd.model import Event, LeaseId, Listing, Record, Revision, TransactionResult
from grpc_etcd.registry.pace import Change, PacedQueue
from grpc_etcd_operator.core.desired import Desired, Fault
from grpc_etcd_operator.core.leases import SETTLED, lease_id
from grpc_etcd_operator.core.plan import Plan, make_plan
from grpc_etcd_operator.writer.electing import Election
from grpc_etcd_operator.writer.leasing import Leases
from grpc_etcd_operator.writer.mirror import Announcement, Mirror
from grpc_etcd_operator.writer.sending import Transaction, divide, make_transaction
from grpc_etcd_operator.writer.streams import Streams

log = logging.getLogger(__name__)

IN_FLIGHT = 2  # more in flight makes smaller batches and more CPU (measured)
OPERATIONS = 120  # of etcd's 128 (--max-txn-ops), less the fence and some air
SLICE = 100  # units planned before the event loop gets its turn
PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)


class Facts(Protocol):
    """What the writer asks of the rest of the operator."""

    def desired(self, uid: str, registry: str) -> Desired | None:
        """Say what a unit ought to have; None: hands off."""

    def outranks(self, uid: str, rival: str) -> bool:
        """Decide between two living units that want one key."""

    def may_write(self) -> bool:
        """Say whether a complete list of GrpcServices has been seen."""

    def has_seen_all(self) -> bool:
        """Say whether complete lists of both Pods and GrpcServices have been seen: an absence means nothing before."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a unit is in one registry: the GrpcServices (by UID) that have all their keys, and what is wrong.

    `plan` is what has just been committed; None when there was nothing to do, or nothing could be done.
    """

    uid: str
    written: frozenset[str]
    faults: tuple[Fault, ...] = ()
    plan: Plan | None = None


@dataclass(slots=True)
class Trouble:
    """Why nothing can be written just now, and when to try again. `on_change` is told when it begins and ends."""

    on_change: Callable[[], None]
    error: EtcdError | None = None
    failures: int = 0
    until: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, error: EtcdError) -> None:
        """Count a failure that says nothing of the registry as a whole."""
        name = type(error).__name__
        self.counts[name] = self.counts.get(name, 0) + 1

    def note(self, error: EtcdError) -> None:
        """Take a failure; the pause grows with each in a row."""
        self.count(error)
        began, self.error = self.error is None, error
        self.until = time.monotonic() + PAUSES[min(self.failures, len(PAUSES) - 1)]
        self.failures += 1
        if began:
            self.on_change()

    def end(self) -> None:
        """Take a success."""
        ended, self.error, self.failures = self.error is not None, None, 0
        if ended:
            self.on_change()


class Writer:
    """Writes to one registry. `on_outcome` is told of each unit that was planned or written."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts of one station
        self,
        registry: str,
        cluster: str,
        etcd: Etcd,
        facts: Facts,
        mirror: Mirror,
        election: Election,
        leases: Leases,
        streams: Streams,
        on_outcome: Callable[[Outcome], None],
        on_trouble: Callable[[], None],
    ) -> None:
        self.registry, self._cluster, self._etcd = registry, cluster, etcd
        self._facts, self._mirror, self._election, self._leases = facts, mirror, election, leases
        self._streams, self._on_outcome = streams, on_outcome
        self._queue: PacedQueue[bytes, str] = PacedQueue(streams.pace)
        self._dirty: dict[str, float] = {}
        self._urgent: dict[str, float] = {}
        self._held_back: dict[str, float] = {}
        self._plans: dict[str, Plan] = {}
        self._since: dict[str, float] = {}
        self._in_flight: set[str] = set()
        self._strangers: set[bytes] = set()
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self.trouble = Trouble(on_trouble)

    def enqueue(self, uids: Iterable[str], *, urgent: bool = False) -> None:
        """Look at these units again, soon; `urgent` ones first."""
        now = time.monotonic()
        queue = self._urgent if urgent else self._dirty
        for uid in uids:
            queue.setdefault(uid, now)
        self._wake_for_work()

    def wake(self) -> None:
        """Look again at what was held back: something outside has changed."""
        held, self._held_back = self._held_back, {}
        for uid, since in held.items():
            self._dirty.setdefault(uid, since)
        self._wake.set()

    def note_events(self, events: Iterable[Event]) -> None:
        """Take what readers are told while another replica leads: whoever takes over owes them its settling touches."""
        if self._election.is_leading:
            return
        now = time.monotonic()
        for event in events:
            if stream := self._streams.find(event.key):
                touch = self._streams.touch(stream, self._cluster)
                if touch and event.key == touch[0]:
                    self._queue.note_touch(stream, now)
                else:
                    self._queue.note(stream, 1, now)

    def _wake_for_work(self) -> None:
        if self._dirty or self._urgent or self._queue:
            self._wake.set()

    @property
    def depth(self) -> int:
        """Count the units that wait."""
        return len(self._dirty) + len(self._urgent) + len(self._queue) + len(self._held_back)

    @property
    def in_flight(self) -> int:
        """Count the units in transactions that are under way."""
        return len(self._in_flight)

    @property
    def has_judged_all(self) -> bool:
        """Say whether every unit that was enqueued has been looked at."""
        return not (self._dirty or self._urgent or self._strangers)

    def preview(self) -> list[Plan]:
        """Give the plans that would be carried out if this replica led."""
        known = [self._facts.desired(uid, self.registry) for uid in sorted(self._held_back)]
        plans = [self._make_plan(desired) for desired in known if desired]
        return [plan for plan in plans if not plan.is_empty]

    def overdue_seconds(self) -> float:
        """Say for how long the oldest change has been waiting."""
        oldest = min((min(waiting.values()) for waiting in self._waiting() if waiting), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def _waiting(self) -> tuple[dict[str, float], ...]:
        return self._since, self._urgent, self._dirty, self._held_back

    async def run(self) -> None:
        """Plan and send, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                await self._plan_and_send(group)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_seconds()):
                        await self._wake.wait()

    async def flush(self, seconds: float) -> None:
        """Wait until the transactions under way have ended, but not longer than this."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._in_flight:  # noqa: ASYNC110  it happens once, at the end
                    await asyncio.sleep(0.005)

    def drop_plans(self) -> None:
        """Forget what was about to be written: leadership has changed, so everything is judged anew."""
        for uid in list(self._plans):
            self._queue.discard(uid)
            self._dirty.setdefault(uid, self._since.get(uid, time.monotonic()))
        self._plans.clear()
        self._since.clear()
        self.wake()

    async def _plan_and_send(self, group: asyncio.TaskGroup) -> None:
        """Turn dirty units into plans and plans into transactions, until nothing more can be done now."""
        while True:
            planned = self._plan_some()
            if self._strangers and time.monotonic() >= self.trouble.until:
                await self._read_strangers()
            sent = await self._send_some(group)
            if not (sent or planned) or (self.has_judged_all and not self._queue):
                return
            await asyncio.sleep(0)

    def _plan_some(self) -> int:
        """Plan a slice of the dirty units; those in flight wait for their outcome."""
        taken = 0
        # What is planned already and waits for its turn must not miss it for more of the kind.
        some = SLICE if len(self._queue) < SLICE else SLICE // 10
        for waiting, most in ((self._urgent, SLICE), (self._dirty, some)):
            for uid in [uid for uid, _ in zip(waiting, range(most), strict=False) if uid not in self._in_flight]:
                self._plan(uid, waiting.pop(uid))
                taken += 1
        return taken

    def _plan(self, uid: str, since: float) -> None:
        if not self._facts.may_write():
            self._held_back[uid] = since
            return
        desired = self._facts.desired(uid, self.registry)
        if desired is None:
            return
        owner = self._mirror.owner(uid)
        strangers = self._streams.strangers(owner)
        if strangers or not self._streams.is_listed(desired, owner):
            self._held_back[uid] = since
            self._strangers.update(strangers)
            return
        plan = self._make_plan(desired)
        self._mirror.contest(uid, plan.contested)
        if plan.deletes and not self._facts.has_seen_all():
            self._held_back[uid] = since
            return
        self._settle(plan, since)
        if self._election.is_leading and (plan.puts or desired.is_awaited):
            self._leases.want(plan.lease)

    def _make_plan(self, desired: Desired) -> Plan:
        uid = desired.unit.uid
        return make_plan(desired, self._cluster, self._mirror, lambda key, lease: self._contest(uid, key, lease))

    def _settle(self, plan: Plan, since: float) -> None:
        """Report a unit that needs nothing; queue the plan of one that does."""
        uid = plan.uid
        self._forget_plan(uid)
        if plan.is_empty:
            if plan.gone:
                self._leases.revoke(plan.lease)
            self._on_outcome(Outcome(uid, plan.written, plan.faults))
            return
        if not self._election.is_leading:
            self._held_back[uid] = since
            self._on_outcome(Outcome(uid, frozenset(), plan.faults))
            return
        self._plans[uid] = plan
        self._since[uid] = since
        keys: dict[bytes, int] = {}
        for key in plan.keys:
            if stream := self._streams.find(key):
                keys[stream] = keys.get(stream, 0) + 1
        self._queue.push(Change(uid, plan.size, keys, urgent=bool(plan.deletes)))

    def _forget_plan(self, uid: str) -> None:
        if self._plans.pop(uid, None):
            self._queue.discard(uid)
            self._since.pop(uid, None)

    async def _read_strangers(self) -> None:
        """Read keys that owner records name and no GrpcService accounts for: what was deleted while we were down."""
        keys = sorted(self._strangers)[:OPERATIONS]
        try:
            result = await self._etcd.transaction([], [ops.get(key) for key in keys])
        except EtcdError as error:
            self.trouble.note(error)
            return
        for key, response in zip(keys, result.responses, strict=True):
            found = response.records if isinstance(response, Listing) else ()
            self.enqueue(self._mirror.note_seen(key, found[0] if found else None, result.revision))
        self._streams.note_read(keys)
        self._strangers.difference_update(keys)
        self.wake()

    def _contest(self, uid: str, key: bytes, lease: int) -> bool | None:
        """Decide whether `uid` gets a key that carries another unit's lease; None when it is no unit of ours."""
        rival = self._mirror.unit_of_lease(lease)
        if rival is None:
            return None
        theirs = self._facts.desired(rival, self.registry)
        wants = theirs is not None and any(wanted.key == key for wanted in theirs.wanted if not wanted.only_if_held)
        return not wants or self._facts.outranks(uid, rival)

    def _may_send(self) -> bool:
        return self._election.is_leading and time.monotonic() >= self.trouble.until

    async def _send_some(self, group: asyncio.TaskGroup) -> bool:
        """Start the next transactions, and wait for a free slot first; say whether there was anything to send."""
        if not self._may_send():
            return False
        if self._slots.locked():
            await self._slots.acquire()
            self._slots.release()
            return True
        batch = self._queue.take(time.monotonic(), OPERATIONS)
        plans = [self._plans.pop(change.of) for change in batch]
        groups, later = divide(plans)
        for plan in later:
            self._dirty.setdefault(plan.uid, self._since.pop(plan.uid))
        for members in groups:
            self._in_flight.update(plan.uid for plan in members)
            await self._slots.acquire()
            group.create_task(self._send(members))
        touched = self._touch(group)
        return bool(plans) or touched

    def _touch(self, group: asyncio.TaskGroup) -> bool:
        """Start the settling touches that are due."""
        due = {
            stream: self._streams.touch(stream, self._cluster) for stream in self._queue.touches_due(time.monotonic())
        }
        records = {stream: record for stream, record in due.items() if record}
        if records:
            group.create_task(self._put_touches(records))
        return bool(records)

    async def _put_touches(self, records: Mapping[bytes, tuple[bytes, bytes]]) -> None:
        """Put the touches under a lease of their own, so that they run out with everything else."""
        lease = lease_id(self._cluster, SETTLED)
        waiting = list(records)
        try:
            await self._leases.ensure([lease])
            while waiting:
                some = waiting[:OPERATIONS]
                puts = [ops.put(key, value, lease=lease) for key, value in map(records.__getitem__, some)]
                await self._etcd.transaction([self._election.fence()], puts)
                del waiting[:OPERATIONS]
        except LeaseNotFound:  # one that was adopted on trust
            self._leases.forget(lease)
        except EtcdError as error:
            self.trouble.note(error)
        for stream in waiting:
            self._queue.touch_again(stream, time.monotonic())
        self._wake.set()

    async def _send(self, plans: list[Plan]) -> None:
        """Send one transaction and draw its conclusions. Every way out leaves its units done or dirty."""
        transaction = make_transaction(plans, self._election.fence())
        announcement = Announcement(transaction.leases, transaction.keys, transaction.deleted)
        self._mirror.expect(announcement)
        try:
            await self._leases.ensure(transaction.leases)
            failure = [self._election.read(), *(ops.get(key) for key in transaction.keys)]
            result = await self._etcd.transaction(transaction.conditions, transaction.operations, failure)
        except EtcdError as error:
            self._failed(transaction, error)
        else:
            self.trouble.end()
            self._conclude(transaction, result)
        finally:
            self._mirror.expect_no_more(announcement)
            self._in_flight.difference_update(plan.uid for plan in plans)
            self._slots.release()
            self._wake_for_work()

    def _failed(self, transaction: Transaction, error: EtcdError) -> None:
        if isinstance(error, LeaseNotFound):
            for lease in transaction.leases:
                self._leases.forget(lease)
        elif isinstance(error, InvalidRequest) and len(transaction.plans) == 1:
            self._refused(transaction.plans[0], error)
            return
        else:
            self.trouble.note(error)
            log.warning(
                "writing failed; it goes on", extra={"fields": {"registry": self.registry, "error": str(error)}}
            )
        self._come_again(transaction)

    def _refused(self, plan: Plan, error: EtcdError) -> None:
        """Report what etcd will never take; only a change of the unit can help, and nobody else is disturbed."""
        self.trouble.count(error)
        self._since.pop(plan.uid, None)
        faults = tuple(Fault(source, "Unwritable", f"etcd refuses the record: {error}") for source in plan.written)
        self._on_outcome(Outcome(plan.uid, frozenset(), faults))

    def _come_again(self, transaction: Transaction) -> None:
        for plan in transaction.plans:
            self._dirty.setdefault(plan.uid, self._since.pop(plan.uid, time.monotonic()))

    def _conclude(self, transaction: Transaction, result: TransactionResult) -> None:
        if not result.succeeded:
            self._take_reads(transaction, result)
            self._come_again(transaction)
            return
        now, again = Revision(result.revision), set[str]()
        for plan in transaction.plans:
            lease = LeaseId(plan.lease)
            for put in plan.puts:
                again |= self._mirror.note_put(plan.uid, Record(put.key, put.value, lease, now, now, 1))
            for delete in plan.deletes:
                again |= self._mirror.note_deleted(delete.key, now)
            self._committed(plan)
        self.enqueue(again)

    def _committed(self, plan: Plan) -> None:
        self._since.pop(plan.uid, None)
        if plan.gone:
            self._leases.revoke(plan.lease)
        self._on_outcome(Outcome(plan.uid, plan.written, plan.faults, plan))

    def _take_reads(self, transaction: Transaction, result: TransactionResult) -> None:
        """Learn from a refused transaction: who leads, and what each key really holds."""
        found = [
            response.records[0] if response.records else None
            for response in result.responses
            if isinstance(response, Listing)
        ]
        self._election.note_leader(found[0])
        for key, record in zip(transaction.keys, found[1:], strict=True):
            self.enqueue(self._mirror.note_seen(key, record, result.revision))

    def _pause_seconds(self) -> float | None:
        """Say how long nothing can be done unless somebody calls."""
        if not self._election.is_leading and not self._strangers:
            return None
        times = [at for at in (self._queue.ask_again_at(), self._queue.touch_at()) if at is not None]
        if not times and not self._dirty and not self._strangers:
            return None
        return max(0.001, max(min(times, default=0.0), self.trouble.until) - time.monotonic())

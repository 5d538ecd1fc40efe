"""The writer of one registry: brings each owner's records from current to desired, by transactions that are fenced.

    enqueue(uid) -> work queue (core.work) -> plan from desired and cache -> work queue -> Applier -> cache

Level-triggered: a UID says only that something may have changed. Deregistrations go first. This loop is one of the two
places that try again: whatever fails comes back here after a pause. Without leadership plans are made (a standby is
warm, and knows what is registered) and nothing is sent. What concerns one owner stays with it: an exception that nobody
foresaw is reported on the owner's GrpcServices, and the owner is looked at again after a pause that grows.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.model import Listing
from grpc_etcd.layouts.rate_limits import RateLimitedQueue
from grpc_etcd_operator.controller.applier import OPERATIONS, Applier
from grpc_etcd_operator.controller.flush_keys import TIDY_SECONDS, FlushKeys
from grpc_etcd_operator.controller.outcomes import Outcome, Outcomes
from grpc_etcd_operator.controller.parts import Parts
from grpc_etcd_operator.core.desired import Desired, DesiredRecord
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.plan import Contest, Disputes, Plan, make_plan
from grpc_etcd_operator.core.work import Work
from grpc_etcd_operator.isolation import BACKOFF
from grpc_etcd_operator.registry.refusals import REFUSED
from grpc_etcd_operator.registry.transactions import divide
from grpc_etcd_operator.registry.trouble import Trouble

SLICE = 100  # units planned before the event loop gets its turn
SLICE_SECONDS = 0.05  # for which they are planned at most, of each queue: some Pods have thousands of keys. Arbitrary
RESUME_SECONDS = 0.25  # between two looks whether a term goes on; arbitrary


class Reconciler:
    """Writes to one registry. `on_outcome` is called with each owner that was planned or written."""

    def __init__(
        self,
        parts: Parts,
        on_outcome: Callable[[Outcome], None],
        on_trouble: Callable[[], None],
        *,
        tidy_seconds: float = TIDY_SECONDS,
    ) -> None:
        self._parts = parts
        self._term = 0
        self._queue: RateLimitedQueue[bytes, str] = RateLimitedQueue(parts.streams.limits)
        self._work = Work(self._queue, BACKOFF, parts.facts.namespace_of)
        self._strangers: set[bytes] = set()
        self._disputes = Disputes()
        self._wake = asyncio.Event()
        self.trouble = Trouble(on_trouble)
        self._outcomes = Outcomes(parts, self._work, on_outcome, self._wake.set)
        self._flush_keys = FlushKeys(parts, self._queue, self.trouble, self._wake.set, tidy_seconds=tidy_seconds)
        self._applier = Applier(parts, self._work, self._outcomes, self.trouble, self.enqueue, self._wake.set)
        self.note_events = self._flush_keys.note_events

    def enqueue(self, uids: Iterable[str], *, urgent: bool = False) -> None:
        """Look at these units again, soon; `urgent` ones first."""
        self._work.mark(uids, time.monotonic(), urgent=urgent)
        if self._work.due or self._queue:
            self._wake.set()

    def forget(self, stream: bytes) -> None:
        """Forget what was written to a stream that is followed no longer; a standby has nobody else to do it."""
        self._queue.forget(stream)

    def wake(self) -> None:
        """Look again at what was held back: something outside has changed."""
        self._work.release()
        self._wake.set()

    @property
    def depth(self) -> int:
        """Count the owners that wait to be judged or written; what a standby would write is not its to write."""
        work = self._work
        return work.due + (work.planned + len(work.held_back) if self._parts.election.is_leading else 0)

    @property
    def rate_limited(self) -> int:
        """Count the owners that wait until their namespaces may write more bytes."""
        return self._work.count_rate_limited(time.monotonic())

    @property
    def in_flight(self) -> int:
        """Count the units in transactions that are under way."""
        return self._work.in_flight

    def is_waiting(self, uid: str) -> bool:
        """Return whether a unit is yet to be judged or written."""
        return uid in self._work

    @property
    def has_judged_all(self) -> bool:
        """Return whether every unit that was enqueued has been looked at."""
        return not (self._work.due or self._strangers)

    def may_settle(self) -> bool:
        """Return whether nothing is under way, so that what is known and what is written is all there is to it."""
        return self.has_judged_all and not (self.depth or self.in_flight)

    def has_caught_up(self, moment: float) -> bool:
        """Return whether all that waited at a moment (monotonic) has been judged and written."""
        return not self._strangers and self._work.has_caught_up(moment)

    def preview(self) -> list[Plan]:
        """Return the plans that would be carried out if this replica led."""
        known = [self._parts.facts.desired(uid, self._parts.registry) for uid in self._work.held_back]
        plans = [self._make_plan(desired, None) for desired in known if desired]
        return [plan for plan in plans if not plan.is_empty]

    @property
    def has_read_all(self) -> bool:
        """Return whether the keys of everything that is held back have been read, so that it can be planned."""
        return all(map(self._is_read, self._work.held_back))

    def _is_read(self, uid: str) -> bool:
        parts = self._parts
        desired = parts.facts.desired(uid, parts.registry)
        owner = parts.registry_cache.owner(uid)
        return desired is None or parts.streams.is_listed(desired, owner, parts.refusing.refusals)

    def overdue_seconds(self) -> float:
        """Return how long a change has been waiting for this replica without progress, if it is the writer."""
        return self._work.overdue_seconds(time.monotonic()) if self._parts.election.is_leading else 0.0

    async def run(self) -> None:
        """Plan and send, until cancelled. What an earlier run has left half done is judged again."""
        self._begin_again()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                await self._plan_and_send(group)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_seconds()):
                        await self._wake.wait()

    def _begin_again(self) -> None:
        """Free the slots; take up the owners and touches of transactions that a run which failed took down with it."""
        self._work.end_all(time.monotonic())
        self._flush_keys.take_up_again()
        self._applier.free_slots()
        self.drop_plans()

    async def flush(self, seconds: float) -> None:
        """Wait until the transactions under way have ended, but not longer than this."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._work.in_flight:  # noqa: ASYNC110  it happens once, at the end
                    await asyncio.sleep(0.005)

    def begin_history(self) -> None:
        """Record that etcd holds another history: what is under way speaks of the one before."""
        self._applier.begin_history()
        self._parts.streams.forget_reads()
        self._work.begin_history(time.monotonic())
        self.drop_plans()

    def drop_plans(self) -> None:
        """Forget what was about to be written: leadership has changed, so everything is judged again."""
        self._term = self._parts.election.term
        if not self._term and not self._strangers:
            self.trouble.end()  # of writing, which is another's now
        self._work.drop_plans(time.monotonic())
        self._wake.set()

    async def _plan_and_send(self, group: asyncio.TaskGroup) -> None:
        """Turn dirty units into plans and plans into transactions, until nothing more can be done now."""
        while True:
            if self._term != self._parts.election.term:
                self.drop_plans()
            self._work.release_postponed(time.monotonic())
            planned = self._plan_some()
            if time.monotonic() >= self.trouble.until:
                await self._ask()
            sent = await self._send_some(group)
            if not (sent or planned) or (self.has_judged_all and not self._queue):
                return
            await asyncio.sleep(0)

    async def _ask(self) -> None:
        """Ask etcd what planning needs to know, and whether it takes now what it did not take before."""
        try:
            if self._strangers:
                await self._read_strangers()
            elif self.trouble.error and not (self._work.in_flight or self._has_more_to_write()):
                await self._parts.etcd.transaction([], [self._parts.election.read()])
                self.trouble.end()  # nothing is left to be written, so nothing else would report
            # Also of what another leads in now, which would be reported as refused forever. Where nobody may go on
            # nothing is enqueued: it would wake the loop, which never paused then.
            if self._parts.refusing.refusals and (units := await self._parts.refusing.ask_again()):
                self.enqueue(units)
        except EtcdError as error:
            self.trouble.note(error)

    def _has_more_to_write(self) -> bool:
        return bool(self._work.due or self._queue or self._flush_keys.are_owed)

    def _plan_some(self) -> int:
        """Plan a slice of the dirty units; those in flight wait for their outcome."""
        taken = 0
        # What is planned already and waits for its turn must not miss it for more of the kind.
        some = SLICE if len(self._queue) < SLICE else SLICE // 10
        for urgent, most in ((True, SLICE), (False, some)):
            until = time.monotonic() + SLICE_SECONDS
            for uid, since in self._work.take_due(most, urgent=urgent):
                self._plan_alone(uid, since)
                taken += 1
                if time.monotonic() > until:
                    break
        return taken

    def _plan_alone(self, uid: str, since: float) -> None:
        """Plan a unit; whatever fails is its own affair."""
        try:
            self._plan(uid, since)
        except Exception as error:  # noqa: BLE001  nobody foresaw it
            self._outcomes.isolate(uid, "planner", error)
        else:
            self._work.end_failures(uid)

    def _plan(self, uid: str, since: float) -> None:
        if not self._parts.facts.may_write():
            self._work.hold_back(uid, since)
            return
        desired = self._parts.facts.desired(uid, self._parts.registry)
        if desired is None:
            self._work.settle(uid, time.monotonic())
            return
        registry_cache, refusals = self._parts.registry_cache, self._parts.refusing.refusals
        owner = registry_cache.owner(uid)
        nameless = registry_cache.unnamed(lease_id(self._parts.cluster, uid)) if registry_cache.has_unnamed else ()
        strangers = self._parts.streams.strangers(owner, nameless)
        if refusals:
            strangers = tuple(key for key in strangers if key not in refusals)
        if strangers or not self._parts.streams.is_listed(desired, owner, refusals):
            self._work.hold_back(uid, since)
            self._strangers.update(strangers)
            return
        held = (*(owner.keys if owner else ()), *nameless)
        spared = self._parts.refusing.spare(desired, held) if refusals else desired
        plan = self._make_plan(spared, self._applier.most_of(uid), held)
        self._parts.registry_cache.contest(uid, self._find_awaited(plan))
        if plan.deletes and not self._parts.facts.has_seen_all():
            self._work.hold_back(uid, since)
            return
        self._settle(plan, since, spared.wanted)
        # Whatever has records is kept alive, also if its lease was let go with others of a transaction that failed.
        if self._parts.election.has_term and (plan.puts or desired.is_awaited or (owner and not desired.gone)):
            self._parts.leases.want(plan.lease)

    def _find_awaited(self, plan: Plan) -> tuple[bytes, ...]:
        """Return the keys of which any news concern an owner: those of others, and of a standby what it does not put.

        That somebody else has put one no owner record of ours reports, nor a transaction that is never sent.
        """
        puts = () if self._parts.election.is_leading else tuple(put.key for put in plan.puts)
        return (*plan.contested, *puts)

    def _make_plan(self, desired: Desired, most: int | None, held: Iterable[bytes] = ()) -> Plan:
        contest = self._make_contest(desired.unit.uid)
        is_lost = partial(self._disputes.is_lost, now=time.monotonic())
        plan = make_plan(desired, self._parts.cluster, self._parts.registry_cache, contest, most, is_lost)
        if not self._parts.refusing.refusals:
            return plan
        return self._parts.refusing.leave_out_puts(desired, plan, held)

    def _settle(self, plan: Plan, since: float, wanted: Iterable[DesiredRecord]) -> None:
        """Report a unit that needs nothing; queue the plan of one that does."""
        uid = plan.uid
        since = self._work.waits_since(plan, since)
        if plan.is_empty or not self._parts.election.is_leading:
            self._work.forget_plan(uid)
        if plan.is_empty:
            self._work.settle(uid, time.monotonic())
            self._parts.leases.end(plan.lease, is_gone=plan.gone, is_over=plan.is_over)
            self._outcomes.report(Outcome(uid, plan.written, plan.faults))
            return
        if not self._parts.election.is_leading:
            self._work.hold_back(uid, since)
            self._outcomes.report(Outcome(uid, frozenset(), plan.faults))
            return
        admitted = self._work.admit(plan, time.monotonic())
        if admitted is not plan:
            self._outcomes.report_rate_limited(plan, wanted)
        if admitted is not None:
            self._queue_plan(admitted, since)

    def _queue_plan(self, plan: Plan, since: float) -> None:
        keys: dict[bytes, int] = {}
        for key in plan.keys:
            if stream := self._parts.streams.find(key):
                keys[stream] = keys.get(stream, 0) + 1
        self._work.plan(plan, since, keys)

    async def _read_strangers(self) -> None:
        """Read keys that owner records name and no GrpcService accounts for: what was deleted while we were down."""
        keys = sorted(self._strangers)[:OPERATIONS]
        try:
            await self._read(keys)
        except REFUSED:
            for key in keys:
                try:
                    await self._read([key])
                except REFUSED as error:
                    self._parts.refusing.note_unread(key, error)
                    self._strangers.discard(key)
        self.trouble.end(has_put=False)
        self.wake()

    async def _read(self, keys: Sequence[bytes]) -> None:
        result = await self._parts.etcd.transaction([], [ops.get(key) for key in keys])
        for key, response in zip(keys, result.responses, strict=True):
            found = response.records if isinstance(response, Listing) else ()
            self.enqueue(self._parts.registry_cache.note_seen(key, found[0] if found else None, result.revision))
        self._parts.streams.note_read(keys, filter(self._parts.registry_cache.is_unnamed, keys))
        self._strangers.difference_update(keys)

    def _make_contest(self, uid: str) -> Contest:
        """Make what decides whether `uid` gets a key that carries another unit's lease; None: no unit of ours.

        What a rival wants is worked out once, however many keys both of them want.
        """
        wanted: dict[str, frozenset[bytes]] = {}

        def contest(key: bytes, lease: int) -> bool | None:
            rival = self._parts.registry_cache.unit_of_lease(lease)
            if rival is None:
                return None
            if rival not in wanted:
                theirs = self._parts.facts.desired(rival, self._parts.registry)
                found = theirs.wanted if theirs else ()
                wanted[rival] = frozenset(each.key for each in found if not each.only_if_held)
            return key not in wanted[rival] or self._parts.facts.outranks(uid, rival)

        return contest

    def _may_send(self) -> bool:
        election = self._parts.election
        return 0 < self._term == election.term and election.may_write and time.monotonic() >= self.trouble.until

    async def _send_some(self, group: asyncio.TaskGroup) -> bool:
        """Start the next transactions, and wait for a free slot first; return whether there was anything to send."""
        if not self._may_send():
            return False
        slots, term = self._applier.slots, self._term
        if slots.locked():
            await slots.acquire()
            slots.release()
            return True
        plans = self._work.take(time.monotonic(), self._applier.operations)
        groups, later = divide(plans)
        for plan in later:
            self._work.put_off(plan)
        for members in groups:
            await slots.acquire()
            group.create_task(self._applier.send(members, term))
        flushed = self._flush_keys.start(group, term)
        return bool(plans) or flushed

    def _pause_seconds(self) -> float | None:
        """Return how long nothing can be done unless somebody calls."""
        now, leads = time.monotonic(), self._parts.election.is_leading
        times = [self._work.next_at(), self._parts.refusing.refusals.next_at()]
        if (revision := self._parts.election.revision) and not (leads and self._term == revision):
            # The leader's lease seemed to have expired, by its own clock. It may turn out to live, which nobody
            # reports.
            times.append(now + RESUME_SECONDS)
        if self._parts.election.may_write:
            times += [self._flush_keys.next_at(), *(at for at in (self._queue.ask_again_at(),) if at is not None)]
        # Whoever is under way calls when it ends: to look before that would be to look in vain, again and again.
        # Who lost the leadership while a write was under way asks too: what it could not write is another's now.
        is_idle = not (self._work.in_flight or self._has_more_to_write())
        if self._strangers or (self.trouble.error and is_idle):
            times.append(self.trouble.until)
        first = min(times, default=math.inf)
        return None if first == math.inf else max(0.001, max(first, self.trouble.until) - now)

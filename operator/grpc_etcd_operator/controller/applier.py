"""Applies plans to one registry: plan -> lease -> one transaction for several owners -> cache and outcome.

A transaction that etcd refuses, or that fails unexpectedly, is divided until the culprit is alone; its keys are then
left out (core.refusals), or its owner is reported. An owner whose records are together too large for etcd is written in
parts, each half as large as the last that was refused: no record of it is to blame that goes by itself. Whatever else
fails comes back to the work queue.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.errors import (
    EtcdError,
    LeaseNotFound,
    NoSpace,
    PermissionDenied,
    RequestTooLarge,
    TooManyOperations,
)
from grpc_etcd.etcd.model import LeaseId, Listing, Record, Revision, TransactionResult
from grpc_etcd.registry.own import ROOT, owner_prefix
from grpc_etcd_operator.controller.outcomes import Outcome, Outcomes
from grpc_etcd_operator.controller.parts import Parts
from grpc_etcd_operator.core.plan import Plan
from grpc_etcd_operator.core.work import Work
from grpc_etcd_operator.registry.cache import Announcement
from grpc_etcd_operator.registry.refusals import REFUSED
from grpc_etcd_operator.registry.transactions import Transaction, deregistration_of, make_transaction
from grpc_etcd_operator.registry.trouble import Trouble

log = logging.getLogger(__name__)

IN_FLIGHT = 2  # more in flight makes smaller batches and more CPU (measured)
OPERATIONS = 120  # of etcd's 128 (--max-txn-ops), less the fence's two and some air
LEAST_OPERATIONS = 8  # of a transaction, whatever etcd says; arbitrary
LEAST_PART = 2  # one key and the owner record
MOST_IN_PARTS = 1000  # owners of which it is remembered; others are tried as a whole again. Arbitrary


class Applier:
    """Sends what was taken from the work queue. `operations` is what a transaction may have; `enqueue` marks owners."""

    def __init__(  # noqa: PLR0913, PLR0917  where plans come from, and whom their outcome concerns
        self,
        parts: Parts,
        work: Work,
        outcomes: Outcomes,
        trouble: Trouble,
        enqueue: Callable[[Iterable[str]], None],
        wake: Callable[[], None],
    ) -> None:
        self._parts, self._work, self._outcomes, self._trouble = parts, work, outcomes, trouble
        self._enqueue, self._wake = enqueue, wake
        self._owners = owner_prefix(parts.cluster)
        self._history = 0
        self.operations = OPERATIONS
        self._parts_of: dict[str, int] = {}  # how large a part may be, of owners that are too large as a whole
        self.slots = asyncio.Semaphore(IN_FLIGHT)

    def most_of(self, uid: str) -> int:
        """Return how many operations a transaction may have that is of one owner alone."""
        return min(self.operations, self._parts_of.get(uid, self.operations))

    def free_slots(self) -> None:
        """Record that a run which failed took its transactions down with it."""
        self.slots = asyncio.Semaphore(IN_FLIGHT)

    def begin_history(self) -> None:
        """Record that etcd holds another history: what is under way speaks of the one before."""
        self._history += 1

    async def send(self, plans: Sequence[Plan], term: int) -> None:
        """Send what one slot was taken for. Every way out leaves its units done, dirty, or waiting for later."""
        try:
            await self._deliver(plans, term)
        finally:
            self._work.end(plans)
            self.slots.release()
            self._wake()  # also for what is to be tried later, and for an error that is over

    async def _deliver(self, plans: Sequence[Plan], term: int) -> None:
        """Send one transaction and draw its conclusions; divide it where it is refused or fails unexpectedly."""
        try:
            await self._try_to_deliver(plans, term)
        except REFUSED as error:
            self._trouble.count(error)
            if isinstance(error, PermissionDenied) and await self._is_for_own_records(plans):
                return
            is_too_much = isinstance(error, TooManyOperations) and self._take_smaller_steps(plans)
            if not await self._divide(plans, term):
                if is_too_much or (isinstance(error, RequestTooLarge) and self._take_smaller_parts(plans[0])):
                    self._come_again(plans)
                else:
                    await self._refused(plans[0], error)
        except NoSpace as error:
            await self._deliver_deregistrations(plans, term, error)
        except EtcdError as error:
            self._failed(plans, error)
        except Exception as error:  # noqa: BLE001  nobody foresaw it; it is reported on the owner that it is about
            if not await self._divide(plans, term):
                self._outcomes.isolate(plans[0].uid, "writer", error)

    async def _is_for_own_records(self, plans: Sequence[Plan]) -> bool:
        """Return whether etcd refuses the operator's own records, and so any such batch: there is nothing to divide."""
        try:
            are_refused = await self._parts.refusing.are_own_refused()
        except EtcdError as error:
            self._failed(plans, error)
            return True
        is_for_them = are_refused and any(plan.puts or self._touches_own(plan) for plan in plans)
        if is_for_them:
            self._come_again(plans)
        return is_for_them

    def _touches_own(self, plan: Plan) -> bool:
        return any(edit.key.startswith(self._owners) for edit in plan.deletes)

    async def _deliver_deregistrations(self, plans: Sequence[Plan], term: int, error: NoSpace) -> None:
        """Send what only deletes by itself: an etcd without space takes that, and refuses whatever puts beside it."""
        deregistrations = {plan.uid: each for plan in plans if (each := deregistration_of(plan, self._owners))}
        if deregistrations and any(plan.puts for plan in plans):  # else etcd has just refused those by themselves
            await self._deliver(list(deregistrations.values()), term)
            plans = [plan for plan in plans if plan.uid not in deregistrations]
        self._failed(plans, error)

    def _take_smaller_steps(self, plans: Sequence[Plan]) -> bool:
        """Record that this etcd tolerates fewer operations than others; return whether that may help.

        A plan that was made before that was known is larger than any transaction; it reports nothing new.
        """
        before, size = self.operations, sum(plan.size for plan in plans)
        if size > before:
            return True
        self.operations = max(LEAST_OPERATIONS, size // 2)
        return self.operations < before

    def _take_smaller_parts(self, plan: Plan) -> bool:
        """Record that a plan is too large for etcd as a whole; return whether there is a smaller part of it."""
        if plan.size <= LEAST_PART:
            return False
        self._parts_of[plan.uid] = max(LEAST_PART, plan.size // 2)
        if len(self._parts_of) > MOST_IN_PARTS:
            del self._parts_of[next(iter(self._parts_of))]
        return True

    async def _divide(self, plans: Sequence[Plan], term: int) -> bool:
        """Send both halves of a batch; return whether there were two."""
        half = len(plans) // 2
        if half:
            await self._deliver(plans[:half], term)
            await self._deliver(plans[half:], term)
        return half > 0

    async def _try_to_deliver(self, plans: Sequence[Plan], term: int) -> None:
        if self._parts.election.term != term:  # lost while it waited for its slot: no lease is to be kept alive for it
            self._come_again(plans)
            return
        transaction, history = make_transaction(plans, self._parts.election.fence(term)), self._history
        announcement = Announcement(transaction.puts, transaction.keys, transaction.deleted)
        self._parts.registry_cache.expect(announcement)
        try:
            await self._parts.leases.ensure(transaction.leases)
            if self._parts.election.term != term:
                self._come_again(plans)
                return
            failure = [self._parts.election.read(), *(ops.get(key) for key in transaction.keys)]
            result = await self._parts.etcd.transaction(transaction.conditions, transaction.operations, failure)
            self._trouble.end(has_put=any(plan.puts for plan in plans))
            if history == self._history:
                self._conclude(transaction, result)
            else:
                self._come_again(plans)
        except LeaseNotFound:
            for lease in transaction.leases:
                self._parts.leases.forget(lease)
            self._come_again(plans)
        finally:
            self._enqueue(self._parts.registry_cache.expect_no_more(announcement))

    def _failed(self, plans: Sequence[Plan], error: EtcdError) -> None:
        level = logging.WARNING if self._trouble.note(error) else logging.DEBUG
        fields = {"registry": self._parts.registry, "error": str(error)}
        log.log(level, "Write failed, retrying", extra={"event": "write_failed", "fields": fields})
        self._come_again(plans)

    async def _refused(self, plan: Plan, error: EtcdError) -> None:
        """Find out which keys of a unit etcd refuses; the unit goes on without them, and nobody else is disturbed."""
        owner = self._parts.registry_cache.owner(plan.uid)
        held = {*(owner.keys if owner else ()), *self._parts.registry_cache.unnamed(plan.lease)}
        try:
            await self._parts.refusing.find_culprits(plan, error, sorted(held))
        except EtcdError as another:
            self._failed([plan], another)
        else:
            # They are reported also where nothing is wanted of them any more, and a deregistration was refused.
            self._enqueue(self._parts.refusing.users({*plan.keys, *held}))
            self._come_again([plan])

    def _come_again(self, plans: Iterable[Plan]) -> None:
        self._work.come_again((plan.uid for plan in plans), time.monotonic())

    def _conclude(self, transaction: Transaction, result: TransactionResult) -> None:
        if not result.succeeded:
            self._take_reads(transaction, result)
            self._come_again(transaction.plans)
            return
        now, again = Revision(result.revision), set[str]()
        for plan in transaction.plans:
            lease = LeaseId(plan.lease)
            for put in plan.puts:
                again |= self._parts.registry_cache.note_put(plan.uid, Record(put.key, put.value, lease, now, now, 1))
            for delete in plan.deletes:
                again |= self._parts.registry_cache.note_deleted(
                    delete.key, now, is_followed=self._is_followed(delete.key)
                )
            self._committed(plan)
        self._enqueue(again)

    def _is_followed(self, key: bytes) -> bool:
        return key.startswith(ROOT) or self._parts.streams.find(key) is not None

    def _committed(self, plan: Plan) -> None:
        waited = self._work.commit(plan, time.monotonic())
        if not plan.is_part:
            self._parts_of.pop(plan.uid, None)
        self._parts.leases.end(plan.lease, is_gone=plan.gone, is_over=plan.is_over)
        if plan.puts and not plan.gone and self._parts.election.has_term:
            self._parts.leases.adopt(plan.lease)  # let go meanwhile, if the term was in doubt and goes on
        self._outcomes.report(Outcome(plan.uid, plan.written, plan.faults, plan, waited))

    def _take_reads(self, transaction: Transaction, result: TransactionResult) -> None:
        """Learn from a refused transaction: who leads, and what each key really holds."""
        found = [
            response.records[0] if response.records else None
            for response in result.responses
            if isinstance(response, Listing)
        ]
        self._parts.election.note_read(found[0], result.revision)
        for key, record in zip(transaction.keys, found[1:], strict=True):
            self._enqueue(self._parts.registry_cache.note_seen(key, record, result.revision))

"""Which leases are to be renewed when, and what the answers mean. No I/O, no clock: the drivers pass the time in.

A lease is renewed three times in its time to live, and the first renewals are spread over that period, so that many
leases are a steady trickle and never a wave. One book belongs to one stream; a driver spreads leases over a few.
"""

import heapq
from collections import deque
from dataclasses import dataclass

from grpc_etcd.etcd.calls import Method
from grpc_etcd.etcd.errors import EtcdError, PermissionDenied
from grpc_etcd.etcd.messages import message
from grpc_etcd.etcd.model import LeaseId

RENEWALS_PER_TTL = 3
# A longer silence means that the member is stuck: the stream is opened again, perhaps to another member. Leases with a
# short period are given up on after that, so that another member can still renew them before they expire.
ANSWER_SECONDS = 10.0
# Who has waited in vain waits longer the next time, until an answer comes as soon as usual: an etcd that is slow would
# else never be received. It leaves a third of the shortest time to live for what comes after.
PATIENCE_FACTOR = 2
# Renewals that fall due within this time, or this part of the shortest period, go out together: fewer wake-ups.
STEP_SECONDS = 2.0  # with 10,000 leases of 300 s 1.2 % of a core; steps of 0.5 s take 1.4, of 5 s 1.1 (measured)
STEPS_PER_PERIOD = 4
# Multiples of the golden ratio, modulo 1, fill an interval evenly however many there are.
GOLDEN = 0.6180339887498949


@dataclass(slots=True)
class Renewal:
    """One lease: its request's bytes, made once, and when it is due; from then on `next_seconds`, later its period."""

    request: bytes
    period_seconds: float
    due: float
    next_seconds: float
    answered: bool = True
    asked_at: float = 0.0
    renewed_at: float = 0.0


def may_be_refusal(error: EtcdError) -> bool:
    """Return whether a stream may have ended because etcd refuses to renew a lease.

    grpcio's asyncio says INTERNAL instead where the next request was just being written. Should it have been something
    else, one lease is asked for a little later than it could be.
    """
    return isinstance(error, PermissionDenied) or error.code == "INTERNAL"


def keep_alive_method() -> Method:
    """Lease/LeaseKeepAlive; requests are bytes already."""
    return Method("/etcdserverpb.Lease/LeaseKeepAlive", bytes, message("LeaseKeepAliveResponse").FromString)


class Renewals:
    """The leases of one stream. Not thread-safe."""

    def __init__(self) -> None:
        self._leases: dict[LeaseId, Renewal] = {}
        self._queue: list[tuple[float, LeaseId]] = []
        self._asked: deque[tuple[float, LeaseId]] = deque()
        self._received = 0.0
        self._added = 0
        self._step_seconds = STEP_SECONDS
        self._patience_seconds = ANSWER_SECONDS
        self._patience_factor = 1

    def __len__(self) -> int:
        return len(self._leases)

    def add(self, lease_id: LeaseId, ttl_seconds: float, now: float, remaining_seconds: float | None = None) -> None:
        """Renew a lease from now on. `remaining_seconds` is what an adopted lease has left at least (0: unknown)."""
        period = max(1.0, ttl_seconds) / RENEWALS_PER_TTL
        first = period if remaining_seconds is None else min(period, remaining_seconds / RENEWALS_PER_TTL)
        self._added += 1
        self._note_period(period)
        request: bytes = message("LeaseKeepAliveRequest")(ID=lease_id).SerializeToString()
        # Whoever begins again and again, and soon ends, is not to renew the same leases first each time.
        share = (now + self._added * GOLDEN) % 1.0
        # What is adopted is asked for soon, and only then spread over the period, though never within one step.
        then = period if first == period else period * (1 + (STEPS_PER_PERIOD - 1) * share) / STEPS_PER_PERIOD
        renewal = Renewal(request, period, now + first * share, then)
        self._leases[lease_id] = renewal
        heapq.heappush(self._queue, (renewal.due, lease_id))

    def _note_period(self, period_seconds: float) -> None:
        self._step_seconds = min(self._step_seconds, period_seconds / STEPS_PER_PERIOD)
        self._patience_seconds = min(self._patience_seconds, period_seconds)

    def remove(self, lease_id: LeaseId) -> None:
        """Renew a lease no longer."""
        self._leases.pop(lease_id, None)

    def due(self, now: float) -> list[bytes]:
        """Take the requests that are to be sent now."""
        requests, asked = [], []
        while self._queue and self._queue[0][0] <= now + self._step_seconds:
            due, lease_id = heapq.heappop(self._queue)
            renewal = self._leases.get(lease_id)
            if renewal is None or renewal.due != due:
                continue  # removed, or moved to another time
            renewal.due = now + renewal.next_seconds
            renewal.next_seconds = renewal.period_seconds
            if renewal.answered:
                renewal.asked_at = now
            renewal.answered = False
            heapq.heappush(self._queue, (renewal.due, lease_id))
            requests.append(renewal.request)
            asked.append((now, lease_id))
        self._asked.extend(asked)
        return requests

    def pause_seconds(self, now: float) -> float:
        """Return how long nothing is due."""
        first = self._queue[0][0] - now if self._queue else ANSWER_SECONDS
        pause = min(ANSWER_SECONDS / 2, max(self._step_seconds, first))
        return min(pause, max(self._step_seconds, self._stuck_at() - now)) if self._asked else pause

    def receive(self, lease_id: LeaseId, ttl_seconds: int, now: float) -> bool:
        """Take an answer and say whether the lease still lives; answers come in the order of the requests."""
        self._received = now
        asked_at, asked = self._asked.popleft() if self._asked else (now, None)
        if now - asked_at <= self._patience_seconds:
            self._patience_factor = 1
        renewal = self._leases.get(lease_id)
        if renewal is None:
            return True
        renewal.answered = True
        # Where answers are late it may have been asked for again by now, which this answer says nothing of.
        renewal.renewed_at = asked_at if asked == lease_id else renewal.asked_at
        if ttl_seconds <= 0:
            self.remove(lease_id)
        else:
            self._obey(lease_id, renewal, ttl_seconds, now)
        return ttl_seconds > 0

    def _obey(self, lease_id: LeaseId, renewal: Renewal, ttl_seconds: int, now: float) -> None:
        """Renew a lease more often where etcd reports a shorter time to live: whoever granted it had chosen another."""
        period = max(1.0, ttl_seconds) / RENEWALS_PER_TTL
        if period >= renewal.period_seconds:
            return
        renewal.period_seconds, renewal.next_seconds = period, min(renewal.next_seconds, period)
        self._note_period(period)
        if renewal.due > now + period:
            renewal.due = now + period
            heapq.heappush(self._queue, (renewal.due, lease_id))

    def renewed_at(self, lease_id: LeaseId) -> float:
        """Return when the last renewal that was answered had been asked for; 0: none was."""
        renewal = self._leases.get(lease_id)
        return renewal.renewed_at if renewal else 0.0

    def refuse(self, now: float) -> bool:
        """Record that etcd has refused a renewal, which ends the stream; return whether it is known which.

        etcd does that to a lease with a key that the user may not write (any more). Answers come in order, so it is the
        first that is due. That lease is asked for again later, and the others do not expire with it.
        """
        if not self._asked:
            return False
        renewal = self._leases.get(lease_id := self._asked.popleft()[1])
        if renewal is not None:
            renewal.answered, renewal.due = True, now + renewal.period_seconds / 2
            heapq.heappush(self._queue, (renewal.due, lease_id))
        return True

    def reopen(self, now: float) -> None:
        """Make all unanswered renewals due at once: the stream that they went to has ended."""
        if self.is_stuck(now):
            self._patience_factor = PATIENCE_FACTOR
        asked, self._asked = self._asked, deque()
        for _, lease_id in asked:
            renewal = self._leases.get(lease_id)
            if renewal is not None and not renewal.answered:
                renewal.due = now
                heapq.heappush(self._queue, (now, lease_id))

    def is_stuck(self, now: float) -> bool:
        """Whether no answer has come for so long that none is to be expected.

        Answers that are late but keep coming are no reason: whoever asked again would only add to what delays them.
        """
        return bool(self._asked) and now > self._stuck_at()

    def _stuck_at(self) -> float:
        return max(self._asked[0][0], self._received) + self._patience_seconds * self._patience_factor

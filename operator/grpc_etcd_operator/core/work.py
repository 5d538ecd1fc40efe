"""The work queue of one registry: which owners are to be judged, wait for their turn to be written, or are under way.

    mark -> due -> plan -> take -> committed
             |               `---> come_again: due once more, with the time that it has waited
             |-> hold_back: until somebody marks it, or releases all that is held back
             |-> postpone: something failed unexpectedly; due once more after a pause
             `-> admit: what its namespace has no bytes left for is due once more when it has

An owner may be marked at any moment; what is under way is not given out a second time before it ends. `since` is when
an owner began to wait (monotonic), through all that is tried in vain. Groups of owners, which are namespaces, take
turns: one that has thousands to be judged or written holds up no other.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from grpc_etcd.layouts.rate_limits import Change, RateLimitedQueue
from grpc_etcd_operator.core.backoff import Backoff
from grpc_etcd_operator.core.plan import Plan
from grpc_etcd_operator.core.waiting import Postponed, Waiting
from grpc_etcd_operator.core.write_budget import WriteBudget


class Work:
    """The owners' states. `queue` says when clients tolerate a plan; `backoff` gives the pause after n failures."""

    def __init__(
        self,
        queue: RateLimitedQueue[bytes, str],
        backoff: Backoff,
        group_of: Callable[[str], str] = lambda _: "",
        budget: WriteBudget | None = None,
    ) -> None:
        self._queue, self._backoff, self._group_of = queue, backoff, group_of
        self._budget = budget or WriteBudget()
        self._dirty, self._urgent = Waiting(group_of), Waiting(group_of)
        self._held_back: dict[str, float] = {}
        self._later = Postponed()
        self._plans: dict[str, Plan] = {}
        self._since: dict[str, float] = {}  # of what is planned or under way
        self._in_flight: set[str] = set()
        self._owed: dict[str, int] = {}  # how many keys of units that are written in parts are as old as their wait
        self._stuck: dict[str, tuple[float, float]] = {}  # when units were first tried in vain, and when last
        self._moved_at = -math.inf  # when something was last written
        self._failures: Counter[str] = Counter()
        self._untold: Counter[str] = Counter()

    def __repr__(self) -> str:
        due, planned = len(self._urgent) + len(self._dirty), len(self._plans)
        return f"<Work due={due} held_back={len(self._held_back)} planned={planned} in_flight={len(self._in_flight)}>"

    def __contains__(self, uid: str) -> bool:
        """Return whether a unit is yet to be judged or written."""
        known = (self._urgent, self._dirty, self._held_back, self._later, self._plans, self._in_flight)
        return any(uid in waiting for waiting in known)

    @property
    def due(self) -> int:
        """Count the units that are to be judged."""
        return len(self._urgent) + len(self._dirty)

    @property
    def planned(self) -> int:
        """Count the units whose plans wait for their turn."""
        return len(self._plans)

    @property
    def held_back(self) -> list[str]:
        """List the units that are held back."""
        return sorted(self._held_back)

    @property
    def in_flight(self) -> int:
        """Count the units in transactions that are under way."""
        return len(self._in_flight)

    def has_caught_up(self, moment: float) -> bool:
        """Return whether all that waited at a moment has been judged and written."""
        waiting = (self._since.values(), self._urgent.times(), self._dirty.times(), self._held_back.values())
        return all(since > moment for each in waiting for since in each)

    def overdue_seconds(self, now: float) -> float:
        """Return for how long a change has been waiting without progress.

        Who waits for its turn while others are written is not overdue, however long the queue is: clients tolerate only
        so many changes a second. Who cannot be planned is, whatever else goes on, and who is tried in vain again and
        again for as long as that went on; after a first conflict an owner but waits for its turn once more.
        """
        waiting = (self._since.values(), self._urgent.times(), self._dirty.times())
        queued = min(_oldest(each, now) for each in waiting)
        moved = self._moved_at
        vain = (last - first + now - max(last, moved) for first, last in self._stuck.values())
        return max(now - min(max(queued, moved), _oldest(self._held_back.values(), now)), *vain, 0.0)

    def next_at(self) -> float:
        """Return when the next of those that were postponed is due; infinite: none was."""
        return self._later.next_at()

    def mark(self, uids: Iterable[str], now: float, *, urgent: bool = False) -> None:
        """Let these units be judged again; `urgent` ones first."""
        for uid in uids:
            if urgent:
                self._urgent.add(uid, self._dirty.pop(uid, now))
            elif uid not in self._urgent:
                self._dirty.add(uid, now)

    def release(self) -> None:
        """Let all that is held back be judged again: something outside has changed."""
        held, self._held_back = self._held_back, {}
        for uid, since in held.items():
            self._mark_since(uid, since)

    def release_postponed(self, now: float) -> None:
        """Let what was postponed until now be judged again."""
        for uid, at in self._later.take(now):
            self._mark_since(uid, at)

    def take_due(self, most: int, *, urgent: bool) -> Iterator[tuple[str, float]]:
        """Take out units to be judged, each as it is asked for, with when it began to wait; none that is under way."""
        waiting = self._urgent if urgent else self._dirty
        for uid in waiting.choose(most, self._in_flight):
            if uid in waiting:  # else it has become urgent meanwhile
                yield uid, min(waiting.pop(uid), self._held_back.pop(uid, math.inf))

    def hold_back(self, uid: str, since: float) -> None:
        """Keep a unit that cannot be planned yet."""
        self._held_back[uid] = since

    def waits_since(self, plan: Plan, since: float) -> float:
        """Return since when a new plan has waited.

        As long as the plan in whose place it comes, if it wishes the same.
        """
        pending = self._plans.get(plan.uid)
        is_same = pending is not None and bool(pending.deletes) == bool(plan.deletes)
        return min(since, self._since.get(plan.uid, since)) if is_same else since

    def admit(self, plan: Plan, now: float) -> Plan | None:
        """Return what of a plan its group may write now; None: nothing. The rest is due again when there are bytes.

        What it deletes goes at once: no key stays for what its namespace has written. That some is put off delays
        nobody else, so it does not count as waiting until it is due.
        """
        at = self._budget.reserve(plan.uid, self._group_of(plan.uid), plan.put_bytes, now, is_new=plan.is_new)
        self._let_others_come_earlier(now)
        if at <= now:
            return plan
        self.forget_plan(plan.uid)
        self._stuck.pop(plan.uid, None)
        self._owed.pop(plan.uid, None)
        self._later.add(plan.uid, at)
        return plan.without_puts() if plan.deletes else None

    def begin_history(self, now: float) -> None:
        """Record that etcd has lost what was written to it: whoever waits for bytes, and for nothing else, is due."""
        for uid, at in self._budget.begin_history():
            if self._later.due_at(uid) == at:
                self._later.add(uid, now)

    def count_rate_limited(self, now: float) -> int:
        """Count the units that wait until their groups may write more bytes."""
        return self._budget.count_waiting(now)

    def plan(self, plan: Plan, since: float, keys: Mapping[bytes, int]) -> None:
        """Let a plan wait for its turn, in place of an earlier one of its unit; `keys` counts its keys by stream."""
        self._plans[plan.uid] = plan
        self._since[plan.uid] = since
        self._queue.push(Change(plan.uid, plan.size, keys, bool(plan.deletes), self._group_of(plan.uid)))

    def forget_plan(self, uid: str) -> None:
        """Forget a unit's plan that waits, if there is one."""
        if self._plans.pop(uid, None):
            self._queue.discard(uid)
            self._since.pop(uid, None)

    def drop_plans(self, now: float) -> None:
        """Let whatever is planned or held back be judged again."""
        for uid in list(self._plans):
            self._queue.discard(uid)
            self._mark_since(uid, self._since.get(uid, now))
        self._plans.clear()
        self._since = {uid: since for uid, since in self._since.items() if uid in self._in_flight}
        self._stuck.clear()
        self._owed.clear()
        self.release()

    def take(self, now: float, operations: int) -> list[Plan]:
        """Take out the plans that may go in one transaction now; their units are under way until `end`."""
        plans = [self._plans.pop(change.of) for change in self._queue.take(now, operations)]
        self._in_flight.update(plan.uid for plan in plans)
        return plans

    def put_off(self, plan: Plan) -> None:
        """Record that a plan which was taken is not sent; its unit is judged again."""
        self._in_flight.discard(plan.uid)
        self._mark_since(plan.uid, self._since.pop(plan.uid))

    def end(self, plans: Iterable[Plan]) -> None:
        """Record that the transaction of these plans is over, whatever became of it."""
        self._in_flight.difference_update(plan.uid for plan in plans)

    def end_all(self, now: float) -> None:
        """Record that whoever sent has failed, with all that was under way."""
        for uid in self._in_flight | self._since.keys():
            self._mark_since(uid, self._since.get(uid, now))
        self._in_flight.clear()
        self._since.clear()
        self.drop_plans(now)

    def come_again(self, uids: Iterable[str], now: float) -> None:
        """Record that units were tried in vain; they are judged again."""
        for uid in uids:
            self._stuck[uid] = self._stuck.get(uid, (now, now))[0], now
            self._mark_since(uid, self._since.pop(uid, now))

    def commit(self, plan: Plan, now: float) -> float:
        """Record that a plan was written, and give the seconds that it has waited; the rest of a part is still due."""
        since = self._since.pop(plan.uid, now)
        self._moved_at = now
        self._failures.pop(plan.uid, None)
        self._stuck.pop(plan.uid, None)
        if plan.puts:
            self._budget.end(plan.uid)
        if plan.is_part:
            self._mark_since(plan.uid, since if self._is_owed(plan) else now)
        else:
            self._wait_no_more(plan.uid, now)
        return now - since

    def _is_owed(self, plan: Plan) -> bool:
        """Return whether keys that were to be written when a unit began to wait still are, after a part of it.

        Plans put first what was put longest ago. So when as many have been written as there were, what is left has
        changed since, and waits since then: a unit that changes faster than it is written would never have caught up.
        """
        keys = plan.size - 1  # except for the owner record
        owed = self._owed.pop(plan.uid, keys + plan.left) - keys
        if owed > 0:
            self._owed[plan.uid] = owed
        return owed > 0 or not plan.left

    def settle(self, uid: str, now: float) -> None:
        """Record that nothing is to be written of a unit."""
        self._stuck.pop(uid, None)
        self._wait_no_more(uid, now)

    def _wait_no_more(self, uid: str, now: float) -> None:
        """Keep nothing of a unit for later: one that is gone would wait for bytes for days, as its namespace's next."""
        self._later.forget(uid)
        self._owed.pop(uid, None)
        self._budget.give_up(uid)
        self._let_others_come_earlier(now)

    def _let_others_come_earlier(self, now: float) -> None:
        """Let those that wait for bytes, and for nothing else, be due when there are some now."""
        for uid, before, at in self._budget.take_earlier(now):
            if self._later.due_at(uid) == before:
                self._later.add(uid, at)

    def end_failures(self, uid: str) -> None:
        """Record that a unit was judged without a failure; where a plan has come of it, writing that may yet fail."""
        if self._failures and uid not in self._plans:
            self._failures.pop(uid, None)

    def postpone(self, uid: str, now: float) -> None:
        """Take a failure that nobody foresaw, in judging or writing a unit: after a pause it is judged again."""
        self.forget_plan(uid)
        self._since.pop(uid, None)  # of a plan that was under way
        self._stuck.pop(uid, None)
        self._failures[uid] += 1
        self._later.add(uid, now + self._backoff.after(self._failures[uid]))

    def postpone_reporting(self, uid: str, now: float) -> None:
        """Record that nobody could be reported how far an owner is: after a pause it is judged and reported again."""
        self._untold[uid] += 1
        self._later.add(uid, now + self._backoff.after(self._untold[uid]))

    def end_reporting(self, uid: str) -> None:
        """Record that how far an owner is was reported."""
        if self._untold:
            self._untold.pop(uid, None)

    def _mark_since(self, uid: str, since: float) -> None:
        """Let a unit be judged again that has been waiting since then, whatever came meanwhile."""
        (self._urgent if uid in self._urgent else self._dirty).add(uid, since)


def _oldest(times: Iterable[float], now: float) -> float:
    return min(times, default=now)

"""UIDs that wait, given out in turns of their groups or when due: who has thousands waiting holds up nobody else.

Pure: times are any monotonic clock's seconds.
"""

import math
from collections.abc import Callable, Collection, Iterable
from heapq import heapify, heappop, heappush
from itertools import islice

from grpc_etcd.layouts.rate_limits import interleave

SLACK = 100  # entries of what waits no more, beside as many as there are others. Arbitrary


class Waiting:
    """When each began to wait (monotonic seconds), by UID. `group_of` is asked once, when one begins to wait."""

    def __init__(self, group_of: Callable[[str], str]) -> None:
        self._group_of = group_of
        self._since: dict[str, float] = {}
        self._groups: dict[str, dict[str, None]] = {}  # the next to have its turn comes first
        self._group: dict[str, str] = {}

    def __contains__(self, uid: str) -> bool:
        return uid in self._since

    def __len__(self) -> int:
        return len(self._since)

    def times(self) -> Iterable[float]:
        """Return when each began to wait."""
        return self._since.values()

    def add(self, uid: str, since: float) -> None:
        """Let one wait; one that waits already keeps its place, and the earlier time."""
        if uid not in self._since:
            group = self._group[uid] = self._group_of(uid)
            self._groups.setdefault(group, {})[uid] = None
        self._since[uid] = min(since, self._since.get(uid, since))

    def pop(self, uid: str, default: float = math.inf) -> float:
        """Let one wait no more; return since when it has waited, or `default` where it has not."""
        if uid not in self._since:
            return default
        group = self._group.pop(uid)
        del self._groups[group][uid]
        if not self._groups[group]:
            del self._groups[group]
        return self._since.pop(uid)

    def choose(self, most: int, but: Collection[str]) -> list[str]:
        """Choose up to `most` of those that wait, one of each group after the other; they still wait."""
        waiting = ((uid for uid in uids if uid not in but) for uids in self._groups.values())
        found = list(islice(interleave(waiting), most))
        for uid in found[-len(self._groups) :]:  # whoever had a turn is the last of the next choice
            group = self._group[uid]
            self._groups[group] = self._groups.pop(group)
        return found


class Postponed:
    """When each is due, by UID. What is due is found without a look at the others, which may wait for hours."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._queue: list[tuple[float, str]] = []  # also what waits no more, or for another time

    def __contains__(self, uid: str) -> bool:
        return uid in self._at

    def __len__(self) -> int:
        return len(self._at)

    def add(self, uid: str, at: float) -> None:
        """Let one wait until then, whatever it has waited for before."""
        if self._at.get(uid) == at:
            return
        self._at[uid] = at
        heappush(self._queue, (at, uid))
        self._tidy()

    def forget(self, uid: str) -> None:
        """Let one wait no more, if it does."""
        self._at.pop(uid, None)
        self._tidy()

    def _tidy(self) -> None:
        if not self._at or len(self._queue) > 2 * len(self._at) + SLACK:
            self._queue = [(at, uid) for uid, at in self._at.items()]
            heapify(self._queue)

    def due_at(self, uid: str) -> float:
        """Return when one is due; infinity: it does not wait."""
        return self._at.get(uid, math.inf)

    def take(self, now: float) -> list[tuple[str, float]]:
        """Take out those that are due, with when they were, the earliest first."""
        due = []
        while self._at and (at := self.next_at()) <= now:
            _, uid = heappop(self._queue)
            del self._at[uid]
            due.append((uid, at))
        return due

    def next_at(self) -> float:
        """Return when the first of them is due; infinity: there is none."""
        while self._queue and self._at.get(self._queue[0][1]) != self._queue[0][0]:
            heappop(self._queue)
        return self._queue[0][0] if self._queue else math.inf


class Turns:
    """When each is due, by UID; those that are due are given out in turns of their groups.

    To take some costs the same however many others are due, or wait.
    """

    def __init__(self, group_of: Callable[[str], str]) -> None:
        self._later, self._due = Postponed(), Waiting(group_of)

    def __contains__(self, uid: str) -> bool:
        return uid in self._later or uid in self._due

    def __len__(self) -> int:
        return len(self._later) + len(self._due)

    def add(self, uid: str, at: float) -> None:
        """Let one be due then, whatever it has waited for before."""
        self._due.pop(uid)
        self._later.add(uid, at)

    def advance(self, uid: str, at: float) -> None:
        """Let one be due then, unless it is earlier; one that has been found to be due keeps its place."""
        if uid not in self._due and at < self._later.due_at(uid):
            self._later.add(uid, at)

    def forget(self, uid: str) -> None:
        """Let one wait no more, if it does."""
        self._due.pop(uid)
        self._later.forget(uid)

    def count_due(self, now: float) -> int:
        """Count those that are due."""
        for uid, at in self._later.take(now):
            self._due.add(uid, at)
        return len(self._due)

    def take(self, now: float, most: int | None = None) -> list[str]:
        """Take out up to so many of those that are due, one of each group after the other."""
        count = self.count_due(now)
        some = self._due.choose(count if most is None else most, ())
        for uid in some:
            self._due.pop(uid)
        return some

    def next_at(self) -> float:
        """Return when the first is due; minus infinity: some have been found to be; infinity: there is none."""
        return -math.inf if self._due else self._later.next_at()

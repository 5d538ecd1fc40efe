"""UIDs that are due at a time. What is due is found without a look at the others: thousands may wait for hours. Pure.

Times are any monotonic clock's seconds.
"""

import math
from heapq import heapify, heappop, heappush

SLACK = 100  # entries of what waits no more, beside as many as there are others. Arbitrary


class Postponed:
    """When each is due, by UID."""

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
        if len(self._queue) > 2 * len(self._at) + SLACK:
            self._queue = [(at, uid) for uid, at in self._at.items()]
            heapify(self._queue)

    def forget(self, uid: str) -> None:
        """Let one wait no more, if it does."""
        self._at.pop(uid, None)

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

"""When GrpcServices' statuses are looked at and written, so that it costs little however many change. No clock is read.

Changes that go on and on are looked at in passes, one a second: waking up for each took a fifth of all CPU (measured).
Writing a status costs more than the registration that it counts, so mere counts, which people read, take turns; what
a status judges does not wait for them. `now` is any monotonic clock's seconds. UIDs are those of GrpcServices.
"""

import math
from collections.abc import Callable, Iterable

from grpc_etcd_operator.core.waiting import Turns

WRITE_SPACING_SECONDS = 2.0
RETRY_SECONDS = 2.0
# All others are arbitrary.
SETTLE_SECONDS = 0.1  # a commit takes a few milliseconds, and "pending" would be news of yesterday
PASS_SECONDS = 1.0
COUNTS_SPACING_SECONDS = 10.0
COUNTS_AT_ONCE = 10
COUNTS_PER_SECOND = 1.0
COUNTS_WAIT_SECONDS = 30.0


class StatusSchedule:
    """Who waits to be looked at, and what has been written when. Groups, by `group_of`, take turns."""

    def __init__(self, group_of: Callable[[str], str] = lambda _: "") -> None:
        self._waiting = Turns(group_of)
        self._written_at: dict[str, float] = {}
        self._turns: dict[str, float] = {}
        self._next_turn = self._next_pass = -math.inf

    def note(self, uids: Iterable[str], now: float) -> float:
        """Record that these may have changed; return when the first of them can be looked at."""
        first = math.inf
        for uid in uids:
            at = max(now + SETTLE_SECONDS, self._written_at.get(uid, -math.inf) + WRITE_SPACING_SECONDS)
            self._waiting.advance(uid, at)
            first = min(first, at)
        return max(first, self._next_pass)

    def next_pass_at(self) -> float:
        """Return when to look next; infinity: never, unless something is noted."""
        return max(self._next_pass, self._waiting.next_at())

    def count_due(self, now: float) -> int:
        """Count those that are to be looked at in the pass that is due now, if one is."""
        return self._waiting.count_due(now) if now >= self._next_pass else 0

    def take(self, now: float, most: int | None = None) -> list[str]:
        """Take out those that are to be looked at in the pass that is due now, if one is; groups take turns.

        Where more than `most` are due the pass goes on, and whoever has become due meanwhile takes part.
        """
        some = self._waiting.take(now, most) if now >= self._next_pass else []
        if some and not self._waiting.count_due(now):
            self._next_pass = now + PASS_SECONDS
        return some

    def may_write_counts(self, uid: str, now: float) -> bool:
        """Return whether one whose counts alone have changed is to be written now; if not, it waits for its turn."""
        if uid not in self._turns:
            self._turns[uid] = self._take_turn(uid, now)
        if self._turns[uid] <= now:
            return True
        self._waiting.add(uid, self._turns[uid])
        return False

    def _take_turn(self, uid: str, now: float) -> float:
        """Return the next turn: few at once, then one after the other; nobody waits forever."""
        self._next_turn = max(self._next_turn, now) + 1 / COUNTS_PER_SECOND
        spaced = self._written_at.get(uid, -math.inf) + COUNTS_SPACING_SECONDS
        return min(now + COUNTS_WAIT_SECONDS, max(spaced, self._next_turn - COUNTS_AT_ONCE / COUNTS_PER_SECOND))

    def wrote(self, uid: str, now: float) -> None:
        """Record that a status is being written."""
        self._written_at[uid] = now
        self.is_true(uid)

    def is_true(self, uid: str) -> None:
        """Record that a status needs no writing."""
        self._turns.pop(uid, None)

    def failed(self, uid: str, now: float, pause_seconds: float = RETRY_SECONDS) -> None:
        """Record that a status could not be written: it is looked at again after a pause."""
        self._waiting.add(uid, now + pause_seconds)

    def forget(self, uid: str) -> None:
        """Drop one that is gone."""
        self._waiting.forget(uid)
        for known in (self._written_at, self._turns):
            known.pop(uid, None)

"""Which ranges of a hub are listed next, how many together, and when: rule 1 of the hub."""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence

from grpc_etcd.etcd import calls
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.following import Failures
from grpc_etcd.etcd.hub.watch import Stage, Watch

# How many ranges are listed by one transaction: half of etcd's default --max-txn-ops.
LISTED_TOGETHER = 64


class ListQueue:
    """The ranges that wait for their turn, with `most` listings under way at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.waiting: deque[Watch] = deque()
        self._under_way = 0
        self._failures = Failures()
        self._at = 0.0
        self._together = LISTED_TOGETHER

    def add(self, watch: Watch) -> None:
        """Let a range wait for its turn."""
        self.waiting.append(watch)

    def batches(self, now: float) -> Iterator[Sequence[Watch]]:
        """Take out, set by set, what may be listed now; each is under way until `ended`."""
        while now >= self.due_at:
            if batch := self._next():
                self._under_way += 1
                yield batch

    def _next(self) -> Sequence[Watch]:
        """Take out ranges to be listed together: one that is large or was refused is listed alone."""
        watches: list[Watch] = []
        while self.waiting and len(watches) < self._together and not (watches and self.waiting[0].is_alone):
            watch = self.waiting.popleft()
            if watch.stage is Stage.WAITING and watch not in watches:
                watches.append(watch)
                if watch.is_alone:
                    break
        return watches

    def ended(self) -> None:
        """Note that a listing is over."""
        self._under_way -= 1

    @property
    def due_at(self) -> float:
        """When the next listing is to begin."""
        return self._at if self.waiting and self._under_way < self._most else float("inf")

    @property
    def is_held_back(self) -> bool:
        """Whether ranges wait that could not be listed for a reason that concerns all."""
        return bool(self._failures and (self.waiting or self._under_way))

    def came(self) -> None:
        """Note a listing of some ranges together that came: more may be listed so."""
        self._together = min(LISTED_TOGETHER, self._together * calls.SMALLER_PAGE)

    def late(self, count: int) -> None:
        """Note that one of so many ranges did not come in time: fewer are listed together."""
        self._together = max(1, count // calls.SMALLER_PAGE)

    def succeeded(self) -> None:
        """Forget what has failed."""
        self._failures.forget()

    def hold_back(self, error: EtcdError, now: float, share: float) -> bool:
        """Hold all listings back for a share of the usual pause; False: they are, for those fail together."""
        if now < self._at:
            return False
        self._at = now + self._failures.pause_seconds(error) * share
        return True

    def put_off(self, until: float) -> None:
        """Begin no listing before."""
        self._at = until


class Pauses:
    """The ranges that wait for a time of their own."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Watch]] = []
        self._count = 0

    def add(self, watch: Watch, due: float) -> None:
        """Let a range wait until it is due."""
        watch.stage, watch.due = Stage.WAITING, due
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, watch))

    def ended(self, now: float) -> Iterator[Watch]:
        """Take out the ranges that are due."""
        while self._heap and self._heap[0][0] <= now:
            due, _, watch = heapq.heappop(self._heap)
            if watch.stage is Stage.WAITING and watch.due == due:
                yield watch

    @property
    def due_at(self) -> float:
        """When the next pause ends."""
        return self._heap[0][0] if self._heap else float("inf")

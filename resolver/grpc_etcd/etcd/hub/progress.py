"""What the stream of a hub owes an answer to, and how far its answers go: rules 2 and 5 of the hub."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from grpc_etcd.etcd.hub.watch import Stage, Watch
from grpc_etcd.etcd.renewing import ANSWER_SECONDS

# etcd says nothing to a progress request while a watch catches up, which it does every 100 ms (syncWatchersLoop): when
# somebody waits for the answer, it is asked for again after a while, which doubles up to a limit: well below what a
# stream is given up after, which etcd would else never have been asked in again.
ASK_AGAIN_SECONDS = 0.05
LONGEST_ASK_AGAIN_SECONDS = 1.0
# Who waits for a range may have to wait so long for the next request, so that a busy store is not asked all the time.
# Arbitrary.
ASK_SPACING_SECONDS = 0.005


class ProgressRequests:
    """The silence of one stream after another, the requests that end it, and the ranges that consumers await."""

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds = every_seconds
        self.received = 0.0
        self._owed: float | None = None
        self._look_at = 0.0
        self.is_asked = False
        self._asked: deque[int] = deque()  # the newest watch of which each request that may yet be answered could know
        self._again_at = float("inf")
        self._again_seconds = ANSWER_SECONDS
        self._ask_at = 0.0
        self._awaited: dict[Watch, int] = {}

    # The stream.

    def opened(self, now: float) -> None:
        """Expect the answer to the opening of a stream."""
        self.received = self._owed = now

    def proved(self, pending: Sequence[object]) -> None:
        """Look for progress from now on; what is pending is still owed."""
        self.settle(pending)
        self._look_at = self.received + self._every_seconds

    def hung_up(self) -> None:
        """Expect nothing any more."""
        self._asked.clear()
        self._owed, self.is_asked = None, False

    def owe(self, now: float) -> None:
        """Expect an answer, unless one is expected already."""
        self._owed = now if self._owed is None else self._owed

    def settle(self, pending: Sequence[object]) -> None:
        """Expect no answer any more where neither watches are pending nor progress is asked for."""
        if not pending and not self.is_asked:
            self._owed = None

    def is_stuck(self, now: float) -> bool:
        """Whether the stream owes an answer and has been silent for too long."""
        return self._owed is not None and now >= max(self.received, self._owed) + ANSWER_SECONDS

    # Requests.

    def ask(self, now: float, newest: int, again_seconds: float = ANSWER_SECONDS / 2) -> None:
        """Record a request, which the watch of this id at the newest can be answered for."""
        self.is_asked, self._again_at, self._again_seconds = True, now + again_seconds, again_seconds
        self._ask_at = now + ASK_SPACING_SECONDS
        self.owe(now)
        self._asked.append(newest)

    def ask_again(self, now: float, newest: int) -> None:
        """Record another request after one that was not answered."""
        self._again_seconds = min(self._again_seconds * 2, LONGEST_ASK_AGAIN_SECONDS)
        self._again_at = now + self._again_seconds if self._awaited else float("inf")
        self._asked.append(newest)

    def is_to_be_asked_again(self, now: float) -> bool:
        """Whether the last request has not been answered in time."""
        return self.is_asked and now >= self._again_at

    def is_wanted(self, now: float) -> bool:
        """Whether an answer would bring a range to where a consumer awaits it, and may be asked for."""
        return self._has_use and now >= self._ask_at

    def is_look_due(self, now: float) -> bool:
        """Whether to look for ranges that are behind; if so, the next look is due later."""
        if now < self._look_at:
            return False
        self._look_at = now + self._every_seconds
        return True

    def has_been_silent(self, now: float) -> bool:
        """Whether nothing was received for half of the time between two looks."""
        return now - self.received >= self._every_seconds / 2

    def due_times(self, *, is_open: bool) -> Iterator[float]:
        """Return when each of these is due."""
        if self._owed is not None:
            yield max(self.received, self._owed) + ANSWER_SECONDS
        if self.is_asked:
            yield self._again_at
        if is_open:
            yield self._look_at
            if self._has_use:
                yield self._ask_at

    @property
    def may_be_answered(self) -> bool:
        """Whether a request may yet be answered."""
        return bool(self._asked)

    def answered(self, revision: int, watches: Iterable[Watch], pending: Sequence[object]) -> list[Watch]:
        """Take an answer for all; return the watches of which etcd knew when it gave it at this revision: rule 2.

        What came of the stream before the answer may be of a request as old as any that was not answered: events of a
        watch that was created after it may still be under way, and would be dropped when they come.
        """
        live = [each for each in watches if each.stage is Stage.LIVE]
        known = max((each.id for each in live if each.known_at < revision), default=0)
        while self._asked and self._asked[0] < known:
            self._asked.popleft()  # from before that watch: it will never be answered
        newest = max(known, self._asked.popleft() if self._asked else 0)
        self.is_asked = False
        self.settle(pending)
        return [each for each in live if each.id <= newest]

    # Ranges that consumers await.

    @property
    def is_awaited(self) -> bool:
        """Whether any range is."""
        return bool(self._awaited)

    @property
    def _has_use(self) -> bool:
        return not self.is_asked and any(watch.stage is Stage.LIVE for watch in self._awaited)

    def wait_for(self, watch: Watch, revision: int, now: float) -> None:
        """Await a range at a revision."""
        if not self._awaited:
            self._again_seconds = ASK_AGAIN_SECONDS
            self._again_at = min(self._again_at, now + ASK_AGAIN_SECONDS)
        self._awaited[watch] = max(revision, self._awaited.get(watch, 0))

    def has_come(self, watch: Watch) -> bool:
        """Return whether a range is where it was awaited; if so, it is awaited no longer."""
        has_come = watch.revision >= self._awaited.get(watch, watch.revision + 1)
        if has_come:
            del self._awaited[watch]
        return has_come

    def all_that_have_come(self) -> list[Watch]:
        """Return the ranges that are where they were awaited, and await them no longer."""
        return [watch for watch in tuple(self._awaited) if self.has_come(watch)]

    def give_up(self, watch: Watch) -> None:
        """Await a range no longer."""
        self._awaited.pop(watch, None)

    def give_up_all(self) -> None:
        """Await none."""
        self._awaited.clear()

"""When the changes of a service may be written, so that its readers miss none.

Real clients lose events that come close together, differently for each layout (`WriteLimits`). A *stream* is one
service in one layout of one registry: what one reader watches. `WriteHistory` is what a writer remembers of a stream.
`RateLimitedQueue` holds what waits and gives out what may go into the next transaction. Rules: keys of different
streams share a transaction freely; deregistrations go first, but what has not fitted beside others is the first of the
next transaction; groups of changes take turns, and so do streams; a change is never split; after a burst that has been
quiet for `SETTLE_SECONDS` the flush key is due, and once more when all has been quiet for `HEAL_SECONDS` after that. No
clock is read: `now` is an argument, any monotonic clock's seconds.
"""

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Generic, TypeVar

from grpc_etcd.registry.layout import BURST_SECONDS, FLUSHES, HEAL_SECONDS, SETTLE_SECONDS, WriteLimits

LONG_AGO = -math.inf
# etcd's own limit on the operations of a transaction (--max-txn-ops).
OPERATIONS_PER_TRANSACTION = 128

# A writer that is late by so many transactions' time makes it up. Clients tolerate that: Jupiter's lose events for good
# only where about 100 are outstanding, and this adds 48 at most. With 3, 5,000 keys take 0.5 s more (measured).
CATCH_UP = 6

S = TypeVar("S", bound=Hashable)
T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class WriteHistory:
    """What has lately been written to one stream: when the next may go, and how many flush keys readers wait for."""

    next_at: float = LONG_AGO
    last_at: float = LONG_AGO
    flushes: int = 0

    def wrote(self, limits: WriteLimits, keys: int, now: float) -> "WriteHistory":
        """Record that `keys` puts and deletes of this stream went out in one transaction.

        If it is a little late, the next ones make that up: the pace is an average. However long a burst is, the same
        few flush keys follow; any change that follows a burst puts off those that are still to come.
        """
        rate = limits.keys_per_second or math.inf
        is_burst = limits.flush_key and (self.is_burst or keys > 1 or now - self.last_at <= BURST_SECONDS)
        is_on_time = now - self.next_at <= CATCH_UP * limits.keys_per_transaction / rate
        next_at = (self.next_at if is_on_time else now) + keys / rate
        return WriteHistory(next_at, now, FLUSHES if is_burst else self.flushes if limits.flush_key else 0)

    def flushed(self, now: float) -> "WriteHistory":
        """Record that a flush key went out: all but held-up readers have published their full set."""
        return WriteHistory(self.next_at, now, max(0, self.flushes - 1))

    def unflushed(self, now: float) -> "WriteHistory":
        """Record that a flush key did not go out after all: it is due once more when all has been quiet."""
        return WriteHistory(self.next_at, now, min(FLUSHES, self.flushes + 1))

    @property
    def is_burst(self) -> bool:
        """Return whether a burst waits for its first flush key."""
        return self.flushes == FLUSHES

    @property
    def flush_at(self) -> float | None:
        """When the flush key is due; None means that no reader waits for one."""
        if not self.flushes:
            return None
        return self.last_at + (SETTLE_SECONDS if self.is_burst else HEAL_SECONDS)

    def is_flush_due(self, now: float) -> bool:
        """Return whether readers wait for the flush key, and all has been quiet for long enough."""
        return self.flush_at is not None and self.flush_at <= now

    def is_past_burst(self, now: float) -> bool:
        """Return whether the next write would be the first of its burst."""
        return self.last_at + BURST_SECONDS < now

    def is_forgettable(self, now: float) -> bool:
        """Return whether this rhythm no longer decides anything."""
        return not self.flushes and self.next_at <= now and self.is_past_burst(now)


NEVER_WRITTEN = WriteHistory()


@dataclass(frozen=True, slots=True)
class Change(Generic[S, T]):
    """One change that goes whole or not at all: whose it is, its operations, and the keys among them by stream.

    `urgent` is for deregistrations: a call to a dead endpoint is worse than a new endpoint that waits. However many
    changes of one `group` wait, those of another have their turn with them.
    """

    of: T
    operations: int
    keys: Mapping[S, int] = field(default_factory=dict, hash=False)
    urgent: bool = False
    group: str = ""


class RateLimitedQueue(Generic[S, T]):
    """Changes that wait, at most one of each `of`. A call costs lanes, not changes. Not safe for concurrent use."""

    def __init__(self, limits_of: Callable[[S], WriteLimits]) -> None:
        """Take a function that says the client limits of a stream."""
        self._limits_of = limits_of
        # By how many flush keys they wait for, in the order of the last writes: looking for what is due ends soon.
        self._histories: tuple[dict[S, WriteHistory], ...] = tuple({} for _ in range(FLUSHES + 1))
        # A group's changes that need the same streams, deregistrations apart: the first of a lane speaks for all of it.
        self._lanes: dict[tuple[bool, str, frozenset[S]], dict[T, Change[S, T]]] = {}
        self._lane_of: dict[T, tuple[bool, str, frozenset[S]]] = {}
        self._passed_over: T | None = None  # a large change that was due and did not fit

    def __len__(self) -> int:
        return len(self._lane_of)

    def __repr__(self) -> str:
        return (
            f"<RateLimitedQueue waiting={len(self)} lanes={len(self._lanes)} streams={sum(map(len, self._histories))}>"
        )

    def push(self, change: Change[S, T]) -> None:
        """Let a change wait, in place of an earlier one of the same `of`: whoever changes on and on keeps its turn."""
        lane = (change.urgent, change.group, frozenset(change.keys))
        if self._lane_of.get(change.of) != lane:
            self.discard(change.of)
        self._lane_of[change.of] = lane
        self._lanes.setdefault(lane, {})[change.of] = change

    def discard(self, of: T) -> None:
        """Forget a waiting change, if there is one."""
        lane = self._lane_of.pop(of, None)
        if lane is not None:
            del self._lanes[lane][of]
            if not self._lanes[lane]:
                del self._lanes[lane]

    def take(self, now: float, operations: int = OPERATIONS_PER_TRANSACTION) -> tuple[Change[S, T], ...]:
        """Take out what may go in one transaction now and note it as written; empty when all has to wait."""
        batch: list[Change[S, T]] = []
        used: dict[S, int] = {}
        for change in self._candidates():
            if not self._allows(change, used, now):
                continue
            if batch and change.operations > operations:
                # Else small deregistrations that come on and on would keep it waiting forever, and all that are behind
                # it.
                self._passed_over = change.of
                break
            batch.append(change)
            operations -= change.operations
            for stream, keys in change.keys.items():
                used[stream] = used.get(stream, 0) + keys
        for change in batch:
            self._take_turn(change)
        for stream, keys in used.items():
            self.note(stream, keys, now)
        return tuple(batch)

    def ask_again_at(self) -> float | None:
        """Return when `take` may next give something; None while nothing waits, a time in the past for: at once."""
        return min((self._ready_at(streams) for _, _, streams in self._lanes), default=None)

    def note(self, stream: S, keys: int, now: float) -> None:
        """Record that a stream's readers got `keys` events in one transaction."""
        self._keep(stream, self._history_of(stream).wrote(self._limits_of(stream), keys, now))

    def note_flush(self, stream: S, now: float) -> None:
        """Record that a stream's flush key was written."""
        self._keep(stream, self._history_of(stream).flushed(now))

    def flushes_due(self, now: float) -> list[S]:
        """Return the streams whose flush key is due, and note it as written."""
        waiting = (histories.items() for histories in self._histories[1:])
        due = [stream for each in waiting for stream, _ in takewhile(lambda item: item[1].is_flush_due(now), each)]
        for stream in due:
            self.note_flush(stream, now)
        at_rest = self._histories[0]
        for stream, history in list(takewhile(lambda each: each[1].is_past_burst(now), at_rest.items())):
            if history.is_forgettable(now):
                del at_rest[stream]
        return due

    def flush_again(self, stream: S, now: float) -> None:
        """Record that a stream's flush key was not written after all."""
        self._keep(stream, self._history_of(stream).unflushed(now))

    def flush_at(self) -> float | None:
        """Return when the next flush key is due; None means that no stream waits for one."""
        first = (next(iter(histories.values()), NEVER_WRITTEN).flush_at for histories in self._histories[1:])
        return min((at for at in first if at is not None), default=None)

    @property
    def has_bursts(self) -> bool:
        """Return whether a stream waits for the first flush key after a burst."""
        return bool(self._histories[FLUSHES])

    def forget(self, stream: S) -> None:
        """Forget a stream that nobody reads any more."""
        for histories in self._histories:
            histories.pop(stream, None)

    def _history_of(self, stream: S) -> WriteHistory:
        return next((found for each in self._histories if (found := each.get(stream))), NEVER_WRITTEN)

    def _keep(self, stream: S, history: WriteHistory) -> None:
        """Keep the rhythm of a stream that has been written just now, as the last of all."""
        self.forget(stream)
        self._histories[history.flushes][stream] = history

    def _candidates(self) -> Iterator[Change[S, T]]:
        """Return deregistrations first, then the rest; from each lane no more than one transaction can hold."""
        passed_over, self._passed_over = self._passed_over, None
        if passed_over in self._lane_of:
            yield self._lanes[self._lane_of[passed_over]][passed_over]
        for wanted in (True, False):
            groups: dict[str, list[frozenset[S]]] = {}
            for urgent, group, streams in self._lanes:
                if urgent is wanted:
                    groups.setdefault(group, []).append(streams)
            turns = (self._candidates_of(wanted, group, lanes) for group, lanes in groups.items())
            yield from (change for change in interleave(turns) if change.of != passed_over)

    def _candidates_of(self, urgent: bool, group: str, lanes: Iterable[frozenset[S]]) -> Iterator[Change[S, T]]:  # noqa: FBT001  a part of a lane's name
        for streams in lanes:
            lane = self._lanes[urgent, group, streams]
            most = min((self._limits_of(s).keys_per_transaction for s in streams), default=len(lane))
            yield from islice(lane.values(), most)

    def _allows(self, change: Change[S, T], used: Mapping[S, int], now: float) -> bool:
        """Return whether all streams take this change; one larger than a transaction's share goes alone."""
        return all(
            self._history_of(stream).next_at <= now
            and (not used.get(stream) or used[stream] + keys <= self._limits_of(stream).keys_per_transaction)
            for stream, keys in change.keys.items()
        )

    def _take_turn(self, change: Change[S, T]) -> None:
        """Take a change out; its lane, if any of it is left, moves behind the others."""
        lane = self._lane_of[change.of]
        self.discard(change.of)
        if lane in self._lanes:
            self._lanes[lane] = self._lanes.pop(lane)

    def _ready_at(self, streams: frozenset[S]) -> float:
        return max((self._history_of(stream).next_at for stream in streams), default=LONG_AGO)


def interleave(iterators: Iterable[Iterator[T]]) -> Iterator[T]:
    """Return one item of each iterator after the other until all are exhausted."""
    waiting = deque(iterators)
    while waiting:
        iterator = waiting.popleft()
        for item in islice(iterator, 1):
            yield item
            waiting.append(iterator)


def choose_in_turns(items: Iterable[T], group_of: Callable[[T], str], most: int) -> list[T]:
    """Choose up to so many items, one of each group after the other; those of one group in the order given."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(group_of(item), []).append(item)
    return list(islice(interleave(map(iter, groups.values())), most))

"""All watches of a client over one stream, as a state machine without I/O: the drivers carry its commands out.

Rule 1: each range is listed at a revision R, some ranges at a time, and then watched from R + 1. All watches share one
        stream, told apart by ids that are never used twice.
        What has not come in time may be too much for the way: fewer ranges are listed together then, and in smaller
        pages.
Rule 2: a broken stream resumes each range at its last event's revision + 1. A header's revision moves that only on a
        progress reply; one that speaks for all counts for the watches that etcd knew when it was asked. It answers in
        order, but not each request, and does not say which: so an answer counts for what the oldest of them could know,
        and for watches that were created at an earlier revision than the answer's. Repeated events are dropped.
Rule 3: after each opening, a read proves that this is still the history that was followed: the newest record seen must
        be what it was (and where that is a deletion, also the newest one that is still there), and the store's revision
        not smaller than any that was seen. No reply counts before. Each listing proves the latter too. Another
        history is told with the next listing, and every range is listed again. (What came and went unseen, in a copy
        that has overtaken the followed revision, cannot be told by reading.)
Rule 4: a refused, compacted or cancelled watch, or a refused listing, concerns its own range only: it is reported and
        tried again, for ever, while all others go on. A refused token opens the stream anew.
Rule 5: ranges that have fallen behind the store are brought up by asking for progress now and then, so that a quiet one
        does not fall behind the compaction; a range that a consumer awaits at a revision, at once. (A watch from a
        revision that the store has not reached yet keeps etcd from answering: it begins anew from where the store is.)
        A stream that owes an answer and is silent is stuck and opened anew.
Rule 6: whatever fails is reported to each range concerned once as Lost, and the hub goes on for ever.

Order: events of one range come in the order of their revisions; those of two ranges may overtake one another.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple, Protocol, TypeAlias

from grpc_etcd.etcd import calls, errors, model
from grpc_etcd.etcd.calls import Steps
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.following import Failures, pause_seconds, progress_request, why_canceled
from grpc_etcd.etcd.messages import message
from grpc_etcd.etcd.model import Changed, Listed, Listing, Lost, News, Progress, Record, Revision, State
from grpc_etcd.etcd.renewing import ANSWER_SECONDS

STREAM_STUCK = "the stream is stuck"
OTHER_IDS = "watches get other ids than were asked for, as from an etcd grpc-proxy"
# How many keys are tried, newest first, for one that may be read, before a proof is given up. Arbitrary.
MOST_PROBES = 8
# How many ranges are listed by one transaction: half of etcd's default --max-txn-ops.
LISTED_TOGETHER = 64
# How many of a range's newest records are remembered: as many keys may come and go after the record that proves that
# nothing older was lost. Arbitrary.
RECENT_RECORDS = 8
# etcd says nothing to a progress request while a watch catches up, which it does every 100 ms (syncWatchersLoop): when
# somebody waits for the answer, it is asked for again after a while, which doubles up to a limit: well below what a
# stream is given up after, which etcd would else never have been asked in again.
ASK_AGAIN_SECONDS = 0.05
LONGEST_ASK_AGAIN_SECONDS = 1.0
# Who waits for a range may have to wait so long for the next request, so that a busy store is not asked all the time.
# Arbitrary.
ASK_SPACING_SECONDS = 0.005
# Failures that are further apart than this are not in a row. Arbitrary.
CALM_SECONDS = 60.0
# What tells of the connection, the cluster or the user, and so of all ranges.
SHARED = (errors.Unavailable, errors.DeadlineExceeded, errors.AuthFailed, errors.TooManyRequests, errors.Closed)
OTHER_HISTORY = (errors.FutureRevision, errors.HistoryChanged)


@dataclass(frozen=True, slots=True)
class Ask:
    """Make the unary calls of some steps and hand on what comes of them, with the time."""

    steps: Steps[Any]
    answered: Callable[[Any, float], None]
    failed: Callable[[EtcdError, float], None]


@dataclass(frozen=True, slots=True)
class Open:
    """Open the watch stream of this number, and read all its replies."""

    number: int


@dataclass(frozen=True, slots=True)
class Write:
    """Send a request on the stream; requests may be written before the stream is open."""

    request: Any


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the stream; a fault is one that the stream's member is to answer for."""

    fault: EtcdError | None = None


@dataclass(frozen=True, slots=True)
class Tell:
    """Hand this to the consumer of a range."""

    watch: "Watch"
    news: News


@dataclass(frozen=True, slots=True)
class LogIn:
    """Drop the token: the next call needs a new one."""


Command: TypeAlias = Ask | Open | Write | HangUp | Tell | LogIn


class Witness(NamedTuple):
    """The newest thing seen in a range: a key, its record (None: deleted), and when that happened."""

    key: bytes
    record: Record | None
    revision: int


class Stage(Enum):
    """How far a range is."""

    WAITING = auto()  # for its turn to be listed, or for a pause to end
    LISTING = auto()
    READY = auto()  # listed, and not on the stream
    CREATING = auto()  # asked for on the stream
    LIVE = auto()
    CLOSED = auto()


class Phase(Enum):
    """How far the stream is."""

    CLOSED = auto()
    OPENING = auto()  # no reply yet
    PROVING = auto()  # rule 3
    OPEN = auto()


class Watch:
    """One range that is followed, and what is known of it. `state` may be read from any thread."""

    def __init__(self, key: bytes, end: bytes, on_news: Callable[[News], None], since: float) -> None:
        self.key, self.end, self.on_news = key, end, on_news
        self.is_closed = False  # set by whoever closes, at once and in any thread: no news begins after that
        self.stage = Stage.WAITING
        self.id = 0
        self.next = 0  # the first revision that is not yet told; 0 must be listed
        self.created_at = 0  # the revision from which on etcd was asked for events
        self.known_at = 0  # etcd had this revision when it knew of the watch at the latest
        self.witness: Witness | None = None
        self._recent: dict[bytes, Record] = {}  # the newest records that are still there, the newest last
        self.is_proven = False  # it was on a stream since it was listed
        self.epoch = 0  # when it was listed
        self.has_resumed = False
        self.has_reopened = False
        self.is_alone = False  # it is listed by a call of its own
        self.late = 0  # how often in a row its listing did not come in time
        self.failures = 0
        self.faults = 0
        self.faulted = -CALM_SECONDS
        self.due = 0.0
        self._state = State(connected=False, stale_since=since)

    def __repr__(self) -> str:
        return f"<Watch {self.key!r} {self.stage.name} next={self.next}>"

    @property
    def revision(self) -> Revision:
        """The revision up to which all is told."""
        return Revision(max(self.next - 1, 0))

    @property
    def state(self) -> State:
        """How fresh the news of the range are."""
        known = self._state
        return State(known.connected, known.stale_since, known.error, self.revision)

    def connect(self) -> None:
        """Note that the range is in step."""
        if not self._state.connected:
            self._state = State(connected=True, stale_since=None)

    def lose(self, error: EtcdError, now: float) -> Lost | None:
        """Note that it is not; return what is to be told, unless that was told already."""
        known = self._state
        since = now if known.stale_since is None else known.stale_since
        self._state = State(connected=False, stale_since=since, error=error)
        return None if type(known.error) is type(error) else Lost(error, since)

    def note_listing(self, listing: Listing, epoch: int) -> None:
        """Take a listing."""
        self.next, self.is_proven, self.epoch = listing.revision + 1, False, epoch
        newest = heapq.nlargest(RECENT_RECORDS, listing.records, key=lambda record: record.mod_revision)
        self._recent = {record.key: record for record in reversed(newest)}
        self.witness = self.newest_record

    def take_events(self, messages: Any) -> Changed | None:
        """Take a reply's events, without those that were told before."""
        first = self.next
        events = tuple(event for event in map(calls.make_event, messages) if event.revision >= first)
        if not events:
            return None
        for event in events:
            self._remember(event)
        last = events[-1]
        self.next = last.revision + 1
        self.witness = Witness(last.key, last.record if isinstance(last, model.Put) else None, last.revision)
        return Changed(events, last.revision)

    @property
    def newest_record(self) -> Witness | None:
        """The newest record that is still there, if it is remembered."""
        record = next(reversed(self._recent.values()), None)
        return Witness(record.key, record, record.mod_revision) if record else None

    def _remember(self, event: model.Event) -> None:
        self._recent.pop(event.key, None)
        if isinstance(event, model.Put):
            self._recent[event.key] = event.record
            if len(self._recent) > RECENT_RECORDS:
                del self._recent[next(iter(self._recent))]

    def forget(self) -> None:
        """Forget all that was seen, so that it is listed again."""
        self.next, self.witness = 0, None
        self._recent.clear()

    def create_request(self) -> Any:
        """Return the request that watches the range from where it is."""
        return message("WatchRequest")(
            create_request=message("WatchCreateRequest")(
                key=self.key, range_end=self.end, start_revision=self.created_at, progress_notify=True, watch_id=self.id
            )
        )


class Probe(NamedTuple):
    """A read that proves the history: what was seen in a range, and at which revision to look (0: now)."""

    watch: Watch
    witness: Witness | None
    revision: int

    @property
    def key(self) -> bytes:
        """The key to read."""
        return self.witness.key if self.witness else self.watch.key


def make_proofs(watches: Sequence[Watch]) -> Iterator[deque[Probe]]:
    """Return the proofs that these ranges' history has not changed, each as some keys of which one must be read."""
    newest = sorted(watches, key=lambda watch: watch.witness.revision if watch.witness else 0, reverse=True)
    if not newest:
        return
    yield deque(Probe(each, each.witness, each.revision if each.witness else 0) for each in newest[:MOST_PROBES])
    if newest[0].witness and newest[0].witness.record is None:
        # A key that came and went proves little by being away: the newest that is still there must be what it was.
        found = [Probe(each, each.newest_record, each.revision) for each in watches if each.newest_record]
        found.sort(key=lambda probe: probe.witness.revision if probe.witness else 0, reverse=True)
        yield deque(found[:MOST_PROBES])


class SubscriptionDriver(Protocol):
    """A driver, as the subscriptions that it gives see it."""

    def note(self, note: Callable[["Core", float], None]) -> None:
        """Let the core note something soon."""


class Subscription:
    """What a consumer holds of a range that it follows. All of it may be used from any thread of the driver's world."""

    def __init__(self, watch: Watch, driver: SubscriptionDriver) -> None:
        self._watch, self._driver = watch, driver

    def __repr__(self) -> str:
        return f"<Subscription {self._watch.key!r} {self._watch.stage.name}>"

    @property
    def state(self) -> State:
        """How fresh the news are."""
        return self._watch.state

    def close(self) -> None:
        """Follow the range no longer, at etcd too; no news begins after this. May be called from within a callback."""
        self._watch.is_closed = True
        self._driver.note(lambda core, _: core.close(self._watch))

    def await_revision(self, revision: int) -> None:
        """Have Progress told as soon as the range is known up to that revision, which etcd has reached already."""
        self._driver.note(lambda core, now: core.await_revision(self._watch, revision, now))

    def list_again(self) -> None:
        """Take it that the consumer has failed at news: the range is listed again, after a pause."""
        self._driver.note(lambda core, now: core.fault(self._watch, now))


class Core:
    """The state machine. Not thread-safe: a driver calls each method and then `advance`, and takes the commands.

    `clock` is Unix time, for what consumers are told; every `now` is a monotonic time in seconds.
    """

    def __init__(
        self, clock: Callable[[], float], jitter: Callable[[], float], progress_seconds: float, listings: int
    ) -> None:
        """List at most so many ranges at a time."""
        self._clock, self._jitter, self._progress_seconds, self._most_listings = (
            clock,
            jitter,
            progress_seconds,
            listings,
        )
        self._watches: dict[Watch, None] = {}
        self._paused: list[tuple[float, int, Watch]] = []
        self._pauses = 0
        self._commands: list[Command] = []
        # Listing.
        self._to_list: deque[Watch] = deque()
        self._listings = 0
        self._list_failures = Failures()
        self._list_at = 0.0
        self._together = LISTED_TOGETHER
        # The stream.
        self._phase = Phase.CLOSED
        self._number = 0
        self._ready: dict[Watch, None] = {}
        self._last_id = 0
        self._by_id: dict[int, Watch] = {}
        self._pending: deque[tuple[int, Watch]] = deque()
        self._held: list[Any] = []
        self._proofs: deque[deque[Probe]] = deque()
        self._open_failures = Failures()
        self._open_at = 0.0
        self._cluster = 0
        self._epoch = 0  # how often all of etcd was lost; what was read in one may be of another history than the next
        # Silence.
        self._heard = 0.0
        self._owed: float | None = None
        self._progress_at = 0.0
        self._is_asked = False
        self._asked: deque[int] = deque()  # the newest watch of which each request that may yet be answered could know
        self._again_at = float("inf")
        self._again_seconds = ANSWER_SECONDS
        self._awaited: dict[Watch, int] = {}
        self._ask_at = 0.0
        self._tells_all = False
        self._seen = 0
        self._is_suspended = False
        # History.
        self.history = 0
        self._changes = 0
        self._changed = -CALM_SECONDS
        self.state = State(connected=False, stale_since=clock())

    # What consumers ask for.

    def follow(self, key: bytes, end: bytes, on_news: Callable[[News], None]) -> Watch:
        """Make a range that is to be followed; add() begins."""
        return Watch(key, end, on_news, self._clock())

    def add(self, watch: Watch) -> None:
        """Begin to follow a range, unless it is closed already."""
        if watch.stage is Stage.WAITING:
            self._watches[watch] = None
            self._to_list.append(watch)

    def close(self, watch: Watch) -> None:
        """Follow a range no longer."""
        if watch.stage is Stage.CLOSED:
            return
        self._drop_from_stream(watch)
        self._ready.pop(watch, None)
        self._awaited.pop(watch, None)
        watch.stage = Stage.CLOSED
        self._watches.pop(watch, None)
        if not self._watches and self._phase is not Phase.CLOSED:
            self._hang_up()

    def fault(self, watch: Watch, now: float) -> None:
        """Take it that the consumer of a range has failed at news: it has missed them, so it is listed again later."""
        if watch.stage is Stage.CLOSED:
            return
        watch.faults = watch.faults + 1 if now - watch.faulted < CALM_SECONDS else 1
        watch.faulted = now
        self._drop_from_stream(watch)
        self._ready.pop(watch, None)
        watch.forget()
        if watch.stage is not Stage.LISTING:
            self._pause(watch, pause_seconds(errors.InvalidRequest(""), watch.faults), now)

    def await_revision(self, watch: Watch, revision: int, now: float) -> None:
        """Tell Progress of a range as soon as it is known up to that revision."""
        if watch.stage is Stage.CLOSED:
            return
        if watch.revision >= revision:
            self._commands.append(Tell(watch, Progress(watch.revision)))
            return
        if not self._awaited:
            self._again_seconds = ASK_AGAIN_SECONDS
            self._again_at = min(self._again_at, now + ASK_AGAIN_SECONDS)
        self._awaited[watch] = max(revision, self._awaited.get(watch, 0))

    def ask_keys(self, prefix: bytes, limit: int, on_keys: Callable[[Sequence[bytes]], None]) -> None:
        """Read the first keys of a prefix once; where that fails, nobody is told."""
        self._commands.append(
            Ask(calls.one(calls.some_keys(prefix, limit)), lambda keys, _: on_keys(keys), lambda *_: None)
        )

    def suspend(self) -> None:
        """Leave the network: close the stream and begin no call until resume(). No range is told, none forgets."""
        self._is_suspended = True
        if self._phase is not Phase.CLOSED:
            self._hang_up()

    def resume(self) -> None:
        """Go on where each range was."""
        self._is_suspended = False

    # What the drivers report.

    def received(self, number: int, reply: Any, now: float) -> None:
        """Take a reply of the stream of this number."""
        if number != self._number:
            return
        self._heard = now
        if self._has_other_id(reply):
            self._refuse_server(now)
            return
        if self._phase is Phase.OPENING:
            self._phase = Phase.PROVING
            self._prove()
        if self._phase is Phase.PROVING:
            self._held.append(reply)
        else:
            self._take(reply, now)

    def _has_other_id(self, reply: Any) -> bool:
        """Tell whether this is of a server that gives watches ids of its own: nobody knows whose its events are."""
        if not reply.created or reply.canceled or reply.watch_id in self._by_id:
            return False
        return all(number != reply.watch_id for number, _ in self._pending)

    def _refuse_server(self, now: float) -> None:
        """Leave a server that cannot be followed; another endpoint may be an etcd."""
        fault = errors.NotServing(OTHER_IDS)
        fault.remedy = errors.NEEDS_ETCD
        self._commands.append(HangUp(fault))
        self._break(fault, now)

    def broken(self, number: int, error: EtcdError, now: float) -> None:
        """Take it that the stream of this number has ended or could not be opened."""
        if number == self._number and self._phase is not Phase.CLOSED:
            self._break(error, now)

    def abandon(self, error: EtcdError, now: float) -> None:
        """Open the stream anew: something that nobody foresaw has happened."""
        if self._phase is not Phase.CLOSED:
            self._break(error, now)

    # What is due.

    def advance(self, now: float) -> list[Command]:
        """Do what is due, and return what the driver is to do."""
        if not self._is_suspended:
            self._end_pauses(now)
            self._watch_over(now)
            if self._phase is Phase.CLOSED and self._ready and now >= self._open_at:
                self._open(now)
            if self._phase is not Phase.CLOSED:
                self._create(now)
            self._list(now)
        if self._phase is Phase.OPEN and not (self.state.connected or self._is_held_back):
            self.state = State(connected=True, stale_since=None)
        commands, self._commands = self._commands, []
        return commands

    def wake_at(self) -> float:
        """Return when advance() is to be called at the latest."""
        return float("inf") if self._is_suspended else min(self._due_times(), default=float("inf"))

    def _due_times(self) -> Iterator[float]:
        if self._paused:
            yield self._paused[0][0]
        if self._to_list and self._listings < self._most_listings:
            yield self._list_at
        if self._phase is Phase.CLOSED and self._ready:
            yield self._open_at
        if self._phase in (Phase.OPENING, Phase.OPEN):
            if self._owed is not None:
                yield max(self._heard, self._owed) + ANSWER_SECONDS
            if self._is_asked:
                yield self._again_at
            if self._is_awaited:
                yield self._ask_at
            if self._phase is Phase.OPEN:
                yield self._progress_at

    @property
    def _is_held_back(self) -> bool:
        """Whether ranges wait that could not be listed for a reason that concerns all."""
        return bool(self._list_failures and (self._to_list or self._listings))

    # Listing: rule 1.

    def _list(self, now: float) -> None:
        while self._to_list and self._listings < self._most_listings and now >= self._list_at:
            watches = self._next_to_list()
            if len(watches) == 1:
                self._begin_listing(watches[0])
            elif watches:
                self._begin_listings(watches)

    def _next_to_list(self) -> list[Watch]:
        """Take out ranges to be listed together: one that is large or was refused is listed alone."""
        watches: list[Watch] = []
        while self._to_list and len(watches) < self._together and not (watches and self._to_list[0].is_alone):
            watch = self._to_list.popleft()
            if watch.stage is Stage.WAITING and watch not in watches:
                watches.append(watch)
                if watch.is_alone:
                    break
        return watches

    def _begin_listing(self, watch: Watch) -> None:
        watch.stage = Stage.LISTING
        self._listings += 1
        epoch, seen = self._epoch, self._seen

        def answered(listing: Listing, now: float) -> None:
            self._listings -= 1
            self._listed(watch, listing, epoch, seen, now)

        def failed(error: EtcdError, now: float) -> None:
            self._listings -= 1
            self._not_listed(watch, error, now)

        self._commands.append(Ask(calls.get_range(watch.key, watch.end, late=watch.late), answered, failed))

    def _begin_listings(self, watches: Sequence[Watch]) -> None:
        """List several ranges in one transaction. What cannot be listed so is listed alone."""
        for watch in watches:
            watch.stage = Stage.LISTING
        self._listings += 1
        epoch, seen = self._epoch, self._seen

        def answered(listings: Sequence[Listing | None], now: float) -> None:
            self._listings -= 1
            self._together = min(LISTED_TOGETHER, self._together * calls.SMALLER_PAGE)
            for watch, listing in zip(watches, listings, strict=True):
                if listing:
                    self._listed(watch, listing, epoch, seen, now)
                else:
                    self._list_alone(watch)

        def failed(error: EtcdError, now: float) -> None:
            self._listings -= 1
            if isinstance(error, SHARED) and not isinstance(error, errors.TooManyRequests):
                if isinstance(error, errors.DeadlineExceeded):
                    self._together = max(1, len(watches) // calls.SMALLER_PAGE)
                for watch in watches:
                    self._list_again(watch)
                self._fail_all_listings(error, now)
                return
            for watch in watches:
                self._list_alone(watch)

        ranges = [(watch.key, watch.end) for watch in watches]
        self._commands.append(Ask(calls.one(calls.get_ranges(ranges)), answered, failed))

    def _list_alone(self, watch: Watch) -> None:
        watch.is_alone = True
        self._list_again(watch)

    def _listed(self, watch: Watch, listing: Listing, epoch: int, seen: int, now: float) -> None:
        if epoch != self._epoch:
            self._list_again(watch)  # nobody knows on which side of the break it was read
        elif listing.revision < seen:
            self._list_again(watch)
            self._change_history(errors.HistoryChanged(f"revision {seen} was seen and is gone"), now)
        elif watch.stage is Stage.LISTING:
            self._accept(watch, listing)

    def _accept(self, watch: Watch, listing: Listing) -> None:
        self._list_failures.forget()
        watch.note_listing(listing, self._epoch)
        self._seen = max(self._seen, listing.revision)
        watch.stage, watch.has_resumed = Stage.READY, self.state.error is not None
        watch.late = max(0, watch.late - 1)
        self._awaited.pop(watch, None)
        watch.connect()
        self._ready[watch] = None
        self._commands.append(Tell(watch, Listed(listing.records, listing.revision, self.history)))

    def _not_listed(self, watch: Watch, error: EtcdError, now: float) -> None:
        if isinstance(error, SHARED):
            if isinstance(error, errors.DeadlineExceeded):
                watch.late = min(calls.MOST_SHRINKING, watch.late + 1)
            self._list_again(watch)
            self._fail_all_listings(error, now)
        elif isinstance(error, OTHER_HISTORY):
            self._list_again(watch)
            self._change_history(error, now)
        elif watch.stage is Stage.LISTING:
            self._fail(watch, error, now)

    def _list_again(self, watch: Watch) -> None:
        if watch.stage is not Stage.CLOSED:
            watch.stage = Stage.WAITING
            self._to_list.append(watch)

    def _fail_all_listings(self, error: EtcdError, now: float) -> None:
        """Hold all listings back for a while; those that were under way together fail together."""
        if now >= self._list_at:
            self._list_at = now + self._list_failures.pause_seconds(error) * (0.5 + 0.5 * self._jitter())
            if isinstance(error, errors.TOKEN_DOUBTS):
                self._commands.append(LogIn())
        self._lose(self._to_list, error)
        self._disconnect(error)

    # The stream: rules 2 to 4.

    def _open(self, now: float) -> None:
        self._number += 1
        self._phase = Phase.OPENING
        self._heard = self._owed = now
        self._commands.append(Open(self._number))

    def _create(self, now: float) -> None:
        """Ask for all ranges that are ready."""
        self._make_way()
        for watch in self._ready:
            self._last_id += 1
            watch.id, watch.stage = self._last_id, Stage.CREATING
            watch.created_at = min(watch.next, self._seen) if self._awaited or self._is_asked else watch.next
            self._by_id[watch.id] = watch
            self._pending.append((watch.id, watch))
            self._commands.append(Write(watch.create_request()))
            self._owe(now)
        self._ready.clear()

    def _make_way(self) -> None:
        """Begin those watches anew that keep etcd from answering whoever awaits a range."""
        if not self._awaited:
            return
        for watch in [each for each in self._by_id.values() if each.created_at > self._seen]:
            self._drop_from_stream(watch)
            watch.stage = Stage.READY
            self._ready[watch] = None

    def _owe(self, now: float) -> None:
        self._owed = now if self._owed is None else self._owed

    def _drop_from_stream(self, watch: Watch) -> None:
        """Cancel a watch that etcd has or is about to have; its place among the answers that are due stays."""
        if self._by_id.pop(watch.id, None) is watch:
            request = message("WatchRequest")(cancel_request=message("WatchCancelRequest")(watch_id=watch.id))
            self._commands.append(Write(request))
            self._expect_no_answer()

    def _expect_no_answer(self) -> None:
        """Wait for no answer about progress where etcd has no watch on the stream that it could be about."""
        if not self._by_id:
            self._is_asked = False
            self._owed = self._owed if self._pending else None

    def _prove(self) -> None:
        """Rule 3: gather what was seen, and read it as it was.

        What only listings have seen is a proof of its own for each epoch: a later one does not vouch for it.
        """
        groups: dict[int | None, list[Watch]] = {}
        for watch in self._watches:
            if watch.next:
                groups.setdefault(None if watch.is_proven else watch.epoch, []).append(watch)
        self._proofs.clear()
        for watches in groups.values():
            self._proofs += make_proofs(watches)
        self._go_on_proving()

    def _go_on_proving(self) -> None:
        """Read the first key of a proof that may be read; one is enough of each."""
        while self._proofs and not self._proofs[0]:
            self._proofs.popleft()
        if self._proofs:
            self._probe(self._proofs[0].popleft())
        else:
            self._proved()

    def _probe(self, probe: Probe) -> None:
        number, seen = self._number, self._seen

        def answered(reply: tuple[Record | None, Revision], now: float) -> None:
            if number == self._number and self._phase is Phase.PROVING:
                self._judge(probe, seen, reply, now)

        def failed(error: EtcdError, now: float) -> None:
            if number == self._number and self._phase is Phase.PROVING:
                self._not_proved(probe, error, now)

        self._commands.append(Ask(calls.one(calls.probe(probe.key, probe.revision)), answered, failed))

    def _judge(self, probe: Probe, seen: int, reply: tuple[Record | None, Revision], now: float) -> None:
        found, store = reply
        if store < seen:
            self._change_history(errors.HistoryChanged(f"revision {seen} was seen and is gone"), now)
        elif probe.witness and found != probe.witness.record:
            at = f"at revision {probe.revision}" if probe.revision else "when it was last seen"
            self._change_history(errors.HistoryChanged(f"{probe.key!r} is not what it was {at}"), now)
        else:
            self._proofs.popleft()
            self._go_on_proving()
            self._take_held(now)

    def _not_proved(self, probe: Probe, error: EtcdError, now: float) -> None:
        match error:
            case errors.Compacted() if probe.revision and probe.witness and probe.witness.record:
                # Nobody knows what it was then; unchanged since, it proves as much.
                self._probe(probe._replace(revision=0))
            case errors.Compacted() | errors.FutureRevision() | errors.HistoryChanged():
                what = f"revision {probe.revision} cannot be read: {error}"
                self._change_history(errors.HistoryChanged(what), now)
            case errors.PermissionDenied() | errors.InvalidRequest():
                self._go_on_proving()
                self._take_held(now)
            case _:
                self._break(error, now)

    def _proved(self) -> None:
        self._phase = Phase.OPEN
        self._owed = None if not self._pending else self._owed
        self._open_failures.forget()
        self._progress_at = self._heard + self._progress_seconds

    def _take_held(self, now: float) -> None:
        if self._phase is not Phase.OPEN:
            return
        held, self._held = self._held, []
        number = self._number
        for reply in held:
            if self._phase is Phase.OPEN and number == self._number:
                self._take(reply, now)

    def _break(self, error: EtcdError, now: float) -> None:
        """Rule 2: all ranges of the stream go on where they are once it is open again."""
        if isinstance(error, errors.TOKEN_DOUBTS):
            self._commands.append(LogIn())
        self._hang_up()
        has_run_out = isinstance(error, errors.TokenRefused) and not self._open_failures
        self._open_at = now + self._open_failures.pause_seconds(error) * (0.5 + 0.5 * self._jitter())
        if has_run_out:  # as every token does in the end: a log-in mends it, and nobody has missed anything
            self._epoch += 1
        else:
            self._disconnect(error)
            self._lose(self._ready, error)
        for watch in self._ready:
            watch.has_resumed = True

    def _hang_up(self) -> None:
        """Close the stream; what was on it is ready for the next."""
        for watch in self._by_id.values():
            watch.stage, watch.has_resumed = Stage.READY, True
            self._ready[watch] = None
        self._by_id.clear()
        self._pending.clear()
        self._held.clear()
        self._number += 1
        self._asked.clear()
        self._phase, self._owed, self._is_asked = Phase.CLOSED, None, False
        self._commands.append(HangUp())

    def _take(self, reply: Any, now: float) -> None:
        watch = self._answered(reply.watch_id) if reply.created else self._by_id.get(reply.watch_id)
        if not self._is_same_cluster(reply):
            self._change_history(errors.HistoryChanged("another cluster answers at the endpoints"), now)
        elif reply.compact_revision or reply.canceled:
            self._take_cancel(watch, why_canceled(reply), now)
        elif reply.events:
            self._take_events(watch, reply)
        elif reply.created:
            self._take_created(watch, reply.header.revision)
        else:
            self._take_progress(reply, watch)

    def _is_same_cluster(self, reply: Any) -> bool:
        cluster = reply.header.cluster_id
        known, self._cluster = self._cluster, cluster or self._cluster
        return not (known and cluster and known != cluster)

    def _answered(self, watch_id: int) -> Watch | None:
        """Find the range that a reply to a request for a watch is about: answers come in order, refusals without id."""
        if not self._pending:
            return None
        place = next((place for place, (each, _) in enumerate(self._pending) if each == watch_id), 0)
        number, watch = self._pending[place]
        del self._pending[place]
        if not self._pending and not self._is_asked:
            self._owed = None
        return watch if self._by_id.get(number) is watch else None

    def _take_created(self, watch: Watch | None, revision: int) -> None:
        if watch is None:
            return
        watch.known_at = revision
        watch.stage, watch.failures, watch.has_reopened, watch.is_proven = Stage.LIVE, 0, False, True
        watch.connect()
        if watch.has_resumed:
            watch.has_resumed = False
            self._commands.append(Tell(watch, Progress(watch.revision)))

    def _take_events(self, watch: Watch | None, reply: Any) -> None:
        changed = watch.take_events(reply.events) if watch else None
        if watch and changed:
            self._seen = max(self._seen, changed.revision)
            self._commands.append(Tell(watch, changed))
            if changed.revision >= self._awaited.get(watch, changed.revision + 1):
                del self._awaited[watch]

    def _take_cancel(self, watch: Watch | None, error: EtcdError, now: float) -> None:
        if watch is None:
            return  # closed meanwhile
        if isinstance(error, errors.TokenRefused):
            self._break(error, now)
            return
        # etcd keeps what was compacted away on the stream, and says nothing about progress, until it is cancelled.
        self._drop_from_stream(watch)
        watch.forget()
        self._fail(watch, error, now)
        if isinstance(error, errors.PermissionDenied) and watch.failures > 1 and not watch.has_reopened:
            # It could be listed: the stream may stand for whom its token named when it was opened.
            watch.has_reopened = True
            self._break(errors.TokenRefused(error.details), now)

    def _fail(self, watch: Watch, error: EtcdError, now: float) -> None:
        """Rule 4: try a range again later."""
        watch.failures += 1
        self._lose([watch], error)
        self._pause(watch, self._pause_seconds(error, watch.failures), now)

    def _lose(self, watches: Iterable[Watch], error: EtcdError) -> None:
        since = self._clock()
        for watch in watches:
            lost = watch.lose(error, since)
            if lost:
                self._commands.append(Tell(watch, lost))

    def _disconnect(self, error: EtcdError) -> None:
        self._epoch += 1
        since = self._clock() if self.state.stale_since is None else self.state.stale_since
        self.state = State(connected=False, stale_since=since, error=error)

    # Silence and progress: rule 5.

    def _watch_over(self, now: float) -> None:
        if self._phase not in (Phase.OPENING, Phase.OPEN):
            return
        if self._owed is not None and now >= max(self._heard, self._owed) + ANSWER_SECONDS:
            fault = errors.DeadlineExceeded(STREAM_STUCK)
            self._commands.append(HangUp(fault))
            self._break(fault, now)
        elif self._is_asked and now >= self._again_at:
            self._again_seconds = min(self._again_seconds * 2, LONGEST_ASK_AGAIN_SECONDS)
            self._again_at = now + self._again_seconds if self._awaited else float("inf")
            self._write_progress_request()
        elif self._is_awaited and now >= self._ask_at:
            self._ask_progress(now, ASK_AGAIN_SECONDS)
        elif self._phase is Phase.OPEN and now >= self._progress_at:
            self._progress_at = now + self._progress_seconds
            self._look_for_progress(now)

    def _look_for_progress(self, now: float) -> None:
        """Ask the stream, if what it has told shows that some ranges are behind, else etcd whether they are."""
        self._tells_all = True
        if self._is_behind(self._seen):
            self._ask_progress(now)
        elif now - self._heard >= self._progress_seconds / 2:
            self._ask_revision(set())

    def _ask_revision(self, tried: set[Watch]) -> None:
        live = [watch for watch in self._by_id.values() if watch not in tried]
        if not live or len(tried) >= MOST_PROBES:
            return
        number, watch = self._number, live[0]

        def answered(revision: int, now: float) -> None:
            if number == self._number and self._is_behind(revision):
                self._ask_progress(now)

        def failed(error: EtcdError, now: float) -> None:
            if number != self._number:
                return
            if isinstance(error, errors.PermissionDenied | errors.InvalidRequest):
                self._ask_revision(tried | {watch})
            else:
                self._break(error, now)

        self._commands.append(Ask(calls.one(calls.revision(watch.key)), answered, failed))

    def _is_behind(self, revision: int) -> bool:
        """Say whether the stream owes an answer to a progress request when the store is at this revision.

        A watch from a revision on that the store has not reached yet keeps etcd (3.6) from answering.
        """
        if self._pending or not self._by_id:
            return False
        newest = max(watch.created_at for watch in self._by_id.values())
        return newest <= revision and min(watch.next for watch in self._by_id.values()) <= revision

    @property
    def _is_awaited(self) -> bool:
        """Whether an answer of the stream would bring a range to where a consumer awaits it."""
        return (
            self._phase is Phase.OPEN
            and not self._is_asked
            and any(watch.stage is Stage.LIVE for watch in self._awaited)
        )

    def _ask_progress(self, now: float, again_seconds: float = ANSWER_SECONDS / 2) -> None:
        self._is_asked, self._again_at, self._again_seconds = True, now + again_seconds, again_seconds
        self._ask_at = now + ASK_SPACING_SECONDS
        self._owe(now)
        self._write_progress_request()

    def _write_progress_request(self) -> None:
        self._asked.append(self._last_id)
        self._commands.append(Write(progress_request()))

    def _take_progress(self, reply: Any, watch: Watch | None) -> None:
        told = [watch] if watch else []
        if told or self._asked:
            self._seen = max(self._seen, reply.header.revision)
        if reply.watch_id < 0:
            told = self._answered_for(reply.header.revision)
            self._is_asked = False
            self._owed = None if not self._pending else self._owed
        for each in told:
            if each.next <= reply.header.revision:
                each.next = reply.header.revision + 1
                if self._tells_all or watch:
                    self._commands.append(Tell(each, Progress(each.revision)))
        self._tells_all &= bool(watch)
        self._tell_awaited()

    def _answered_for(self, revision: int) -> list[Watch]:
        """Give the watches of which etcd knew when it gave an answer at this revision; rule 2.

        What came of the stream before the answer may be of a request as old as any that was not answered: events of a
        watch that was created after it may still be under way, and would be dropped when they come.
        """
        live = [each for each in self._by_id.values() if each.stage is Stage.LIVE]
        known = max((each.id for each in live if each.known_at < revision), default=0)
        while self._asked and self._asked[0] < known:
            self._asked.popleft()  # of before that watch: it will never be answered
        newest = max(known, self._asked.popleft() if self._asked else 0)
        return [each for each in live if each.id <= newest]

    def _tell_awaited(self) -> None:
        """Tell those who awaited it how far their ranges are."""
        for watch in [watch for watch, revision in self._awaited.items() if watch.revision >= revision]:
            del self._awaited[watch]
            self._commands.append(Tell(watch, Progress(watch.revision)))

    # History: rule 3.

    def _change_history(self, error: EtcdError, now: float) -> None:
        self.history += 1
        self._changes = self._changes + 1 if now - self._changed < CALM_SECONDS else 1
        self._changed = now
        if self._phase is not Phase.CLOSED:
            self._hang_up()
        self._ready.clear()
        self._disconnect(error)
        self._seen = self._cluster = 0
        self._awaited.clear()
        self._list_at = now + self._pause_seconds(errors.HistoryChanged(""), self._changes)
        self._lose(self._watches, error)
        for watch in self._watches:
            watch.forget()
            if watch.stage is Stage.READY:
                self._list_again(watch)

    # Pauses.

    def _pause(self, watch: Watch, seconds: float, now: float) -> None:
        watch.stage, watch.due = Stage.WAITING, now + seconds
        self._pauses += 1
        heapq.heappush(self._paused, (watch.due, self._pauses, watch))

    def _end_pauses(self, now: float) -> None:
        while self._paused and self._paused[0][0] <= now:
            due, _, watch = heapq.heappop(self._paused)
            if watch.stage is Stage.WAITING and watch.due == due:
                self._to_list.append(watch)

    def _pause_seconds(self, error: EtcdError, failures: int) -> float:
        return pause_seconds(error, failures) * (0.5 + 0.5 * self._jitter())

"""All watches of a client over one stream, as a state machine without I/O: the drivers carry its commands out.

Rule 1: each range is listed at a revision R, some ranges at a time, and then watched from R + 1. All watches share one
        stream, distinguished by ids that are never used twice.
        What has not come in time may be too much for the way: fewer ranges are listed together then, and in smaller
        pages.
Rule 2: a broken stream resumes each range at its last event's revision + 1. A header's revision moves that only on a
        progress reply; one that speaks for all counts for the watches that etcd knew when it was asked. It answers in
        order, but not each request, and does not say which: so an answer counts for what the oldest of them could know,
        and for watches that were created at an earlier revision than the answer's. Repeated events are dropped.
        Of a watch that goes on, the revision at which etcd created it is delivered: events up to there are of the past,
        and etcd sends 1,000 revisions of them at a time.
Rule 3: after each opening, a read proves that this is still the history that was followed: the newest record seen must
        be what it was (and where that is a deletion, also the newest one that is still there), and the store's revision
        not smaller than any that was seen. No reply counts before. Each listing proves the latter too. Another
        history is delivered with the next listing, and every range is listed again. (What came and went unseen, in a
        copy that has overtaken the followed revision, cannot be delivered by reading.)
        A deletion that was compacted away cannot be read. Where the newest record is still there, whatever etcd was
        restored from held all that is known: every range is listed again, and what is absent then has been deleted.
Rule 4: a refused, compacted or cancelled watch, or a refused listing, concerns its own range only: it is reported and
        tried again, forever, while all others go on. A refused token opens the stream again.
Rule 5: ranges that have fallen behind the store are brought up by asking for progress now and then, so that a quiet one
        does not fall behind the compaction; a range that a consumer awaits at a revision, at once. (A watch from a
        revision that the store has not reached yet keeps etcd from answering: it begins again from where the store is.)
        A stream that owes an answer and is silent is stuck and opened again.
Rule 6: whatever fails is reported to each range concerned as Disconnected, and again whenever the error is another one
        in more than its numbers: so what is known is the newest reason; and the hub goes on forever.

Order: events of one range come in the order of their revisions; those of two ranges may overtake one another.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, auto
from typing import Any

from grpc_etcd.etcd import calls, errors
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.hub.commands import Ask, Command, Deliver, HangUp, LogIn, Open, Write
from grpc_etcd.etcd.hub.listing import ListQueue, Pauses
from grpc_etcd.etcd.hub.progress import ASK_AGAIN_SECONDS, ProgressRequests
from grpc_etcd.etcd.hub.proofs import MOST_PROBES, Probe, Proofs, find_fault
from grpc_etcd.etcd.hub.watch import CALM_SECONDS, Stage, Watch
from grpc_etcd.etcd.list_watch import Failures, pause_seconds, progress_request, why_canceled
from grpc_etcd.etcd.messages import message
from grpc_etcd.etcd.model import LATEST, Listing, Progress, Record, Revision, State, WatchSnapshot, WatchUpdate
from grpc_etcd.etcd.renewing import ANSWER_SECONDS

STREAM_STUCK = "the stream is stuck"
OTHER_IDS = "watches get other IDs than requested, as from an etcd grpc-proxy"
# What reports the connection, the cluster or the user, and so of all ranges.
SHARED = (errors.Unavailable, errors.DeadlineExceeded, errors.AuthFailed, errors.TooManyRequests, errors.Closed)
OTHER_HISTORY = (errors.FutureRevision, errors.HistoryChanged)


class Phase(Enum):
    """How far the stream is."""

    CLOSED = auto()
    OPENING = auto()  # no reply yet
    PROVING = auto()  # rule 3
    OPEN = auto()


class Core:
    """The state machine. Not thread-safe: a driver calls each method and then `advance`, and takes the commands.

    `clock` is Unix time, for what consumers are notified; every `now` is a monotonic time in seconds.
    """

    def __init__(
        self, clock: Callable[[], float], jitter: Callable[[], float], progress_seconds: float, listings: int
    ) -> None:
        """List at most so many ranges at a time."""
        self._clock, self._jitter = clock, jitter
        self._watches: dict[Watch, None] = {}
        self._pauses = Pauses()
        self._lists = ListQueue(listings)
        self._commands: list[Command] = []
        self._is_suspended = False
        # The stream.
        self._phase = Phase.CLOSED
        self._number = 0
        self._ready: dict[Watch, None] = {}
        self._last_id = 0
        self._by_id: dict[int, Watch] = {}
        self._pending: deque[tuple[int, Watch]] = deque()
        self._held: list[Any] = []
        self._proofs = Proofs()
        self._progress = ProgressRequests(progress_seconds)
        self._delivers_all = False
        self._open_failures = Failures()
        self._open_at = 0.0
        self._cluster = 0
        self._epoch = 0  # how often all of etcd was lost; what was read in one may be of another history than the next
        self._seen = 0
        # History.
        self.history = 0
        self._changes = 0
        self._changed = -CALM_SECONDS
        self.state = State(connected=False, stale_since=clock())

    # What consumers ask for.

    def follow(self, key: bytes, end: bytes, on_update: Callable[[WatchUpdate], None]) -> Watch:
        """Make a range that is to be followed; add() begins."""
        return Watch(key, end, on_update, self._clock())

    def add(self, watch: Watch) -> None:
        """Begin to follow a range, unless it is closed already."""
        if watch.stage is Stage.WAITING:
            self._watches[watch] = None
            self._lists.add(watch)

    def close(self, watch: Watch) -> None:
        """Follow a range no longer."""
        if watch.stage is Stage.CLOSED:
            return
        self._drop_from_stream(watch)
        self._ready.pop(watch, None)
        self._progress.give_up(watch)
        watch.stage = Stage.CLOSED
        self._watches.pop(watch, None)
        if not self._watches and self._phase is not Phase.CLOSED:
            self._hang_up()

    def fault(self, watch: Watch, now: float) -> None:
        """Record that the consumer of a range has failed at news: it has missed them, so it is listed again later."""
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
        """Report Progress of a range as soon as it is known up to that revision."""
        if watch.stage is Stage.CLOSED:
            return
        if watch.revision >= revision:
            self._commands.append(Deliver(watch, Progress(watch.revision)))
            return
        self._progress.wait_for(watch, revision, now)

    def ask_keys(self, prefix: bytes, limit: int, on_keys: Callable[[Sequence[bytes]], None]) -> None:
        """Read the first keys of a prefix once; where that fails, there are none."""
        self._commands.append(
            Ask(calls.one(calls.some_keys(prefix, limit)), lambda keys, _: on_keys(keys), lambda *_: on_keys(()))
        )

    def suspend(self) -> None:
        """Leave the network: close the stream and begin no call until resume(). No range is delivered, none forgets."""
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
        self._progress.received = now
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
        """Return whether this is of a server that gives watches ids of its own: nobody knows whose its events are."""
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
        """Record that the stream of this number has ended or could not be opened."""
        if number == self._number and self._phase is not Phase.CLOSED:
            self._break(error, now)

    def abandon(self, error: EtcdError, now: float) -> None:
        """Open the stream again: something that nobody foresaw has happened."""
        if self._phase is not Phase.CLOSED:
            self._break(error, now)

    # What is due.

    def advance(self, now: float) -> list[Command]:
        """Do what is due, and return what the driver is to do."""
        if not self._is_suspended:
            self._lists.waiting.extend(self._pauses.ended(now))
            self._watch_over(now)
            if self._phase is Phase.CLOSED and self._ready and now >= self._open_at:
                self._open(now)
            if self._phase is not Phase.CLOSED:
                self._create(now)
            self._list(now)
        if self._phase is Phase.OPEN and not (self.state.connected or self._lists.is_held_back):
            self.state = State(connected=True, stale_since=None)
        commands, self._commands = self._commands, []
        return commands

    def wake_at(self) -> float:
        """Return when advance() is to be called at the latest."""
        return float("inf") if self._is_suspended else min(self._due_times())

    def _due_times(self) -> Iterator[float]:
        yield self._pauses.due_at
        yield self._lists.due_at
        if self._phase is Phase.CLOSED and self._ready:
            yield self._open_at
        if self._phase in (Phase.OPENING, Phase.OPEN):
            yield from self._progress.due_times(is_open=self._phase is Phase.OPEN)

    # Listing: rule 1.

    def _list(self, now: float) -> None:
        for watches in self._lists.batches(now):
            if len(watches) == 1:
                self._begin_listing(watches[0])
            else:
                self._begin_listings(watches)

    def _begin_listing(self, watch: Watch) -> None:
        watch.stage = Stage.LISTING
        epoch, seen = self._epoch, self._seen

        def answered(listing: Listing, now: float) -> None:
            self._lists.ended()
            self._listed(watch, listing, epoch, seen, now)

        def failed(error: EtcdError, now: float) -> None:
            self._lists.ended()
            self._not_listed(watch, error, now)

        self._commands.append(Ask(calls.get_range(watch.key, watch.end, late=watch.late), answered, failed))

    def _begin_listings(self, watches: Sequence[Watch]) -> None:
        """List several ranges in one transaction. What cannot be listed so is listed alone."""
        for watch in watches:
            watch.stage = Stage.LISTING
        epoch, seen = self._epoch, self._seen

        def answered(listings: Sequence[Listing | None], now: float) -> None:
            self._lists.ended()
            self._lists.came()
            for watch, listing in zip(watches, listings, strict=True):
                if listing:
                    self._listed(watch, listing, epoch, seen, now)
                else:
                    self._list_alone(watch)

        def failed(error: EtcdError, now: float) -> None:
            self._lists.ended()
            if isinstance(error, SHARED) and not isinstance(error, errors.TooManyRequests):
                if isinstance(error, errors.DeadlineExceeded):
                    self._lists.late(len(watches))
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
        self._lists.succeeded()
        watch.note_listing(listing, self._epoch)
        self._seen = max(self._seen, listing.revision)
        watch.stage, watch.has_resumed = Stage.READY, self.state.error is not None
        watch.late = max(0, watch.late - 1)
        self._progress.give_up(watch)
        watch.connect()
        self._ready[watch] = None
        self._commands.append(Deliver(watch, WatchSnapshot(listing.records, listing.revision, self.history)))

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
            self._lists.add(watch)

    def _fail_all_listings(self, error: EtcdError, now: float) -> None:
        """Hold all listings back for a while; those that were under way together fail together."""
        if self._lists.hold_back(error, now, self._share()) and isinstance(error, errors.TOKEN_DOUBTS):
            self._commands.append(LogIn())
        self._lose(self._lists.waiting, error)
        self._disconnect(error)

    # The stream: rules 2 to 4.

    def _open(self, now: float) -> None:
        self._number += 1
        self._phase = Phase.OPENING
        self._progress.opened(now)
        self._commands.append(Open(self._number))

    def _create(self, now: float) -> None:
        """Ask for all ranges that are ready."""
        self._make_way()
        is_asked = self._progress.is_awaited or self._progress.is_asked
        for watch in self._ready:
            self._last_id += 1
            watch.id, watch.stage = self._last_id, Stage.CREATING
            watch.created_at = min(watch.next, self._seen) if is_asked else watch.next
            self._by_id[watch.id] = watch
            self._pending.append((watch.id, watch))
            self._commands.append(Write(watch.create_request()))
            self._progress.owe(now)
        self._ready.clear()

    def _make_way(self) -> None:
        """Begin those watches again that keep etcd from answering whoever awaits a range."""
        if not self._progress.is_awaited:
            return
        for watch in [each for each in self._by_id.values() if each.created_at > self._seen]:
            self._drop_from_stream(watch)
            watch.stage = Stage.READY
            self._ready[watch] = None

    def _drop_from_stream(self, watch: Watch) -> None:
        """Cancel a watch that etcd has or is about to have; its place among the answers that are due stays."""
        if self._by_id.pop(watch.id, None) is watch:
            request = message("WatchRequest")(cancel_request=message("WatchCancelRequest")(watch_id=watch.id))
            self._commands.append(Write(request))
            self._expect_no_answer()

    def _expect_no_answer(self) -> None:
        """Wait for no answer about progress where etcd has no watch on the stream that it could be about."""
        if not self._by_id:
            self._progress.is_asked = False
            self._progress.settle(self._pending)

    def _prove(self) -> None:
        """Rule 3: gather what was seen, and read it as it was."""
        self._proofs.begin(self._watches)
        self._go_on_proving()

    def _go_on_proving(self) -> None:
        if probe := self._proofs.next():
            self._probe(probe)
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
        if fault := find_fault(probe, seen, *reply):
            self._change_history(fault, now)
        else:
            self._proofs.passed()
            self._go_on_proving()
            self._take_held(now)

    def _not_proved(self, probe: Probe, error: EtcdError, now: float) -> None:
        match error:
            case errors.Compacted() if probe.revision and probe.witness and probe.witness.record:
                # Nobody knows what it was then; unchanged since, it proves as much.
                self._probe(probe._replace(revision=0))
            case errors.Compacted() if probe.has_second:
                self._proofs.rely_on_second()
                self._go_on_proving()
                self._take_held(now)
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
        self._open_failures.forget()
        self._progress.proved(self._pending)
        if self._proofs.is_partial:
            self._list_all_again(errors.Compacted("the newest deletion that was seen has been compacted"))

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
        self._open_at = now + self._open_failures.pause_seconds(error) * self._share()
        if has_run_out:  # as every token does in the end: a new login fixes it, and nobody has missed anything
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
        self._progress.hung_up()
        self._phase = Phase.CLOSED
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
        self._progress.settle(self._pending)
        return watch if self._by_id.get(number) is watch else None

    def _take_created(self, watch: Watch | None, revision: int) -> None:
        if watch is None:
            return
        if watch.epoch != self._epoch and not watch.is_proven:
            # Listed before the connection was lost, and followed by no stream: a record that is what it was then proves
            # nothing of deletions before the listing, which a restored etcd has undone.
            self._drop_from_stream(watch)
            watch.forget()
            self._list_again(watch)
            return
        watch.known_at = revision
        watch.stage, watch.failures, watch.has_reopened, watch.is_proven = Stage.LIVE, 0, False, True
        watch.connect()
        if watch.has_resumed:
            watch.has_resumed = False
            missed = Revision(revision) if revision > watch.revision else LATEST
            self._commands.append(Deliver(watch, Progress(watch.revision, missed)))

    def _take_events(self, watch: Watch | None, reply: Any) -> None:
        changed = watch.take_events(reply.events) if watch else None
        if watch and changed:
            self._seen = max(self._seen, changed.revision)
            self._commands.append(Deliver(watch, changed))
            self._progress.has_come(watch)

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
                self._commands.append(Deliver(watch, lost))

    def _disconnect(self, error: EtcdError) -> None:
        self._epoch += 1
        since = self._clock() if self.state.stale_since is None else self.state.stale_since
        self.state = State(connected=False, stale_since=since, error=error)

    # Silence and progress: rule 5.

    def _watch_over(self, now: float) -> None:
        if self._phase not in (Phase.OPENING, Phase.OPEN):
            return
        is_open = self._phase is Phase.OPEN
        if self._progress.is_stuck(now):
            fault = errors.DeadlineExceeded(STREAM_STUCK)
            self._commands.append(HangUp(fault))
            self._break(fault, now)
        elif self._progress.is_to_be_asked_again(now):
            self._progress.ask_again(now, self._last_id)
            self._commands.append(Write(progress_request()))
        elif is_open and self._progress.is_wanted(now):
            self._ask_progress(now, ASK_AGAIN_SECONDS)
        elif is_open and self._progress.is_look_due(now):
            self._look_for_progress(now)

    def _look_for_progress(self, now: float) -> None:
        """Ask the stream, if what it has reported shows that some ranges are behind, else etcd whether they are."""
        self._delivers_all = True
        if self._is_behind(self._seen):
            self._ask_progress(now)
        elif self._progress.has_been_silent(now):
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
        """Return whether the stream owes an answer to a progress request when the store is at this revision.

        A watch from a revision on that the store has not reached yet keeps etcd (3.6) from answering.
        """
        if self._pending or not self._by_id:
            return False
        newest = max(watch.created_at for watch in self._by_id.values())
        return newest <= revision and min(watch.next for watch in self._by_id.values()) <= revision

    def _ask_progress(self, now: float, again_seconds: float = ANSWER_SECONDS / 2) -> None:
        self._progress.ask(now, self._last_id, again_seconds)
        self._commands.append(Write(progress_request()))

    def _take_progress(self, reply: Any, watch: Watch | None) -> None:
        delivered, revision = [watch] if watch else [], reply.header.revision
        if delivered or self._progress.may_be_answered:
            self._seen = max(self._seen, revision)
        if reply.watch_id < 0:
            delivered = self._progress.answered(revision, self._by_id.values(), self._pending)
        for each in delivered:
            if each.next <= revision:
                each.next = revision + 1
                if self._delivers_all or watch:
                    self._commands.append(Deliver(each, Progress(each.revision)))
        self._delivers_all &= bool(watch)
        for each in self._progress.all_that_have_come():
            self._commands.append(Deliver(each, Progress(each.revision)))

    # History: rule 3.

    def _change_history(self, error: EtcdError, now: float) -> None:
        self.history += 1
        self._changes = self._changes + 1 if now - self._changed < CALM_SECONDS else 1
        self._changed = now
        self._lists.put_off(now + self._pause_seconds(errors.HistoryChanged(""), self._changes))
        self._list_all_again(error)
        self._seen = self._cluster = 0

    def _list_all_again(self, error: EtcdError) -> None:
        """Forget what is known of all ranges, as what the stream says next may not follow on that."""
        if self._phase is not Phase.CLOSED:
            self._hang_up()
        self._ready.clear()
        self._disconnect(error)
        self._progress.give_up_all()
        self._lose(self._watches, error)
        for watch in self._watches:
            watch.forget()
            if watch.stage is Stage.READY:
                self._list_again(watch)

    # Pauses.

    def _pause(self, watch: Watch, seconds: float, now: float) -> None:
        self._pauses.add(watch, now + seconds)

    def _share(self) -> float:
        """Return what part of a pause to wait, so that not all clients come back at once."""
        return 0.5 + 0.5 * self._jitter()

    def _pause_seconds(self, error: EtcdError, failures: int) -> float:
        return pause_seconds(error, failures) * self._share()

"""The list-watch loop as a generator of commands, without I/O: the drivers carry the commands out.

Rule 1: list all prefixes at one revision R, then watch each from R + 1, all over one stream.
Rule 2: a broken stream resumes each prefix at its last event's revision + 1. The header's revision moves that only on a
        reply without events that is not `created`: elsewhere it is the store's, not the events'. Repeated events are
        dropped.
Rule 3: after each opening, one read at the last known revision proves that this is still the history that was followed.
        A restored etcd fails it (future revision, or another record than the one seen), and everything is listed again.
Rule 4: `canceled` ends the stream: compacted lists again, a refused token logs in again, a refused permission is
        reported and tried again slowly.
Rule 5: a stream that has been silent for long is asked for progress if there is any, so that a quiet prefix does not
        fall behind the compaction. One that answers neither this nor its opening is stuck and opened again.
Rule 6: whatever fails is reported as Disconnected, and again whenever the error is another one in more than its
        numbers; and the loop goes on forever.

Order: events of one prefix come in the order of their revisions; those of two prefixes may overtake one another.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from grpc_etcd.etcd import calls, errors, model
from grpc_etcd.etcd.calls import Call
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.etcd.faults import Faults
from grpc_etcd.etcd.messages import message
from grpc_etcd.etcd.model import Disconnected, Progress, Record, Revision, WatchEvents, WatchSnapshot, WatchUpdate

# Waits in seconds, doubled from the first to the last. Refusals (permission, password) are fixed by people.
UNREACHED_SECONDS = (0.1, 3.0)
REFUSED_SECONDS = (1.0, 30.0)
WATCH_PATH = "/etcdserverpb.Watch/Watch"
REFUSALS = (errors.PermissionDenied, errors.AuthFailed, errors.InvalidRequest)


@dataclass(frozen=True, slots=True)
class Ask:
    """Make a unary call and send its result back."""

    call: Call[Any]


@dataclass(frozen=True, slots=True)
class Open:
    """Open a watch stream (closing the one before) and write these requests."""

    requests: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """Read the next reply of the stream and send it back."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand this to the consumer."""

    news: WatchUpdate


@dataclass(frozen=True, slots=True)
class LogIn:
    """Drop the token: the next call needs a new one."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Close the stream and wait."""

    seconds: float


Command: TypeAlias = Ask | Open | Read | Deliver | LogIn | Wait
Commands: TypeAlias = Generator[Command, Any, None]


class ListWatchLoop:
    """What is known of some prefixes, and what to do next. `state` may be read from any thread."""

    def __init__(
        self,
        prefixes: Sequence[bytes],
        clock: Callable[[], float],
        jitter: Callable[[], float],
        start_revision: int = 0,
    ) -> None:
        """Follow from a revision on; 0 lists first."""
        self._prefixes = model.disjoint(prefixes)
        self._clock = clock
        self._jitter = jitter
        self._next: dict[bytes, int] = dict.fromkeys(self._prefixes, start_revision) if start_revision else {}
        self._opened_at = 0
        self._witness: tuple[bytes, Record | None] | None = None
        self._failures = Failures()
        self._faults = Faults()
        self._late = 0  # how often in a row a listing did not come in time
        self.state = model.State(connected=False, stale_since=clock())

    def commands(self) -> Commands:
        """Run forever; the driver throws EtcdErrors in where a command failed."""
        while True:
            try:
                yield from self._session()
            except EtcdError as error:
                yield from self._after(error)

    def ask_revision(self) -> Call[Revision]:
        """Ask for the store's revision: a long silence may mean that there is nothing to report."""
        return calls.revision(model.range_start(self._prefixes[0]))

    def is_behind(self, revision: int) -> bool:
        """Return whether a stream owes an answer to a progress request, when the store is at this revision.

        A watch from a revision on that the store has not reached yet is not answered (etcd 3.6).
        """
        return self._opened_at <= revision and min(self._next.values(), default=0) <= revision

    def _session(self) -> Commands:
        listed = False
        if not self._next:
            yield from self._list()
            listed = True
        self._opened_at = max(self._next.values())
        yield Open(tuple(self._create_request(prefix) for prefix in self._prefixes))
        reply = yield Read()
        check(reply)
        yield from self._prove()
        self._connect()
        if not listed:
            yield Deliver(Progress(self._revision()))
        while True:
            for news in self._receive(reply):
                yield Deliver(news)
            reply = yield Read()

    def _list(self) -> Commands:
        records: list[Record] = []
        revision = 0
        for prefix in self._prefixes:
            listing = yield from asked(calls.get_prefix(prefix, revision=revision, late=self._late))
            revision = listing.revision
            records += listing.records
        self._next = dict.fromkeys(self._prefixes, revision + 1)
        newest = max(records, key=lambda record: record.mod_revision, default=None)
        self._witness = (newest.key, newest) if newest else None
        self._late = max(0, self._late - 1)
        self._connect()
        yield Deliver(WatchSnapshot(tuple(records), Revision(revision)))

    def _prove(self) -> Commands:
        """Rule 3. Compaction of that revision proves nothing and costs a listing, as a compacted watch does."""
        key, expected = self._witness or (model.range_start(self._prefixes[0]), None)
        try:
            found = yield Ask(calls.get(key, self._revision()))
        except errors.FutureRevision as error:
            raise errors.HistoryChanged(f"revision {self._revision()} was seen and is gone", error.code) from error
        if self._witness and found != expected:
            raise errors.HistoryChanged(f"{key!r} is not what it was at revision {self._revision()}")

    def _after(self, error: EtcdError) -> Commands:
        if isinstance(error, errors.TOKEN_DOUBTS):
            yield LogIn()
        if isinstance(error, errors.DeadlineExceeded):
            self._late = min(calls.MOST_SHRINKING, self._late + 1)
        lost = self._lose(error)
        if lost:
            yield Deliver(lost)
        if isinstance(error, errors.Compacted | errors.HistoryChanged | errors.FutureRevision):
            self._next = {}
        yield Wait(self._failures.pause_seconds(error) * (0.5 + 0.5 * self._jitter()))

    def _lose(self, error: EtcdError) -> Disconnected | None:
        known = self.state
        since = self._clock() if known.stale_since is None else known.stale_since
        self.state = model.State(connected=False, stale_since=since, error=error, revision=known.revision)
        return Disconnected(error, since) if self._faults.is_change(error) else None

    def _connect(self) -> None:
        self._failures = Failures()
        self._faults.clear()
        self.state = model.State(connected=True, stale_since=None, revision=self._revision())

    def _receive(self, reply: Any) -> Sequence[WatchUpdate]:
        check(reply)
        if reply.events:
            return self._receive_events(self._prefixes[reply.watch_id], reply.events)
        if reply.created:
            return ()
        return self._receive_progress(reply)

    def _receive_events(self, prefix: bytes, messages: Any) -> Sequence[WatchUpdate]:
        first = self._next[prefix]
        events = tuple(event for event in map(calls.make_event, messages) if event.revision >= first)
        if not events:
            return ()
        last = events[-1]
        self._next[prefix] = last.revision + 1
        if last.revision >= self._revision():
            self._witness = (last.key, last.record if isinstance(last, model.Put) else None)
        self._connect()
        return (WatchEvents(events, last.revision),)

    def _receive_progress(self, reply: Any) -> Sequence[WatchUpdate]:
        """A reply to a progress request speaks for every watch of the stream and carries no watch's id (-1)."""
        delivered = self._prefixes if reply.watch_id < 0 else (self._prefixes[reply.watch_id],)
        for prefix in delivered:
            self._next[prefix] = max(self._next[prefix], reply.header.revision + 1)
        self._connect()
        return (Progress(self._revision()),)

    def _revision(self) -> Revision:
        return Revision(max(self._next.values(), default=1) - 1)

    def _create_request(self, prefix: bytes) -> Any:
        """Ask for a watch by no id: etcd counts those of a stream from 0, as its grpc-proxy does whatever is asked."""
        return message("WatchRequest")(
            create_request=message("WatchCreateRequest")(
                key=model.range_start(prefix),
                range_end=model.prefix_end(prefix),
                start_revision=self._next[prefix],
                progress_notify=True,
            )
        )


def asked(steps: calls.Steps[Any]) -> Generator[Command, Any, Any]:
    """Turn the calls of some steps into commands."""
    reply = None
    while True:
        try:
            call = steps.send(reply)
        except StopIteration as stop:
            return stop.value
        reply = yield Ask(call)


def check(reply: Any) -> None:
    """Raise when etcd has ended the watch. It does so inside a reply; the stream stays open and silent."""
    if reply.compact_revision or reply.canceled:
        raise why_canceled(reply)


def why_canceled(reply: Any) -> EtcdError:
    """Return why etcd has ended a watch, as the reply that says so has it."""
    if reply.compact_revision:
        return errors.Compacted("the watch's revision has been compacted", revision=reply.compact_revision)
    return errors.make_error("", reply.cancel_reason or "etcd ended the watch")


def pause_seconds(error: EtcdError, failures: int) -> float:
    """Return the wait before try number `failures` + 1."""
    if failures == 1 and isinstance(error, errors.Compacted | errors.HistoryChanged | errors.TokenRefused):
        return 0.0
    first, longest = REFUSED_SECONDS if isinstance(error, REFUSALS) else UNREACHED_SECONDS
    return min(longest, first * 2.0 ** min(failures - 1, 16))


class Failures:
    """Counts what has failed in a row, each kind for itself, and says how long to wait.

    For how long etcd was down says nothing of how often it has refused: an etcd that was restarted refuses each token
    once, and whoever has tried in vain for a while would otherwise wait as for a permission that people have to grant.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __bool__(self) -> bool:
        """Return whether anything has failed."""
        return bool(self._counts)

    def pause_seconds(self, error: EtcdError) -> float:
        """Count a failure, and give the wait before the next try."""
        kind = "unreached"
        if isinstance(error, REFUSALS):
            kind = "refused"
        elif isinstance(error, errors.Compacted | errors.HistoryChanged):
            kind = "to be listed"
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return pause_seconds(error, self._counts[kind])

    def forget(self) -> None:
        """Begin again: all is well."""
        self._counts.clear()


def watch_method() -> calls.Method:
    """Watch/Watch."""
    return calls.method("Watch/Watch", "WatchRequest", "WatchResponse")


def progress_request() -> Any:
    """Ask etcd how far all watches of a stream are."""
    return message("WatchRequest")(progress_request=message("WatchProgressRequest")())

"""One service followed in etcd: news of its ranges are fed to the reader, and who waits is notified of new views.

All decisions are the reader's. A feed has no thread: news come from the registry's watch hub, by one thread. What goes
wrong unforeseen about one service is logged, reported in its stats and tried again with fresh listings; the others go
on. Any number of threads may wait for a view; the view itself is immutable.
"""

import abc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from grpc_etcd.discovery.disk_cache import Cache
from grpc_etcd.discovery.positions import Position
from grpc_etcd.discovery.reasons import nearest
from grpc_etcd.discovery.registry_watch import RegistryWatch, Subscription
from grpc_etcd.discovery.state import Range, Reader, ResolverState, Source
from grpc_etcd.discovery.waiting import OVER, waits_until
from grpc_etcd.etcd import Deleted, Disconnected, Event, Progress, WatchEvents, WatchSnapshot, WatchUpdate, errors
from grpc_etcd.threads import contain, wait_for

_LOG = logging.getLogger("grpc_etcd")
# What concerns one range alone; anything else reports the way to etcd or of its history, and so of all.
_ALONE = (errors.PermissionDenied, errors.InvalidRequest)
# What a listing follows at once: etcd is there.
_LISTED_NEXT = (errors.Compacted, errors.HistoryChanged, errors.FutureRevision)
# How long whoever registers has to do so again after etcd lost its data: longer than the leases (30 s) that are usual.
SETTLE_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Freshness:
    """How well a feed receives: `since` (Unix seconds) is when it last responded anything, or lost the way."""

    connected: bool
    since: float
    error: str = ""
    remedy: str = ""


class StateSource(abc.ABC):
    """Something that has a view of one service and reports when it changes. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._callbacks: tuple[Callable[[], object], ...] = ()
        self.view = ResolverState()
        self.freshness = Freshness(connected=False, since=time.time())
        self.changes = 0
        self.last_seen_at = 0.0  # when etcd last responded, in Unix seconds
        self.fault = ""  # what went wrong unforeseen, until it goes well again
        self.closed = False
        self.begun = time.monotonic()
        self.lost_at: float | None = None  # since when etcd cannot be watched, on the same clock
        self.is_more_awaited = False  # whether another registry may yet say whom to call
        self.looking_since: float | None = None  # since when names are looked up, on the same clock
        self._has_waited = False
        self.names: tuple[str, ...] = ()  # of other services, where this one is nowhere to be found
        self.whereabouts = ""  # where and under which prefixes the service is looked for
        self.advice = ""  # what to do where nothing is found there, if it is not the usual

    @abc.abstractmethod
    def start(self) -> None:
        """Begin to follow the service."""

    def close(self) -> None:
        """Stop following; the view stays as it is."""
        with self._changed:
            self.closed = True
            self._notify()

    @property
    def waits_until(self) -> float:
        """Until when the first answer is waited for, by `time.monotonic()`: channels are sent nothing before."""
        return OVER if self.closed else waits_until(self.view, self.fault, self.begun, self.lost_at, self.looking_since)

    @property
    def is_waiting(self) -> bool:
        """Whether the first answer is waited for."""
        return time.monotonic() < self.waits_until

    def look_after(self) -> None:
        """Do what is due, such as to report whoever waits that it is in vain; called now and then."""
        if not self._has_waited and not self.is_waiting:
            with self._changed:
                self._has_waited = True
                self._notify()

    def note_end(self) -> None:  # noqa: B027 - most follow what has no end of its own
        """Record that nothing can be followed any more, where that is so."""

    def wait_until(self, is_enough: Callable[[ResolverState], bool], timeout_seconds: float | None) -> bool:
        """Block until the view is enough; False when time is up or the source is closed first."""
        with self._changed:
            wait_for(self._changed, lambda: self.closed or is_enough(self.view), timeout_seconds)
            return is_enough(self.view)

    @contextmanager
    def notifying(self, callback: Callable[[], object]) -> Iterator[None]:
        """Call back after each change and at the end, for as long as the block runs; the callback must not block."""
        with self._changed:
            self._callbacks = (*self._callbacks, callback)
        try:
            yield
        finally:
            with self._changed:
                self._callbacks = tuple(each for each in self._callbacks if each is not callback)

    def _announce(self, view: ResolverState) -> None:
        with self._changed:
            self.view = view
            self.changes += 1
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        for callback in self._callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001 - a caller's fault concerns that caller
                _LOG.exception(
                    "Unexpected error in a callback for changes; all others are called",
                    extra={"event": "unexpected_error"},
                )


class ServiceSubscription(StateSource):
    """Follows one service until it is closed; `on_change` is called, by the hub's thread, after each change."""

    def __init__(
        self,
        service: str,
        reader: Reader,
        watch: RegistryWatch,
        on_change: Callable[[], None],
        cache: Cache | None = None,
    ) -> None:
        super().__init__()
        self.service = service
        self.whereabouts = f"{' and '.join(map(_text, reader.prefixes))} in etcd at {watch.whereabouts}"
        self._reader = reader
        self._watch = watch
        self._on_change = on_change
        self._cache = cache
        self._records: dict[bytes, bytes] = {}  # what etcd holds, for the cache
        self._subscriptions: dict[Range, Subscription] = {}
        self._awaited: dict[Range, int] = {}
        self._lost: dict[Range, Disconnected] = {}
        self._gathered: dict[Range, list[WatchEvents]] = {}
        self._must_rejoin = False
        self._has_looked = False
        self._asked = 0  # for names, without an answer so far
        self._settles_at = float("inf")
        if cache and (kept := cache.load()):
            self._announce(reader.take_cache(kept.records.items(), kept.revision))

    def __repr__(self) -> str:
        return f"<ServiceSubscription {self.service!r} source={self.view.source} changes={self.changes}>"

    def start(self) -> None:
        """Begin to follow."""
        self._watch.run(self._join)

    def close(self) -> None:
        """Stop following; the view stays as it is."""
        super().close()
        self._watch.run(self._leave)
        if self._cache:
            self._cache.flush()

    def look_after(self) -> None:
        """Have endpoints dropped, too, that have not come back long after etcd lost its data."""
        super().look_after()
        self.note_end()
        if time.monotonic() >= self._settles_at:
            self._watch.run(self._settle)

    def note_end(self) -> None:
        """Record that the program has closed the etcd client that it gave the registry."""
        error = self._watch.find_cut_off()
        if error is None or self.closed or self.freshness.error == str(error):
            return
        self._watch.note_outage(error)
        self._note_freshness(Freshness(connected=False, since=time.time(), error=str(error), remedy=error.remedy))
        self._deliver()

    # By the hub's thread.

    def _join(self) -> None:
        for which in self._reader.ranges:
            if self.closed:
                return
            if which.is_shared:
                shared = self._watch.share(which)
                self._subscriptions[which] = shared.subscription
                shared.join(self, partial(self._receive, which))
            else:
                self._subscriptions[which] = self._watch.follow(which, partial(self._receive, which))

    def _leave(self) -> None:
        for which, subscription in self._subscriptions.items():
            if which.is_shared:
                self._watch.share(which).leave(self)
            else:
                subscription.close()

    def _settle(self) -> None:
        self._settles_at = float("inf")
        self._show(self._reader.settle())

    def _receive(self, which: Range, news: WatchUpdate) -> None:
        if isinstance(news, WatchEvents):
            self._gather(which, news)
        else:
            self._take_gathered()
            self._try(which, news)

    def _gather(self, which: Range, changed: WatchEvents) -> None:
        """Take changes together with those that wait behind them: each time a set is judged costs its whole size.

        Else a large service that changes fast is judged more slowly than it changes, and falls behind without end.
        """
        if not self._gathered:
            self._watch.run(self._take_gathered)
        self._gathered.setdefault(which, []).append(changed)

    def _take_gathered(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for which, news in gathered.items():
            events = tuple(event for changed in news for event in changed.events)
            self._try(which, WatchEvents(events, news[-1].revision))

    def _try(self, which: Range, news: WatchUpdate) -> None:
        if self.closed:
            return
        try:
            self._take(which, news)
        except BaseException as error:  # noqa: BLE001 - whatever it is, as in a layout of the program's, others go on
            self._fail(which, contain(error))

    def _fail(self, which: Range, error: Exception) -> None:
        """Record that something unforeseen happened: what was half taken is listed again, after a pause."""
        _LOG.exception(
            "%s: unexpected error, retrying; all other services continue",
            self.service,
            extra={"event": "unexpected_error"},
        )
        self.fault = f"internal error: {type(error).__name__}: {error}"
        self._must_rejoin |= which.is_shared
        own = which if not which.is_shared else next(each for each in self._reader.ranges if not each.is_shared)
        self._subscriptions[own].list_again()
        self._deliver()

    def _take(self, which: Range, news: WatchUpdate) -> None:
        match news:
            case WatchSnapshot(records, revision, history):
                pairs = [(record.key, record.value) for record in records]
                self._remember(which, pairs, is_all=True)
                self._received(which)
                self._awaited.pop(which, None)
                view = self._reader.take_listing(which, pairs, Position(history, revision))
                self._recover()
            case WatchEvents(events, revision):
                changes = [(event.revision, _pair(event)) for event in events]
                self._remember(which, [change for _, change in changes], is_all=False)
                self._received(which)
                view = self._reader.take_changes(which, changes, revision)
            case Progress(revision, store):
                self._received(which)
                view = self._reader.take_progress(which, revision, store)
            case Disconnected():
                view = self._lose(which, news)
        ranges = self._ranges_of_names(view)
        if ranges and self.view.snapshot is None:  # only at first: what goes later is obeyed at once
            self.looking_since = time.monotonic()
            self._has_waited = False
        self._show(view)
        self._look_for_names(ranges)
        self._await_others()
        self._write_cache()

    def _recover(self) -> None:
        """Record that all goes well again; a shared range is sent again what it failed at."""
        self.fault = ""
        if self._must_rejoin:
            self._must_rejoin = False
            for which in self._reader.ranges:
                if which.is_shared:
                    self._watch.share(which).join(self, partial(self._receive, which))

    def _lose(self, which: Range, lost: Disconnected) -> ResolverState:
        if isinstance(lost.error, _ALONE):
            self._lost.pop(which, None)
            self._freshen()
            remedy = "" if isinstance(lost.error, errors.PermissionDenied) else f". {lost.error.remedy}"
            return self._reader.take_refusal(which, f"{lost.error}{remedy}")  # who explains it names all grants
        self._lost.pop(which, None)  # so that the newest comes last
        self._lost[which] = lost
        if isinstance(lost.error, _LISTED_NEXT):
            return self._reader.view  # etcd is there; a listing follows at once
        self._watch.note_outage(lost.error)
        before = self.freshness
        self._note_freshness(_stale(self._out()))
        if before.error != self.freshness.error:
            self._deliver()
        return self._reader.view

    def _out(self) -> Sequence[Disconnected]:
        """Return what keeps ranges from being watched, the newest last."""
        return [lost for lost in self._lost.values() if not isinstance(lost.error, _LISTED_NEXT)]

    def _received(self, which: Range) -> None:
        if which.is_shared and self._watch.share(which).lost:
            return  # what was known of it before; etcd has not responded
        self._watch.last_seen_at = time.monotonic()
        self._lost.pop(which, None)
        self._freshen()

    def _freshen(self) -> None:
        out = self._out()
        was_out = self.freshness.error
        self._note_freshness(_stale(out) if out else Freshness(connected=True, since=time.time()))
        if not out:
            self.last_seen_at = self.freshness.since
            self._watch.note_contact()
            if was_out:
                self._deliver()

    def _note_freshness(self, freshness: Freshness) -> None:
        if freshness.connected:
            self.lost_at = None
        elif self.lost_at is None:
            self.lost_at = max(self._watch.lost_at, self._watch.last_seen_at)  # some ranges may be answered meanwhile
        self.freshness = freshness

    def _deliver(self) -> None:
        self._announce(self._reader.view)
        self._on_change()

    def _show(self, view: ResolverState) -> None:
        if view != self.view:
            self._deliver()
        if not self._reader.is_settling:
            self._settles_at = float("inf")
        elif self._settles_at == float("inf"):
            self._settles_at = time.monotonic() + SETTLE_SECONDS

    def _ranges_of_names(self, view: ResolverState) -> tuple[bytes, ...]:
        """Once, when the service is nowhere to be found, return the prefixes of names that begin like its own."""
        snapshot = view.snapshot
        if self._has_looked or snapshot is None or snapshot.endpoints or snapshot.rejected:
            return ()
        self._has_looked = True
        name = self.service.encode()
        parts = (prefix.rpartition(name) for prefix in self._reader.prefixes)
        return tuple(head + name[:2] for head, there, _ in parts if there)

    def _look_for_names(self, prefixes: Sequence[bytes]) -> None:
        self._asked += len(prefixes)
        for prefix in prefixes:
            self._watch.ask_keys(prefix, self._note_names)

    def _note_names(self, keys: Sequence[bytes]) -> None:
        self._asked -= 1
        self.names = tuple(dict.fromkeys((*self.names, *nearest(self.service, keys, self._reader.prefixes))))
        if not self._asked:
            self.looking_since = None
        if not self.closed:
            self._deliver()

    def _await_others(self) -> None:
        """Ask for what is needed to judge what is held back."""
        for which, revision in self._reader.awaited():
            if self._awaited.get(which) != revision:
                self._awaited[which] = revision
                if which.is_shared:
                    self._watch.share(which).await_revision(self, revision)
                else:
                    self._subscriptions[which].await_revision(revision)

    # The cache.

    def _remember(self, which: Range, changes: Iterable[tuple[bytes, bytes | None]], *, is_all: bool) -> None:
        if not self._cache:
            return
        if is_all:
            self._records = {key: value for key, value in self._records.items() if not which.holds(key)}
        for key, value in changes:
            if value is None:
                self._records.pop(key, None)
            else:
                self._records[key] = value

    def _write_cache(self) -> None:
        """Keep what the registry says on disk, unless it is what we do not believe or cannot judge yet."""
        view = self.view
        if self._cache and view.snapshot and view.source is Source.REGISTRY and self._reader.is_settled:
            self._cache.replace(self._records.items(), view.snapshot.revision)


def _stale(out: Sequence[Disconnected]) -> Freshness:
    """Return since when the first range is out, and the newest error: a range may be followed late in an outage."""
    error = out[-1].error
    since = min(lost.since for lost in out)
    return Freshness(connected=False, since=since, error=str(error), remedy=error.remedy)


def _pair(event: Event) -> tuple[bytes, bytes | None]:
    return (event.key, None if isinstance(event, Deleted) else event.record.value)


def _text(prefix: bytes) -> str:
    return prefix.decode(errors="replace")

"""One service followed in etcd: a thread that reads a list-watch, feeds the reader, and tells who waits for news.

All decisions are the reader's. A client that may not read the operator's keys follows the service's own records alone.
Any number of threads may wait for a view; the view itself is immutable.
"""

import abc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from grpc_etcd.cache import Cache
from grpc_etcd.etcd import Changed, Deleted, Event, Listed, Lost, News, PermissionDenied, Progress
from grpc_etcd.view import Reader, Source, View

_LOG = logging.getLogger("grpc_etcd")


class Watch(Protocol):
    """A list-watch: an endless iterator of news that another thread may close."""

    def __iter__(self) -> Iterator[News]:
        """Give the news."""

    def close(self) -> None:
        """End the iteration, also while it waits."""


class EtcdReader(Protocol):
    """What is needed of an etcd client to follow a service."""

    def list_watch(self, *prefixes: bytes) -> Any:
        """Give a `Watch` over all keys with these prefixes."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How well a feed hears: `since` (Unix seconds) is when it last heard anything, or lost the way."""

    connected: bool
    since: float
    error: str = ""


class ViewSource(abc.ABC):
    """Something that has a view of one service and tells when it changes. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._callbacks: tuple[Callable[[], object], ...] = ()
        self.view = View()
        self.freshness = Freshness(connected=False, since=time.time())
        self.changes = 0
        self.closed = False

    @abc.abstractmethod
    def start(self) -> None:
        """Begin to follow the service."""

    def close(self) -> None:
        """Stop following; the view stays as it is."""
        with self._changed:
            self.closed = True
            self._notify()

    def hang_up(self) -> None:  # noqa: B027 - nothing to do for a source without a connection of its own
        """Begin to leave the network for a fork."""

    def wait_quiet(self, timeout_seconds: float) -> bool:  # noqa: ARG002
        """Wait until it has been left."""
        return True

    def go_on(self) -> None:  # noqa: B027
        """Follow again after the fork."""

    def wait_until(self, is_enough: Callable[[View], bool], timeout_seconds: float | None) -> bool:
        """Block until the view is enough; False when time is up or the source is closed first."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or is_enough(self.view), timeout_seconds)
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

    def _announce(self, view: View) -> None:
        with self._changed:
            self.view = view
            self.changes += 1
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        for callback in self._callbacks:
            callback()


class Feed(ViewSource):
    """Follows one service until it is closed; `on_change` is called, by its thread, after each change of the view."""

    def __init__(
        self, service: str, reader: Reader, etcd: EtcdReader, on_change: Callable[[], None], cache: Cache | None = None
    ) -> None:
        super().__init__()
        self.service = service
        self._reader = reader
        self._etcd = etcd
        self._on_change = on_change
        self._cache = cache
        self._watch: Watch | None = None
        self._reads_operator = True
        self._may_run = threading.Event()
        self._may_run.set()
        self._is_quiet = threading.Event()
        if cache and (kept := cache.load()):
            self._announce(reader.take_listing(kept.records.items(), kept.revision, Source.CACHE))
        self._thread = threading.Thread(target=self._run, name=f"grpc-etcd-feed-{service}", daemon=True)

    def __repr__(self) -> str:
        return f"<Feed {self.service!r} source={self.view.source} changes={self.changes}>"

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self) -> None:
        """Stop following; the view stays as it is."""
        super().close()
        self._may_run.set()
        if watch := self._watch:
            watch.close()

    def hang_up(self) -> None:
        """Leave etcd for a fork: begin to, that is; `wait_quiet` waits for it."""
        self._is_quiet.clear()
        self._may_run.clear()
        if watch := self._watch:
            watch.close()

    def wait_quiet(self, timeout_seconds: float) -> bool:
        """Wait until the thread is out of gRPC."""
        return not self._thread.is_alive() or self._is_quiet.wait(timeout_seconds)

    def go_on(self) -> None:
        """Follow etcd again; everything is listed anew."""
        self._may_run.set()

    def _run(self) -> None:
        while not self.closed:
            self._is_quiet.set()
            self._may_run.wait()
            self._is_quiet.clear()
            prefixes = self._reader.prefixes + (self._reader.operator_prefixes if self._reads_operator else ())
            watch: Watch = self._etcd.list_watch(*prefixes)
            self._watch = watch
            if not self.closed and self._may_run.is_set():
                self._follow(watch)
            watch.close()

    def _follow(self, watch: Watch) -> None:
        """Read until the feed is closed, or until it is to be read with fewer prefixes."""
        for news in watch:
            if self.closed or not self._may_run.is_set():
                return
            if isinstance(news, Lost) and isinstance(news.error, PermissionDenied) and self._reads_operator:
                _LOG.warning("%s: the keys of the operator may not be read; no policy, no synced mark", self.service)
                self._reads_operator = False
                return
            self._take(news)

    def _take(self, news: News) -> None:
        match news:
            case Listed(records, revision):
                self._hear()
                self._show(self._reader.take_listing([(r.key, r.value) for r in records], revision, Source.REGISTRY))
                self._remember(lambda cache: cache.replace(((r.key, r.value) for r in records), revision))
            case Changed(events, revision):
                self._hear()
                self._show(self._reader.take_changes(_pairs(events), revision))
                self._remember(lambda cache: cache.apply(_pairs(events), revision))
            case Progress():
                self._hear()
            case Lost(error, since):
                self.freshness = Freshness(connected=False, since=since, error=str(error))
                _LOG.warning("%s: etcd cannot be followed: %s. %s", self.service, error, error.remedy)
                self._show(self.view)

    def _hear(self) -> None:
        if self.freshness.error:
            _LOG.info("%s: etcd is followed again", self.service)
        self.freshness = Freshness(connected=True, since=time.time())

    def _show(self, view: View) -> None:
        if view.source is Source.KEPT and self.view.source is not Source.KEPT:
            _LOG.warning("%s: %s", self.service, view.reason)
        self._announce(view)
        self._on_change()

    def _remember(self, write: Callable[[Cache], None]) -> None:
        """Keep what the registry says on disk, unless it is what we do not believe."""
        if self._cache and self.view.source is Source.REGISTRY:
            write(self._cache)


def _pairs(events: Iterable[Event]) -> list[tuple[bytes, bytes | None]]:
    return [(event.key, None if isinstance(event, Deleted) else event.record.value) for event in events]

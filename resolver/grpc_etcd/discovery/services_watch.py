"""All services of a registry, followed: what `Registry.watch_all` gives.

For a fork the stream is ended, and opened again afterwards: while a thread is in gRPC, gRPC skips its fork handlers,
and the child crashes.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from grpc_etcd.etcd import Deleted, Disconnected, PermissionDenied, WatchEvents, WatchSnapshot, WatchUpdate
from grpc_etcd.registry.catalog import Catalog
from grpc_etcd.registry.endpoint import Endpoint

Services = Mapping[str, tuple[Endpoint, ...]]


class ForkableWatch(Iterator[WatchUpdate]):
    """What etcd reports of some prefixes. In a forked child it is over; `turn` is for whoever takes the news."""

    def __init__(self, etcd: Any, prefixes: Sequence[bytes]) -> None:
        self._open: Callable[[], Any] = lambda: etcd.list_watch(*prefixes)
        self._watch = self._open()
        self._changed, self.turn = threading.Condition(), threading.Lock()
        self._is_waiting = self._is_left = self._is_forking = self._is_closed = self._is_inherited = False

    def __next__(self) -> WatchUpdate:
        while True:
            with self._waiting():
                news: WatchUpdate | None = next(self._watch, None)
            if news is not None:
                return news
            if self._is_closed or not self._is_left:
                raise StopIteration

    def close(self) -> None:
        """End it, also while another thread waits in it."""
        self._end()
        if not self._is_inherited:
            self._watch.close()

    def begin_close(self) -> None:
        """End it, and wait for no thread of it, which may be in a call to etcd."""
        self._end()
        if not self._is_inherited:
            getattr(self._watch, "begin_close", self._watch.close)()

    def _end(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Let forks wait until this block is over, and begin it after those that go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self._is_forking)
            if self._is_left and not self._is_closed:
                self._watch, self._is_left = self._open(), False
            self._is_waiting = True
        try:
            yield
        finally:
            with self._changed:
                self._is_waiting = False
                self._changed.notify_all()

    def before_fork(self) -> Callable[[float], object] | None:
        """Leave gRPC; an etcd in memory is not in it."""
        with self._changed:
            begin_close = getattr(self._watch, "begin_close", None)
            if begin_close is None or self._is_closed:
                return None
            self._is_left = self._is_forking = True
        begin_close()
        return self._wait_quiet

    def _wait_quiet(self, seconds: float) -> None:
        with self._changed:
            is_quiet = self._changed.wait_for(lambda: not self._is_waiting, seconds)
        if is_quiet:
            self._watch.close()

    def after_fork_in_parent(self) -> None:
        """Go on with a list of everything."""
        with self._changed:
            self._is_forking = False
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Leave everything to the parent; a thread that is not there may have held the locks."""
        self._changed, self.turn = threading.Condition(), threading.Lock()
        self._is_closed = self._is_inherited = True


class ServicesWatch:
    """An iterator over all services, now and after each change. `close`, from any thread, ends it."""

    def __init__(self, watch: ForkableWatch, catalog: Catalog) -> None:
        self._watch = watch
        self._catalog = catalog
        self._last: Services | None = None
        self.closed = False

    def __repr__(self) -> str:
        return f"<ServicesWatch{' closed' if self.closed else ''}>"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Services:
        with self._watch.turn:
            for news in self._watch:
                if self.closed:
                    break
                self._take(news)
                services = self._catalog.services() if isinstance(news, WatchSnapshot | WatchEvents) else self._last
                if services != self._last:
                    self._last = services
                    return services  # type: ignore[return-value]  # only _last may be None
        self.close()
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration, also while it waits."""
        self.closed = True
        self._watch.close()

    def begin_close(self) -> None:
        """Do the same, and return at once."""
        self.closed = True
        self._watch.begin_close()

    def _take(self, news: object) -> None:
        match news:
            case WatchSnapshot(records, revision):
                self._catalog.replace(((record.key, record.value) for record in records), revision)
            case WatchEvents(events, revision):
                changes = ((e.key, None if isinstance(e, Deleted) else e.record.value) for e in events)
                self._catalog.apply(changes, revision)
            case Disconnected(PermissionDenied() as error):
                self.close()
                raise error

"""All services of a registry, followed: what `Registry.watch_all` gives."""

import threading
from collections.abc import Mapping
from typing import Any, Self

from grpc_etcd.etcd import Deleted, Disconnected, PermissionDenied, WatchEvents, WatchSnapshot
from grpc_etcd.registry.catalog import Catalog
from grpc_etcd.registry.endpoint import Endpoint

Services = Mapping[str, tuple[Endpoint, ...]]


class ServicesWatch:
    """An iterator over all services, now and after each change. `close`, from any thread, ends it."""

    def __init__(self, etcd: Any, catalog: Catalog) -> None:
        self._catalog = catalog
        self._watch = etcd.list_watch(*catalog.prefixes)
        self._last: Services | None = None
        self._lock = threading.Lock()
        self.closed = False

    def __repr__(self) -> str:
        return f"<ServicesWatch{' closed' if self.closed else ''}>"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Services:
        with self._lock:
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

"""Follow all services of a registry at once, as they stand in etcd: what `grpc-etcd watch` without a name shows.

Unlike a channel's, this view is etcd's own: it judges nothing, and a service is empty as soon as its keys are gone.
"""

import queue
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from grpc_etcd.etcd import (
    Disconnected,
    Etcd,
    EtcdError,
    PermissionDenied,
    Put,
    Revision,
    WatchEvents,
    WatchSnapshot,
    WatchUpdate,
)
from grpc_etcd.inspect.reading import list_prefix
from grpc_etcd.registry.catalog import list_root, service_of
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.snapshot import Snapshot, SnapshotBuilder

Change = tuple[bytes, bytes | None]  # a key and its value; None: it is gone


class Services:
    """The records of all services, distinguished by name; without I/O."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._layouts = tuple(layouts)
        self._known: dict[str, dict[bytes, bytes]] = {}
        self._builders: dict[str, SnapshotBuilder] = {}

    def take(self, layout: Layout, news: WatchSnapshot | WatchEvents) -> list[Snapshot]:
        """Take news of a layout's keys; return the services that have become others, by name."""
        known = self._known.setdefault(layout.name, {})
        if isinstance(news, WatchSnapshot):
            listed = {record.key: record.value for record in news.records}
            changes: list[Change] = [(key, None) for key in known if key not in listed]
            changes += [(key, value) for key, value in listed.items() if known.get(key) != value]
        else:
            changes = [(each.key, each.record.value if isinstance(each, Put) else None) for each in news.events]
        for key, value in changes:
            if value is None:
                known.pop(key, None)
            else:
                known[key] = value
        return self._apply(layout, changes, news.revision)

    def _apply(self, layout: Layout, changes: Iterable[Change], revision: Revision) -> list[Snapshot]:
        of: dict[str, list[Change]] = {}
        for change in changes:
            if (service := service_of(layout, change[0])) is not None:
                of.setdefault(service, []).append(change)
        return [
            builder.snapshot()
            for service in sorted(of)
            if (builder := self._builder(service)).apply(of[service], revision)
        ]

    def _builder(self, service: str) -> SnapshotBuilder:
        return self._builders.setdefault(service, SnapshotBuilder(service, self._layouts, schemes=None))


def follow_all(etcd: Etcd, layouts: Sequence[Layout]) -> Iterator[Snapshot | EtcdError]:
    """Return each service whenever it has become another, and what holds up the view.

    Raises where it may not be read.
    """
    for layout in layouts:
        list_prefix(etcd, list_root(layout))
    services, inbox = Services(layouts), queue.SimpleQueue[tuple[Layout, WatchUpdate]]()
    hub = etcd.watch_hub()
    try:
        for layout in layouts:
            hub.follow(list_root(layout), partial(_put, inbox, layout))
        while True:
            layout, news = inbox.get()
            match news:
                case WatchSnapshot() | WatchEvents():
                    yield from services.take(layout, news)
                case Disconnected(error=PermissionDenied() as error):
                    raise error
                case Disconnected(error=error):
                    yield error
    finally:
        hub.close()


def _put(inbox: "queue.SimpleQueue[tuple[Layout, WatchUpdate]]", layout: Layout, news: WatchUpdate) -> None:
    inbox.put((layout, news))

"""All services of a registry, by name: what `Registry.services()` lists. Pure.

A layout says where one service's keys are; which service a key belongs to is found by asking it for the prefix of a
service whose name is a marker, and taking what is in that place.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from grpc_etcd.registry.endpoint import Endpoint, name_fault
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.own import ROOT
from grpc_etcd.registry.snapshot import SnapshotBuilder

MARKER = "{service}"  # in no prefix that anybody would choose; "service" is in kratos's
_PROMETHEUS = b"/prometheus/"


def list_root(layout: Layout) -> bytes:
    """Return the prefix under which a layout keeps all services."""
    return layout.prefix(MARKER).partition(MARKER.encode())[0]


def service_of(layout: Layout, key: bytes) -> str | None:
    """Return the service that a key belongs to in a layout; None when it can be none of its keys."""
    root, _, tail = layout.prefix(MARKER).partition(MARKER.encode())
    if not key.startswith(root) or key.startswith((ROOT, _PROMETHEUS)):
        return None
    name, separator, rest = key[len(root) :].partition(tail)
    text = name.decode(errors="replace")
    return text if separator and rest and name_fault(text) is None else None


class Catalog:
    """Keeps what the records of all services say. Not safe for concurrent use."""

    def __init__(self, layouts: Sequence[Layout], schemes: Iterable[str] | None = ("grpc",)) -> None:
        self._layouts = tuple(layouts)
        self._schemes = None if schemes is None else tuple(schemes)
        self._builders: dict[str, SnapshotBuilder] = {}
        self._touched: set[str] = set()  # services that are to be cut again
        self._found: dict[str, tuple[Endpoint, ...]] = {}

    def __repr__(self) -> str:
        return f"<Catalog of {len(self._builders)} services>"

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        """Return the prefixes to list and watch, each once, and none that lies below another."""
        roots = sorted({list_root(layout) for layout in self._layouts})
        return tuple(root for root in roots if not any(root != each and root.startswith(each) for each in roots))

    def replace(self, records: Iterable[tuple[bytes, bytes]], revision: int) -> None:
        """Take a complete listing in place of all known."""
        self._builders.clear()
        self._touched.clear()
        self._found.clear()
        self.apply(records, revision)

    def apply(self, changes: Iterable[tuple[bytes, bytes | None]], revision: int) -> None:
        """Take changes in order; a value of None is a deletion."""
        for key, value in changes:
            for name in {service_of(layout, key) for layout in self._layouts} - {None}:
                self._builder(str(name)).apply([(key, value)], revision)

    def services(self) -> Mapping[str, tuple[Endpoint, ...]]:
        """Return the endpoints of each service, by name; one whose records cannot be read has none.

        Those that have not changed since the last time are the same objects, so a change costs what changes.
        """
        for name in self._touched:
            snapshot = self._builders[name].snapshot()
            if snapshot.endpoints or snapshot.rejected:
                self._found[name] = snapshot.endpoints
            else:
                self._found.pop(name, None)
                del self._builders[name]  # names that come and go must not pile up
        self._touched.clear()
        return MappingProxyType(dict(sorted(self._found.items())))

    def _builder(self, name: str) -> SnapshotBuilder:
        self._touched.add(name)
        if name not in self._builders:
            self._builders[name] = SnapshotBuilder(name, self._layouts, schemes=self._schemes)
        return self._builders[name]

"""What one reader knows of one service: the brain behind channels, `endpoints()` and `watch_services()`. Pure.

    first news   endpoints listed            nothing listed
    ----------   -------------------------   ------------------------------------------------------------
    mark seen    follow                      mark there: nobody offers it, obey at once
    before                                   mark gone: nobody keeps the registry, keep the last good set
    no mark      follow                      obey; but a store that went back in time has been reset: keep
    not listed   keep what was known (from memory, from the disk); nothing known is unknown, which is not empty

The synced mark is the operator's word that the registry is complete. All marks that were ever seen count: a reader
cannot tell which operator a service would come back from. While a mark is gone, endpoints may still come and go; only
when the last one goes, the set that was good before is taken again.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from grpc_etcd.registry.configurators import RouteConfig, configurators_prefix, decode_configurator
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.own import SYNCED_PREFIX, policy_key
from grpc_etcd.registry.policy import Policy, read_policy
from grpc_etcd.registry.snapshot import Snapshot, SnapshotBuilder

Change = tuple[bytes, bytes | None]


class Source(enum.StrEnum):
    """Where a view comes from."""

    UNKNOWN = "unknown"  # nothing has been heard of the service yet
    REGISTRY = "registry"  # as the registry says, or said when it was last heard
    KEPT = "kept"  # the last good set: the registry has become empty and nobody vouches for that
    CACHE = "cache"  # from the disk, until the registry is heard


@dataclass(frozen=True, slots=True)
class View:
    """A service as its channels shall see it. `snapshot` of None is unknown; without endpoints it is empty."""

    source: Source = Source.UNKNOWN
    snapshot: Snapshot | None = None
    policy: Policy = field(default_factory=Policy)
    policy_faults: tuple[str, ...] = ()
    routes: tuple[RouteConfig, ...] = ()
    reason: str = ""

    def has_endpoints(self, at_least: int) -> bool:
        """Tell whether so many endpoints are known."""
        return self.snapshot is not None and len(self.snapshot.endpoints) >= at_least


class Reader:
    """Turns records and changes into views. Not safe for concurrent use."""

    def __init__(
        self, service: str, layouts: Sequence[Layout], prefix: str, schemes: Iterable[str] = ("grpc",)
    ) -> None:
        self._builder = SnapshotBuilder(service, layouts, schemes=schemes)
        self._service = service
        self._prefix = prefix
        self._policy_key = policy_key(prefix, service)
        self._routes_prefix = configurators_prefix(prefix, service)
        self._routes: dict[bytes, RouteConfig] = {}
        self._policy = read_policy(b"{}")
        self._marks: set[bytes] = set()
        self._marks_seen: set[bytes] = set()
        self._good: Snapshot | None = None
        self._revision = 0
        self.view = View()

    def __repr__(self) -> str:
        return f"<Reader {self._builder.service!r} source={self.view.source} revision={self._revision}>"

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        """Give the prefixes of the service's own records."""
        return self._builder.prefixes

    @property
    def operator_prefixes(self) -> tuple[bytes, ...]:
        """Give the prefixes of what the operator says about the service; a client may lack the right to read them."""
        return (SYNCED_PREFIX, self._policy_key, self._routes_prefix)

    def take_listing(self, records: Iterable[tuple[bytes, bytes]], revision: int, source: Source) -> View:
        """Take everything under the prefixes in place of all known."""
        went_back = revision < self._revision
        records = list(records)
        self._marks.clear()
        self._routes.clear()
        self._policy = read_policy(b"{}")
        self._take_operators(records)
        self._builder.replace([(key, value) for key, value in records if key.startswith(self.prefixes)], revision)
        return self._judge(revision, source, went_back=went_back)

    def take_changes(self, changes: Iterable[Change], revision: int) -> View:
        """Take changes in order."""
        changes = list(changes)
        self._take_operators(changes)
        own = [(key, value) for key, value in changes if key.startswith(self.prefixes)]
        self._builder.apply(own, max(revision, self._revision))
        return self._judge(max(revision, self._revision), Source.REGISTRY, went_back=False)

    def _take_operators(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        for key, value in changes:
            if key == self._policy_key:
                self._policy = read_policy(value or b"{}")
            elif key.startswith(SYNCED_PREFIX):
                self._marks.discard(key) if value is None else self._marks.add(key)
            elif key.startswith(self._routes_prefix):
                self._take_route(key, value)
        self._marks_seen |= self._marks

    def _take_route(self, key: bytes, value: bytes | None) -> None:
        """Take a configurator; a broken value leaves the route that was there."""
        if value is None:
            self._routes.pop(key, None)
        elif isinstance(route := decode_configurator(self._prefix, self._service, key, value), RouteConfig):
            self._routes[key] = route

    def _judge(self, revision: int, source: Source, *, went_back: bool) -> View:
        self._revision = revision
        current = self._builder.snapshot()
        doubt = self._doubt(went_back=went_back)
        if current.endpoints or not doubt or not self._good:
            self._good = _union(self._good, current) if doubt else current
            routes = tuple(route for _, route in sorted(self._routes.items()))
            self.view = View(source, current, self._policy.policy, self._policy.faults, routes)
        else:
            kept = replace(self._good, revision=revision, rejected=current.rejected)
            reason = f"the registry is empty, but {doubt}: the last good set is kept"
            self.view = replace(self.view, source=Source.KEPT, snapshot=kept, reason=reason)
        return self.view

    def _doubt(self, *, went_back: bool) -> str:
        """Say why an empty set would not be believed; empty means that it would."""
        if missing := self._marks_seen - self._marks:
            names = ", ".join(sorted(mark.removeprefix(SYNCED_PREFIX).decode(errors="replace") for mark in missing))
            return f"the operator of {names} does not vouch for it"
        if went_back or (self.view.source is Source.KEPT and not self._marks):
            return "etcd has lost its data"
        return ""


def _union(good: Snapshot | None, current: Snapshot) -> Snapshot:
    """Add what is new to the last good set, so that it can still be taken when the rest has gone too."""
    if good is None or not good.endpoints:
        return current
    merged = {endpoint.address: endpoint for endpoint in (*good.endpoints, *current.endpoints)}
    return replace(current, endpoints=tuple(merged[address] for address in sorted(merged)))

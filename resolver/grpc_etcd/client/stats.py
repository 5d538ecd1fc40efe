"""What a registry says of itself: plain values, ready for a log line, a metric or a health page. Pure."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from grpc_etcd.discovery.reasons import explain

if TYPE_CHECKING:
    from grpc_etcd.discovery.publisher import FollowedService


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """One followed service. `since` (Unix seconds) is when etcd last responded, or lost."""

    service: str
    source: str  # unknown, registry, stale (with endpoints of the last good set) or cache (from the disk)
    revision: int
    endpoints: int
    callable_endpoints: int  # of these, those that new calls may go to, as far as is known by now
    connected: bool
    since: float
    error: str  # why etcd cannot be watched
    cause: str  # what kind of thing is wrong, in a few words; "none" while all is well
    reason: str  # what is wrong and what to do, in a sentence; empty while all is well
    rejected: Mapping[str, str]  # key -> why its value cannot be read
    unusable: Mapping[str, str]  # address -> why it cannot be dialled
    policy_faults: tuple[str, ...]
    changes: int  # news from etcd
    updates: int  # sets that channels were sent
    refusals: int  # sets that gRPC refused
    last_refusal: str
    wanted: bool  # whether a channel to it is open, or somebody waits for it; else it is soon followed no longer


class Metric(NamedTuple):
    """One number about each followed service, for a monitoring system: its name and meaning, and whether it only grows.

    `samples` has a value for each service; with `is_counter` it grows until the process ends.
    """

    name: str
    meaning: str
    is_counter: bool
    samples: Mapping[str, float]


_METRICS: Mapping[str, tuple[str, bool, Callable[[ServiceStats], float]]] = {
    "endpoints": ("Known endpoints.", False, lambda of: of.endpoints),
    "callable_endpoints": ("Endpoints that accept new calls.", False, lambda of: of.callable_endpoints),
    "connected": ("1 while the watch on etcd is connected.", False, lambda of: of.connected),
    "since_seconds": ("When etcd last responded, or was lost (Unix time).", False, lambda of: of.since),
    "stale": ("1 while stale endpoints are used that etcd no longer holds.", False, lambda of: of.source == "stale"),
    "rejected_records": ("Records that cannot be parsed.", False, lambda of: len(of.rejected)),
    "unusable_endpoints": ("Endpoints that cannot be dialled.", False, lambda of: len(of.unusable)),
    "updates": ("Endpoint sets sent to channels.", True, lambda of: of.updates),
    "refusals": ("Endpoint sets that gRPC rejected.", True, lambda of: of.refusals),
}


@dataclass(frozen=True, slots=True, eq=False)
class RegistryStats(Mapping[str, ServiceStats]):
    """One registry in this process: a mapping from the names of followed services to their stats."""

    name: str
    services: tuple[ServiceStats, ...]

    def __getitem__(self, service: str) -> ServiceStats:
        """Return the stats of one followed service; KeyError when it is not followed."""
        for stats in self.services:
            if stats.service == service:
                return stats
        raise KeyError(service)

    def __iter__(self) -> Iterator[str]:
        return (stats.service for stats in self.services)

    def __len__(self) -> int:
        return len(self.services)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RegistryStats):
            return NotImplemented
        return (self.name, self.services) == (other.name, other.services)

    __hash__ = None  # type: ignore[assignment]  # it holds what changes

    def metrics(self) -> Iterator[Metric]:
        """Return the numbers of all services, under names that begin with `grpc_etcd_client_`."""
        for name, (meaning, is_counter, value) in _METRICS.items():
            samples = {stats.service: float(value(stats)) for stats in self.services}
            yield Metric(f"grpc_etcd_client_{name}", meaning, is_counter, samples)

    @property
    def unready(self) -> Mapping[str, str]:
        """Return for each service that is wanted and has no endpoint that calls may go to, why; empty means ready."""
        lacking = (stats for stats in self.services if stats.wanted and not stats.callable_endpoints)
        return {stats.service: stats.reason or stats.cause for stats in lacking}


def make_service_stats(followed: "FollowedService", *, wanted: bool = True) -> ServiceStats:
    """Put together what the feed and the publisher know."""
    view, fresh = followed.feed.view, followed.feed.freshness
    snapshot = view.snapshot
    rejected = snapshot.rejected if snapshot else {}
    facts = followed.facts()
    reason = explain(followed.name, facts)
    return ServiceStats(
        service=followed.name,
        source=view.source.value,
        revision=snapshot.revision if snapshot else 0,
        endpoints=len(snapshot.endpoints) if snapshot else 0,
        callable_endpoints=facts.callables,
        connected=fresh.connected,
        since=fresh.since,
        error=fresh.error,
        cause=reason.cause.value,
        reason=reason.text,
        rejected={key.decode(errors="replace"): reason for key, reason in rejected.items()},
        unusable=dict(followed.unusable),
        policy_faults=view.policy_faults,
        changes=followed.feed.changes,
        updates=followed.updates,
        refusals=followed.refusals,
        last_refusal=followed.last_refusal,
        wanted=wanted,
    )

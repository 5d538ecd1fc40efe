"""What a registry says of itself: plain values, ready for a log line, a metric or a health page. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpc_etcd.publishing import FollowedService


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """One followed service. `since` (Unix seconds) is when etcd was last heard, or lost."""

    service: str
    source: str  # unknown, registry, kept (the last good set) or cache (from the disk)
    revision: int
    endpoints: int
    connected: bool
    since: float
    error: str  # why etcd cannot be followed
    reason: str  # why the set is kept
    rejected: Mapping[str, str]  # key -> why its value cannot be read
    unusable: Mapping[str, str]  # address -> why it cannot be dialled
    policy_faults: tuple[str, ...]
    changes: int  # news from etcd
    updates: int  # sets that channels were told
    refusals: int  # sets that gRPC refused
    last_refusal: str


@dataclass(frozen=True, slots=True)
class RegistryStats:
    """One registry in this process."""

    name: str
    services: tuple[ServiceStats, ...]

    def __getitem__(self, service: str) -> ServiceStats:
        """Give the stats of one followed service; KeyError when it is not followed."""
        for stats in self.services:
            if stats.service == service:
                return stats
        raise KeyError(service)


def make_service_stats(followed: "FollowedService") -> ServiceStats:
    """Put together what the feed and the publisher know."""
    view, fresh = followed.feed.view, followed.feed.freshness
    snapshot = view.snapshot
    rejected = snapshot.rejected if snapshot else {}
    return ServiceStats(
        service=followed.name,
        source=view.source.value,
        revision=snapshot.revision if snapshot else 0,
        endpoints=len(snapshot.endpoints) if snapshot else 0,
        connected=fresh.connected,
        since=fresh.since,
        error=fresh.error,
        reason=view.reason,
        rejected={key.decode(errors="replace"): reason for key, reason in rejected.items()},
        unusable=dict(followed.unusable),
        policy_faults=view.policy_faults,
        changes=followed.feed.changes,
        updates=followed.updates,
        refusals=followed.refusals,
        last_refusal=followed.last_refusal,
    )

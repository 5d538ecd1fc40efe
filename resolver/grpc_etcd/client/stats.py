"""What a registry says of itself: plain values, ready for a log line, a metric or a health page. Pure."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from grpc_etcd.discovery.reasons import explain
from grpc_etcd.registration.registrar import State

if TYPE_CHECKING:
    from grpc_etcd.discovery.publisher import FollowedService


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """A followed service. `since` (Unix seconds): when etcd last responded or, while not connected, was lost."""

    service: str
    source: str  # unknown, registry, stale (includes endpoints that are no longer in etcd) or cache (from disk)
    revision: int
    endpoints: int
    callable_endpoints: int  # those of them to which new calls may go, as far as is known
    connected: bool
    since: float
    error: str  # why etcd cannot be watched
    cause: str  # the kind of problem, in a few words; "none" if there is none
    reason: str  # the problem and its remedy, in a sentence; empty if there is none
    rejected: Mapping[str, str]  # key -> why its value cannot be decoded
    unusable: Mapping[str, str]  # address -> why it cannot be dialled
    policy_faults: tuple[str, ...]  # what is wrong with its policy, and what of it and its routes fits no endpoint
    changes: int  # updates from etcd
    updates: int  # endpoint sets sent to channels
    refusals: int  # endpoint sets that gRPC rejected
    last_refusal: str
    wanted: bool  # whether it has an open channel or a pending wait; otherwise it is soon no longer followed


class Metric(NamedTuple):
    """A metric with a value for each followed service, for a monitoring system.

    `samples` maps the name of each service to its value; a counter restarts at 0 when a service is followed again
    after nobody has used it for a minute.
    """

    name: str
    meaning: str
    is_counter: bool
    samples: Mapping[str, float]


# Of registrations: the meaning, and whether one in such a state counts.
_REGISTRATIONS: Mapping[str, tuple[str, Callable[[State], bool]]] = {
    "registrations": ("Endpoints that this process keeps registered.", lambda _: True),
    "registered": ("Those of them whose keys are in etcd.", lambda state: state is State.REGISTERED),
}
_METRICS: Mapping[str, tuple[str, bool, Callable[[ServiceStats], float]]] = {
    "endpoints": ("Known endpoints.", False, lambda of: of.endpoints),
    "callable_endpoints": ("Endpoints that accept new calls.", False, lambda of: of.callable_endpoints),
    "connected": ("1 while the watch on etcd is connected.", False, lambda of: of.connected),
    "last_contact_timestamp_seconds": (
        "When etcd last responded, or was lost (Unix seconds).",
        False,
        lambda of: of.since,
    ),
    "stale": ("1 while endpoints are used that are no longer in etcd.", False, lambda of: of.source == "stale"),
    "rejected_records": ("Records that cannot be parsed.", False, lambda of: len(of.rejected)),
    "unusable_endpoints": ("Endpoints that cannot be dialled.", False, lambda of: len(of.unusable)),
    "updates": ("Endpoint sets sent to channels.", True, lambda of: of.updates),
    "refusals": ("Endpoint sets that gRPC rejected.", True, lambda of: of.refusals),
}


@dataclass(frozen=True, slots=True, eq=False)
class RegistryStats(Mapping[str, ServiceStats]):
    """The state of a registry in this process: a mapping from the names of followed services to their stats.

    `registrations` has the states of what this process keeps registered, by service.
    """

    name: str
    services: tuple[ServiceStats, ...]
    registrations: Mapping[str, tuple[State, ...]] = field(default_factory=dict)

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
        return (self.name, self.services, self.registrations) == (other.name, other.services, other.registrations)

    __hash__ = None  # type: ignore[assignment]  # it holds what changes

    def metrics(self) -> Iterator[Metric]:
        """Return the metrics of all services; their names begin with `grpc_etcd_client_`.

        `grpc_etcd.metrics.prometheus` and `grpc_etcd.metrics.opentelemetry` hand them to those systems.
        """
        for name, (meaning, is_counter, value) in _METRICS.items():
            samples = {stats.service: float(value(stats)) for stats in self.services}
            yield Metric(f"grpc_etcd_client_{name}", meaning, is_counter, samples)
        for name, (meaning, counts) in _REGISTRATIONS.items():
            samples = {service: float(sum(map(counts, states))) for service, states in self.registrations.items()}
            yield Metric(f"grpc_etcd_client_{name}", meaning, is_counter=False, samples=samples)

    @property
    def unready(self) -> Mapping[str, str]:
        """Return the services in use that have no endpoint to call, with the reasons; empty means ready."""
        lacking = (stats for stats in self.services if stats.wanted and not stats.callable_endpoints)
        return {stats.service: stats.reason or stats.cause for stats in lacking}


def make_service_stats(followed: "FollowedService", *, wanted: bool = True) -> ServiceStats:
    """Put together what the feed and the publisher know."""
    facts = followed.facts()
    view, fresh = followed.feed.view, followed.feed.freshness
    snapshot = view.snapshot
    rejected = snapshot.rejected if snapshot else {}
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
        policy_faults=(*view.policy_faults, *followed.faults),
        changes=followed.feed.changes,
        updates=followed.updates,
        refusals=followed.refusals,
        last_refusal=followed.last_refusal,
        wanted=wanted,
    )

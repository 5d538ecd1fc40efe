"""Which figures become which metrics. Whoever has the figures gives them as plain numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from grpc_etcd_operator.settings import RegistrySettings
from grpc_etcd_operator.telemetry.certificates import expiries
from grpc_etcd_operator.telemetry.metrics import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is counted once for a process; the mappings are by reason, by part and by resource."""

    cluster: str
    pods: int
    grpc_services: int
    broken_objects: int
    drift: int
    mass_deletions: int
    gates_refused: int
    gates_waiting: int
    not_accepted: Mapping[str, int]
    unexpected_errors: Mapping[str, int]
    event_ages: Mapping[str, float]
    unseen_seconds: float
    unreadable_namespaces: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryFigures:
    """What is counted for each registry; the mappings are by kind of error."""

    queue_depth: int
    in_flight: int
    overdue_seconds: float
    leases: int
    records: int
    is_leader: bool
    is_foreign: bool
    prefixes_refused: int
    no_leader_seconds: float
    unregistered: int
    missed_changes: int
    is_synced: bool
    is_up: bool
    conflicts: int
    campaign_errors: Mapping[str, int]
    etcd_errors: Mapping[str, int]


def read_process(figures: Figures) -> Iterator[Sample]:
    """Give the metrics of the process."""
    yield "grpc_etcd_info", (version("grpc-etcd"), figures.cluster), 1
    yield "grpc_etcd_pods", (), figures.pods
    yield "grpc_etcd_grpcservices", (), figures.grpc_services
    yield "grpc_etcd_broken_objects", (), figures.broken_objects
    yield "grpc_etcd_drift", (), figures.drift
    yield "grpc_etcd_mass_deletions", (), figures.mass_deletions
    yield "grpc_etcd_gates_refused", (), figures.gates_refused
    yield "grpc_etcd_gates_waiting", (), figures.gates_waiting
    yield from _by("grpc_etcd_not_accepted", (), figures.not_accepted)
    yield from _by("grpc_etcd_unexpected_errors", (), figures.unexpected_errors)
    for resource, seconds in figures.event_ages.items():
        yield "grpc_etcd_last_event_age_seconds", (resource,), seconds
    yield "grpc_etcd_kubernetes_unseen_seconds", (), figures.unseen_seconds
    yield "grpc_etcd_namespaces_unreadable", (), figures.unreadable_namespaces


def read_registry(registry: RegistrySettings, figures: RegistryFigures) -> Iterator[Sample]:
    """Give the metrics of a registry."""
    label = (registry.name,)
    yield "grpc_etcd_queue_depth", label, figures.queue_depth
    yield "grpc_etcd_in_flight", label, figures.in_flight
    yield "grpc_etcd_overdue_seconds", label, figures.overdue_seconds
    yield "grpc_etcd_leases", label, figures.leases
    yield "grpc_etcd_records", label, figures.records
    yield "grpc_etcd_leader", label, figures.is_leader
    yield "grpc_etcd_foreign_cluster", label, figures.is_foreign
    yield "grpc_etcd_prefixes_refused", label, figures.prefixes_refused
    yield "grpc_etcd_no_leader_seconds", label, figures.no_leader_seconds
    yield "grpc_etcd_ready_not_registered", label, figures.unregistered
    yield "grpc_etcd_missed_changes", label, figures.missed_changes
    yield "grpc_etcd_synced", label, figures.is_synced
    yield "grpc_etcd_registry_up", label, figures.is_up
    yield "grpc_etcd_conflicts", label, figures.conflicts
    yield from _by("grpc_etcd_campaign_errors", label, figures.campaign_errors)
    yield from _by("grpc_etcd_etcd_errors", label, figures.etcd_errors)
    for file, expiry in expiries(registry.ca, registry.cert):
        yield "grpc_etcd_certificate_expiry_timestamp_seconds", (registry.name, file), expiry


def _by(name: str, labels: tuple[str, ...], counts: Mapping[str, int]) -> Iterator[Sample]:
    for key, count in sorted(counts.items()):
        yield name, (*labels, key), count

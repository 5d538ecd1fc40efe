"""All metrics but the histogram: each field below is one, declared where its figure is given a name.

They are read from the operator's own state when somebody asks, so that they cost nothing before. A figure is a number,
or numbers by the value of the metric's last label (by those of the last two, as a tuple).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from grpc_etcd_operator.telemetry.metrics import PREFIX, REGISTRATION

Counts = Mapping[str, float]
FAMILIES = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}
Sample = tuple["Declaration", tuple[str, ...], float]


class Declaration(NamedTuple):
    """A metric: its name without the `_total` of counters, its kind, what it means, and its labels."""

    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    labels: tuple[str, ...]

    @property
    def exposed(self) -> str:
        """The name that Prometheus sees."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def _gauge(meaning: str, *labels: str) -> Any:
    return field(metadata={"is": ("gauge", meaning, labels)})


def _counter(meaning: str, *labels: str) -> Any:
    return field(metadata={"is": ("counter", meaning, labels)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is counted once for a process."""

    info: Mapping[tuple[str, str], int] = _gauge("Always 1.", "version", "cluster_id")
    cached_pods: int = _gauge("Pods in memory.")
    cached_grpcservices: int = _gauge("GrpcServices in memory.")
    last_event_age_seconds: Counts = _gauge("Seconds since the last watch event or bookmark.", "resource")
    kubernetes_unavailable_seconds: float = _gauge("Seconds since the API server last answered; 0 while it does.")
    unreadable_namespaces: int = _gauge("Watched namespaces that the operator cannot read (deleted, or no permission).")
    not_accepted: Counts = _gauge("GrpcServices that are not accepted.", "reason")
    waiting_gates: int = _gauge("Pods that have been ready except for the readiness gate for more than 30 seconds.")
    denied_gates: int = _counter("Readiness gates that the operator is not allowed to open.")
    invalid_objects: int = _counter("Kubernetes objects that could not be parsed.")
    drift: int = _counter(
        "Objects whose creation, change or deletion was found by a resync and not reported by a watch event."
    )
    mass_deletions: int = _counter("Resyncs that found most Pods missing, and confirmed each one by a separate read.")
    unexpected_errors: Counts = _counter("Unexpected exceptions, by component.", "part")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryFigures:
    """What is counted for each registry."""

    registry_up: bool = _gauge("1 if etcd responds and there is a leader.", "registry")
    leader: bool = _gauge("1 if this replica is the leader.", "registry")
    no_leader_seconds: float = _gauge("Seconds without a leader.", "registry")
    foreign_cluster: bool = _gauge("1 if another Kubernetes cluster uses the same cluster id.", "registry")
    synced: bool = _gauge("1 if this replica has written the synced key.", "registry")
    ready_not_registered: int = _gauge(
        "Ready Pods that an accepted GrpcService selects, but whose keys are not written.", "registry"
    )
    registered_objects: int = _gauge("Pods and GrpcServices that have records in the registry.", "registry")
    leases: int = _gauge("Leases that this replica keeps alive.", "registry")
    conflicts: int = _gauge("Keys and names that GrpcServices want but that have another owner.", "registry")
    denied_prefixes: int = _gauge(
        "Prefixes and keys that the operator's etcd user is not allowed to read or write.", "registry"
    )
    workqueue_depth: int = _gauge("Pods and GrpcServices in the work queue.", "registry")
    workqueue_in_flight: int = _gauge("Pods and GrpcServices in running transactions.", "registry")
    workqueue_longest_wait_seconds: float = _gauge(
        "Longest time that a change has been waiting without progress.", "registry"
    )
    rate_limited_objects: int = _gauge(
        "Pods and GrpcServices that are not written yet because their namespace has written too many bytes.", "registry"
    )
    missed_changes: int = _counter(
        "Changed records that were found by a comparison with etcd and not reported by a watch event.", "registry"
    )
    campaign_errors: Counts = _counter("Failed attempts to become the leader, by kind of error.", "registry", "code")
    etcd_errors: Counts = _counter("Errors of requests to etcd, by kind.", "registry", "code")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFigures:
    """What is read of the TLS files of each registry."""

    certificate_expiry_timestamp_seconds: Counts = _gauge(
        "When the first certificate in a TLS file expires, in Unix seconds.", "registry", "file"
    )


def _declare(kind: type) -> dict[str, Declaration]:
    return {each.name: Declaration(PREFIX + each.name, *each.metadata["is"]) for each in fields(kind)}


_DECLARED = {kind: _declare(kind) for kind in (Figures, RegistryFigures, TlsFigures)}
DECLARATIONS = tuple(each for found in _DECLARED.values() for each in found.values())


def read_samples(figures: Figures | RegistryFigures | TlsFigures, *labels: str) -> Iterator[Sample]:
    """Return the samples of all figures; they have these labels first."""
    for name, declared in _DECLARED[type(figures)].items():
        found = getattr(figures, name)
        for more, value in sorted(found.items()) if isinstance(found, Mapping) else [((), found)]:
            yield declared, (*labels, *([more] if isinstance(more, str) else more)), value


class Samples(Collector):
    """Turns what `read` yields into metric families."""

    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return no names in advance: reading before the operator stands would be too early."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read all samples now."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for declared, labels, value in self._read():
            if declared.name not in families:
                make = FAMILIES[declared.kind]
                families[declared.name] = make(declared.name, declared.meaning, labels=declared.labels)
            families[declared.name].add_metric(labels, value)
        yield from families.values()


def reference() -> str:
    """Write the table of all metrics as Markdown."""
    name, meaning, labels = REGISTRATION
    rows: list[tuple[str, str, tuple[str, ...], str]] = [(name, "histogram", labels, meaning)]
    rows += [(each.exposed, each.kind, each.labels, each.meaning) for each in DECLARATIONS]
    head = "| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n"
    lines = (f"| `{name}` | {kind} | {', '.join(labels)} | {meaning} |\n" for name, kind, labels, meaning in rows)
    return head + "".join(lines) + "\nThe usual `process_*` metrics of CPU, memory and open files are exported too.\n"

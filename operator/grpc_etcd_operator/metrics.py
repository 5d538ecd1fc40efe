"""Prometheus metrics: read from the operator's own state when somebody asks, so that they cost nothing on the way.

Names and meanings are in one table, from which the reference is written.
"""

import functools
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from grpc_etcd_operator.core.plan import Plan
from grpc_etcd_operator.core.pods import Pod

BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

REGISTRATION = (
    "grpc_etcd_registration_seconds",
    "From the Pod's own timestamp (whole seconds) to the commit in etcd, by change: ready or gone.",
    ("registry", "change"),
)
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpc_etcd_last_event_age_seconds": ("Seconds since the watch of a resource last said anything.", ("resource",)),
    "grpc_etcd_queue_depth": ("Pods and GrpcServices whose records wait to be judged or written.", ("registry",)),
    "grpc_etcd_in_flight": ("Pods and GrpcServices in transactions under way.", ("registry",)),
    "grpc_etcd_overdue_seconds": ("For how long the oldest change has been waiting.", ("registry",)),
    "grpc_etcd_leases": ("Leases that this replica keeps alive.", ("registry",)),
    "grpc_etcd_records": ("Pods and GrpcServices that have records in the registry.", ("registry",)),
    "grpc_etcd_leader": ("1 when this replica leads.", ("registry",)),
    "grpc_etcd_synced": ("1 when this replica has put the synced mark.", ("registry",)),
    "grpc_etcd_registry_up": ("1 when etcd answers.", ("registry",)),
    "grpc_etcd_conflicts": ("Keys and names that a GrpcService wants and somebody else holds.", ("registry",)),
    "grpc_etcd_certificate_expiry_timestamp_seconds": ("When a TLS file's certificate runs out.", ("registry", "file")),
    "grpc_etcd_pods": ("Pods in memory.", ()),
    "grpc_etcd_grpcservices": ("GrpcServices in memory.", ()),
    "grpc_etcd_info": ("Always 1.", ("version", "cluster_id")),
}
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpc_etcd_drift": ("Objects whose absence or presence only a sweep has found.", ("registry",)),
    "grpc_etcd_etcd_errors": ("Failures of etcd by kind.", ("registry", "code")),
    "grpc_etcd_mass_deletions": ("Sweeps that found more than half of the Pods gone, and looked again.", ("registry",)),
    "grpc_etcd_broken_objects": ("Kubernetes objects that could not be read.", ()),
}
Sample = tuple[str, tuple[str, ...], float]


class Timings:
    """Observes how long changes take from the Pod's own timestamps to the commit."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name, meaning, labels = REGISTRATION
        self._labelled = functools.cache(Histogram(name, meaning, labels, buckets=BUCKETS, registry=registry).labels)

    def note(self, registry: str, pod: Pod | None, plan: Plan) -> None:
        """Take a commit; only a Pod's becoming ready and its termination have timestamps."""
        if pod is None:
            return
        if plan.puts and not pod.terminating:
            self._observe(registry, "ready", pod.since)
        elif plan.deletes and pod.terminating:
            self._observe(registry, "gone", pod.terminating_since)

    def _observe(self, registry: str, change: str, since: int) -> None:
        if since:
            self._labelled(registry, change).observe(max(0.0, time.time() - since))


class Samples(Collector):
    """Turns what `read` yields into metric families."""

    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Give no names in advance: reading before the operator stands would be too early."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read all samples now."""
        families: dict[str, Metric] = {}
        for name, labels, value in self._read():
            if name not in families:
                families[name] = _make_family(name)
            families[name].add_metric(labels, value)  # type: ignore[attr-defined]  # both kinds of family have it
        yield from families.values()


def _make_family(name: str) -> Metric:
    if name in COUNTERS:
        return CounterMetricFamily(name, COUNTERS[name][0], labels=COUNTERS[name][1])
    return GaugeMetricFamily(name, GAUGES[name][0], labels=GAUGES[name][1])


def exposition(registry: CollectorRegistry) -> bytes:
    """Write all metrics in Prometheus' text format."""
    return generate_latest(registry)


def reference() -> str:
    """Write the table of all metrics as Markdown."""
    name, meaning, labels = REGISTRATION
    rows: list[tuple[str, str, tuple[str, ...], str]] = [(name, "histogram", labels, meaning)]
    rows += [(name, "gauge", labels, meaning) for name, (meaning, labels) in GAUGES.items()]
    rows += [(f"{name}_total", "counter", labels, meaning) for name, (meaning, labels) in COUNTERS.items()]
    head = "| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n"
    lines = (f"| `{name}` | {kind} | {', '.join(labels)} | {meaning} |\n" for name, kind, labels, meaning in rows)
    return head + "".join(lines) + "\nBeside these stand the usual `process_*` metrics of CPU, memory and open files.\n"

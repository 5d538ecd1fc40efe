"""Prometheus metrics: read from the operator's own state when somebody asks, so that they cost nothing on the way.

Names and meanings are in one table, from which the reference is written.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from grpc_etcd_operator.core.plan import Plan
from grpc_etcd_operator.core.pods import Pod

BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
TIMESTAMP_SECONDS = 1.0  # the resolution of Kubernetes' timestamps, which are cut off and not rounded
SAME_CALL_SECONDS = 0.05  # between noting news and enqueueing the unit, which happen in one call. Arbitrary
MOST_LATE = 10_000  # Pods of which it is remembered that news of them came late. Arbitrary

REGISTRATION = (
    "grpc_etcd_operator_registration_duration_seconds",
    "From when a change could be known (by its event or the Pod's timestamps) to its commit in etcd.",
    ("registry", "change"),
)
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpc_etcd_operator_last_event_age_seconds": ("Seconds since the last watch event or bookmark.", ("resource",)),
    "grpc_etcd_operator_kubernetes_unavailable_seconds": (
        "Seconds since the API server last answered; 0 while it does.",
        (),
    ),
    "grpc_etcd_operator_unreadable_namespaces": (
        "Watched namespaces that may not be read (deleted, or no permission).",
        (),
    ),
    "grpc_etcd_operator_workqueue_depth": ("Pods and GrpcServices in the work queue.", ("registry",)),
    "grpc_etcd_operator_workqueue_in_flight": ("Pods and GrpcServices in running transactions.", ("registry",)),
    "grpc_etcd_operator_workqueue_longest_wait_seconds": (
        "Longest time that a change has been waiting without progress.",
        ("registry",),
    ),
    "grpc_etcd_operator_leases": ("Leases that this replica keeps alive.", ("registry",)),
    "grpc_etcd_operator_registered_objects": (
        "Pods and GrpcServices that have records in the registry.",
        ("registry",),
    ),
    "grpc_etcd_operator_leader": ("1 when this replica leads.", ("registry",)),
    "grpc_etcd_operator_foreign_cluster": ("1 when the cluster id is another Kubernetes cluster's.", ("registry",)),
    "grpc_etcd_operator_synced": ("1 when this replica has written the synced key.", ("registry",)),
    "grpc_etcd_operator_registry_up": ("1 when etcd responds and a replica leads.", ("registry",)),
    "grpc_etcd_operator_conflicts": ("Keys and names that GrpcServices ask for and others own.", ("registry",)),
    "grpc_etcd_operator_certificate_expiry_timestamp_seconds": (
        "When the certificate of a TLS file expires.",
        ("registry", "file"),
    ),
    "grpc_etcd_operator_cached_pods": ("Pods in memory.", ()),
    "grpc_etcd_operator_cached_grpcservices": ("GrpcServices in memory.", ()),
    "grpc_etcd_operator_info": ("Always 1.", ("version", "cluster_id")),
    "grpc_etcd_operator_ready_not_registered": (
        "Ready Pods that an accepted GrpcService selects and whose keys are not written.",
        ("registry",),
    ),
    "grpc_etcd_operator_not_accepted": ("GrpcServices that are not accepted.", ("reason",)),
    "grpc_etcd_operator_waiting_gates": (
        "Pods that have been ready except for the readiness gate for more than 30 seconds.",
        (),
    ),
    "grpc_etcd_operator_no_leader_seconds": ("Seconds without a leader.", ("registry",)),
    "grpc_etcd_operator_denied_prefixes": ("Prefixes and keys that etcd denies.", ("registry",)),
}
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpc_etcd_operator_drift": ("Objects whose creation, change or deletion only a resync found.", ()),
    "grpc_etcd_operator_etcd_errors": ("etcd errors by kind.", ("registry", "code")),
    "grpc_etcd_operator_campaign_errors": ("Failed attempts to become the leader, by kind.", ("registry", "code")),
    "grpc_etcd_operator_missed_changes": ("Changed records that only the comparison with etcd found.", ("registry",)),
    "grpc_etcd_operator_mass_deletions": ("Resyncs that found most Pods missing and confirmed each one by a read.", ()),
    "grpc_etcd_operator_denied_gates": ("Readiness gates that the operator may not open.", ()),
    "grpc_etcd_operator_invalid_objects": ("Kubernetes objects that could not be parsed.", ()),
    "grpc_etcd_operator_unexpected_errors": ("Unexpected exceptions, by component.", ("part",)),
}
Sample = tuple[str, tuple[str, ...], float]


class Late(NamedTuple):
    """News that came late: when it came (monotonic), and how late it was at least."""

    came: float
    seconds: float


class Timings:
    """Observes how long changes take from when they could be known to their commit.

    What the operator itself takes is known exactly. How long news of a Pod was on its way is known only from the Pod's
    timestamps, in whole seconds: what they prove is added, so that an operator that receives late does not look fast. A
    change of another origin (a new GrpcService) has nothing to do with the Pod's age.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        name, meaning, labels = REGISTRATION
        self._labelled = functools.cache(Histogram(name, meaning, labels, buckets=BUCKETS, registry=registry).labels)
        self._clock, self._monotonic = clock, monotonic
        self._began = math.inf
        self._late: dict[str, Late] = {}

    def begin(self) -> None:
        """Record that all Pods have been seen: what happened before could not be known earlier."""
        self._began = self._clock()

    def observe(self, known: Pod | None, pod: Pod) -> None:
        """Take news of a Pod; `known` is what it was."""
        if known and (known.ready, known.terminating) == (pod.ready, pod.terminating):
            return
        self._late.pop(pod.uid, None)
        happened = pod.terminating_since if pod.terminating else pod.since
        late = self._clock() - max(happened, self._began) - TIMESTAMP_SECONDS
        if happened and late > 0:
            self._late[pod.uid] = Late(self._monotonic(), late)
            if len(self._late) > MOST_LATE:
                del self._late[next(iter(self._late))]

    def note(self, registry: str, uid: str, plan: Plan, waited_seconds: float, *, gone: bool) -> None:
        """Take a commit that has been due for so long."""
        late = self._late.get(uid)
        is_that_news = late is not None and self._monotonic() - waited_seconds <= late.came + SAME_CALL_SECONDS
        waited = waited_seconds + (late.seconds if late and is_that_news else 0.0)
        self._labelled(registry, "gone" if plan.deletes or gone else "ready").observe(waited)


class Samples(Collector):
    """Turns what `read` yields into metric families."""

    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return no names in advance: reading before the operator stands would be too early."""
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

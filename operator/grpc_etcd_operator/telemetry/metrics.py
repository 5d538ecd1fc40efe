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
    "grpc_etcd_registration_seconds",
    "From when a change could be known (news came, or by the Pod's timestamps should have) to its commit in etcd.",
    ("registry", "change"),
)
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpc_etcd_last_event_age_seconds": ("Seconds since the watch of a resource last said anything.", ("resource",)),
    "grpc_etcd_kubernetes_unseen_seconds": ("Seconds since the API server last answered; 0 while it does.", ()),
    "grpc_etcd_namespaces_unreadable": ("Watched namespaces that may not be read (deleted, or no permission).", ()),
    "grpc_etcd_queue_depth": ("Pods and GrpcServices whose records wait to be judged or written.", ("registry",)),
    "grpc_etcd_in_flight": ("Pods and GrpcServices in transactions under way.", ("registry",)),
    "grpc_etcd_overdue_seconds": ("For how long a change has been waiting without progress.", ("registry",)),
    "grpc_etcd_leases": ("Leases that this replica keeps alive.", ("registry",)),
    "grpc_etcd_records": ("Pods and GrpcServices that have records in the registry.", ("registry",)),
    "grpc_etcd_leader": ("1 when this replica leads.", ("registry",)),
    "grpc_etcd_foreign_cluster": ("1 when the cluster id is another Kubernetes cluster's.", ("registry",)),
    "grpc_etcd_synced": ("1 when this replica has put the synced mark.", ("registry",)),
    "grpc_etcd_registry_up": ("1 when etcd answers and somebody leads.", ("registry",)),
    "grpc_etcd_conflicts": ("Keys and names that a GrpcService wants and somebody else holds.", ("registry",)),
    "grpc_etcd_certificate_expiry_timestamp_seconds": ("When a TLS file's certificate runs out.", ("registry", "file")),
    "grpc_etcd_pods": ("Pods in memory.", ()),
    "grpc_etcd_grpcservices": ("GrpcServices in memory.", ()),
    "grpc_etcd_info": ("Always 1.", ("version", "cluster_id")),
    "grpc_etcd_ready_not_registered": (
        "Pods that are ready, and wanted by what is accepted, and whose keys are not written.",
        ("registry",),
    ),
    "grpc_etcd_not_accepted": ("GrpcServices that are not accepted.", ("reason",)),
    "grpc_etcd_gates_waiting": ("Pods that are ready but for our readiness gate, for more than 30 seconds.", ()),
    "grpc_etcd_no_leader_seconds": ("For how long no replica has been seen to lead.", ("registry",)),
    "grpc_etcd_prefixes_refused": ("Prefixes and keys that etcd refuses to have read or written.", ("registry",)),
}
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "grpc_etcd_drift": ("Objects of whose absence, presence or change only a sweep has told.", ()),
    "grpc_etcd_etcd_errors": ("Failures of etcd by kind.", ("registry", "code")),
    "grpc_etcd_campaign_errors": ("Failed attempts to become the leader, by kind.", ("registry", "code")),
    "grpc_etcd_missed_changes": ("Records that only the comparison with etcd showed to have changed.", ("registry",)),
    "grpc_etcd_mass_deletions": ("Sweeps that found more than half of the Pods gone, and looked again.", ()),
    "grpc_etcd_gates_refused": ("Readiness gates that Kubernetes did not let the operator open.", ()),
    "grpc_etcd_broken_objects": ("Kubernetes objects that could not be read.", ()),
    "grpc_etcd_unexpected_errors": ("Exceptions that nobody foresaw, by the part they happened in.", ("part",)),
}
Sample = tuple[str, tuple[str, ...], float]


class Late(NamedTuple):
    """News that came late: when it came (monotonic), and how late it was at least."""

    came: float
    seconds: float


class Timings:
    """Observes how long changes take from when they could be known to their commit.

    What the operator itself takes is known exactly. How long news of a Pod was on its way is known only from the Pod's
    timestamps, in whole seconds: what they prove is added, so that an operator that hears late does not look fast. A
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
        """Take it that all Pods have been seen: what happened before could not be known earlier."""
        self._began = self._clock()

    def hear(self, known: Pod | None, pod: Pod) -> None:
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

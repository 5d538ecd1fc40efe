"""What is not seen of Kubernetes is neither judged nor counted."""

from collections.abc import Collection

from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.gates import Gates
from grpc_etcd_operator.controller.status_queue import StatusQueue
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.desired import Fault
from grpc_etcd_operator.core.gates import OPEN
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.telemetry.metrics import Timings
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service, read_raw_pod

GATE = "grpc-etcd.dev/registered"
REFUSED = "cannot be read (403 Forbidden)"


def make_reconciler() -> EventHandlers:
    reconciler = EventHandlers(ClusterCache(["default"]), {"default": None}, Timings(CollectorRegistry()))
    reconciler.grants_in_memory = True
    for resource in (PODS, SERVICES):
        reconciler.mark_complete(resource)
    return reconciler


def test_no_gate_opens_for_want_of_a_grpcservice_where_they_may_not_be_read() -> None:
    reconciler = make_reconciler()
    raw = make_raw_pod(labels={"app": "unselected"})
    raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
    pod = read_raw_pod(raw)
    reconciler.cluster_cache.note_pod(pod)
    unseen: dict[str, str | None] = {SERVICES: REFUSED}
    reconciler.blindness = lambda resource, _: unseen.get(resource)
    assert Gates(reconciler).judge(pod, {}) is None
    for passing in ("", None):
        unseen[SERVICES] = passing
        assert Gates(reconciler).judge(pod, {}) == OPEN, "no Pod waits for a watch that is just opened again"


def test_a_port_that_pods_lack_is_not_counted_where_pods_may_not_be_read() -> None:
    reconciler = make_reconciler()
    reconciler.note_service("ADDED", make_raw_service("s1"))
    reconciler.cluster_cache.note_pod(pod := read_raw_pod(make_raw_pod()))
    reconciler.endpoint_counts.note_selected(pod.uid, {"s1": True})
    fault = Fault("s1", Reason.PORT_NOT_FOUND, "no such port; set spec.port")
    reconciler.endpoint_counts.note_faults(pod.uid, "default", [fault], ["s1"])
    assert reconciler.count_refusals()["PortNotFound"] == 1
    reconciler.blindness = lambda resource, _: REFUSED if resource == PODS else None
    assert reconciler.count_refusals()["PortNotFound"] == 0


class Looked(StatusQueue):
    """Notes at which statuses it is told to look."""

    def __init__(self, cluster_cache: ClusterCache) -> None:
        super().__init__(cluster_cache)
        self.looked: list[str] = []

    def look_at(self, services: Collection[str]) -> None:
        self.looked.extend(services)


def test_who_is_seen_for_the_first_time_is_looked_at_again() -> None:
    cluster_cache = ClusterCache(["default"])
    statuses = Looked(cluster_cache)
    reconciler = EventHandlers(cluster_cache, {"default": None}, Timings(CollectorRegistry()), statuses=statuses)
    reconciler.mark_complete(SERVICES)
    reconciler.mark_complete(PODS, ["shop"])
    reconciler.note_service("ADDED", make_raw_service("s1"))
    reconciler.note_service("ADDED", make_raw_service("s2", namespace="till"))
    assert [reconciler.why_unseen(PODS, each) for each in ("shop", "till")] == ["", None]
    statuses.looked.clear()
    reconciler.mark_complete(PODS)
    assert statuses.looked == ["s1"]

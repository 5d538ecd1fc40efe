"""What is gone leaves nothing behind, however many namespaces, Pods and GrpcServices have come and gone."""

from collections.abc import Sized

from google.protobuf import json_format

from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.counts import MOST_SHARED, EndpointCounts
from grpc_etcd_operator.core.desired import Fault
from grpc_etcd_operator.core.pods import parse_pod
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.services import parse_service
from grpc_etcd_operator.kube.messages import message_class
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service


def sizes(*kept: object) -> dict[str, int]:
    return {name: len(value) for each in kept for name, value in vars(each).items() if isinstance(value, Sized)}


def come_and_go(cluster_cache: ClusterCache, endpoint_counts: EndpointCounts, number: int) -> None:
    pod_uid, uid, where = f"p{number}", f"s{number}", f"n{number}"
    raw = make_raw_pod(pod_uid, namespace=where, labels={"app": where})
    cluster_cache.note_pod(parse_pod(json_format.ParseDict(raw, message_class("Pod")())))
    selector = {"matchLabels": {"app": where}}
    cluster_cache.note_service(parse_service(make_raw_service(uid, namespace=where, selector=selector)))
    cluster_cache.note_service(parse_service(make_raw_service(uid, namespace=where, selector=selector, weight=-1)))
    endpoint_counts.note_selected(pod_uid, {uid: True})
    endpoint_counts.note_registered(pod_uid, "default", frozenset([uid]), {uid: ("default",)})
    endpoint_counts.note_faults(pod_uid, "default", [Fault(uid, Reason.KEY_TAKEN, "")], [uid])
    endpoint_counts.note_registered(pod_uid, "default", frozenset(), {})
    endpoint_counts.note_faults(pod_uid, "default", [], [uid])
    endpoint_counts.note_selected(pod_uid, {})
    cluster_cache.forget_pod(pod_uid)
    cluster_cache.forget_service(uid)
    endpoint_counts.forget_service(uid)
    cluster_cache.gone.clear()
    assert cluster_cache.asking.next() is None


def test_what_has_come_and_gone_leaves_nothing_behind() -> None:
    cluster_cache, endpoint_counts = ClusterCache(["default"]), EndpointCounts()
    come_and_go(cluster_cache, endpoint_counts, 0)
    before = sizes(cluster_cache)
    for number in range(1, 20):
        come_and_go(cluster_cache, endpoint_counts, number)
    assert sizes(cluster_cache) == before


def test_what_is_shared_stays_bounded() -> None:
    endpoint_counts = EndpointCounts()
    for number in range(2 * MOST_SHARED):
        endpoint_counts.note_selected("p", {f"s{number}": True})
        endpoint_counts.note_registered("p", "default", frozenset([f"s{number}"]), {f"s{number}": ("default",)})
        endpoint_counts.note_selected("p", {})
        endpoint_counts.note_registered("p", "default", frozenset(), {})
        endpoint_counts.forget_service(f"s{number}")
    assert max(sizes(endpoint_counts).values()) <= MOST_SHARED


def test_to_ask_for_what_is_gone_leaves_nothing_behind() -> None:
    endpoint_counts = EndpointCounts()
    for number in range(20):
        uid = f"s{number}"
        endpoint_counts.note_selected("p", {uid: True})
        endpoint_counts.note_faults("p", "default", [Fault(uid, Reason.KEY_TAKEN, "")], [uid])
        endpoint_counts.note_selected("p", {})
        endpoint_counts.forget_service(uid)
        endpoint_counts.count_excused("default")  # a scrape, before the Pod has been looked at again
        assert not endpoint_counts.counts(uid).faults
        assert not endpoint_counts.faults_of("p", uid, ["default"])
        endpoint_counts.note_faults("p", "default", [], [])
    assert max(sizes(endpoint_counts).values()) <= 1, sizes(endpoint_counts)

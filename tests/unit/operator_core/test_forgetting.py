"""What is gone leaves nothing behind, however many namespaces, Pods and GrpcServices have come and gone."""

from collections.abc import Sized

from google.protobuf import json_format

from grpc_etcd_operator.core.cluster import World
from grpc_etcd_operator.core.counts import MOST_SHARED, Tally
from grpc_etcd_operator.core.desired import Fault
from grpc_etcd_operator.core.pods import parse_pod
from grpc_etcd_operator.core.services import parse_service
from grpc_etcd_operator.kube.messages import message_class
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service


def sizes(*kept: object) -> dict[str, int]:
    return {name: len(value) for each in kept for name, value in vars(each).items() if isinstance(value, Sized)}


def come_and_go(world: World, tally: Tally, number: int) -> None:
    pod_uid, uid, where = f"p{number}", f"s{number}", f"n{number}"
    raw = make_raw_pod(pod_uid, namespace=where, labels={"app": where})
    world.note_pod(parse_pod(json_format.ParseDict(raw, message_class("Pod")())))
    selector = {"matchLabels": {"app": where}}
    world.note_service(parse_service(make_raw_service(uid, namespace=where, selector=selector)))
    world.note_service(parse_service(make_raw_service(uid, namespace=where, selector=selector, weight=-1)))
    tally.note_selected(pod_uid, {uid: True})
    tally.note_registered(pod_uid, "default", frozenset([uid]), {uid: ("default",)})
    tally.note_faults(pod_uid, "default", [Fault(uid, "KeyTaken", "")], [uid])
    tally.note_registered(pod_uid, "default", frozenset(), {})
    tally.note_faults(pod_uid, "default", [], [uid])
    tally.note_selected(pod_uid, {})
    world.forget_pod(pod_uid)
    world.forget_service(uid)
    tally.forget_service(uid)
    world.gone.clear()
    assert world.asking.next() is None


def test_what_has_come_and_gone_leaves_nothing_behind() -> None:
    world, tally = World(["default"]), Tally()
    come_and_go(world, tally, 0)
    before = sizes(world)
    for number in range(1, 20):
        come_and_go(world, tally, number)
    assert sizes(world) == before


def test_what_is_shared_stays_bounded() -> None:
    tally = Tally()
    for number in range(2 * MOST_SHARED):
        tally.note_selected("p", {f"s{number}": True})
        tally.note_registered("p", "default", frozenset([f"s{number}"]), {f"s{number}": ("default",)})
        tally.note_selected("p", {})
        tally.note_registered("p", "default", frozenset(), {})
        tally.forget_service(f"s{number}")
    assert max(sizes(tally).values()) <= MOST_SHARED


def test_to_ask_for_what_is_gone_leaves_nothing_behind() -> None:
    tally = Tally()
    for number in range(20):
        uid = f"s{number}"
        tally.note_selected("p", {uid: True})
        tally.note_faults("p", "default", [Fault(uid, "KeyTaken", "")], [uid])
        tally.note_selected("p", {})
        tally.forget_service(uid)
        tally.count_taken("default")  # a scrape, before the Pod has been looked at again
        assert not tally.counts(uid).faults
        assert not tally.faults_of("p", uid, ["default"])
        tally.note_faults("p", "default", [], [])
    assert max(sizes(tally).values()) <= 1, sizes(tally)

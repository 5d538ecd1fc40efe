"""The main job on a real API server and a real etcd: a provider key exists exactly while its Pod is ready to serve."""

import json
from typing import Any

import pytest

from grpc_etcd.registry.own import OwnerRecord, owner_key
from testbed.conditions import existing, wait_until
from testbed.kubelet import Pod, random_loopback_ip
from testbed.kubernetes_api import ApiError
from tests.e2e.conftest import Scene
from tests.e2e.pod_watches import with_both


def key_of(pod: Pod) -> str:
    return f"/jupiter/greeter/providers/grpc://{pod.address}"


def test_a_ready_pod_has_key_value_lease_and_owner_record(scene: Scene) -> None:
    scene.start()
    attributes = {"group": "g", "zone": "z", "region": "r", "appId": "a", "deployment": "d"}
    scene.apply(weight=7, metadata={"team": "shop"}, metadataFromLabels=["version", "absent"], **attributes)
    pod = scene.pod("one", labels={"app": "greeter", "version": "v1"})
    scene.registry.wait_addresses(pod.address)
    key = f"/jupiter/greeter/providers/grpc://{pod.address}"
    record = scene.registry.keys()[key]
    assert record.lease == scene.lease(pod.uid)
    assert record.value.decode() == (
        f'{{"name":"greeter","appId":"a","scheme":"grpc","address":"{pod.address}","weight":7,"enable":true,'
        '"healthy":true,"metadata":{"jupiterVersion":"0.2.0","team":"shop","version":"v1"},"region":"r","zone":"z",'
        '"kind":1,"deployment":"d","group":"g","services":null}'
    )
    owner = existing(scene.client.get(owner_key(scene.cluster, pod.uid)))
    assert owner.lease == record.lease
    assert OwnerRecord.from_json(owner.value) == OwnerRecord(
        namespace=scene.namespace,
        pod="one",
        node="node-1",
        grpc_services=(f"{scene.namespace}/greeter",),
        keys=(key.encode(),),
    )


@with_both
def test_not_ready_terminating_and_deleted_pods_have_no_key(scene: Scene) -> None:
    scene.start()
    scene.apply()
    flapping, terminating, deleted, stays = (scene.pod(hold=True) for _ in range(4))
    scene.registry.wait_addresses(*(pod.address for pod in (flapping, terminating, deleted, stays)))
    scene.kubelet.unready(flapping)
    scene.kubelet.terminate(terminating)  # it is held: the object stays, with a deletionTimestamp
    scene.api.client.delete(deleted.item, grace_seconds=0)
    scene.registry.wait_addresses(stays.address)
    assert scene.api.client.find("v1", "Pod", terminating.name, scene.namespace)
    scene.kubelet.ready(flapping)
    scene.registry.wait_addresses(stays.address, flapping.address)
    assert scene.client.get(owner_key(scene.cluster, terminating.uid)) is None


def test_the_lease_of_a_pod_waits_for_it_to_turn_ready_and_goes_with_it(scene: Scene) -> None:
    def has_lease(pod: Pod) -> bool:
        return scene.client.time_to_live(scene.lease(pod.uid)) is not None

    scene.start()
    scene.apply()
    other = scene.pod(labels={"app": "other"}, ready=False)
    never_ready, late = scene.pod(ready=False), scene.pod(ready=False)
    for pod in (never_ready, late):
        wait_until(lambda: has_lease(pod), "a lease before anything is put under it")  # noqa: B023
    assert not scene.registry.keys()
    scene.kubelet.ready(late)
    scene.registry.wait_addresses(late.address)
    assert not has_lease(other)
    scene.api.client.delete(never_ready.item, grace_seconds=0)
    wait_until(lambda: not has_lease(never_ready), "no lease of a Pod that is gone")
    assert has_lease(late)


@with_both
def test_a_new_ip_replaces_the_old_key(scene: Scene) -> None:
    scene.start()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    pod.ip = random_loopback_ip()
    scene.kubelet.ready(pod)
    scene.registry.wait_addresses(pod.address)


def test_an_address_moves_from_a_deleted_pod_to_the_one_that_has_it_now(scene: Scene) -> None:
    scene.start()
    scene.apply()
    old = scene.pod()
    scene.registry.wait_addresses(old.address)
    scene.api.client.delete(old.item, grace_seconds=0)
    new = scene.pod(ip=old.ip)
    key = f"/jupiter/greeter/providers/grpc://{new.address}"
    wait_until(lambda: (r := scene.registry.keys().get(key)) and r.lease == scene.lease(new.uid), "it moved")


@with_both
def test_addresses_that_move_from_pod_to_pod_within_a_second_are_never_lost(scene: Scene) -> None:
    scene.apply()
    scene.start()
    pods = [scene.pod() for _ in range(10)]
    for _ in range(6):
        for pod in pods:
            scene.api.client.delete(pod.item, grace_seconds=0)
        pods = [scene.pod(ip=pod.ip) for pod in pods]
        leases = {f"/jupiter/greeter/providers/grpc://{pod.address}": scene.lease(pod.uid) for pod in pods}
        wait_until(
            lambda: {key: record.lease for key, record in scene.registry.keys().items()} == leases,  # noqa: B023
            "each address belongs to the Pod that has it now",
        )


@with_both
def test_ports_are_found_by_name_and_number(scene: Scene) -> None:
    scene.start()
    ports = {"grpc": 9000, "admin": 9100}
    pod = scene.pod(ports=ports)
    for name, port in {"by-default": None, "by-name": "admin", "by-number": 9200}.items():
        scene.apply(name, **({} if port is None else {"port": port}))
    scene.registry.wait_addresses(f"{pod.ip}:9000", name="by-default")
    scene.registry.wait_addresses(f"{pod.ip}:9100", name="by-name")
    scene.registry.wait_addresses(f"{pod.ip}:9200", name="by-number")


def test_two_services_on_one_pod_share_its_lease(scene: Scene) -> None:
    scene.start()
    scene.apply("one")
    scene.apply("two")
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address, name="one")
    scene.registry.wait_addresses(pod.address, name="two")
    assert {record.lease for record in scene.registry.keys().values()} == {scene.lease(pod.uid)}
    scene.delete("one")
    scene.registry.wait_addresses(name="one")
    assert scene.registry.addresses("two") == [pod.address]


@with_both
def test_a_restart_writes_nothing_but_its_own_election(scene: Scene) -> None:
    first = scene.start().wait_leading()
    scene.apply()
    pods = [scene.pod() for _ in range(3)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    first.process.stop()
    before = {key: record.mod_revision for key, record in scene.registry.keys("/").items()}
    second = scene.start("--leader-ttl=60").wait_leading()
    after = {key: record.mod_revision for key, record in scene.registry.keys("/").items()}
    own = {f"/grpc-etcd/{kind}/{scene.cluster}" for kind in ("leader", "synced", "clock")}
    assert {key: revision for key, revision in after.items() if key not in own} == {
        key: revision for key, revision in before.items() if key not in own
    }
    settled = scene.registry.count_changes()
    scene.api.client.patch(pods[0].item, {"metadata": {"annotations": {"unrelated": "change"}}})
    scene.kubelet.unready(pods[1])
    scene.registry.wait_addresses(pods[0].address, pods[2].address)
    assert scene.registry.count_changes() == settled + 1, second.text()


@with_both
def test_what_happened_while_no_operator_ran_is_made_good(scene: Scene) -> None:
    first = scene.start()
    scene.apply()
    scene.apply("other")
    goes, stays = scene.pod(), scene.pod()
    scene.registry.wait_addresses(goes.address, stays.address)
    scene.registry.wait_addresses(goes.address, stays.address, name="other")
    first.process.kill()
    scene.api.client.delete(goes.item, grace_seconds=0)
    scene.delete("other")
    comes = scene.pod()
    scene.start()
    scene.registry.wait_addresses(stays.address, comes.address)
    scene.registry.wait_addresses(name="other")
    wait_until(lambda: scene.client.get(owner_key(scene.cluster, goes.uid)) is None, "the owner record is gone")


def test_an_address_that_moved_while_no_operator_ran_belongs_to_the_pod_that_has_it_now(scene: Scene) -> None:
    first = scene.start()
    scene.apply()
    moves, goes = scene.pod(), scene.pod()
    scene.registry.wait_addresses(moves.address, goes.address)
    first.process.kill()
    for pod in (moves, goes):
        scene.api.client.delete(pod.item, grace_seconds=0)
    new = scene.pod(ip=moves.ip)
    scene.start().wait_leading()
    assert {key: record.lease for key, record in scene.registry.keys().items()} == {key_of(new): scene.lease(new.uid)}


@pytest.mark.parametrize(
    "spec",
    [
        {"selector": {}},
        {"name": "a/b"},
        {"name": ""},
        {"port": 70000},
        {"weight": -1},
        {"weight": 10001},
        {"layouts": ["unheard-of"]},
        {"drain": {"mode": "Maybe"}},
        {"scheme": "GRPC"},
        {"policy": {"retry": {"attempts": 9}}},
        {"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
    ],
    ids=str,
)
def test_the_api_server_refuses_bad_services(scene: Scene, spec: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        scene.apply("bad", **spec)
    assert refused.value.status == 422


def test_services_that_cannot_be_served_say_why_and_disturb_nobody(scene: Scene) -> None:
    scene.start()
    scene.apply("unknown-registry", registries=["nowhere"])
    scene.apply("no-port", port="missing")
    scene.apply("good")
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address, name="good")
    scene.wait_condition("Accepted", "False", "UnknownRegistry", "unknown-registry")
    scene.wait_condition("Accepted", "False", "PortNotFound", "no-port")
    scene.wait_condition("Accepted", "True", "Accepted", "good")
    scene.wait_condition("Programmed", "True", "Programmed", "good")
    assert scene.registry.addresses("unknown-registry") == scene.registry.addresses("no-port") == []
    assert scene.status("good")["endpoints"] == {"selected": 1, "ready": 1, "registered": 1, "summary": "1/1"}
    wait_until(lambda: {"PortNotFound", "UnknownRegistry"} <= {e["reason"] for e in scene.events()}, "Events tell it")
    shown = scene.api.kubectl("get", "gsvc", "good", "-n", scene.namespace)
    assert shown.splitlines()[1].split()[:4] == ["good", "good", "1/1", "True"], shown


def test_values_are_json_that_clients_read(scene: Scene) -> None:
    scene.start("--allowed-prefix=wsd-reg")
    scene.apply(layouts=["jupiter", "etcd-naming"], prefix="wsd-reg")
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address, prefix="wsd-reg")
    naming = wait_until(lambda: scene.registry.keys("wsd-reg/greeter/"), "the second layout is written")
    assert list(naming) == [f"wsd-reg/greeter/{pod.address}"]
    assert json.loads(naming[f"wsd-reg/greeter/{pod.address}"].value)["Addr"] == pod.address

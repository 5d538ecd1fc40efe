"""The registry is never wrong for long: foreign writes, deletes and revocations, and keys that are not ours."""

import json
import time

from grpc_etcd.registry.own import OwnerRecord, owner_key
from testbed.conditions import existing, wait_until
from testbed.kubelet import Pod
from tests.e2e.conftest import Scene

PATIENCE = 60  # on a busy machine; on a quiet one a repair takes milliseconds


def key_of(pod: Pod, name: str = "greeter") -> str:
    return f"/jupiter/{name}/providers/grpc://{pod.address}"


def test_a_foreign_overwrite_delete_or_revocation_is_repaired(scene: Scene) -> None:
    scene.start()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    key, lease = key_of(pod), scene.lease(pod.uid)
    good = scene.registry.keys()[key].value

    def is_good() -> bool:
        record = scene.registry.keys().get(key)
        return record is not None and (record.value, record.lease) == (good, lease)

    other = scene.client.lease(600)
    scene.client.put(key.encode(), b"overwritten", lease=other)
    wait_until(is_good, "an overwrite is repaired", PATIENCE)
    scene.client.delete(key.encode())
    wait_until(is_good, "a delete is repaired", PATIENCE)
    scene.client.revoke(lease)
    wait_until(is_good, "a revocation is repaired", PATIENCE)
    assert existing(scene.client.time_to_live(lease)).granted_seconds == 300


def test_a_key_whose_address_has_moved_is_repaired_also_by_an_operator_that_was_started_just_then(scene: Scene) -> None:
    """The one before had not deregistered yet what the Pod had that was there before, and is gone."""
    replica = scene.start().wait_leading()
    scene.apply()
    pod, gone = scene.pod(), "zz-of-a-pod-that-is-gone"  # listed after the owner record of the Pod that is there
    scene.registry.wait_addresses(pod.address)
    replica.process.stop()
    key, lease = key_of(pod), scene.lease(pod.uid)
    record = OwnerRecord(namespace=scene.namespace, pod="gone", keys=(key.encode(),)).to_json()
    scene.client.put(owner_key(scene.cluster, gone), record, lease=scene.client.lease(300, scene.lease(gone)))
    scene.start().wait_leading()
    wait_until(
        lambda: scene.client.get(owner_key(scene.cluster, gone)) is None, "what is gone is deregistered", PATIENCE
    )
    scene.client.delete(key.encode())
    wait_until(lambda: (r := scene.registry.keys().get(key)) and r.lease == lease, "a delete is repaired", PATIENCE)


def test_a_key_that_a_server_registered_itself_is_respected_and_reported(scene: Scene) -> None:
    scene.start()
    mine, theirs = scene.pod(), scene.pod()
    lease = scene.client.lease(600)
    scene.client.put(key_of(theirs).encode(), b"{}", lease=lease)
    scene.apply()
    scene.registry.wait_addresses(mine.address, theirs.address)
    scene.wait_condition("Programmed", "False", "KeyTaken")
    assert scene.registry.keys()[key_of(theirs)].value == b"{}"
    wait_until(lambda: any(event["reason"] == "KeyTaken" for event in scene.events()), "an Event tells it")
    scene.client.revoke(lease)
    wait_until(lambda: (r := scene.registry.keys().get(key_of(theirs))) and r.lease == scene.lease(theirs.uid), "ours")
    scene.wait_condition("Programmed", "True", "Programmed")


def test_an_admin_tools_edit_keeps_enable_and_weight_and_gets_its_lease_back(scene: Scene) -> None:
    first = scene.start()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    key = key_of(pod)
    edited = scene.registry.values()[key] | {"enable": False, "weight": 7, "group": "edited"}
    scene.client.put(key.encode(), json.dumps(edited).encode())
    wait_until(lambda: scene.registry.keys()[key].lease == scene.lease(pod.uid), "the lease is back", PATIENCE)
    value = scene.registry.values()[key]
    assert (value["enable"], value["weight"], value["group"]) == (False, 7, "")
    revision = scene.registry.keys()[key].mod_revision
    first.process.stop()
    scene.start().wait_leading()
    assert scene.registry.keys()[key].mod_revision == revision
    scene.apply(weight=50)
    wait_until(lambda: scene.registry.values()[key]["weight"] == 50, "the owner's newer word counts")


def test_names_belong_to_the_namespace_of_the_oldest_service(scene: Scene) -> None:
    other = f"{scene.namespace}-other"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    scene.start(f"--namespace={other}")
    scene.apply()
    time.sleep(1.1)  # creation times are whole seconds, and the tie would be broken by UID
    scene.apply("greeter", other)
    mine, theirs = scene.pod(), scene.pod(namespace=other)
    scene.wait_condition("Accepted", "False", "NameTaken", "greeter", other)
    scene.registry.wait_addresses(mine.address)
    scene.delete()
    scene.registry.wait_addresses(theirs.address)
    scene.wait_condition("Accepted", "True", "Accepted", "greeter", other)


def test_of_two_services_that_want_one_key_the_older_one_writes(scene: Scene) -> None:
    replica = scene.start()
    scene.apply("older", name="shared", weight=1)
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address, name="shared")
    time.sleep(1.1)  # as above
    scene.apply("younger", name="shared", weight=2)
    scene.wait_condition("Programmed", "False", "KeyShared", "younger")
    assert scene.registry.values()[key_of(pod, "shared")]["weight"] == 1
    assert replica.metric("grpc_etcd_operator_ready_not_registered") == 0  # clients do find it


def test_a_sweep_finds_what_the_watch_missed_only_after_a_second_look(scene: Scene) -> None:
    replica = scene.start()
    scene.apply()
    pods = [scene.pod() for _ in range(3)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    replica.process.pause()
    scene.api.client.delete(pods[0].item, grace_seconds=0)
    replica.process.resume()
    scene.registry.wait_addresses(pods[1].address, pods[2].address)

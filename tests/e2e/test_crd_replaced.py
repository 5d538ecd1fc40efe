"""A CRD that goes takes its GrpcServices along, and no key, whether it is back at once or after a restart."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubernetes_api import ApiError
from tests.e2e.conftest import CRD, MakeScene, Scene, install_crd

GATE = "grpc-etcd.dev/registered"
TAKEN_AWAY = "crd_deleted"
SUBRESOURCES = "/spec/versions/0/subresources"


def try_to_apply(scene: Scene) -> str:
    """Apply the GrpcService again and give its UID; nothing while the CRD is not served."""
    try:
        return str(scene.apply()["metadata"]["uid"])
    except ApiError:
        return ""


def edit_crd(scene: Scene, **operation: Any) -> None:
    scene.api.kubectl("patch", "crd", "grpcservices.grpc-etcd.dev", "--type=json", "-p", json.dumps([operation]))


@pytest.mark.parametrize("turn", range(3))  # it is a race: the CRD is back in less than a second
def test_a_crd_that_is_replaced_at_once_deregisters_nothing(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene, turn: int
) -> None:
    scene = make_scene(own_apiserver, etcd)
    replica = scene.start().wait_leading()
    item = scene.apply()
    pods = [scene.pod() for _ in range(3)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    before = scene.registry.keys()
    scene.api.kubectl("replace", "--force", "-f", str(CRD))
    wait_until(lambda: replica.lines(TAKEN_AWAY), f"it is noticed, turn {turn}")
    assert wait_until(lambda: try_to_apply(scene), "the CRD is back") != item["metadata"]["uid"]
    scene.wait_condition("Programmed", "True", "Programmed")
    late = scene.pod()
    wait_until(lambda: late.address in scene.registry.addresses(), "it works on")
    assert before.items() <= scene.registry.keys().items()
    scene.delete()
    scene.registry.wait_addresses()  # at once: this one was deleted by its owner


def test_a_crd_that_is_put_back_after_a_restart_deregisters_nothing(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(own_apiserver, etcd)
    replica = scene.start().wait_leading()
    scene.apply(policy={"timeout": "5s"})
    pods = [scene.pod() for _ in range(3)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    scene.wait_condition("Programmed", "True", "Programmed")
    before = scene.registry.keys()
    policy = scene.client.get(b"/grpc-etcd/policy/jupiter/greeter")
    scene.api.kubectl("delete", "crd", "grpcservices.grpc-etcd.dev")
    wait_until(lambda: replica.lines(TAKEN_AWAY), "it is noticed")
    replica.process.stop()
    replica = scene.start()
    wait_until(lambda: replica.lines("crd_missing"), "it waits for the CRD")
    install_crd(scene.api)
    replica.wait_leading()
    late = scene.pod(gates=[GATE])
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(*(pod.address for pod in pods[1:]))
    conditions = scene.api.client.get("v1", "Pod", late.name, scene.namespace)["status"]["conditions"]
    assert (GATE, "True") not in [(each["type"], each["status"]) for each in conditions]  # it may be selected yet
    wait_until(lambda: try_to_apply(scene), "the CRD is back")
    scene.wait_condition("Programmed", "True", "Programmed")
    scene.registry.wait_addresses(*(pod.address for pod in (*pods[1:], late)))
    wait_until(lambda: late.is_ready, "its gate has opened")
    now = {key: record for key, record in scene.registry.keys().items() if late.address not in key}
    assert now.items() <= before.items()
    assert len(now) == 2
    assert policy is not None


def test_a_crd_without_its_status_subresource_is_told_and_what_was_missed_is_written_once_it_is_back(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(own_apiserver, etcd)
    replica = scene.start().wait_leading()
    scene.apply()
    pods = [scene.pod()]
    scene.wait_condition("Programmed", "True", "Programmed")
    edit_crd(scene, op="remove", path=SUBRESOURCES)
    pods.append(scene.pod())
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    wait_until(lambda: replica.lines("status_refused"), "a status that cannot be written is told")
    scene.apply("another")
    wait_until(lambda: replica.lines("claim_refused"), "so is a claim")
    edit_crd(scene, op="add", path=SUBRESOURCES, value={"status": {}})
    wait_until(lambda: scene.status()["endpoints"]["summary"] == "2/2", "the status is as it ought to be")
    scene.registry.wait_addresses(*(pod.address for pod in pods), name="another")


@pytest.mark.faults
@pytest.mark.parametrize("is_restarted", [False, True])
def test_what_has_not_come_back_when_the_time_is_over_loses_its_keys_and_nothing_else_does(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene, *, is_restarted: bool
) -> None:
    """With 40 seconds in the place of five minutes."""
    scene = make_scene(own_apiserver, etcd)
    program = (sys.executable, Path(__file__).with_name("hasty.py"), "40")
    replica = scene.make(program=program).start().wait_leading()
    scene.apply()
    scene.apply("missing", selector={"matchLabels": {"app": "missing"}}, policy={"timeout": "5s"})
    stays, goes = scene.pod(), scene.pod(labels={"app": "missing"})
    scene.registry.wait_addresses(stays.address)
    scene.registry.wait_addresses(goes.address, name="missing")
    scene.wait_condition("Programmed", "True", "Programmed", "missing")
    before = scene.registry.keys()
    scene.api.kubectl("delete", "crd", "grpcservices.grpc-etcd.dev")
    wait_until(lambda: replica.lines(TAKEN_AWAY), "it is noticed")
    if is_restarted:
        replica.process.stop()
        replica = scene.make(program=program).start()
        wait_until(lambda: replica.lines("crd_missing"), "it waits for the CRD")
    install_crd(scene.api)
    scene.apply()
    scene.wait_condition("Programmed", "True", "Programmed")
    assert scene.registry.keys() == before, "there is still time"
    wait_until(lambda: not scene.registry.addresses("missing"), "what is missing goes", 120)
    wait_until(lambda: not scene.client.get(b"/grpc-etcd/policy/jupiter/missing"), "its policy goes, too")
    kept = {key: record for key, record in before.items() if "/greeter/" in key}
    assert scene.registry.keys() == kept
    scene.apply("missing", selector={"matchLabels": {"app": "missing"}})
    scene.registry.wait_addresses(goes.address, name="missing")

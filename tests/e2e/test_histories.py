"""etcd loses its data, or is restored from an older backup: soon every key is as wanted, and then the mark says so."""

import contextlib
import json
from pathlib import Path

import pytest

from grpc_etcd.etcd import Etcd, EtcdError
from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import Pod
from testbed.replica import Replica
from tests.e2e.conftest import MakeScene, Scene
from tests.e2e.pod_watches import with_one

pytestmark = [pytest.mark.faults, with_one()]


def start(scene: Scene, replicas: int) -> list[Replica]:
    started = [scene.start("--leader-ttl=3").wait_leading()]
    for _ in range(replicas - 1):
        started.append(scene.start("--leader-ttl=3"))
        wait_until(lambda: len(started[-1].lines("listed")) == 2, "the standby is warm")
    return started


def look(scene: Scene) -> tuple[list[str], bool]:
    """Read the addresses and whether the mark stands, at one revision and over a connection of its own."""
    with contextlib.suppress(EtcdError), Etcd(scene.etcd.endpoints) as client:
        revision = client.get_prefix(b"\x01nothing").revision
        mark = client.get(f"/grpc-etcd/synced/{scene.cluster}".encode(), revision=revision)
        listing = client.get_prefix(b"/jupiter/greeter/providers/", revision=revision)
        return sorted(record.key.decode().rpartition("://")[2] for record in listing.records), mark is not None
    return [], False


def wait_whole(scene: Scene, *addresses: str) -> None:
    """Wait for the mark, which must not stand before every key does."""

    def is_whole() -> bool:
        found, has_mark = look(scene)
        assert not has_mark or found == sorted(addresses), "the mark stands beside keys that are not as wanted"
        return has_mark

    wait_until(is_whole, "in sync with all keys")


def assert_leased(scene: Scene, pods: list[Pod]) -> None:
    with Etcd(scene.etcd.endpoints) as client:
        for pod in pods:
            left = client.time_to_live(scene.lease(pod.uid))
            assert left is not None, "the lease exists"


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_etcd_that_has_lost_its_data_is_filled_again(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, replicas: int
) -> None:
    scene = make_scene(apiserver, own_etcd)
    started = start(scene, replicas)
    scene.apply()
    pods = [scene.pod() for _ in range(4)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    own_etcd.restart(fresh=True)
    wait_whole(scene, *(pod.address for pod in pods))
    assert_leased(scene, pods)
    assert any(replica.metric("grpc_etcd_operator_leader", registry="default") for replica in started)
    scene.kubelet.unready(pods[0])
    wait_until(lambda: look(scene)[0] == sorted(pod.address for pod in pods[1:]), "it works on")
    for replica in started:
        wait_until(lambda replica=replica: replica.get("/readyz")[0] == 200, "ready again")


@pytest.mark.parametrize("lost", ["default", "second"])
def test_one_of_two_registries_that_has_lost_its_data_gets_back_every_kind_of_key(
    apiserver: ApiServer, etcd: EtcdServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path, *, lost: str
) -> None:
    first, second = (own_etcd, etcd) if lost == "default" else (etcd, own_etcd)
    scene, config = make_scene(apiserver, first), tmp_path / "registries.yaml"
    config.write_text(json.dumps({"registries": {"second": {"endpoints": second.endpoints}}}))
    replica = scene.start(f"--config={config}", "--leader-ttl=3").wait_leading()
    routes = [{"id": "some", "method": "/shop.Greeter/Greet", "groups": {"blue": 1}}]
    both = ["default", "second"]
    scene.apply(registries=both, policy={"timeout": "5s"}, routes=routes, metricsPort=9100)
    pod = scene.pod()

    def keys() -> set[str]:
        kinds = ("/leader/", "/cluster/", "/synced/", "/owner/", "/policy/", "/configurators/", "/providers/", "/job/")
        with contextlib.suppress(EtcdError), Etcd(own_etcd.endpoints) as client:
            found = (record.key.decode() for record in client.get_prefix(b"/").records)
            return {key for key in found if any(kind in key for kind in kinds)}
        return set()

    wait_until(lambda: len(keys()) == 9, "each kind, and an owner record of the Pod and of the GrpcService")
    before = keys()
    assert any(pod.address in key for key in before)
    own_etcd.restart(fresh=True)
    wait_until(lambda: keys() == before, "all is there again")
    scene.wait_condition("Programmed", "True", "Programmed")
    wait_until(lambda: replica.get("/readyz")[0] == 200, "ready again")


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_etcd_that_was_restored_from_a_backup_is_brought_up_to_date(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path, replicas: int
) -> None:
    scene = make_scene(apiserver, own_etcd)
    started = start(scene, replicas)
    scene.apply()
    pods = [scene.pod() for _ in range(4)]
    scene.registry.wait_addresses(*(pod.address for pod in pods[:4]))
    own_etcd.save(tmp_path / "backup")
    wait_until(lambda: look(scene)[1], "synced")
    scene.kubelet.unready(pods[0])
    more = [scene.pod() for _ in range(2)]
    addresses = [pod.address for pod in [*pods[1:], *more]]
    wait_until(lambda: look(scene) == (sorted(addresses), True), "synced")
    for _ in range(3):  # so that revisions go back
        scene.kubelet.ready(pods[0])
        wait_until(lambda: pods[0].address in look(scene)[0], "it is there")
        scene.kubelet.unready(pods[0])
        wait_until(lambda: pods[0].address not in look(scene)[0], "it is gone")
    own_etcd.load(tmp_path / "backup")
    # The mark of the backup stands until its lease, which is as old, has run out: the leader's time to live.
    wait_until(lambda: look(scene) == (sorted(addresses), True), "in sync with all keys")
    assert_leased(scene, [*pods[1:], *more])
    scene.kubelet.unready(more[0])
    wait_until(lambda: more[0].address not in look(scene)[0], "it works on")
    assert any(replica.metric("grpc_etcd_operator_leader", registry="default") for replica in started)

"""An admin's careless hands in etcd, and Pods as they are rarely seen: in the end the registry is true again."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpc_etcd.etcd import Etcd, EtcdError
from testbed.apiserver import ApiServer
from testbed.conditions import existing, wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import Pod
from testbed.proxy import TcpProxy
from testbed.replica import RegistryView, Replica
from tests.e2e.conftest import MakeScene, Scene

GATE = "grpc-etcd.dev/registered"
pytestmark = pytest.mark.faults
ROOT, OPERATOR = "root-secret", "operator-secret"


def assert_calm(*replicas: Replica) -> None:
    for replica in replicas:
        assert "Traceback" not in replica.text()
        assert not replica.lines("unexpected_error")


def test_what_an_admin_takes_away_at_once_is_put_back(scene: Scene) -> None:
    first = scene.start("--leader-ttl=5").wait_leading()
    second = scene.start("--leader-ttl=5")
    wait_until(lambda: second.lines("port_opened"), "the standby answers")
    wait_until(lambda: second.get("/readyz")[0] == 200, "the standby is ready")
    scene.apply(policy={"timeout": "5s"}, metricsPort=9000)
    pods = [scene.pod(gates=[GATE] if number % 2 else []) for number in range(5)]
    addresses = [pod.address for pod in pods]
    scene.registry.wait_addresses(*addresses)
    scene.wait_condition("Programmed", "True", "Programmed")
    for acts in ("revoke", "delete", "revoke and delete"):
        for lease in scene.client.leases() if "revoke" in acts else ():
            with contextlib.suppress(EtcdError):
                scene.client.revoke(lease)
        if "delete" in acts:
            scene.etcd.etcdctl("del", "--prefix", "/")
        scene.kubelet.unready(pods[0])
        scene.registry.wait_addresses(*addresses[1:])
        scene.kubelet.ready(pods[0])
        scene.registry.wait_addresses(*addresses)
        wait_until(lambda: scene.client.get(b"/grpc-etcd/policy/jupiter/greeter"), "the policy is there")
        wait_until(scene.has_mark, "the mark is put")
        scene.wait_condition("Programmed", "True", "Programmed")
    held = scene.registry.keys("/jupiter/greeter/providers/")
    assert {record.lease for record in held.values()} == {scene.lease(pod.uid) for pod in pods}
    wait_until(lambda: any(each.get("/readyz")[0] == 200 for each in (first, second)), "ready")
    assert_calm(first, second)


@pytest.mark.parametrize("prefix", ["/grpc-etcd/", "/grpc-etcd/owner/"])
def test_pods_that_turn_unready_while_their_owner_records_are_gone_and_nobody_leads_are_deregistered(
    scene: Scene, prefix: str
) -> None:
    replica = scene.start("--identity=one").wait_leading()
    scene.apply()
    scene.apply("second", layouts=["kratos"], metricsPort=9000)
    pods = [scene.pod() for _ in range(4)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    scene.wait_condition("Programmed", "True", "Programmed", "second")
    replica.process.kill()
    scene.etcd.etcdctl("del", "--prefix", prefix)
    scene.kubelet.unready(pods[0])
    scene.kubelet.unready(pods[1])
    replica.start()
    scene.registry.wait_addresses(*(pod.address for pod in pods[2:]))
    for where in ("/microservices/second/", "/prometheus/job/second/"):
        wait_until(lambda where=where: len(scene.registry.keys(where)) == len(pods[2:]), f"{where} is true")
    wait_until(scene.has_mark, "the mark is put")
    assert_calm(replica)


def test_authentication_that_is_switched_on_and_off_and_roles_that_change_are_followed(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene, tmp_path: Path
) -> None:
    scene = make_scene(apiserver, own_etcd)
    password = tmp_path / "password"
    password.write_text(OPERATOR)
    replica = scene.start("--etcd-user=operator", f"--etcd-password-file={password}", "--leader-ttl=5").wait_leading()
    scene.apply()
    pods = [scene.pod() for _ in range(3)]
    addresses = [pod.address for pod in pods]

    def listed(client: Etcd) -> list[str]:
        return RegistryView(client).addresses()

    def assert_works(admin: str) -> None:
        user, password = ("root", ROOT) if admin else ("", "")
        with Etcd(own_etcd.endpoints, user=user, password=password) as client:
            for change, wanted in ((scene.kubelet.unready, addresses[1:]), (scene.kubelet.ready, addresses)):
                change(pods[0])
                wait_until(lambda wanted=wanted: listed(client) == sorted(wanted), "it is followed")

    assert_works("")
    own_etcd.enable_auth(ROOT)
    admin = f"root:{ROOT}"
    own_etcd.add_user("operator", OPERATOR, ["/jupiter/", "/grpc-etcd/"], admin=admin)
    assert_works(admin)
    own_etcd.etcdctl("role", "grant-permission", "--prefix=true", "operator", "read", "/other/", user=admin)
    assert_works(admin)
    own_etcd.etcdctl("auth", "disable", user=admin)
    assert_works("")
    own_etcd.etcdctl("auth", "enable")
    assert_works(admin)
    own_etcd.etcdctl("role", "revoke-permission", "--prefix=true", "operator", "/jupiter/", user=admin)
    scene.kubelet.unready(pods[0])
    scene.wait_condition("Programmed", "False", "PermissionDenied")
    own_etcd.etcdctl("role", "grant-permission", "--prefix=true", "operator", "readwrite", "/jupiter/", user=admin)
    assert_works(admin)
    scene.wait_condition("Programmed", "True", "Programmed")
    assert_calm(replica)


def test_pods_as_they_are_rarely_seen(scene: Scene) -> None:
    replica = scene.start().wait_leading()
    scene.apply()
    sixth = scene.pod(ip="fd00::17")
    scene.registry.wait_addresses("[fd00::17]:50051")
    shared = [scene.pod(ip="127.9.9.9", ports={"grpc": port}) for port in (50051, 50052)]
    scene.registry.wait_addresses("[fd00::17]:50051", *(pod.address for pod in shared))

    def report(pod: Pod, **status: Any) -> None:
        scene.api.client.patch(pod.item, {"status": status}, "status", "application/strategic-merge-patch+json")

    report(sixth, conditions=[{"type": "Ready", "status": "Unknown"}])
    scene.registry.wait_addresses(*(pod.address for pod in shared))
    report(sixth, conditions=[{"type": "Ready", "status": "True"}])
    scene.registry.wait_addresses("[fd00::17]:50051", *(pod.address for pod in shared))
    for phase in ("Failed", "Unknown", "Succeeded"):
        report(shared[0], phase=phase)
        scene.registry.wait_addresses("[fd00::17]:50051", shared[1].address)
        report(shared[0], phase="Running")
        scene.registry.wait_addresses("[fd00::17]:50051", *(pod.address for pod in shared))
    held = scene.api.client.patch(shared[1].item, {"metadata": {"finalizers": ["example.com/held"]}})
    scene.api.client.delete(held, grace_seconds=0)
    scene.registry.wait_addresses("[fd00::17]:50051", shared[0].address)
    scene.api.client.patch(shared[1].item, {"metadata": {"finalizers": None}})
    again = scene.pod(shared[1].name + "-again", ip="127.9.9.9", ports={"grpc": 50052})
    scene.registry.wait_addresses("[fd00::17]:50051", shared[0].address, again.address)
    assert_calm(replica)


@pytest.fixture
def compacting(own_etcd: EtcdServer) -> Iterator[None]:
    """Forget each revision as soon as it is over."""
    stop = threading.Event()

    def work() -> None:
        with Etcd(own_etcd.endpoints) as client:
            while not stop.wait(0.05):
                with contextlib.suppress(EtcdError):
                    client.compact(client.get_prefix(b"\x01none").revision)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.usefixtures("compacting")
def test_an_etcd_that_forgets_each_revision_over_a_network_that_fails_is_kept_true(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(apiserver, own_etcd)
    with TcpProxy.start(own_etcd.endpoints) as proxy:
        replica = scene.start("--leader-ttl=5", etcd=proxy.address).wait_leading()
        scene.apply()
        pods = [scene.pod() for _ in range(6)]
        scene.registry.wait_addresses(*(pod.address for pod in pods))  # what stood there before would be respected
        for number in range(12):
            (scene.kubelet.unready if number % 2 else scene.kubelet.ready)(pods[number % 5])
            fault = (proxy.cut, proxy.black_hole, proxy.refuse)[number % 3]
            fault()
            scene.client.put(f"/jupiter/greeter/providers/grpc://{pods[5].address}".encode(), b"vandal")
            (scene.kubelet.ready if number % 2 else scene.kubelet.unready)(pods[number % 4])
            proxy.heal()
        for pod in pods:
            scene.kubelet.ready(pod)
        scene.kubelet.unready(pods[0])
        scene.registry.wait_addresses(*(pod.address for pod in pods[1:]))
        key = f"/jupiter/greeter/providers/grpc://{pods[5].address}"
        wait_until(lambda: scene.registry.keys()[key].value != b"vandal", "what was overwritten is mended")
        wait_until(scene.has_mark, "the mark is put")
        scene.wait_condition("Programmed", "True", "Programmed")
        assert_calm(replica)
        scene.close()


def test_what_a_copy_of_etcd_has_without_leases_keeps_nobody_from_leading(scene: Scene) -> None:
    """As `etcdctl make-mirror` leaves it, which copies keys alone."""
    first = scene.start("--leader-ttl=3").wait_leading()
    scene.apply(policy={"timeout": "5s"})
    pods = [scene.pod() for _ in range(2)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    scene.wait_condition("Programmed", "True", "Programmed")
    first.process.kill()
    for record in scene.client.get_prefix(b"/").records:
        scene.client.put(record.key, record.value)
    second = scene.start("--leader-ttl=3").wait_leading()
    held = scene.registry.keys("/jupiter/greeter/providers/")
    assert {record.lease for record in held.values()} == {scene.lease(pod.uid) for pod in pods}
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(pods[1].address)
    for key in (f"/grpc-etcd/leader/{scene.cluster}", f"/grpc-etcd/synced/{scene.cluster}"):
        record = existing(scene.client.get(key.encode()))
        scene.client.put(record.key, record.value)
        wait_until(lambda key=key: existing(scene.client.get(key.encode())).lease, f"{key} is under a lease again")
    assert_calm(second)
    second.process.kill()
    wait_until(lambda: not scene.has_mark(), "nobody confirms it")

"""The API server restored, hung, silent, refusing, away, under a new CA: each is noticed and caught up with."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.apiserver import ApiServer
from testbed.certificates import Authority
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubernetes_api import make_kubeconfig
from testbed.proxy import TcpProxy
from tests.e2e.conftest import MakeScene, Scene
from tests.e2e.front import Front, is_watch
from tests.e2e.pod_watches import with_both, with_one

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
# A sweep comes each minute, reads again what differs, and deregisters what it has not found twice.
RESTORED_SECONDS = 150.0


@pytest.fixture
def scene(own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene) -> Scene:
    """A scene on an API server of the test's own."""
    return make_scene(own_apiserver, etcd)


@pytest.fixture
def front(scene: Scene, tmp_path: Path) -> Iterator[Front]:
    with Front(scene.api, tmp_path) as made:
        yield made
        scene.close()  # so that nobody connects while it ends: asyncio would lose such a socket


@with_one()
@pytest.mark.parametrize("overtakes", [False, True], ids=["behind", "overtaken"])
def test_what_a_restored_backup_no_longer_has_is_deregistered_and_what_it_has_again_is_registered(
    scene: Scene, tmp_path: Path, *, overtakes: bool
) -> None:
    replica = scene.start().wait_leading()
    scene.apply(weight=7)
    stays, deleted = scene.pod("stays"), scene.pod("deleted")
    readies, fails = scene.pod("readies", ready=False), scene.pod("fails")
    then = stays.address, deleted.address, fails.address
    scene.registry.wait_addresses(*then)
    scene.api.etcd.save(tmp_path / "backup")
    scene.api.restart()
    scene.outrun_backup()
    scene.api.client.delete(deleted.item, grace_seconds=0)
    scene.kubelet.ready(readies)
    scene.kubelet.unready(fails)
    late = scene.pod("late")
    scene.apply(weight=8)
    scene.apply("other", name="other")
    scene.registry.wait_addresses(stays.address, readies.address, late.address)
    scene.registry.wait_addresses(stays.address, readies.address, late.address, name="other")
    wait_until(lambda: weights(scene) == {"8"}, "the changed GrpcService is followed")
    scene.restore(tmp_path / "backup", replica, overtakes=overtakes)
    wait_until(lambda: scene.registry.addresses() == sorted(then), "Pods are as the backup has them", RESTORED_SECONDS)
    wait_until(lambda: weights(scene) == {"7"}, "the GrpcService is as the backup has it", RESTORED_SECONDS)
    scene.registry.wait_addresses(name="other")
    scene.apply("newer", name="newer")
    scene.registry.wait_addresses(*then, name="newer")
    wait_until(lambda: replica.get("/readyz")[0] == 200, "it is ready")


def weights(scene: Scene) -> set[str]:
    return {str(value["weight"]) for value in scene.registry.values("/jupiter/greeter/").values()}


@with_both
def test_an_api_server_that_hung_for_a_while_is_caught_up_with(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    scene.api.pause()
    time.sleep(9.0)  # the fault itself
    scene.api.resume()
    late = scene.pod()
    scene.apply("other", name="other")
    scene.registry.wait_addresses(pod.address, late.address)
    scene.registry.wait_addresses(pod.address, late.address, name="other")


@with_both
def test_a_watch_that_is_never_answered_is_asked_for_again(scene: Scene, front: Front) -> None:
    front.hangs = lambda request: is_watch(request) and front.count(0) < 4  # the first of each, and one more
    scene.start(kubeconfig=front.kubeconfig)
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    assert front.count(0) >= 2


@with_both
def test_an_identity_that_is_refused_for_a_while_is_tried_about_once_a_second_and_taken_again_at_once(
    scene: Scene, front: Front
) -> None:
    replica = scene.start(kubeconfig=front.kubeconfig).wait_leading()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    scene.api.restart()  # which ends the watches
    front.refuses = lambda _: True
    wait_until(lambda: front.count(401), "the first refusal")
    began, before = time.monotonic(), front.count(401)
    time.sleep(10.0)  # the fault itself
    seconds, count = time.monotonic() - began, front.count(401) - before
    assert count <= 2 * seconds + 5
    front.refuses = lambda _: False
    late = scene.pod()
    scene.registry.wait_addresses(pod.address, late.address)
    assert replica.process.is_running


@with_both
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_for_patience_is_given_it(scene: Scene, front: Front, status: int) -> None:
    scene.start(kubeconfig=front.kubeconfig).wait_leading()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    front.refusal = status, {"Retry-After": "4"}
    front.refuses = is_watch
    scene.api.restart()
    wait_until(lambda: len(front.gaps()) > 3, "watches are refused again and again")
    assert min(front.gaps()) >= 3.9, front.gaps()
    front.refuses = lambda _: False
    late = scene.pod()
    scene.registry.wait_addresses(pod.address, late.address)


@with_one()
@pytest.mark.parametrize("status", [429, 503])
def test_statuses_and_gates_are_not_written_before_the_server_asks_for_them(
    scene: Scene, front: Front, status: int
) -> None:
    scene.start(kubeconfig=front.kubeconfig).wait_leading()
    scene.apply()
    scene.wait_condition("Accepted", "True", "Accepted")
    front.refusal = status, {"Retry-After": "4"}
    front.refuses = lambda request: request.method == "PATCH"
    pod = scene.pod(gates=["grpc-etcd.dev/registered"])
    wait_until(lambda: len(front.gaps()) > 1, "writes are refused again and again")
    assert min(front.gaps()) >= 3.9, front.gaps()
    front.refuses = lambda _: False
    scene.wait_condition("Programmed", "True", "Programmed")
    wait_until(lambda: pod.is_ready, "its gate is open")


@with_both
def test_health_is_told_from_the_start_while_the_api_server_is_away(scene: Scene) -> None:
    scene.api.kill()
    replica = scene.start()
    wait_until(lambda: replica.lines("port_opened"), "the port is open")
    assert replica.get("/healthz") == (200, "ok\n")
    status, text = replica.get("/readyz")
    assert (status, "API server" in text) == (503, True)
    assert replica.get("/metrics")[0] == 200
    scene.api.restart()
    replica.wait_leading()
    wait_until(lambda: replica.get("/readyz")[0] == 200, "it is ready")


@with_both
def test_who_sees_nothing_of_kubernetes_says_so_and_sees_again(scene: Scene) -> None:
    replica = scene.start().wait_leading()
    assert replica.metric("grpc_etcd_operator_kubernetes_unavailable_seconds") == 0
    scene.api.pause()
    wait_until(lambda: replica.metric("grpc_etcd_operator_kubernetes_unavailable_seconds") > 9, "it is blind")
    scene.api.resume()
    wait_until(lambda: replica.metric("grpc_etcd_operator_kubernetes_unavailable_seconds") == 0, "it sees again")


@pytest.mark.parametrize("pod_watch", ["kopf"], indirect=True)
def test_who_goes_between_our_own_list_and_that_of_kopf_is_deregistered(scene: Scene, front: Front) -> None:
    """Neither tells it: one has listed the Pod, the other lists and watches what is there later."""
    before = scene.start().wait_leading()
    scene.apply()
    goes, stays = scene.pod(), scene.pod()
    scene.registry.wait_addresses(goes.address, stays.address)
    before.process.stop()
    front.hangs = lambda request: request.path.endswith("/pods") and "protobuf" not in request.headers["Accept"]
    replica = scene.start(kubeconfig=front.kubeconfig).wait_leading()
    wait_until(lambda: front.count(0), "Kopf asks for its list")
    scene.api.client.delete(goes.item, grace_seconds=0)
    front.hangs = lambda _: False
    # Sooner than by the sweep of each minute.
    wait_until(lambda: scene.registry.addresses() == [stays.address], "it is deregistered", 40)
    late = scene.pod()
    scene.registry.wait_addresses(stays.address, late.address)
    assert replica.process.is_running


@with_one()
def test_a_rotated_ca_is_followed(scene: Scene, tmp_path: Path) -> None:
    api = scene.api
    ca = tmp_path / "operator-ca.pem"
    shutil.copy(api.authority.ca, ca)
    config = json.loads(api.kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    config["clusters"][0]["cluster"] = {"server": cluster["server"], "certificate-authority": str(ca)}
    kubeconfig = tmp_path / "operator.kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    replica = scene.start(kubeconfig=kubeconfig).wait_leading()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    other = Authority(tmp_path / "other")
    with api.authority.ca.open("ab") as file:  # what the test itself trusts
        file.write(other.ca.read_bytes())
    issued = other.issue("kube-apiserver")
    shutil.copy(issued.cert, api.folder / "pki" / "kube-apiserver.pem")
    shutil.copy(issued.key, api.folder / "pki" / "kube-apiserver.key")
    api.restart()
    late = scene.pod()
    wait_until(
        lambda: replica.metric("grpc_etcd_operator_kubernetes_unavailable_seconds") > 0,
        "the new certificate is not taken",
    )
    shutil.copy(other.ca, ca)
    scene.registry.wait_addresses(pod.address, late.address)
    scene.apply("other", name="other")
    scene.registry.wait_addresses(pod.address, late.address, name="other")


@with_both
@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
def test_what_was_long_ago_takes_no_key_of_a_pod_that_is_ready_again(scene: Scene, fault: str) -> None:
    with TcpProxy.start(scene.api.url.removeprefix("https://")) as proxy:
        replica = scene.start(kubeconfig=make_kubeconfig_of(scene, proxy)).wait_leading()
        scene.apply()
        pods = [scene.pod() for _ in range(20)]
        scene.registry.wait_addresses(*(pod.address for pod in pods))
        before = created(scene)
        getattr(proxy, fault)()
        wait_until(lambda: replica.metric("grpc_etcd_operator_kubernetes_unavailable_seconds") > 15, "it is lost")
        for pod in pods:
            scene.kubelet.unready(pod)
        for pod in pods:
            scene.kubelet.ready(pod)
        late = scene.pod()
        proxy.heal()
        scene.registry.wait_addresses(*(pod.address for pod in pods), late.address)
    after = created(scene)
    assert {key: after.get(key) for key in before} == before


@with_both
def test_a_slow_line_takes_no_key_of_a_pod_that_has_long_been_ready_again(scene: Scene) -> None:
    """Something arrives all the time, and probes are answered at once beside it."""
    scene.apply()
    pods, noisy = [scene.pod() for _ in range(3)], [scene.pod(labels={"app": "noisy"}) for _ in range(20)]
    with TcpProxy.start(scene.api.url.removeprefix("https://"), bytes_per_second=150_000) as proxy:
        replica = scene.start(kubeconfig=make_kubeconfig_of(scene, proxy)).wait_leading()
        scene.registry.wait_addresses(*(pod.address for pod in pods))
        before = created(scene)
        for number in range(150):
            noise = {"metadata": {"annotations": {"noise": str(number) + "x" * 30_000}}}
            scene.api.client.patch(noisy[number % len(noisy)].item, noise)
            for pod in pods if number == 120 else ():
                scene.kubelet.unready(pod)
        for pod in pods:
            scene.kubelet.ready(pod)
        late = scene.pod()
        scene.registry.wait_addresses(*(pod.address for pod in pods), late.address)
    after = created(scene)
    assert {key: after.get(key) for key in before} == before
    assert [line for line in replica.lines("relisting") if "late" in line["message"]]


def created(scene: Scene) -> dict[bytes, int]:
    """Give the revision in which each provider key has come."""
    return {each.key: each.create_revision for each in scene.client.get_prefix(b"/jupiter/greeter/").records}


def make_kubeconfig_of(scene: Scene, proxy: TcpProxy) -> Path:
    """Make a kubeconfig that leads to the scene's API server through a proxy."""
    kubeconfig = scene.folder / "proxy.kubeconfig"
    settings = make_kubeconfig(f"https://{proxy.address}", str(scene.api.authority.ca), scene.api.token)
    kubeconfig.write_text(json.dumps(settings))
    return kubeconfig


@with_both
def test_who_was_cut_off_for_long_and_finds_nothing_new_sees_again_at_once(scene: Scene) -> None:
    """No watch would report anything before its next bookmark, up to a minute later."""
    with TcpProxy.start(scene.api.url.removeprefix("https://")) as proxy:
        replica = scene.start(kubeconfig=make_kubeconfig_of(scene, proxy)).wait_leading()
        proxy.refuse()
        wait_until(
            lambda: replica.metric("grpc_etcd_operator_last_event_age_seconds", resource="pods") > 105, "long", 180
        )
        proxy.heal()
        wait_until(lambda: replica.get("/readyz")[0] == 200, "it is ready again", 25)
        wait_until(scene.has_mark, "synced again", 25)

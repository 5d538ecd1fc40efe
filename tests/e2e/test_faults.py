"""The world around fails: the API server, the CRD, permissions, etcd. The operator recovers and loses nothing."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import pytest

from grpc_etcd.etcd import Etcd, NoSpace
from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import Pod
from testbed.kubernetes_api import ApiError
from testbed.manifests import wait_established
from testbed.replica import RegistryView, Replica
from tests.e2e.conftest import MakeScene, Scene
from tests.e2e.pod_watches import with_both, with_one

SHORT_TTL_SECONDS = 10  # the shortest that a Pod's lease may have

CRD = Path(__file__).resolve().parents[2] / "crds" / "grpcservices.yaml"
pytestmark = pytest.mark.faults


def revisions(scene: Scene) -> dict[str, int]:
    return {key: record.mod_revision for key, record in scene.registry.keys().items()}


def three_pods(scene: Scene) -> list[Pod]:
    scene.apply()
    pods = [scene.pod() for _ in range(3)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    return pods


@with_both
def test_an_api_server_that_is_away_changes_nothing_and_is_caught_up_with(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(own_apiserver, etcd)
    replica = scene.start().wait_leading()
    pods = three_pods(scene)
    before = revisions(scene)
    own_apiserver.kill()
    wait_until(lambda: not scene.has_mark(), "readers are notified that nobody watches")
    assert revisions(scene) == before
    assert replica.get("/healthz")[0] == 200
    own_apiserver.restart()
    scene.api.client.delete(pods[0].item, grace_seconds=0)
    scene.registry.wait_addresses(pods[1].address, pods[2].address)
    wait_until(scene.has_mark, "synced again")


def is_gone(scene: Scene, resource_version: str) -> bool:
    """Whether the API server answers a watch of Pods from a resource version on with 410 Gone."""
    try:
        kind, item = next(iter(scene.api.client.watch("v1", "Pod", resource_version)))
    except ApiError as error:
        return error.status == HTTPStatus.GONE
    return kind == "ERROR" and item["code"] == HTTPStatus.GONE


@with_both
def test_a_deletion_in_a_gap_of_the_watch_is_found(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(own_apiserver, etcd)
    replica = scene.start().wait_leading()
    pods = three_pods(scene)
    seen = scene.api.client.list("v1", "Pod", scene.namespace)["metadata"]["resourceVersion"]
    scene.let_vanish(pods[:1])
    assert is_gone(scene, seen), "a watch cannot go on from where the operator's was cut off"
    scene.registry.wait_addresses(pods[1].address, pods[2].address)
    wait_until(lambda: replica.lines("deletion_missed"), "it was no event that told it")
    assert replica.metric("grpc_etcd_operator_drift_total") == 1


def test_a_crd_that_is_deleted_and_put_back_deregisters_nothing(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(own_apiserver, etcd)
    replica = scene.start().wait_leading()
    three_pods(scene)
    before = revisions(scene)
    scene.api.kubectl("delete", "crd", "grpcservices.grpc-etcd.dev")
    wait_until(lambda: replica.lines("crd_deleted"), "the operator has noticed")
    wait_until(lambda: replica.lines("crd_missing"), "it waits for the CRD")
    assert revisions(scene) == before
    scene.api.kubectl("apply", "-f", str(CRD))
    wait_established(scene.api.client)
    scene.apply()
    more = scene.pod()
    wait_until(lambda: more.address in scene.registry.addresses(), "it works on")
    scene.wait_condition("Programmed", "True", "Programmed")
    assert {key: revision for key, revision in revisions(scene).items() if key in before} == before


@with_one()
def test_permissions_that_are_taken_away_and_given_back(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(own_apiserver, etcd)
    api = own_apiserver.client
    api.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator", "namespace": scene.namespace}}
    )
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
        {"apiGroups": ["grpc-etcd.dev"], "resources": ["grpcservices"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["grpc-etcd.dev"], "resources": ["grpcservices/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    ]
    metadata = {"name": "operator", "namespace": scene.namespace}
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": rules}
    api.create(role)
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": scene.namespace}],
    }
    api.create(binding)
    kubeconfig = own_apiserver.service_account_kubeconfig(scene.namespace, "operator")
    scene.start(kubeconfig=kubeconfig).wait_leading()
    pods = three_pods(scene)
    scene.wait_condition("Programmed", "True", "Programmed")
    before = revisions(scene)
    api.apply({**role, "rules": [{"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}]})
    own_apiserver.restart()  # ends the watches, which are not cut when a permission goes
    wait_until(lambda: not scene.has_mark(), "readers are notified that nobody watches")
    assert revisions(scene) == before
    api.apply(role)
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(pods[1].address, pods[2].address)
    wait_until(scene.has_mark, "synced again")


def test_etcd_away_at_start_and_later_is_waited_for(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(apiserver, own_etcd)
    own_etcd.kill()
    replica = scene.start()
    scene.apply()
    pod = scene.pod()
    scene.wait_condition("Programmed", "False", "RegistryUnavailable")
    wait_until(lambda: replica.get("/readyz")[0] == 503, "not ready")
    assert replica.get("/healthz")[0] == 200
    own_etcd.restart()
    scene.registry.wait_addresses(pod.address)
    scene.wait_condition("Programmed", "True", "Programmed")
    own_etcd.kill()
    wait_until(lambda: replica.metric("grpc_etcd_operator_registry_up", registry="default") == 0, "the metric says so")
    scene.kubelet.unready(pod)
    other = scene.pod()
    own_etcd.restart()
    scene.registry.wait_addresses(other.address)
    wait_until(lambda: replica.get("/readyz")[0] == 200, "ready again")


def fill(scene: Scene, small: EtcdServer) -> None:
    """Write until etcd has no space left."""
    filler = 0
    while "NOSPACE" not in small.etcdctl("alarm", "list", check=False):
        with contextlib.suppress(NoSpace):
            scene.client.put(f"filler-{filler}".encode(), b"x" * 500_000)
        filler += 1


def test_an_etcd_without_space_is_reported_and_recovered_from(apiserver: ApiServer, make_scene: MakeScene) -> None:
    with EtcdServer.start(flags=["--quota-backend-bytes=6000000"]) as small:
        scene = make_scene(apiserver, small)
        scene.start(f"--lease-ttl={SHORT_TTL_SECONDS}").wait_leading()
        scene.apply()
        pod = scene.pod()
        scene.registry.wait_addresses(pod.address)
        fill(scene, small)
        late = scene.pod()
        scene.wait_condition("Programmed", "False", "RegistryUnavailable")
        over = time.monotonic() + 2 * SHORT_TTL_SECONDS
        wait_until(lambda: pod.address not in scene.registry.addresses() or time.monotonic() > over, "it would run out")
        assert scene.registry.addresses() == [pod.address]
        small.etcdctl("del", "--prefix", "filler-")
        small.etcdctl("compact", str(scene.registry.revision()))
        small.etcdctl("defrag")
        small.etcdctl("alarm", "disarm")
        scene.registry.wait_addresses(pod.address, late.address)


def test_who_turns_unready_is_deregistered_from_an_etcd_without_space(
    apiserver: ApiServer, make_scene: MakeScene
) -> None:
    with EtcdServer.start(flags=["--quota-backend-bytes=6000000"]) as small:
        scene = make_scene(apiserver, small)
        scene.start().wait_leading()
        pods = three_pods(scene)
        fill(scene, small)
        scene.pod()  # waits for space, beside those who need none
        scene.wait_condition("Programmed", "False", "RegistryUnavailable")
        scene.kubelet.unready(pods[0])
        scene.registry.wait_addresses(pods[1].address, pods[2].address)


def test_an_etcd_without_quorum_is_waited_for(
    apiserver: ApiServer, etcd_cluster: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(apiserver, etcd_cluster)
    scene.start("--leader-ttl=5").wait_leading()
    pods = three_pods(scene)
    for member in etcd_cluster.members[:2]:
        member.kill()
    scene.kubelet.unready(pods[0])
    scene.wait_condition("Programmed", "False", "RegistryUnavailable")
    for member in etcd_cluster.members[:2]:
        member.restart()
    scene.registry.wait_addresses(pods[1].address, pods[2].address)


def memory_mib(replica: Replica) -> float:
    lines = Path(f"/proc/{replica.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def test_no_memory_grows_while_etcd_is_away_and_all_converges_soon_after_its_return(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(apiserver, own_etcd)
    replica = scene.start().wait_leading()
    scene.apply()
    with ThreadPoolExecutor(16) as workers:
        pods = list(workers.map(lambda _: scene.pod(), range(60)))
        scene.registry.wait_addresses(*(pod.address for pod in pods))
        own_etcd.kill()
        wait_until(
            lambda: replica.metric("grpc_etcd_operator_registry_up", registry="default") == 0, "the metric says so"
        )
        flap(scene, workers, pods, rounds=5)  # what is used once is allocated once
        before = memory_mib(replica)
        flap(scene, workers, pods, rounds=20)
        assert replica.metric("grpc_etcd_operator_workqueue_depth", registry="default") <= len(pods) + 1
        # 2,400 changes of Pods of 3 kB; what is not collected yet comes to less than that, what piles up to more.
        assert memory_mib(replica) - before < 6
        list(workers.map(scene.kubelet.unready, pods[:20]))
    own_etcd.restart()
    began = time.monotonic()
    with Etcd(own_etcd.endpoints) as client:  # the scene's own may not have noticed yet that etcd is back
        RegistryView(client).wait_addresses(*(pod.address for pod in pods[20:]))
    assert time.monotonic() - began < 30  # on a busy machine; on a quiet one it is a second or two


def flap(scene: Scene, workers: ThreadPoolExecutor, pods: list[Pod], rounds: int) -> None:
    """Turn all Pods not ready and ready again, and wait until the operator has seen the last of it."""
    for _ in range(rounds):
        list(workers.map(scene.kubelet.unready, pods))
        list(workers.map(scene.kubelet.ready, pods))


@with_both
def test_a_frozen_api_server_makes_nobody_deregister_anything(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(own_apiserver, etcd)
    replica = scene.start().wait_leading()
    pods = three_pods(scene)
    before = revisions(scene)
    own_apiserver.pause()
    wait_until(lambda: not scene.has_mark(), "readers are notified that nobody watches", 150)
    assert revisions(scene) == before
    assert replica.get("/healthz")[0] == 200, "it tries again and again, so it is not deaf"
    own_apiserver.resume()
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(pods[1].address, pods[2].address)
    wait_until(scene.has_mark, "synced again")


def test_a_learner_in_the_place_of_a_lost_member_is_passed_over(
    apiserver: ApiServer, etcd_cluster: EtcdServer, make_scene: MakeScene
) -> None:
    """The address that is asked first belongs to a member that serves no clients until it is promoted."""
    scene = make_scene(apiserver, etcd_cluster)
    replica = scene.start("--leader-ttl=5").wait_leading()
    pods = three_pods(scene)
    before = revisions(scene)
    etcd_cluster.replace(etcd_cluster.members[0])
    replica.process.stop()
    scene.start("--leader-ttl=5").wait_leading()
    assert revisions(scene) == before
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(pods[1].address, pods[2].address)
    scene.wait_condition("Programmed", "True", "Programmed")

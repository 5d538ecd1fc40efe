"""Who leads without seeing Kubernetes keeps what is there: what it remembers may be of long ago."""

import json
from pathlib import Path

import pytest

from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubernetes_api import make_kubeconfig
from testbed.proxy import TcpProxy
from tests.e2e.conftest import MakeScene, Scene
from tests.e2e.pod_watches import with_one

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


@pytest.fixture
def scene(own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene) -> Scene:
    """A scene on an API server of the test's own."""
    return make_scene(own_apiserver, etcd)


def make_kubeconfig_of(scene: Scene, proxy: TcpProxy) -> Path:
    kubeconfig = scene.folder / "proxy.kubeconfig"
    settings = make_kubeconfig(f"https://{proxy.address}", str(scene.api.authority.ca), scene.api.token)
    kubeconfig.write_text(json.dumps(settings))
    return kubeconfig


@with_one()
def test_who_takes_over_blind_takes_no_key_of_a_pod_that_is_ready(scene: Scene) -> None:
    leader = scene.start("--leader-ttl=3").wait_leading()
    scene.apply()
    pods = [scene.pod(ready=False) for _ in range(5)]
    stays = scene.pod()
    scene.registry.wait_addresses(stays.address)
    with TcpProxy.start(scene.api.url.removeprefix("https://")) as proxy:
        blind = scene.start("--leader-ttl=3", kubeconfig=make_kubeconfig_of(scene, proxy))
        wait_until(lambda: len(blind.lines("listed")) == 2, "it has listed all")
        proxy.refuse()
        wait_until(lambda: blind.metric("grpc_etcd_operator_kubernetes_unavailable_seconds") > 11, "it is blind")
        for pod in pods:
            scene.kubelet.ready(pod)
        addresses = [stays.address, *(pod.address for pod in pods)]
        scene.registry.wait_addresses(*addresses)
        before = {each.key: each.create_revision for each in scene.client.get_prefix(b"/jupiter/greeter/").records}
        leader.process.kill()
        wait_until(lambda: blind.metric("grpc_etcd_operator_leader", registry="default") == 1, "it leads")
        leases = "grpc_etcd_operator_leases"
        wait_until(lambda: blind.metric(leases, registry="default") >= len(addresses), "it keeps their leases alive")
        proxy.heal()
        wait_until(lambda: blind.get("/readyz")[0] == 200, "it sees again")
        wait_until(scene.has_mark, "synced again")
        after = {each.key: each.create_revision for each in scene.client.get_prefix(b"/jupiter/greeter/").records}
    assert {key: after.get(key) for key in before} == before

"""`grpc-etcd-operator verify`, which `helm test` runs: it passes where an operator works, and names what is missing."""

import json
from pathlib import Path

import pytest

from grpc_etcd.registry.own import leader_key, synced_key
from grpc_etcd_operator.controller.verify import wait_synced
from grpc_etcd_operator.settings import RegistrySettings, Settings, UnusableError
from testbed.etcd import EtcdServer
from tests.e2e.conftest import Scene
from tests.e2e.test_commands import run

NOWHERE = "127.0.0.1:9"


def settings(*endpoints: str, cluster: str) -> Settings:
    registries = (RegistrySettings(name=f"r{number}", endpoints=(each,)) for number, each in enumerate(endpoints))
    return Settings(registries=tuple(registries), cluster_id=cluster)


def test_it_passes_once_the_operator_is_synced_and_writes_nothing(scene: Scene, tmp_path: Path) -> None:
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({"registries": {"default": {"endpoints": [scene.etcd.endpoints]}}}))
    flags = [f"--cluster-id={scene.cluster}", f"--namespace={scene.namespace}", f"--config={config}"]
    scene.start().wait_leading()
    before = scene.registry.count_changes()
    answer = run("verify", *flags, kubeconfig=scene.api.kubeconfig)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert scene.registry.count_changes() == before


async def test_each_registry_that_lacks_something_is_named_with_a_remedy(etcd: EtcdServer) -> None:
    with pytest.raises(UnusableError) as error:
        await wait_synced(settings(etcd.endpoints, NOWHERE, cluster="nobody"), 0)
    first, second = str(error.value).split("; registry ")
    assert f"registry r0 at {etcd.endpoints}: no replica leads for cluster id nobody" in first
    assert second.startswith(f"r1 at {NOWHERE}: ")
    assert "registries.r1.endpoints" in second


async def test_neither_another_installation_nor_a_copy_of_its_keys_counts(scene: Scene) -> None:
    scene.start().wait_leading()
    with pytest.raises(UnusableError, match="another installation is leader"):  # which watches one namespace
        await wait_synced(settings(scene.etcd.endpoints, cluster=scene.cluster), 0)
    copy = f"copy-of-{scene.cluster}"  # as `etcdctl make-mirror` makes it, without leases
    for make_key in (leader_key, synced_key):
        original = scene.client.get(make_key(scene.cluster))
        assert original
        scene.client.put(make_key(copy), original.value)
    with pytest.raises(UnusableError, match=f"no replica leads for cluster id {copy}"):
        await wait_synced(settings(scene.etcd.endpoints, cluster=copy), 0)


async def test_a_dry_run_is_refused() -> None:
    with pytest.raises(UnusableError, match="without --dry-run"):
        await wait_synced(Settings(registries=(), dry_run=True))

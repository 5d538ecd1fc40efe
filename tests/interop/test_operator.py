"""The operator itself, its Pods and the real clients of both Jupiters: all turn ready at once, then none is."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from testbed.conditions import wait_until
from testbed.interop_program import InteropProgram
from tests.e2e.conftest import Scene
from tests.interop.conftest import Backends

pytestmark = pytest.mark.interop


@pytest.mark.timeout(400)
@pytest.mark.parametrize("backends", [120], indirect=True)
def test_120_pods_turn_ready_at_once_and_unready_at_once(scene: Scene, backends: Backends, tmp_path: Path) -> None:
    scene.start().wait_leading()
    scene.apply(port="grpc", layouts=["jupiter", "jupiter-v2"])
    split = [address.rpartition(":") for address in backends.addresses]
    pods = [scene.pod(ip=host, ports={"grpc": int(port)}, ready=False) for host, _, port in split]
    etcd = f"--endpoints={scene.etcd.endpoints}"
    old, new = (InteropProgram(name, "call", tmp_path, etcd) for name in ("jupiter027", "jupiter011"))
    with old.start(), new.start(), ThreadPoolExecutor(16) as many:
        wait_until(lambda: old.events("called") and new.events("called"), "the first calls")
        list(many.map(scene.kubelet.ready, pods))
        for client in (old, new):
            wait_until(
                lambda client=client: client.answering() == set(backends.addresses), f"{client.name} to call all"
            )
        list(many.map(scene.kubelet.unready, pods))
        for client in (old, new):
            wait_until(client.has_only_failed, f"{client.name} to call none")

"""The operator's image, built from the Dockerfile and run as a strict Pod security context would run it."""

import logging
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import image
from testbed.apiserver import ApiServer
from testbed.build import ROOT
from testbed.conditions import free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.image import Container
from testbed.kubelet import Kubelet
from testbed.manifests import apply_crd, apply_manifest
from testbed.process import Process

log = logging.getLogger(__name__)
MEBIBYTE = 1 << 20
LARGEST_BYTES = 250 * MEBIBYTE
# Building the base and the image happens inside, once on a machine.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def built_image() -> str:
    if reason := image.why_impossible():
        pytest.skip(reason)
    return image.build()


@pytest.fixture
def operator(built_image: str, apiserver: ApiServer, etcd: EtcdServer, tmp_path: Path) -> Iterator[tuple[Process, int]]:
    """The operator's process in a container, not started yet, and its metrics port."""
    apply_crd(apiserver.client)
    kubeconfig = tmp_path / "kubeconfig"
    shutil.copy(apiserver.kubeconfig, kubeconfig)
    kubeconfig.chmod(0o644)  # the image's user is not ours
    metrics_port = free_port()
    arguments = ["run", f"--etcd-endpoints={etcd.endpoints}", f"--metrics-port={metrics_port}"]
    files = [kubeconfig, apiserver.authority.ca]
    container = Container.create(built_image, arguments, {"KUBECONFIG": str(kubeconfig)}, files, tmp_path / "bundle")
    yield container.process, metrics_port
    container.remove()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_image_is_small(built_image: str) -> None:
    added = image.size_bytes(built_image) - image.size_bytes(image.BASE)
    log.info("the image adds %.0f MiB to its base", added / MEBIBYTE)
    assert 0 < added <= LARGEST_BYTES


def test_image_registers_pods_without_any_privilege_and_ends_in_order(
    operator: tuple[Process, int], apiserver: ApiServer, etcd: EtcdServer, kubelet: Kubelet, namespace: str
) -> None:
    process, metrics_port = operator
    pod = kubelet.create_pod(namespace=namespace)
    apply_manifest(apiserver.client, ROOT / "examples/greeter/grpcservice.yaml", namespace)
    started = time.monotonic()
    process.start().wait_ready(lambda: is_ready(metrics_port))
    log.info("ready %.1f s after its start", time.monotonic() - started)
    wait_until(lambda: pod.address in etcd.etcdctl("get", "--prefix", "/jupiter/greeter/"), "the Pod's key is there")
    ending = time.monotonic()
    process.signal(signal.SIGTERM)
    assert process.wait(30) == 0
    log.info("ended %.1f s after SIGTERM", time.monotonic() - ending)
    assert pod.address in etcd.etcdctl("get", "--prefix", "/jupiter/greeter/"), "keys outlive the operator"

"""The operator's image, built from the Dockerfile and run as a strict Pod security context would run it."""

import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from testbed import image
from testbed.apiserver import ApiServer
from testbed.build import ROOT
from testbed.conditions import free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.image import Container
from testbed.kubelet import Kubelet
from testbed.manifests import apply_crd, apply_manifest
from testbed.process import Process

Say = Callable[[str], None]
MEBIBYTE = 1 << 20
LARGEST_BYTES = 250 * MEBIBYTE
LONGEST_END_SECONDS = 2.0
UNUSABLE = 2  # the exit code of `verify` where something is missing
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
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


def test_image_is_small(built_image: str, say: Say) -> None:
    added = image.size_bytes(built_image) - image.size_bytes(image.BASE)
    say(f"the image adds {added / MEBIBYTE:.0f} MiB to its base")
    assert 0 < added <= LARGEST_BYTES


def test_image_registers_pods_without_any_privilege_and_ends_in_order(  # noqa: PLR0917  fixtures
    operator: tuple[Process, int], apiserver: ApiServer, etcd: EtcdServer, kubelet: Kubelet, namespace: str, say: Say
) -> None:
    process, metrics_port = operator
    pod = kubelet.create_pod(namespace=namespace)
    apply_manifest(apiserver.client, ROOT / "examples/greeter/grpcservice.yaml", namespace)
    started = time.monotonic()
    process.start().wait_ready(lambda: is_ready(metrics_port))
    say(f"the operator is ready {time.monotonic() - started:.1f} s after its container's start")
    wait_until(lambda: pod.address in etcd.etcdctl("get", "--prefix", "/jupiter/greeter/"), "the Pod's key is there")
    ending = time.monotonic()
    process.signal(signal.SIGTERM)
    assert process.wait(30) == 0
    ended_seconds = time.monotonic() - ending
    say(f"the operator ends {ended_seconds:.1f} s after SIGTERM")
    assert ended_seconds <= LONGEST_END_SECONDS
    assert pod.address in etcd.etcdctl("get", "--prefix", "/jupiter/greeter/"), "keys outlive the operator"


def test_image_runs_as_any_user(built_image: str, etcd: EtcdServer, tmp_path: Path) -> None:
    """As OpenShift runs it: with a user that no file knows, and group 0."""
    arguments = ["verify", "--cluster-id=nobody", f"--etcd-endpoints={etcd.endpoints}"]
    container = Container.create(built_image, arguments, {}, [], tmp_path / "bundle", user=(1000650000, 0))
    try:
        container.process.start()
        assert container.process.wait(120) == UNUSABLE
        assert "no replica leads for cluster id nobody" in container.process.log.read_text()
    finally:
        container.remove()


def test_nothing_of_the_build_is_left_in_the_image(built_image: str) -> None:
    with image.mounted(built_image) as root:
        assert not list(root.glob("opt/grpc-etcd/bin/pip*"))
        assert not [path for name in ("src", "wheels", "build", "root/.cache") if (path := root / name).exists()]
        assert not [path for path in root.glob("etc/pip.conf") if path.stat().st_size]
    labels = image.configuration(built_image)["Labels"]
    assert isinstance(labels, dict)
    assert labels["org.opencontainers.image.title"] == "grpc-etcd operator"
    assert labels["org.opencontainers.image.version"] == version("grpc-etcd")


def test_the_examples_image_serves_and_ends_in_order(built_image: str, tmp_path: Path) -> None:
    assert built_image
    address = f"127.0.0.1:{free_port()}"
    container = Container.create(image.build_example(), [], {"LISTEN": address}, [], tmp_path / "bundle")
    try:
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            container.process.start()
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=60, wait_for_ready=True)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        container.process.signal(signal.SIGTERM)
        assert container.process.wait(30) == 0
    finally:
        container.remove()

"""What the end-to-end tests share: the operator as a process of its own, and views of a registry and of Kubernetes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from grpc_etcd.etcd import Etcd
from grpc_etcd_operator.core.leases import lease_id
from testbed.apiserver import ApiServer
from testbed.etcd import EtcdServer
from testbed.replica import RegistryView, Replica

CRD = Path(__file__).resolve().parents[2] / "crds" / "grpcservices.yaml"


@pytest.fixture(scope="session", autouse=True)
def crd(apiserver: ApiServer) -> None:
    """Install the CRD on the shared API server."""
    install_crd(apiserver)


def install_crd(api: ApiServer) -> None:
    api.kubectl("apply", "-f", str(CRD))
    api.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/grpcservices.grpc-etcd.dev")


@pytest.fixture
def registry(etcd: EtcdServer) -> Iterator[RegistryView]:
    with Etcd(etcd.endpoints) as client:
        yield RegistryView(client)


Starter = Callable[..., Replica]


@pytest.fixture
def make_operator(tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    """Make replicas that end with the test."""
    with ExitStack() as stack:

        def make(kubeconfig: Path, etcd: str, *flags: str) -> Replica:
            operator = Replica(tmp_path, kubeconfig, etcd, flags)
            stack.callback(operator.process.stop, 5)
            return operator

        yield make


@pytest.fixture
def start_operator(
    make_operator: Callable[..., Replica], apiserver: ApiServer, etcd: EtcdServer, namespace: str
) -> Starter:
    """Start a replica for this test's namespace on the shared API server and etcd."""

    def start(*flags: str) -> Replica:
        mine = [f"--namespace={namespace}", f"--cluster-id=test-{namespace}", *flags]
        return make_operator(apiserver.kubeconfig, etcd.endpoints, *mine).start()

    return start


@pytest.fixture
def apply_service(apiserver: ApiServer, namespace: str) -> Callable[..., dict[str, Any]]:
    """Create or change a GrpcService of this test's namespace."""

    def apply(name: str = "greeter", where: str = "", **spec: Any) -> dict[str, Any]:
        spec.setdefault("selector", {"matchLabels": {"app": "greeter"}})
        item = {
            "apiVersion": "grpc-etcd.dev/v1alpha1",
            "kind": "GrpcService",
            "metadata": {"name": name, "namespace": where or namespace},
            "spec": spec,
        }
        return apiserver.client.apply(item)

    return apply


@pytest.fixture
def status_of(apiserver: ApiServer, namespace: str) -> Callable[..., dict[str, Any]]:
    """Read a GrpcService's status."""

    def read(name: str = "greeter") -> dict[str, Any]:
        return dict(apiserver.client.get("grpc-etcd.dev/v1alpha1", "GrpcService", name, namespace).get("status") or {})

    return read


@pytest.fixture
def condition_of(status_of: Callable[..., dict[str, Any]]) -> Callable[..., tuple[str, str]]:
    """Read status and reason of a GrpcService's condition."""

    def read(kind: str, name: str = "greeter") -> tuple[str, str]:
        found = [each for each in status_of(name).get("conditions", []) if each["type"] == kind]
        return (found[0]["status"], found[0]["reason"]) if found else ("", "")

    return read


def lease_of(namespace: str, uid: str) -> int:
    """Give the lease id that the operator of this test gives a Pod."""
    return lease_id(f"test-{namespace}", uid)


@pytest.fixture
def lease(namespace: str) -> Callable[[str], int]:
    return lambda uid: lease_of(namespace, uid)

"""What the end-to-end tests share: a scene with a namespace, a kubelet, an empty registry and replicas."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from grpc_etcd.etcd import Etcd
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.settings import KOPF
from testbed.apiserver import ApiServer
from testbed.conditions import PATIENCE_SECONDS, wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import Kubelet, Pod
from testbed.manifests import wait_established
from testbed.replica import PROGRAM, RegistryView, Replica

CRD = Path(__file__).resolve().parents[2] / "crds" / "grpcservices.yaml"
API_VERSION = "grpc-etcd.dev/v1alpha1"
Object = dict[str, Any]
NEW: Object = {"observedGeneration": -1}  # the status of a GrpcService that no operator has looked at


class Scene:
    """One namespace of one API server, one registry, and the replicas that the test starts. Ends all it started."""

    def __init__(  # noqa: PLR0917  all that a scene is set with
        self,
        api: ApiServer,
        etcd: EtcdServer,
        kubelet: Kubelet,
        namespace: str,
        folder: Path,
        pod_watch: str = KOPF,
    ) -> None:
        self.api, self.etcd, self.kubelet, self.namespace, self.folder = api, etcd, kubelet, namespace, folder
        self.pod_watch = pod_watch
        self.cluster = f"test-{namespace}"
        self._stack = ExitStack()
        self.client = self._stack.enter_context(Etcd(etcd.endpoints, timeout_seconds=PATIENCE_SECONDS))
        self.registry = RegistryView(self.client)

    def close(self) -> None:
        self._stack.close()

    def make(
        self, *flags: str, etcd: str = "", kubeconfig: Path | None = None, program: Sequence[str | Path] = PROGRAM
    ) -> Replica:
        """Make a replica that serves this namespace only; the test starts it."""
        mine = (
            f"--namespace={self.namespace}",
            f"--cluster-id={self.cluster}",
            f"--pod-watch={self.pod_watch}",
            *flags,
        )
        where = kubeconfig or self.api.kubeconfig, etcd or self.etcd.endpoints
        replica = Replica(self.folder, *where, mine, program)
        self._stack.callback(replica.process.kill)
        return replica

    def start(self, *flags: str, **where: Any) -> Replica:
        """Start a replica."""
        return self.make(*flags, **where).start()

    def apply(self, name: str = "greeter", namespace: str = "", /, **spec: Any) -> Object:
        """Create or change a GrpcService."""
        if "serviceRef" not in spec:
            spec.setdefault("selector", {"matchLabels": {"app": "greeter"}})
        metadata = {"name": name, "namespace": namespace or self.namespace}
        return self.api.client.apply(
            {"apiVersion": API_VERSION, "kind": "GrpcService", "metadata": metadata, "spec": spec}
        )

    def delete(self, name: str = "greeter", namespace: str = "") -> None:
        """Delete a GrpcService."""
        metadata = {"name": name, "namespace": namespace or self.namespace}
        self.api.client.delete({"apiVersion": API_VERSION, "kind": "GrpcService", "metadata": metadata})

    def pod(self, name: str = "", **more: Any) -> Pod:
        """Make a Pod of this namespace, ready unless told otherwise; nothing listens there."""
        return self.kubelet.create_pod(name, more.pop("namespace", self.namespace), serve=False, **more)

    def let_vanish(self, pods: Sequence[Pod]) -> None:
        """Remove Pods while the API server is away, which then cannot go on with anybody's watch (410 Gone)."""
        self.api.kill()
        with Etcd(self.api.etcd.endpoints) as stored:
            for pod in pods:
                assert stored.delete(f"/registry/pods/{self.namespace}/{pod.name}".encode())
        self.api.restart()

    def outrun_backup(self) -> None:
        """Let the API server's versions run ahead of a backup by more than its next start writes, as a day would."""
        self._write_beyond(self._newest_version() + 500)

    def restore(self, backup: Path, *replicas: Replica, overtakes: bool) -> None:
        """Put a backup in place of what the API server has; what replicas have seen must have outrun it.

        Its versions went back then. Or it has written so much, before `replicas` look at it again, that they have
        overtaken the old ones and nobody can tell by them.
        """
        newest = self._newest_version()
        for replica in replicas if overtakes else ():
            replica.process.pause()
        self.api.kill()
        self.api.etcd.load(backup)
        self.api.restart()
        if overtakes:
            for api_version, kind in (("v1", "Pod"), (API_VERSION, "GrpcService")):  # from here on it knows each change
                self.api.client.list(api_version, kind, self.namespace, resourceVersion="0")
            self._write_beyond(newest)
            for replica in replicas:
                replica.process.resume()

    def _newest_version(self) -> int:
        return int(self.api.client.list("v1", "ConfigMap", self.namespace)["metadata"]["resourceVersion"])

    def _write_beyond(self, version: int) -> None:
        item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "busy", "namespace": self.namespace}}
        written = self.api.client.apply(item)
        while int(written["metadata"]["resourceVersion"]) <= version:
            turn = f"after {written['metadata']['resourceVersion']}"
            written = self.api.client.patch(item, {"data": {"turn": turn}})

    def status(self, name: str = "greeter", namespace: str = "") -> Object:
        """Read a GrpcService's status."""
        found = self.api.client.get(API_VERSION, "GrpcService", name, namespace or self.namespace)
        return dict(found.get("status") or {})

    def condition(self, kind: str, name: str = "greeter", namespace: str = "") -> tuple[str, str]:
        """Read status and reason of a condition."""
        conditions = self.status(name, namespace).get("conditions", [])
        return next(((each["status"], each["reason"]) for each in conditions if each["type"] == kind), ("", ""))

    def wait_condition(self, kind: str, status: str, reason: str, name: str = "greeter", namespace: str = "") -> None:
        """Wait for a condition's status and reason."""
        wait_until(lambda: self.condition(kind, name, namespace) == (status, reason), f"{kind}={status}, {reason}")

    def lease(self, uid: str) -> int:
        """Give the lease id of a Pod."""
        return lease_id(self.cluster, uid)

    def has_mark(self) -> bool:
        """Say whether the synced key stands."""
        return self.client.get(f"/grpc-etcd/synced/{self.cluster}".encode()) is not None

    def events(self) -> list[Object]:
        """Read the namespace's Events."""
        return list(self.api.client.list("v1", "Event", self.namespace)["items"])


MakeScene = Callable[[ApiServer, EtcdServer], Scene]


def install_crd(api: ApiServer) -> None:
    """Install the CRD and wait until it is served."""
    api.kubectl("apply", "-f", str(CRD))
    wait_established(api.client)


@pytest.fixture(scope="session")
def _crd(apiserver: ApiServer) -> None:
    install_crd(apiserver)


@pytest.fixture(scope="module")
def audited() -> Iterator[ApiServer]:
    """An API server that keeps an audit log, for the tests of one module; its objects stay between them."""
    with ApiServer.start(audit=True) as server:
        yield server


@pytest.fixture
def pod_watch(request: pytest.FixtureRequest) -> str:
    """Who delivers Pods to the replicas; see pod_watches.py."""
    return str(getattr(request, "param", os.environ.get("POD_WATCH", KOPF)))


@pytest.fixture
def scene(  # noqa: PLR0917  all that a scene is set with
    apiserver: ApiServer,
    etcd: EtcdServer,
    kubelet: Kubelet,
    namespace: str,
    tmp_path: Path,
    _crd: None,
    pod_watch: str,
) -> Iterator[Scene]:
    """A scene on the shared API server and etcd."""
    made = Scene(apiserver, etcd, kubelet, namespace, tmp_path, pod_watch)
    yield made
    made.close()


@pytest.fixture
def make_scene(tmp_path: Path, pod_watch: str) -> Iterator[MakeScene]:
    """Make a scene on servers of the test's own."""
    with ExitStack() as stack:

        def make(api: ApiServer, etcd: EtcdServer) -> Scene:
            install_crd(api)
            metadata = {"name": f"{tmp_path.name.replace('_', '-')[:40]}-own"}
            api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
            kubelet = stack.enter_context(Kubelet(api))
            scene = Scene(api, etcd, kubelet, metadata["name"], tmp_path, pod_watch)
            stack.callback(scene.close)
            return scene

        yield make

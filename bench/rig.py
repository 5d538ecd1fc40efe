"""The ground that all contestants stand on: an API server whose Pods change, many at once or one after the other.

A storm is made as the facts would come in a large cluster, faster than one API server takes requests: the stored bytes
of Pods are put straight into its etcd, one revision each, and it tells its watchers. The bytes are those that it wrote
itself for one Pod; what differs from Pod to Pod has the same length in all.
"""

import asyncio
import shutil
import sys
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from grpc_etcd.etcd import Etcd
from grpc_etcd.etcd import aio as etcd_aio
from testbed import image
from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.kubelet import Kubelet, condition, now
from testbed.kubernetes_api import STRATEGIC, Object

CRD = Path(__file__).resolve().parents[1] / "crds" / "grpcservices.yaml"
NAMESPACE = "default"
SERVICES = 50
PORT = 9000
POD_BYTES = 5_000
AT_ONCE = 128
TEMPLATE_NAME, TEMPLATE_APP, TEMPLATE_IP = "pod-00000", "app-00", "10.100.100.100"


@dataclass(slots=True)
class BenchPod:
    """One Pod: its number decides its name, address and service; its UID changes when it is recreated."""

    number: int
    uid: str

    @property
    def name(self) -> str:
        """Its name."""
        return f"pod-{self.number:05d}"

    @property
    def ip(self) -> str:
        """Its address; each part has three digits."""
        return f"10.{100 + self.number // 10_000}.{100 + self.number // 100 % 100}.{100 + self.number % 100}"

    @property
    def key(self) -> bytes:
        """Where the API server stores it."""
        return f"/registry/pods/{NAMESPACE}/{self.name}".encode()

    @property
    def item(self) -> Object:
        """Enough of it to name it in a request."""
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name, "namespace": NAMESPACE}}


def status(ip: str, *, ready: bool) -> Object:
    """A Pod's status as its kubelet patches it."""
    conditions = [
        condition(kind, value=value)
        for kind, value in {
            "PodReadyToStartContainers": True,
            "Initialized": True,
            "Ready": ready,
            "ContainersReady": ready,
            "PodScheduled": True,
        }.items()
    ]
    container = {"name": "server", "image": "server:1", "imageID": "", "restartCount": 0, "ready": ready}
    state = {"state": {"running": {"startedAt": now()}}}
    return {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "hostIP": "10.0.0.1",
        "conditions": conditions,
        "containerStatuses": [container | state],
    }


class Rig:
    """An API server with a Node and as many Pods as a scenario wants."""

    def __init__(self) -> None:
        with ExitStack() as stack:  # what has been started ends again when the rest does not start
            self.image_root = self._unpack_image(stack)
            self.api = stack.enter_context(ApiServer.start())
            if self.image_root:
                self._lend(self.image_root, self.api.kubeconfig)
                self._lend(self.image_root, self.api.authority.ca)
            self.stored = stack.enter_context(Etcd(self.api.etcd.endpoints))
            self.api.kubectl("apply", "-f", str(CRD))
            self.api.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/grpcservices.grpc-etcd.dev")
            with Kubelet(self.api) as kubelet:
                kubelet.create_node("node-1", zone="zone-1", region="region-1")
            self._template_uid, self._templates = self._make_templates()
            self._stack = stack.pop_all()
        self.pods: list[BenchPod] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _unpack_image(self, stack: ExitStack) -> Path | None:
        """Unpack the operator's image, whose Python and byte code are what a cluster runs."""
        if reason := image.why_impossible():
            print(f"the operator runs on this program's Python, not in its image: {reason}", file=sys.stderr)
            return None
        return stack.enter_context(image.mounted(image.build()))

    def _lend(self, root: Path, file: Path) -> None:
        """Show a file at the same path under another root."""
        there = root / file.relative_to("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, there)

    def _make_templates(self) -> tuple[str, dict[bool, bytes]]:
        """Let the API server make one Pod of 5 kB, with managedFields, and keep its bytes in both states."""
        port = {"name": "grpc", "containerPort": PORT}
        labels = {"app": TEMPLATE_APP, "fleet": "everything", "pod-template-hash": "5d4f8c7b9d"}
        pod: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": TEMPLATE_NAME,
                "namespace": NAMESPACE,
                "labels": labels,
                "annotations": {"example.com/padding": "x" * (POD_BYTES // 2)},
            },
            "spec": {"nodeName": "node-1", "containers": [{"name": "server", "image": "server:1", "ports": [port]}]},
        }
        made = self.api.client.create(pod)
        templates = {}
        for ready in (False, True):
            self.api.client.patch(pod, {"status": status(TEMPLATE_IP, ready=ready)}, "status", STRATEGIC)
            record = self.stored.get(BenchPod(0, "").key)
            assert record is not None
            templates[ready] = record.value
        self.api.client.delete(pod, grace_seconds=0)
        return str(made["metadata"]["uid"]), templates

    @property
    def pod_bytes(self) -> int:
        """How large a stored Pod is."""
        return len(self._templates[True])

    def _bytes(self, pod: BenchPod, *, ready: bool) -> bytes:
        changes = {
            TEMPLATE_NAME: pod.name,
            self._template_uid: pod.uid,
            TEMPLATE_APP: f"app-{pod.number % SERVICES:02d}",
            TEMPLATE_IP: pod.ip,
        }
        value = self._templates[ready]
        for old, new in changes.items():
            value = value.replace(old.encode(), new.encode())
        return value

    def fill(self, count: int, *, ready: bool) -> None:
        """Have exactly so many Pods, all in one state, all new."""
        self.stored.delete_prefix(b"/registry/pods/")
        self.pods = [BenchPod(number, str(uuid.uuid4())) for number in range(1, count + 1)]
        self.turn(self.pods, ready=ready)
        wait_until(lambda: self._seen() == count, "the API server's watch cache is up to date")

    def _seen(self) -> int:
        head = self.api.client.list("v1", "Pod", limit="1", resourceVersion="")
        return len(head["items"]) + int(head["metadata"].get("remainingItemCount", 0))

    def turn(self, pods: Sequence[BenchPod], *, ready: bool) -> None:
        """Turn Pods ready or not, all at once."""
        asyncio.run(self._put(pods, ready=ready))

    async def _put(self, pods: Sequence[BenchPod], *, ready: bool) -> None:
        waiting = iter([(pod.key, self._bytes(pod, ready=ready)) for pod in pods])
        async with etcd_aio.Etcd(self.api.etcd.endpoints) as etcd:

            async def put_some() -> None:
                for key, value in waiting:
                    await etcd.put(key, value)

            await asyncio.gather(*(put_some() for _ in range(AT_ONCE)))

    def patch(self, pod: BenchPod, *, ready: bool) -> None:
        """Turn one Pod ready or not, as its kubelet would."""
        self.api.client.patch(pod.item, {"status": status(pod.ip, ready=ready)}, "status", STRATEGIC)

    def terminate(self, pod: BenchPod) -> None:
        """Delete a Pod; it stays, terminating, until replace() or remove()."""
        self.api.client.delete(pod.item, 30)

    def remove(self, pod: BenchPod) -> None:
        """Remove a Pod for good."""
        self.stored.delete(pod.key)

    def replace(self, pod: BenchPod) -> None:
        """Remove a Pod and make a new ready one with its name and address."""
        self.remove(pod)
        pod.uid = str(uuid.uuid4())
        self.stored.put(pod.key, self._bytes(pod, ready=True))

"""Plays the Nodes' part for tests: makes Pods with real gRPC servers behind their addresses, lets them live and die.

A Pod gets a loopback address of its own; a greeter listens there. The test says when its containers become ready;
what a kubelet does by itself happens by itself: Ready follows readiness gates, and a Pod that someone deletes runs its
preStop sleep, drains, reports its end and is removed. With `hold=True` a Pod stays terminating until finish().
"""

import itertools
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import urllib3

from testbed.greeter import GreeterProcess, GreeterServer
from testbed.kubernetes_api import STRATEGIC, ApiError, KubernetesApi, Object, WatchStream

DEFAULT_NODE = "node-1"
GRPC_PORT = 50051
# A watch ends by itself after this long and is followed by a list, which finds what was missed.
WATCH_SECONDS = 5
RETRY_SECONDS = 0.1


class Cluster(Protocol):
    """An API server with an admin's rights, and a folder for logs; an ApiServer is one."""

    @property
    def client(self) -> KubernetesApi:
        """Its client."""

    @property
    def folder(self) -> Path:
        """Where logs go."""


class Server(Protocol):
    """What listens on a Pod's address."""

    def stop(self, grace_seconds: float) -> None:
        """End it in order."""


@dataclass(eq=False)
class Pod:
    """One Pod as its kubelet knows it; `address` is where its server listens."""

    item: Object
    ip: str
    port: int
    gates: tuple[str, ...]
    hold: bool
    containers_ready: bool = False
    server: Server | None = None
    finishing: bool = False
    is_cut_off: bool = False
    gate_states: dict[str, bool] = field(default_factory=dict)
    # Held while its status is made and written, so that an older one never comes after a newer.
    reporting: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """The Pod's name."""
        return str(self.item["metadata"]["name"])

    @property
    def uid(self) -> str:
        """The Pod's UID."""
        return str(self.item["metadata"]["uid"])

    @property
    def address(self) -> str:
        """Host and port of its server."""
        return f"{self.ip}:{self.port}"

    @property
    def is_ready(self) -> bool:
        """What the condition Ready should say: containers are ready and every readiness gate is true."""
        return self.containers_ready and all(self.gate_states.get(gate) for gate in self.gates)

    @property
    def pre_stop_seconds(self) -> float:
        """How long its container waits after deletion before it is asked to end."""
        hook = self.item["spec"]["containers"][0].get("lifecycle", {}).get("preStop", {})
        return float(hook.get("sleep", {}).get("seconds", 0))


def now() -> str:
    """The time as a kubelet writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def random_loopback_ip() -> str:
    """An address of 127.0.0.0/8 that no other Pod is likely to have, in this test run or one beside it."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"  # noqa: S311 (no secret)


def pod_manifest(
    name: str,
    namespace: str,
    *,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    node: str,
    ports: Mapping[str, int],
    gates: Sequence[str],
    pre_stop_seconds: int,
    probed_port: int = 0,
) -> Object:
    """The Pod as a Deployment would make it, bound to a Node already."""
    container: Object = {
        "name": "greeter",
        "image": "greeter:test",
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
    }
    if probed_port:
        container["readinessProbe"] = {"grpc": {"port": probed_port}}
    if pre_stop_seconds:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": pre_stop_seconds}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels), "annotations": dict(annotations)},
        "spec": {
            "nodeName": node,
            "containers": [container],
            "readinessGates": [{"conditionType": gate} for gate in gates],
        },
    }


def condition(kind: str, *, value: bool) -> Object:
    """One Pod condition that changed just now."""
    return {"type": kind, "status": str(value), "lastTransitionTime": now()}


class Kubelet:
    """Every Node of one API server, as far as a test made them."""

    def __init__(self, api: Cluster, *, heartbeat: bool = False) -> None:
        self._heartbeat = heartbeat  # a cluster with controllers takes a Node without one for dead
        self._api = api.client
        self._folder = api.folder
        self._nodes: set[str] = set()
        self._pods: dict[str, Pod] = {}
        self._numbers = itertools.count()
        self._closing = threading.Event()
        self._stream: WatchStream | None = None
        self._workers = ThreadPoolExecutor(32, thread_name_prefix="kubelet")
        self._watcher = threading.Thread(target=self._watch_for_ever, name="kubelet watch", daemon=True)
        self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_node(self, name: str, *, zone: str = "", region: str = "") -> None:
        """Make a Node; the API server copies its zone and region to the labels of Pods that are bound to it."""
        topology = {"topology.kubernetes.io/zone": zone, "topology.kubernetes.io/region": region}
        labels = {"kubernetes.io/hostname": name, **{key: value for key, value in topology.items() if value}}
        self._api.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
        self._beat(name)
        self._nodes.add(name)

    def _beat(self, name: str) -> None:
        """Report a Node as alive."""
        ready = {**condition("Ready", value=True), "lastHeartbeatTime": now()}
        node: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        self._api.patch(node, {"status": {"conditions": [ready]}}, "status", STRATEGIC)

    def create_pod(
        self,
        name: str = "",
        namespace: str = "default",
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        node: str = DEFAULT_NODE,
        ports: Mapping[str, int] | None = None,
        ip: str = "",
        ready: bool = True,
        gates: Sequence[str] = (),
        serve: bool = True,
        isolated: bool = False,
        hold: bool = False,
        pre_stop_seconds: int = 0,
        probed_port: int = 0,
    ) -> Pod:
        """Make a Pod that runs, ready unless told otherwise, with a greeter on its first port unless serve is False.

        `isolated` gives its server a process of its own, so that it can be killed and frozen. `probed_port` is that of
        its gRPC probe; without `ports` it then declares none.
        """
        if node not in self._nodes:
            self.create_node(node)
        ports = ports or ({} if probed_port else {"grpc": GRPC_PORT})
        manifest = pod_manifest(
            name or f"pod-{next(self._numbers)}",
            namespace,
            labels=labels if labels is not None else {"app": "greeter"},
            annotations=annotations or {},
            node=node,
            ports=ports,
            gates=gates,
            pre_stop_seconds=pre_stop_seconds,
            probed_port=probed_port,
        )
        item = self._api.create(manifest)
        pod = Pod(item, ip or random_loopback_ip(), next(iter(ports.values()), probed_port), tuple(gates), hold)
        self._pods[pod.uid] = pod
        if serve:
            self.serve(pod, isolated=isolated)
        pod.containers_ready = ready
        self._report(pod)
        return pod

    def serve(self, pod: Pod, *, isolated: bool = False) -> None:
        """Start the Pod's server, at first or after crash()."""
        log = self._folder / f"{pod.name}.log"
        pod.server = GreeterProcess(pod.address, log) if isolated else GreeterServer(pod.address)

    def ready(self, pod: Pod) -> None:
        """Let the readiness probe succeed."""
        pod.containers_ready = True
        self._report(pod)

    def unready(self, pod: Pod) -> None:
        """Let the readiness probe fail; the Pod's server goes on."""
        pod.containers_ready = False
        self._report(pod)

    def die(self, pod: Pod) -> None:
        """Let the Pod's node die: the node lifecycle controller sets the condition Ready, and nothing else changes."""
        with pod.reporting:
            pod.is_cut_off = True
            self._patch_status(pod, {"conditions": [condition("Ready", value=False)]})

    def set_phase(self, pod: Pod, phase: str) -> None:
        """Report another phase, such as Failed after an eviction, and nothing else."""
        self._patch_status(pod, {"phase": phase})

    def crash(self, pod: Pod) -> None:
        """End the Pod's server without warning and report its container as not ready."""
        self._stop_server(pod, 0)
        self.unready(pod)

    def change_ip(self, pod: Pod, ip: str = "") -> None:
        """Give the Pod a new address, as after a restart of its sandbox; its server moves along."""
        self._stop_server(pod, 0)
        pod.ip = ip or random_loopback_ip()
        self.serve(pod)
        self._report(pod)

    def terminate(self, pod: Pod, grace_seconds: int = 30) -> None:
        """Delete the Pod as `kubectl delete` does; it is gone once it has drained, or after finish() if it holds."""
        self._api.delete(pod.item, grace_seconds)

    def finish(self, pod: Pod, grace_seconds: float = 0.0) -> None:
        """Stop the Pod's server, report the end of its container, and remove the Pod from the API."""
        self._stop_server(pod, grace_seconds)
        pod.containers_ready = False
        self._report(pod, phase="Succeeded")
        self._api.delete(pod.item, 0)
        self._pods.pop(pod.uid, None)

    def close(self) -> None:
        """Stop every server and thread; the Pods' objects stay."""
        self._closing.set()
        if self._stream:
            self._stream.close()
        self._watcher.join()
        self._workers.shutdown()
        for pod in self._pods.values():
            self._stop_server(pod, 0)

    def _stop_server(self, pod: Pod, grace_seconds: float) -> None:
        server, pod.server = pod.server, None
        if server:
            server.stop(grace_seconds)

    def _report(self, pod: Pod, phase: str = "Running") -> None:
        """Patch the whole status; conditions of others, such as those behind gates, are left alone."""
        with pod.reporting:
            pod.is_cut_off = False
            self._write_status(pod, phase)

    def _follow_gates(self, pod: Pod) -> None:
        """Let Ready follow the readiness gates, as a kubelet that lives does for a Pod that has not ended."""
        with pod.reporting:
            if not (pod.finishing or pod.is_cut_off):
                self._write_status(pod, "Running")

    def _write_status(self, pod: Pod, phase: str) -> None:
        conditions = {
            "PodScheduled": True,
            "Initialized": True,
            "ContainersReady": pod.containers_ready,
            "Ready": pod.is_ready,
        }
        state = {"running": {"startedAt": now()}} if phase == "Running" else {"terminated": {"exitCode": 0}}
        container = {"name": "greeter", "image": "greeter:test", "imageID": "", "restartCount": 0, "state": state}
        self._patch_status(
            pod,
            {
                "phase": phase,
                "podIP": pod.ip,
                "podIPs": [{"ip": pod.ip}, {"$patch": "replace"}],  # else an old address would stay in the list
                "conditions": [condition(kind, value=value) for kind, value in conditions.items()],
                "containerStatuses": [{**container, "ready": pod.containers_ready}],
            },
        )

    def _patch_status(self, pod: Pod, status: Object) -> None:
        self._api.patch(pod.item, {"status": status}, "status", STRATEGIC)

    def _watch_for_ever(self) -> None:
        while not self._closing.is_set():
            try:
                self._watch_once()
            except (urllib3.exceptions.HTTPError, ApiError):
                self._closing.wait(RETRY_SECONDS)

    def _watch_once(self) -> None:
        for node in tuple(self._nodes) if self._heartbeat else ():
            self._beat(node)
        listing = self._api.list("v1", "Pod")
        for item in listing["items"]:
            self._see(item)
        version = listing["metadata"]["resourceVersion"]
        self._stream = self._api.watch("v1", "Pod", version, timeoutSeconds=str(WATCH_SECONDS))
        for event, item in self._stream:
            if self._closing.is_set():
                return
            if event in {"ADDED", "MODIFIED"}:
                self._see(item)
            elif event == "DELETED" and (gone := self._pods.pop(item["metadata"]["uid"], None)):
                self._workers.submit(self._stop_server, gone, 0)

    def _see(self, item: Object) -> None:
        """Do what a kubelet does by itself when a Pod of its changes."""
        pod = self._pods.get(item["metadata"]["uid"])
        if pod is None:
            return
        if "deletionTimestamp" in item["metadata"] and not pod.hold and not pod.finishing:
            pod.finishing = True
            self._workers.submit(self._end, pod, float(item["metadata"]["deletionGracePeriodSeconds"]))
        states = {entry["type"]: entry["status"] == "True" for entry in item["status"].get("conditions", [])}
        pod.gate_states = {gate: states.get(gate, False) for gate in pod.gates}
        if pod.gates and states.get("Ready", False) != pod.is_ready and not (pod.finishing or pod.is_cut_off):
            self._workers.submit(self._follow_gates, pod)

    def _end(self, pod: Pod, grace_seconds: float) -> None:
        self._closing.wait(min(pod.pre_stop_seconds, grace_seconds))
        try:
            self.finish(pod, max(grace_seconds - pod.pre_stop_seconds, 0))
        except (urllib3.exceptions.HTTPError, ApiError):
            pod.finishing = False  # the API server is away, or somebody was faster: the next list decides

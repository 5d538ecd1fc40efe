"""The players: replicas of the real operator on the models' transports, and a kubelet.

A replica is the operator's own composition root. Killed, it is cut off first, so that nothing it does at its end gets
out, and then all its tasks are cancelled, as if the process were gone.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
from kubernetes.client import Configuration

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd_operator import app
from grpc_etcd_operator.kube import connecting
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.kube.cluster import find_cluster
from grpc_etcd_operator.kube.connecting import Connection
from grpc_etcd_operator.kube.pacing import Refusals
from grpc_etcd_operator.settings import RegistrySettings, Settings
from testbed.models.api_server import PODS, ApiServerModel, Change, Object, timestamp
from testbed.models.etcd_channel import open_etcd
from testbed.models.etcd_server import EtcdModel
from testbed.models.http_channel import ModelConnector
from testbed.models.wires import Wire
from tests.e2e.model.oracle import SCOPE_LABEL
from tests.simulation.virtual_time import OWNER, tasks_of

END_SECONDS = 60.0  # within which all tasks of a replica that was ended must be over
NAMESPACE = "shop"
GATE = "grpc-etcd.dev/registered"


class ModelConnection(Connection):
    """The real connection, but for where its settings come from and for sockets."""

    def __init__(self, server: ApiServerModel, wire: Wire, token: str) -> None:
        configuration: Any = Configuration()
        configuration.host = "https://kubernetes"
        self._reach = server, wire
        self._configuration, self._server = configuration, configuration.host
        self._files = connecting._look_at_files(configuration)
        self._context: Any = True
        self._header = f"Bearer {token}"
        self._read_again_at = float("inf")
        self._must_load = False
        self._refusals = Refusals()
        self._laters = {}

    def _make_connector(self) -> aiohttp.BaseConnector:
        return ModelConnector(*self._reach)

    def authorities(self) -> frozenset[str]:
        """Tell of one CA."""
        return frozenset({"ca"})


class Replica:
    """One replica of the operator, in a Pod of its own."""

    def __init__(
        self,
        name: str,
        api: ApiServerModel,
        etcds: Mapping[str, EtcdModel],
        settings: Callable[[str], Settings],
    ) -> None:
        """Take the model of each registry by its name in the settings."""
        self.name, self._api, self._etcds, self._settings = name, api, etcds, settings
        self.operator: app.Operator | None = None
        self.failure: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self.kube_wire, self.etcd_wires = self._make_wires()

    def __repr__(self) -> str:
        return f"<Replica {self.name}>"

    @property
    def is_running(self) -> bool:
        """Say whether it runs."""
        return self._task is not None and not self._task.done()

    @property
    def readiness(self) -> str | None:
        """Give what /readyz says."""
        return self.operator.readiness_fault() if self.operator else "starting"

    @property
    def etcd_wire(self) -> Wire:
        """Give its way to the first registry."""
        return self.etcd_wires["default"]

    def heal_wires(self) -> None:
        """Let it reach everything again."""
        for wire in (self.kube_wire, *self.etcd_wires.values()):
            wire.heal()

    def _make_wires(self) -> tuple[Wire, dict[str, Wire]]:
        etcds = {name: Wire(etcd.wire, name=self.name) for name, etcd in self._etcds.items()}
        return Wire(self._api.wire, name=f"{self.name}-kube"), etcds

    def start(self) -> None:
        """Start its process."""
        self._stop = asyncio.Event()
        reset = OWNER.set(self.name)
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name)
        OWNER.reset(reset)

    async def end(self) -> None:
        """End it in order, as SIGTERM does; it leaves nothing behind."""
        self._stop.set()
        if self._task:
            await asyncio.wait([self._task], timeout=END_SECONDS)
        await self._see_ended(is_cancelled=False)

    async def kill(self) -> None:
        """End it as SIGKILL does."""
        for wire in (self.kube_wire, *self.etcd_wires.values()):
            wire.remove()
        self.kube_wire, self.etcd_wires = self._make_wires()
        await self._see_ended(is_cancelled=True)

    async def _see_ended(self, *, is_cancelled: bool) -> None:
        """Wait until no task is left; those of a process that is gone are cancelled until they obey."""
        loop = asyncio.get_running_loop()
        end = loop.time() + END_SECONDS
        while left := tasks_of(self.name):
            for task in left if is_cancelled else ():
                task.cancel()
            await asyncio.wait(left, timeout=1.0)
            if loop.time() > end:
                raise AssertionError(f"{self.name} has ended, and its tasks have not: {left}")
        self.operator = None

    async def _run(self) -> None:
        settings = self._settings(self.name)
        connection = ModelConnection(self._api, self.kube_wire, self.name)
        client = Client(connection.server, connection.session())
        try:
            starting = asyncio.create_task(find_cluster(settings, client))
            if await app._first(starting, self._stop, None):  # it is ended while the API server is away
                return
            found = starting.result()
            self.operator = app.Operator(settings, *found, connection, client, self._stop.set, self._open_registry)
            await self.operator.run(self._stop)
        except Exception as error:
            self.failure = error
            raise
        finally:
            await client.close()

    def _open_registry(self, registry: RegistrySettings) -> Etcd:
        reach = self._etcds[registry.name], self.etcd_wires[registry.name]
        return open_etcd(*reach, user=registry.user, password="operator")  # noqa: S106  a model's


@dataclass(eq=False)
class Pod:
    """A Pod, as its kubelet knows it."""

    name: str
    app: str
    ip: str
    is_gated: bool
    namespace: str = NAMESPACE
    is_ready: bool = False
    is_given_up: bool = False  # its node has died, as far as anybody knows
    is_terminating: bool = False
    gate: str = ""
    timers: list[asyncio.TimerHandle] = field(default_factory=list)


class Kubelet:
    """All Nodes: runs Pods, reports their statuses, obeys readiness gates."""

    def __init__(self, api: ApiServerModel) -> None:
        self._api = api
        self._loop = asyncio.get_running_loop()
        self._numbers = 0
        self.pods: dict[str, Pod] = {}

    @property
    def next_ip(self) -> str:
        """Give the address that the next Pod will have."""
        number = self._numbers + 1
        return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"

    def add(
        self,
        app_name: str,
        *,
        is_gated: bool = False,
        ip: str = "",
        seconds: float = 1.0,
        namespace: str = NAMESPACE,
    ) -> Pod:
        """Let a Pod come, which turns ready after a while."""
        address = ip or self.next_ip
        self._numbers += 1
        pod = Pod(f"{app_name}-{self._numbers}", app_name, address, is_gated, namespace)
        container = {"name": "main", "ports": [{"name": "grpc", "containerPort": 9000}]}
        spec: Object = {"nodeName": "node-1", "containers": [container]}
        if is_gated:
            spec["readinessGates"] = [{"conditionType": GATE}]
        labels = {"app": app_name, SCOPE_LABEL: ""}
        metadata = {"name": pod.name, "namespace": namespace, "labels": labels}
        self._api.create(PODS, {"metadata": metadata, "spec": spec, "status": {"phase": "Pending", "conditions": []}})
        self.pods[pod.name] = pod
        self.turn(pod, seconds, is_ready=True)
        return pod

    def turn(self, pod: Pod, seconds: float, *, is_ready: bool) -> None:
        """Let its containers turn ready or unready after a while."""
        self._later(pod, seconds, partial(self._turn, pod, is_ready=is_ready))

    def terminate(self, pod: Pod, seconds: float) -> None:
        """Delete it with a time of grace."""
        if pod.is_terminating:
            return
        pod.is_terminating = True
        self._change(pod, lambda item: item["metadata"].update(deletionTimestamp=timestamp()))
        self._later(pod, seconds, partial(self.vanish, pod))

    def vanish(self, pod: Pod) -> None:
        """Let it be gone, as by a forced deletion."""
        for timer in pod.timers:
            timer.cancel()
        if self.pods.pop(pod.name, None) and self._api.find(PODS, pod.namespace, pod.name):
            self._api.delete(PODS, pod.namespace, pod.name)

    def give_up(self, pod: Pod, seconds: float) -> None:
        """Let its node die as others see it, for a while: Ready turns to False, without a reason, and nothing else."""
        pod.is_given_up = True
        self._change(pod, lambda item: _set(item["status"]["conditions"], "Ready", is_true=False))
        self._later(pod, seconds, partial(self._return, pod))

    def label(self, pod: Pod, *, is_in_scope: bool) -> None:
        """Put the label on or off by which the operator finds it."""

        def change(item: Object) -> None:
            labels = {"app": pod.app, **({SCOPE_LABEL: ""} if is_in_scope else {})}
            item["metadata"]["labels"] = labels

        self._change(pod, change)

    def take(self, change: Change) -> None:
        """Obey readiness gates: take what has happened to Pods."""
        if change.resource != PODS or change.now is None:
            return
        pod = self.pods.get(change.now["metadata"]["name"])
        gate = _condition(change.now, GATE)
        if pod and pod.is_gated and gate != pod.gate:
            pod.gate = gate
            self._later(pod, 0.1, partial(self._report, pod))

    def reconcile(self) -> None:
        """Take over what the API server has, after its backup was restored."""
        held = {item["metadata"]["name"]: item for item in self._api.all(PODS)}
        for name, item in held.items():
            if name not in self.pods:
                self._api.delete(PODS, item["metadata"]["namespace"], item["metadata"]["name"])
        for name, pod in list(self.pods.items()):
            if name not in held:
                for timer in pod.timers:
                    timer.cancel()
                del self.pods[name]
            else:
                pod.gate = _condition(held[name], GATE)
                pod.is_terminating = "deletionTimestamp" in held[name]["metadata"]
                self._report(pod)
                if pod.is_terminating:
                    self._later(pod, 1.0, partial(self.vanish, pod))

    def _later(self, pod: Pod, seconds: float, work: Callable[[], None]) -> None:
        pod.timers.append(self._loop.call_later(seconds, work))

    def _turn(self, pod: Pod, *, is_ready: bool) -> None:
        pod.is_ready = is_ready
        self._report(pod)

    def _return(self, pod: Pod) -> None:
        pod.is_given_up = False
        self._report(pod)

    def _report(self, pod: Pod) -> None:
        if pod.is_given_up:
            return
        is_ready = pod.is_ready and (pod.gate == "True" or not pod.is_gated)

        def change(item: Object) -> None:
            status = item["status"]
            status |= {"phase": "Running", "podIP": pod.ip}
            _set(status["conditions"], "ContainersReady", is_true=pod.is_ready)
            reason = "ReadinessGatesNotReady" if pod.is_ready else "ContainersNotReady"
            _set(status["conditions"], "Ready", is_true=is_ready, reason="" if is_ready else reason)

        self._change(pod, change)

    def _change(self, pod: Pod, change: Callable[[Object], None]) -> None:
        if self._api.find(PODS, pod.namespace, pod.name):
            self._api.update(PODS, pod.namespace, pod.name, change)


def _condition(item: Object, kind: str) -> str:
    return next((str(each["status"]) for each in item["status"]["conditions"] if each["type"] == kind), "")


def _set(conditions: list[Object], kind: str, *, is_true: bool, reason: str = "") -> None:
    known = next((each for each in conditions if each["type"] == kind), None)
    if known is None:
        known = {"type": kind, "status": ""}
        conditions.append(known)
    if known["status"] != str(is_true):
        known |= {"status": str(is_true), "lastTransitionTime": timestamp()}
    known["reason"] = reason

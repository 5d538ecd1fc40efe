"""The list-watch on Pods, on a real API server: cuts are made good, nothing is told twice, lines may be long."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import aiohttp
import pytest

from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.kube.freshness import Freshness, Stream
from grpc_etcd_operator.kube.messages import message_class
from grpc_etcd_operator.sources.reflector import Reflector
from grpc_etcd_operator.sources.source import Receiver
from testbed.conditions import until
from testbed.kubernetes_api import Object
from testbed.proxy import TcpProxy
from tests.e2e.conftest import Scene

LONG = "x" * 200_000
POD_MESSAGES = (
    "Pod",
    "ObjectMeta",
    "PodSpec",
    "Container",
    "ContainerPort",
    "PodReadinessGate",
    "Probe",
    "ProbeHandler",
    "GRPCAction",
    "PodStatus",
    "PodCondition",
)


class Told:
    """What a list-watch has told so far, and what is known by it."""

    def __init__(self) -> None:
        self.kinds: list[tuple[str | None, str]] = []
        self.pods: dict[str, Any] = {}
        self.lists: list[tuple[str, frozenset[str]]] = []
        self.requests = 0

    async def count(self, *_: object) -> None:
        self.requests += 1

    def note(self, kind: str | None, pod: PodMessage) -> None:
        name = pod.metadata.name
        self.kinds.append((kind, name))
        self.pods[name] = pod
        if kind == "DELETED":
            del self.pods[name]

    def stream(self, namespace: str) -> Stream:
        return Freshness(lambda _, __: None).stream("pods", namespace)

    def take_list(self, namespace: str, listed: frozenset[str]) -> None:
        self.lists.append((namespace, listed))


@asynccontextmanager
async def following(scene: Scene, proxy: TcpProxy, selector: str = "", **more: float) -> AsyncIterator[Told]:
    told = Told()
    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(told.count)
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(scene.api.authority.ca)))
    headers = {"Authorization": f"Bearer {scene.api.token}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers, trace_configs=[trace]) as session:
        client = Client(f"https://{proxy.address}", session)
        task = asyncio.create_task(
            Reflector(client, told.stream(scene.namespace), selector, **more).run(Receiver(told.note, told.take_list))
        )
        try:
            yield told
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    await until(lambda: not proxy.connections)


@pytest.fixture
def proxy(scene: Scene) -> Iterator[TcpProxy]:
    with TcpProxy.start(scene.api.url.partition("://")[2]) as proxy:
        yield proxy


async def test_pods_are_listed_and_then_followed(scene: Scene, proxy: TcpProxy) -> None:
    one, other = scene.pod("one"), scene.pod("other", labels={"app": "other"})
    async with following(scene, proxy, "app!=other") as told:
        await until(lambda: told.lists)
        assert told.lists == [(scene.namespace, frozenset({one.uid}))]
        assert told.kinds == [(None, "one")]
        scene.pod("two")
        await until(lambda: "two" in told.pods)
        scene.api.client.delete(one.item, grace_seconds=0)
        await until(lambda: set(told.pods) == {"two"})
        assert other.name not in dict(told.kinds)


async def test_a_cut_watch_goes_on_where_it_was(scene: Scene, proxy: TcpProxy) -> None:
    scene.pod("one")
    async with following(scene, proxy) as told:
        await until(lambda: told.lists)
        for number in range(5):
            proxy.refuse()
            scene.pod(f"gap-{number}")
            proxy.heal()
            scene.pod(f"after-{number}")
        names = {"one"} | {f"{when}-{number}" for when in ("gap", "after") for number in range(5)}
        await until(lambda: set(told.pods) == names)
        assert len(told.lists) == 1
        assert len([kind for kind, _ in told.kinds if kind == "ADDED"]) == len(names) - 1, "none is told twice"


async def test_a_pod_may_be_as_large_as_the_api_server_takes_it(scene: Scene, proxy: TcpProxy) -> None:
    pod = scene.pod("large")
    async with following(scene, proxy) as told:
        await until(lambda: told.lists)
        scene.api.client.patch(pod.item, {"metadata": {"annotations": {"note": LONG}}})
        await until(lambda: told.pods["large"].metadata.annotations == {"note": LONG})


MANIFEST: Object = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "full",
        "labels": {"app": "greeter", "tier": "gold"},
        "annotations": {"grpc-etcd.dev/weight": "7"},
        "finalizers": ["example.com/hold"],
    },
    "spec": {
        "nodeName": "node-1",
        "containers": [
            {
                "name": "server",
                "image": "server:1",
                "ports": [{"name": "grpc", "containerPort": 9000}, {"containerPort": 53, "protocol": "UDP"}],
                **{f"{kind}Probe": {"grpc": {"port": 9000}} for kind in ("liveness", "readiness", "startup")},
            }
        ],
        "initContainers": [
            {"name": "proxy", "image": "p:1", "restartPolicy": "Always", "ports": [{"containerPort": 8080}]}
        ],
        "readinessGates": [{"conditionType": "grpc-etcd.dev/registered"}],
    },
}
STATUS = {
    "phase": "Running",
    "podIP": "10.1.2.3",
    "podIPs": [{"ip": "10.1.2.3"}],
    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z", "reason": "Any"}],
}


def compare(message: Any, item: Any, met: set[str]) -> None:
    """Hold a message against the same object as JSON, field by field; `met` collects those that say something."""
    for field in message.DESCRIPTOR.fields:
        # What a probe does stands in JSON beside its other fields.
        told, wanted = getattr(message, field.name), item if field.name == "handler" else item.get(field.name)
        if wanted:
            met.add(f"{message.DESCRIPTOR.name}.{field.name}")
        if field.message_type is None:
            assert told == (wanted or type(told)()), field.full_name
        elif field.message_type.GetOptions().map_entry:
            assert dict(told) == (wanted or {}), field.full_name
        elif field.message_type.name == "Time":
            assert told.seconds == (datetime.fromisoformat(wanted).timestamp() if wanted else 0), field.full_name
        elif isinstance(wanted, dict):
            compare(told, wanted, met)
        elif not field.is_repeated:
            assert not message.HasField(field.name), field.full_name
        else:
            for each, like in zip(told, wanted or (), strict=True):
                compare(each, like, met)


async def test_every_field_that_is_read_is_what_the_api_server_says_of_it_in_json(
    scene: Scene, proxy: TcpProxy
) -> None:
    client, metadata = scene.api.client, {**MANIFEST["metadata"], "namespace": scene.namespace}
    item = client.create({**MANIFEST, "metadata": metadata})
    client.patch(item, {"status": STATUS}, "status")
    client.delete(item)
    try:
        wanted = client.get("v1", "Pod", "full", scene.namespace)
        async with following(scene, proxy) as told:
            await until(lambda: told.lists)
            listed = told.pods["full"]
            client.patch(item, {"metadata": {"annotations": {"more": "1"}}})
            await until(lambda: told.pods["full"].metadata.annotations.get("more"))
            watched = told.pods["full"]
        met = set[str]()
        compare(listed, wanted, met)
        compare(watched, client.get("v1", "Pod", "full", scene.namespace), met)
    finally:
        client.patch(item, {"metadata": {"finalizers": None}})
    assert met == {f"{kind}.{field.name}" for kind in POD_MESSAGES for field in message_class(kind).DESCRIPTOR.fields}


async def test_a_watch_that_says_nothing_begins_with_a_list(scene: Scene, proxy: TcpProxy) -> None:
    async with following(scene, proxy, silence_seconds=0.5) as told:
        await until(lambda: told.lists)
        proxy.black_hole()
        before = told.requests
        await until(lambda: told.requests > before + 1)
        scene.pod("gap")
        proxy.heal()
        await until(lambda: "gap" in told.pods)
        assert len(told.lists) > 1, "its version may be one of a future that never comes"

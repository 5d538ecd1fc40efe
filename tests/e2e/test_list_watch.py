"""The list-watch on Pods, on a real API server: cuts are made good, nothing is told twice, lines may be long."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.kube.list_watch import ListWatch
from testbed.proxy import TcpProxy
from tests.e2e.conftest import Scene

LONG = "x" * 200_000


class Told:
    """What a list-watch has told so far, and what is known by it."""

    def __init__(self) -> None:
        self.kinds: list[tuple[str | None, str]] = []
        self.pods: dict[str, Any] = {}
        self.lists: list[tuple[str, frozenset[str]]] = []
        self.requests = 0

    async def count(self, *_: object) -> None:
        self.requests += 1

    def note(self, kind: str | None, pod: Any) -> None:
        name = pod.metadata.name
        self.kinds.append((kind, name))
        self.pods[name] = pod
        if kind == "DELETED":
            del self.pods[name]

    def take_list(self, namespace: str, listed: frozenset[str]) -> None:
        self.lists.append((namespace, listed))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  threads and servers change it
            await asyncio.sleep(0.01)


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
            ListWatch(client, scene.namespace, selector, told.note, told.take_list, **more).run()
        )
        try:
            yield told
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    await until(lambda: not proxy.connections)


@pytest.fixture
def proxy(scene: Scene) -> Any:
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


async def test_a_watch_that_says_nothing_is_opened_anew(scene: Scene, proxy: TcpProxy) -> None:
    async with following(scene, proxy, silence_seconds=0.5) as told:
        await until(lambda: told.lists)
        proxy.black_hole()
        before = told.requests
        await until(lambda: told.requests > before + 1)
        scene.pod("gap")
        proxy.heal()
        await until(lambda: "gap" in told.pods)
        assert len(told.lists) == 1

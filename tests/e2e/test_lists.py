"""The lists that sweeps stand on: complete over several pages, for Pods and for GrpcServices, and refusals in words."""

import asyncio
import json
import random
import ssl
import string
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from grpc_etcd_operator.core.resync import ObjectRef
from grpc_etcd_operator.kube.client import CHUNK, ApiError, Client
from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.kubernetes_api import make_kubeconfig
from testbed.proxy import TcpProxy
from tests.e2e.conftest import API_VERSION, Scene
from tests.e2e.pod_watches import with_one


@asynccontextmanager
async def open_client(api: ApiServer, token: str, kind: type[Client] = Client) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(api.authority.ca)))
    async with aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {token}"}) as session:
        yield kind(api.url, session)


def list_seen(api: ApiServer, token: str, resource: str, namespace: str, selector: str = "") -> set[ObjectRef]:
    async def read() -> set[ObjectRef]:
        async with open_client(api, token) as client:
            return {seen async for seen in client.list_seen(resource, [namespace], selector)}

    return asyncio.run(read())


def as_seen(items: list[dict[str, dict[str, str]]]) -> set[ObjectRef]:
    fields = ("uid", "namespace", "name", "resourceVersion")
    return {ObjectRef(*(item["metadata"][field] for field in fields)) for item in items}


def test_a_list_of_several_pages_is_complete(scene: Scene) -> None:
    api = scene.api
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: scene.apply(f"service-{number}"), range(CHUNK + 10)))
    seen = list_seen(api, api.token, "grpcservices", scene.namespace)
    assert len(seen) == CHUNK + 10
    assert seen == as_seen(api.client.list(API_VERSION, "GrpcService", scene.namespace)["items"])


def test_pods_are_listed_as_they_are_selected(scene: Scene) -> None:
    api, namespace = scene.api, scene.namespace
    scene.pod("one")
    scene.pod("two", labels={"app": "other"})
    everything = as_seen(api.client.list("v1", "Pod", namespace)["items"])
    assert list_seen(api, api.token, "pods", namespace) == everything
    chosen = list_seen(api, api.token, "pods", namespace, "app=other")
    assert chosen == {seen for seen in everything if seen.name == "two"}


def test_a_refusal_says_what_is_not_allowed(scene: Scene) -> None:
    name = {"name": "nobody", "namespace": scene.namespace}
    scene.api.client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name})
    token = scene.api.service_account_token(scene.namespace, "nobody")
    with pytest.raises(ApiError, match="cannot list resource") as refused:
        list_seen(scene.api, token, "pods", scene.namespace)
    assert refused.value.status == 403


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("answer", [b"<html>busy</html>", b"k8s\x00broken", b""])
async def test_what_a_proxy_answers_in_the_api_servers_place_is_an_error(status: int, answer: bytes) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=status, body=answer)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    try:
        async with aiohttp.ClientSession() as session:
            client = Client(f"http://{host}:{port}", session)
            with pytest.raises(ApiError):
                await anext(client.list_seen("pods", []))
            with pytest.raises(ApiError):
                await anext(client.list_pods("", ""))
            with pytest.raises(ApiError if answer or status != 200 else StopAsyncIteration):
                await anext(client.watch_pods("", "", "1"))
            with pytest.raises(ApiError):
                await client.uid_of("pods", "default", "one")
    finally:
        await runner.cleanup()


@pytest.mark.faults
@with_one()
def test_pods_too_large_for_a_slow_line_are_listed_in_smaller_pages(scene: Scene) -> None:
    """A page of 250 Pods is asked for; 48 of 200 kB take more than the 30 s that a page may take, 31 of them less."""
    scene.apply()
    pod = scene.pod()
    text = string.ascii_letters + string.digits + string.punctuation  # as little compressed on its way as possible

    def make_large(number: int) -> None:
        chance = random.Random(number)  # noqa: S311  no secret
        scene.pod(f"large-{number}", labels={}, annotations={"notes": "".join(chance.choices(text, k=200_000))})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make_large, range(48)))
    with TcpProxy.start(scene.api.url.removeprefix("https://"), bytes_per_second=250_000) as slow:
        kubeconfig = scene.folder / "slow.kubeconfig"
        settings = make_kubeconfig(f"https://{slow.address}", str(scene.api.authority.ca), scene.api.token)
        kubeconfig.write_text(json.dumps(settings))
        replica = scene.start(kubeconfig=kubeconfig)
        wait_until(lambda: scene.registry.addresses() == [pod.address], "it is registered", 150)
        assert replica.lines("page_cut")

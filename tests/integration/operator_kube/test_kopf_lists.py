"""Kopf's list is asked for as of the version of our own list, until it is answered; one more list ends that Kopf."""

import asyncio
from collections.abc import Sequence

import aiohttp
from aiohttp import web

from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.kube.connecting import Connection
from grpc_etcd_operator.kube.freshness import Freshness
from grpc_etcd_operator.sources.json_pods import read_pod
from grpc_etcd_operator.sources.kopf_source import Kind, KopfSource, Listed
from grpc_etcd_operator.sources.source import Receiver
from testbed.conditions import until

EMPTY = {"resourceVersion": "7", "resourceVersionMatch": "Exact", "fieldSelector": "metadata.name=_"}
PODS = "/api/v1/namespaces/shop/pods"


async def test_a_list_is_asked_for_as_of_our_own_until_it_is_answered() -> None:
    asked: list[tuple[str, dict[str, str]]] = []
    statuses = iter([200, 503])

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path, dict(request.query)))
        return web.json_response({}, status=next(statuses, 200))

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    listed = Listed(Freshness(lambda _, __: None).stream("pods", "shop"), "7")
    try:
        async with aiohttp.ClientSession(f"http://{host}:{port}", middlewares=[listed]) as session:
            for path in ("/api/v1", f"{PODS}?limit=250", f"{PODS}?limit=250", f"{PODS}?watch=true&resourceVersion=7"):
                async with session.get(path):
                    pass
            assert asked == [
                ("/api/v1", {}),
                (PODS, {"limit": "250", **EMPTY}),
                (PODS, {"limit": "250", **EMPTY}),
                (PODS, {"watch": "true", "resourceVersion": "7"}),
            ]
            assert not listed.is_over.is_set()
            again = asyncio.create_task(session.get(PODS))
            await until(listed.is_over.is_set)
            again.cancel()
    finally:
        await runner.cleanup()
    assert len(asked) == 4, "the API server is not asked for it"


class Anonymous(Connection):
    """A connection to an API server that asks for no identity."""

    def __init__(self, server: str) -> None:
        self._server = server

    def session(
        self, *traces: aiohttp.TraceConfig, purpose: str = "", middlewares: Sequence[aiohttp.ClientMiddlewareType] = ()
    ) -> aiohttp.ClientSession:
        assert purpose
        return aiohttp.ClientSession(trace_configs=list(traces), middlewares=middlewares)


async def test_a_kopf_that_ends_while_the_api_server_hangs_leaves_no_task() -> None:
    asked, is_over = asyncio.Event(), asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        asked.set()
        await is_over.wait()
        return web.Response(status=503)

    app = web.Application()
    app.router.add_get("/{path:.*}", hang)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    connection = Anonymous("http://{}:{}".format(*runner.addresses[0]))
    before, freshness = asyncio.all_tasks(), Freshness(lambda _, __: None)
    how = Kind(names=("", "v1", "pods"), parse=read_pod, is_known=lambda _, __, ___: False)
    stream = freshness.stream("pods", "")
    source = KopfSource(how, stream, connection, freshness, Isolation(), let_kopf_list, lambda: None)
    running = asyncio.create_task(source.run(Receiver(lambda _, __: None, lambda _, __: None)))
    try:
        await asked.wait()
        running.cancel()
        await asyncio.wait([running])
    finally:
        is_over.set()
        await runner.cleanup()
    await until(lambda: not asyncio.all_tasks() - before)


async def let_kopf_list(_: Receiver[PodMessage]) -> str:
    return ""

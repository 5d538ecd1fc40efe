"""Kopf's list is asked for as of the version of our own list, until it is answered; one more list ends that Kopf."""

import asyncio

import aiohttp
from aiohttp import web

from grpc_etcd_operator.kube.freshness import Freshness
from grpc_etcd_operator.sources.kopf_source import Listed
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

"""A page of a list that does not come in time is asked for with less in it; more is asked for once it is quick."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from grpc_etcd_operator.kube.paging import Paging

BEARABLE = 40  # objects in a page that comes in time


@asynccontextmanager
async def serve(asked: list[int], bears: Callable[[int], bool]) -> AsyncIterator[str]:
    """Serve pages of which the head comes at once; the rest of those that are too large never does."""

    async def answer(request: web.Request) -> web.StreamResponse:
        limit = int(request.query.get("limit", 0))
        asked.append(limit)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"{")
        if not bears(limit):
            await asyncio.Event().wait()
        await response.write(b"}")
        return response

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def test_less_is_asked_for_until_it_comes_and_more_again_once_that_is_quick() -> None:
    asked: list[int] = []
    largest = BEARABLE
    async with (
        serve(asked, lambda limit: limit <= largest) as url,
        aiohttp.ClientSession(url, middlewares=[Paging(page_seconds=1.0)]) as session,
    ):
        for _ in range(2):
            async with session.get("/api/v1/pods?limit=250&continue=here") as reply:
                assert await reply.read() == b"{}"
        assert asked == [250, 31, 62, 7]
        asked.clear()
        largest = 1000
        for _ in range(7):
            async with session.get("/api/v1/pods?limit=250"):
                pass
        assert asked == [14, 28, 56, 112, 224, 250, 250]


async def test_what_is_no_page_of_a_list_is_sent_as_it_is() -> None:
    asked: list[int] = []
    async with (
        serve(asked, lambda limit: limit == 0) as url,
        aiohttp.ClientSession(url, middlewares=[Paging(page_seconds=0.5)]) as session,
    ):
        async with session.get("/api/v1/namespaces/shop/pods/one") as reply:
            assert await reply.read() == b"{}"
        with pytest.raises(TimeoutError):
            await session.get("/api/v1/pods?limit=250")
    assert asked == [0, 250, 31, 3, 1]

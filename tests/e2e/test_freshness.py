"""Liveness by freshness, on real streams: bytes count, silence does not, and who still tries to open one is alive."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from grpc_etcd_operator.kube.freshness import Freshness
from testbed.conditions import until

LIMIT_SECONDS = 0.4  # instead of minutes


class Streams:
    """A server that opens a watch and says something only when it is told to."""

    def __init__(self) -> None:
        self.speak = asyncio.Event()
        self.end = asyncio.Event()
        self.refuse = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.refuse:
            raise web.HTTPServiceUnavailable
        if "watch" not in request.query:
            return web.json_response({"items": []})
        response = web.StreamResponse()
        await response.prepare(request)
        while not self.end.is_set():
            await self.speak.wait()
            self.speak.clear()
            await response.write(b"{}\n")
        return response


@pytest.fixture
async def server() -> AsyncIterator[tuple[Streams, str]]:
    streams = Streams()
    app = web.Application()
    app.router.add_get("/api/v1/pods", streams.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield streams, f"http://127.0.0.1:{runner.addresses[0][1]}/api/v1/pods?watch=true"
    streams.end.set()
    streams.speak.set()
    await runner.cleanup()


async def test_a_silent_stream_is_deaf_and_a_word_ends_that(server: tuple[Streams, str]) -> None:
    streams, url = server
    freshness = Freshness(lambda _: None, deaf_seconds=LIMIT_SECONDS, gap_seconds=LIMIT_SECONDS)
    async with aiohttp.ClientSession(trace_configs=[freshness.trace()]) as session, session.get(url) as response:
        assert freshness.is_fresh()
        assert not freshness.is_deaf()
        await until(freshness.is_deaf, 20.0)
        assert not freshness.is_fresh()
        assert freshness.event_age("pods") >= LIMIT_SECONDS
        streams.speak.set()
        await response.content.readline()
        assert not freshness.is_deaf()
        assert freshness.is_fresh()
        assert freshness.event_age("pods") < LIMIT_SECONDS


async def test_a_watch_that_begins_after_a_list_is_told_and_one_that_goes_on_is_not(
    server: tuple[Streams, str],
) -> None:
    _, url = server
    opened: list[str] = []
    freshness = Freshness(opened.append)
    async with aiohttp.ClientSession(trace_configs=[freshness.trace()]) as session:
        for expected in (["pods"], ["pods", "pods"]):
            async with session.get(url.partition("?")[0]):
                pass
            for _ in range(2):
                async with session.get(url):
                    assert opened == expected


async def test_a_server_that_refuses_makes_nobody_deaf_but_what_is_known_is_stale(server: tuple[Streams, str]) -> None:
    streams, url = server
    freshness = Freshness(lambda _: None, deaf_seconds=LIMIT_SECONDS, gap_seconds=LIMIT_SECONDS)
    async with aiohttp.ClientSession(trace_configs=[freshness.trace()]) as session:
        async with session.get(url):
            assert freshness.is_fresh()
        streams.refuse = True

        async def try_and_look() -> bool:
            async with session.get(url) as response:
                assert response.status == 503
            assert not freshness.is_deaf()
            return freshness.is_fresh()

        async with asyncio.timeout(20):
            while await try_and_look():  # noqa: ASYNC110  as above
                await asyncio.sleep(0.01)
        await until(freshness.is_deaf, 20.0)  # nobody tries any more


async def test_who_never_opened_a_watch_is_deaf_in_the_end() -> None:
    freshness = Freshness(lambda _: None, deaf_seconds=LIMIT_SECONDS, gap_seconds=LIMIT_SECONDS)
    assert not freshness.is_fresh()
    assert not freshness.is_deaf()
    await until(freshness.is_deaf, 20.0)

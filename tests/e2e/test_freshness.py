"""Liveness by freshness, on real streams: bytes count, silence does not, and who still tries to open one is alive."""

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from grpc_etcd_operator.kube.freshness import Freshness
from testbed.conditions import until

LIMIT_SECONDS = 3.0  # instead of minutes, and longer than a busy machine takes from one step of a test to the next


def _ignore(_: str, __: str) -> None:
    """Take no note of watches that begin."""


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
    freshness = Freshness(_ignore, deaf_seconds=LIMIT_SECONDS, silent_seconds=LIMIT_SECONDS, gap_seconds=LIMIT_SECONDS)
    async with aiohttp.ClientSession(trace_configs=[freshness.trace()]) as session, session.get(url) as response:
        assert not freshness.is_fresh(), "that it was opened says nothing"
        streams.speak.set()
        await response.content.readline()
        assert freshness.is_fresh()
        assert not freshness.is_deaf()
        await until(freshness.is_deaf)
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
    freshness = Freshness(lambda resource, _: opened.append(resource))
    async with aiohttp.ClientSession(trace_configs=[freshness.trace()]) as session:
        for expected in (["pods"], ["pods", "pods"]):
            async with session.get(url.partition("?")[0]):
                pass
            for _ in range(2):
                async with session.get(url):
                    assert opened == expected


async def test_a_watch_that_could_not_be_opened_for_long_begins_with_a_list(server: tuple[Streams, str]) -> None:
    """Lists and probes were answered all the while, so that it counts as seen."""
    streams, url = server
    opened, ends = list[str](), list[bool]()
    freshness = Freshness(lambda resource, _: opened.append(resource), blind_seconds=LIMIT_SECONDS)
    stream = freshness.stream("pods", "")
    stream.relist = lambda: ends.append(stream.is_lost)
    async with aiohttp.ClientSession(trace_configs=[freshness.trace()]) as session:

        async def ask(address: str) -> None:
            async with session.get(address):
                pass

        await ask(url.partition("?")[0])
        await ask(url)
        streams.refuse = True
        await ask(url)
        streams.refuse = False
        await ask(url)
        assert (opened, ends) == (["pods"], []), "that was short"
        streams.refuse = True
        await ask(url)
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > LIMIT_SECONDS)
        streams.refuse = False
        await ask(url)
        assert (opened, ends) == (["pods"], [True]), "what it reports may be of long ago"
        await ask(url.partition("?")[0])
        await ask(url)
        assert (opened, ends) == (["pods", "pods"], [True])
        assert not stream.is_lost


async def test_a_server_that_refuses_makes_nobody_deaf_but_what_is_known_is_stale(server: tuple[Streams, str]) -> None:
    streams, url = server
    freshness = Freshness(_ignore, deaf_seconds=LIMIT_SECONDS, silent_seconds=LIMIT_SECONDS, gap_seconds=LIMIT_SECONDS)
    async with aiohttp.ClientSession(trace_configs=[freshness.trace()]) as session:
        async with session.get(url.partition("?")[0]), session.get(url):
            assert freshness.is_fresh()
        streams.refuse = True

        async def try_and_look() -> bool:
            async with session.get(url) as response:
                assert response.status == 503
            assert not freshness.is_deaf()
            return freshness.is_fresh()

        async with asyncio.timeout(60):
            while await try_and_look():  # noqa: ASYNC110  as above
                await asyncio.sleep(0.01)
        await until(freshness.is_deaf)  # nobody tries any more


async def test_who_never_opened_a_watch_is_deaf_in_the_end() -> None:
    freshness = Freshness(_ignore, deaf_seconds=LIMIT_SECONDS, silent_seconds=LIMIT_SECONDS, gap_seconds=LIMIT_SECONDS)
    assert not freshness.is_fresh()
    assert not freshness.is_deaf()
    await until(freshness.is_deaf)


async def test_who_waits_for_the_crd_is_not_deaf() -> None:
    limits = {"deaf_seconds": LIMIT_SECONDS, "gap_seconds": LIMIT_SECONDS}
    freshness = Freshness(_ignore, [("pods", ""), ("grpcservices", "")], lambda _: None, **limits)
    await until(freshness.is_deaf)
    for stream in freshness.streams:
        stream.note_attempt()
    assert not freshness.is_deaf()


async def test_who_waits_for_the_crd_in_one_namespace_is_no_sign_of_life_of_anothers_watch() -> None:
    expected = [("grpcservices", "shop"), ("grpcservices", "till")]
    freshness = Freshness(_ignore, expected, deaf_seconds=LIMIT_SECONDS, gap_seconds=LIMIT_SECONDS)
    shop, till = freshness.stream(*expected[0]), freshness.stream(*expected[1])
    began = till.attempted_at

    def wait_on() -> bool:
        shop.note_attempt()
        return freshness.is_deaf()

    await until(wait_on)
    assert till.attempted_at == began


async def test_blind_is_who_sees_no_namespace_and_one_that_is_refused_blinds_nobody() -> None:
    expected = [(resource, namespace) for resource in ("pods", "grpcservices") for namespace in ("shop", "till")]
    freshness = Freshness(_ignore, expected, blind_seconds=LIMIT_SECONDS)
    assert freshness.blind_seconds() == 0
    await until(freshness.blind_seconds)
    freshness.stream("pods", "shop").note_seen()
    assert freshness.blind_seconds() > 0, "of the GrpcServices nothing is seen"
    freshness.stream("grpcservices", "shop").note_seen()
    assert freshness.blind_seconds() == 0
    freshness.stream("pods", "till").fault = "forbidden"
    assert freshness.unreadable() == {"till": "forbidden"}

"""The operator's feed on a real etcd: prefixes come and go, and what is refused about one is told of that one alone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from grpc_etcd.etcd import HistoryChanged, Listed, Lost, News, PermissionDenied, Put, Unavailable
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.model import Changed
from grpc_etcd_operator.registry.watch import Feed
from testbed.conditions import until
from testbed.etcd import EtcdServer

ADMIN = "root:secret"
LIMIT_SECONDS = 60.0
MANY = 130  # more than the streams that etcd may be told to allow


class Collected:
    """A feed that runs, and all its news."""

    def __init__(self, etcd: Etcd) -> None:
        self.news: list[tuple[bytes, News]] = []
        self.faults: list[bytes] = []
        self.fails_at = b""
        self.feed = Feed(etcd, self._take, lambda key, _: self.faults.append(key))

    def _take(self, prefixes: tuple[bytes, ...], news: News) -> None:
        (prefix,) = prefixes
        self.news.append((prefix, news))
        if prefix == self.fails_at:
            self.fails_at = b""
            raise RuntimeError("unforeseen")

    def of(self, kind: type, prefix: bytes) -> list[News]:
        return [news for each, news in self.news if each == prefix and isinstance(news, kind)]

    def keys(self, prefix: bytes) -> list[bytes]:
        changes = [news for news in self.of(Changed, prefix) if isinstance(news, Changed)]
        return [event.key for change in changes for event in change.events if isinstance(event, Put)]


@contextlib.asynccontextmanager
async def running(client: Etcd) -> AsyncIterator[Collected]:
    collected = Collected(client)
    task = asyncio.create_task(collected.feed.run())
    try:
        yield collected
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture
def limited() -> Iterator[EtcdServer]:
    with EtcdServer.start(flags=["--max-concurrent-streams=100"]) as server:
        yield server


async def test_prefixes_that_come_one_by_one_and_go_never_stop_writes(limited: EtcdServer) -> None:
    prefixes = [b"/%d/" % number for number in range(MANY)]
    async with Etcd(limited.endpoints) as client, running(client) as collected:
        for prefix in prefixes:
            collected.feed.follow([prefix])
            await until(lambda p=prefix: collected.feed.has([p]), LIMIT_SECONDS)
            await client.put(prefix + b"key", b"")
        await until(lambda: all(collected.keys(prefix) for prefix in prefixes), LIMIT_SECONDS)
        collected.feed.unfollow(prefixes[1:])
        assert not collected.feed.has(prefixes[1:2])
        assert not collected.feed.is_followed(prefixes[1])
        await client.put(prefixes[1] + b"unheard", b"")
        await client.put(prefixes[0] + b"heard", b"")
        await until(lambda: len(collected.keys(prefixes[0])) > 1, LIMIT_SECONDS)
        assert collected.keys(prefixes[1]) == [prefixes[1] + b"key"]


async def test_a_refused_prefix_is_told_of_alone_and_heals_by_a_grant_or_when_it_goes(own_etcd: EtcdServer) -> None:
    own_etcd.enable_auth("secret")
    own_etcd.add_user("operator", "first", ["/ours/"], admin=ADMIN)
    async with (
        Etcd(own_etcd.endpoints, user="operator", password="first") as client,  # noqa: S106
        running(client) as collected,
    ):
        feed = collected.feed
        feed.follow([b"/alien/", b"/ours/", b"/gone/"])
        await until(lambda: feed.has([b"/ours/"]) and len(feed.refused) > 1, LIMIT_SECONDS)
        assert isinstance(feed.refused[b"/alien/"], PermissionDenied)
        assert collected.of(Lost, b"/alien/")
        assert feed.trouble is None
        feed.unfollow([b"/gone/"])
        assert set(feed.refused) == {b"/alien/"}
        await client.put(b"/ours/1", b"")
        await until(lambda: collected.keys(b"/ours/"), LIMIT_SECONDS)
        own_etcd.etcdctl("role", "grant-permission", "--prefix=true", "operator", "readwrite", "/alien/", user=ADMIN)
        await until(lambda: feed.has([b"/alien/"]), LIMIT_SECONDS)
        assert not feed.refused
        assert collected.of(Listed, b"/alien/")
        assert not collected.of(Lost, b"/ours/")


@pytest.mark.faults
async def test_a_loss_of_connection_is_told_once_and_lost_data_list_everything_anew(own_etcd: EtcdServer) -> None:
    prefixes = [b"/%d/" % number for number in range(20)]
    async with Etcd(own_etcd.endpoints) as client, running(client) as collected:
        feed = collected.feed
        feed.follow(prefixes)
        await until(lambda: feed.has(prefixes) and feed.trouble is None, LIMIT_SECONDS)
        await client.put(b"/3/key", b"")
        await until(lambda: collected.keys(b"/3/"), LIMIT_SECONDS)
        own_etcd.kill()
        await until(lambda: feed.trouble, LIMIT_SECONDS)
        assert isinstance(feed.trouble and feed.trouble.error, Unavailable)
        assert len([news for _, news in collected.news if isinstance(news, Lost)]) == 1
        own_etcd.restart(fresh=True)
        await until(lambda: all(len(collected.of(Listed, prefix)) > 1 for prefix in prefixes), LIMIT_SECONDS)
        await until(lambda: feed.has(prefixes) and feed.trouble is None, LIMIT_SECONDS)
        lost = [news for _, news in collected.news if isinstance(news, Lost)]
        assert isinstance(lost[-1].error, HistoryChanged)
        for prefix in prefixes:
            last = collected.of(Listed, prefix)[-1]
            assert isinstance(last, Listed)
            assert last.history == 1
            assert not last.records


async def test_an_exception_about_one_prefix_ends_nothing(etcd: EtcdServer) -> None:
    async with Etcd(etcd.endpoints) as client, running(client) as collected:
        collected.feed.follow([b"/bad/", b"/good/"])
        await until(lambda: collected.feed.has([b"/bad/", b"/good/"]), LIMIT_SECONDS)
        collected.fails_at = b"/bad/"
        await client.put(b"/bad/1", b"")
        await client.put(b"/good/1", b"")
        await until(lambda: len(collected.of(Listed, b"/bad/")) > 1, LIMIT_SECONDS)
        await client.put(b"/bad/2", b"")
        await until(lambda: b"/bad/2" in collected.keys(b"/bad/"), LIMIT_SECONDS)
        assert collected.keys(b"/good/") == [b"/good/1"]
        assert collected.faults == [b"/bad/"]

"""A watch that is told twice to begin with a list, as when it is silent just as versions are seen to go back."""

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp

from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.kube.freshness import LOST_SECONDS, Stream
from grpc_etcd_operator.kube.messages import message_class
from grpc_etcd_operator.kube.pages import Event, Page
from grpc_etcd_operator.sources.reflector import Reflector
from grpc_etcd_operator.sources.source import Receiver


class Silent(Client):
    """An API server without Pods, whose watches say nothing."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        super().__init__("http://127.0.0.1:1", session)
        self.watching = asyncio.Event()

    async def list_pods(self, namespace: str, selector: str) -> AsyncIterator[Page[PodMessage]]:  # noqa: ARG002
        yield Page([], "", "7")

    async def watch_pods(self, namespace: str, selector: str, version: str) -> AsyncIterator[Event]:  # noqa: ARG002
        self.watching.set()
        await asyncio.Event().wait()
        yield Event("BOOKMARK", None, version)  # type: ignore[arg-type]  # never


async def told_twice() -> list[frozenset[str]]:
    lists: list[frozenset[str]] = []
    receiver: Receiver[PodMessage] = Receiver(lambda *_: None, lambda _, listed: lists.append(listed))
    stream = Stream(resource="pods", namespace="", attempted_at=0.0, seen_at=0.0)
    async with aiohttp.ClientSession() as session, asyncio.timeout(25):
        client = Silent(session)
        running = asyncio.create_task(Reflector(client, stream, "").run(receiver))
        await client.watching.wait()
        client.watching.clear()
        stream.relist()
        await asyncio.sleep(0)  # now the watch is ending
        stream.relist()
        await client.watching.wait()
        running.cancel()
    return lists


def test_a_watch_that_ends_bears_to_be_ended_once_more() -> None:
    assert len(asyncio.run(told_twice())) == 2


class Late(Silent):
    """An API server whose first watch opens late, and reports what was long ago."""

    def __init__(self, session: aiohttp.ClientSession, stream: Stream) -> None:
        super().__init__(session)
        self._stream, self._is_first = stream, True

    async def watch_pods(self, namespace: str, selector: str, version: str) -> AsyncIterator[Event]:
        if self._is_first:
            self._is_first = False
            self._stream.marks.append((time.monotonic() - LOST_SECONDS - 1, 9))
            yield Event("BOOKMARK", message_class("Pod")(), "7")  # of a resource of which nothing has changed since
            assert not self._stream.is_lost
            yield Event("MODIFIED", message_class("Pod")(), "8")
        async for event in super().watch_pods(namespace, selector, version):
            yield event


async def told_late() -> tuple[list[str | None], list[frozenset[str]]]:
    kinds, lists = list[str | None](), list[frozenset[str]]()
    receiver: Receiver[PodMessage] = Receiver(
        lambda kind, _: kinds.append(kind), lambda _, listed: lists.append(listed)
    )
    stream = Stream(resource="pods", namespace="", attempted_at=0.0, seen_at=0.0)
    async with aiohttp.ClientSession() as session, asyncio.timeout(25):
        client = Late(session, stream)
        running = asyncio.create_task(Reflector(client, stream, "").run(receiver))
        await client.watching.wait()
        running.cancel()
    return kinds, lists


def test_a_watch_that_shall_begin_with_a_list_reports_nothing_more() -> None:
    kinds, lists = asyncio.run(told_late())
    assert (kinds, len(lists)) == ([], 2)

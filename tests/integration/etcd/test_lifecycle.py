"""Open, close, forget to close, fork: what is left of a client."""

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Sequence

import grpc
import pytest

from grpc_etcd.etcd import (
    Closed,
    Disconnected,
    Etcd,
    LeaseId,
    Unavailable,
    WatchEvents,
    WatchSnapshot,
    WatchUpdate,
    aio,
)
from testbed.conditions import existing, until, wait_until
from testbed.etcd import EtcdServer

from .conftest import Opened


def threads() -> set[threading.Thread]:
    """Threads other than those of the test's own proxies and loops."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("proxy")}


def test_no_thread_is_left_after_close(etcd: EtcdServer) -> None:
    before = threads()
    client = Etcd(etcd.endpoints)
    watch = client.list_watch(b"k")
    assert isinstance(next(watch), WatchSnapshot)
    keeper = client.keep_alive(lambda _: None)
    for _ in range(8):
        keeper.add(client.lease(30), 30, remaining_seconds=0)
    wait_until(lambda: threads() - before, "its threads run")
    client.close()
    wait_until(lambda: threads() <= before, "all threads have ended")
    assert list(watch) == []
    with pytest.raises(Closed):
        client.get(b"k")
    client.close()


def test_a_list_watch_is_closed_while_its_guard_is_being_started(etcd: EtcdServer) -> None:
    before = threads()
    with Etcd(etcd.endpoints) as client:
        for _ in range(40):
            watch = client.list_watch(b"k")
            reader = threading.Thread(target=lambda watch=watch: [None for _ in watch])
            reader.start()
            while reader.is_alive() and not guards() - before:
                pass  # enumerate() names a thread already while it is being started; a pause would miss that
            watch.close()
            reader.join()
            assert not guards() - before
    wait_until(lambda: threads() <= before, "all threads have ended")


def guards() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "grpc-etcd-list-watch"}


def test_a_keep_alive_that_nobody_holds_ends_with_its_client(etcd: EtcdServer) -> None:
    before = threads()
    client = Etcd(etcd.endpoints)
    client.keep_alive(lambda _: None).add(client.lease(30), 30)
    gc.collect()
    client.close()
    wait_until(lambda: threads() <= before, "all threads have ended")


async def test_no_task_is_left_after_close(etcd: EtcdServer) -> None:
    before = asyncio.all_tasks()
    client = aio.Etcd(etcd.endpoints)
    watch = client.list_watch(b"k")
    assert isinstance(await anext(watch), WatchSnapshot)
    keeper = client.keep_alive(lambda _: None)
    keeper.add(await client.lease(30), 30, remaining_seconds=0)
    reader = asyncio.create_task(drain(watch))
    await asyncio.sleep(0)
    await client.close()
    await reader
    await until(lambda: asyncio.all_tasks() <= before)
    with pytest.raises(Closed):
        await client.get(b"k")


async def drain(watch: AsyncIterator[WatchUpdate]) -> list[WatchUpdate]:
    return [news async for news in watch]


async def test_a_cancelled_reader_leaves_the_client_usable(etcd: EtcdServer) -> None:
    async with aio.Etcd(etcd.endpoints) as client:
        watch = client.list_watch(b"k")
        assert isinstance(await anext(watch), WatchSnapshot)
        reader = asyncio.create_task(drain(watch))
        await asyncio.sleep(0.05)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await client.put(b"k", b"v")


async def test_a_wait_for_news_that_has_timed_out_ends_no_iteration(etcd: EtcdServer) -> None:
    async with aio.Etcd(etcd.endpoints) as client, client.list_watch(b"k/") as watch:
        for seconds in (0.0, 0.002, 0.01, 0.1) * 3:  # wherever that may be
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await drain(watch)
        await client.put(b"k/late", b"v")
        async with asyncio.timeout(60):
            while not isinstance(news := await anext(watch), WatchSnapshot | WatchEvents):
                pass
        seen = news.records if isinstance(news, WatchSnapshot) else news.events
        assert [each.key for each in seen] == [b"k/late"]
    assert not [news async for news in watch], "closed it has ended"


def test_a_watch_that_is_closed_ends_its_waiting_thread(etcd: EtcdServer) -> None:
    with Etcd(etcd.endpoints) as client:
        watch = client.list_watch(b"k")
        news: list[WatchUpdate] = []
        reader = threading.Thread(target=lambda: news.extend(watch))
        reader.start()
        wait_until(lambda: news, "listed")
        watch.close()
        reader.join(60)
        assert not reader.is_alive()
        client.put(b"k", b"v")


def test_a_forgotten_close_is_a_resource_warning(etcd: EtcdServer) -> None:
    gc.collect()  # what other tests have left
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = Etcd(etcd.endpoints)
        client.put(b"k", b"v")
        del client
        gc.collect()
    assert unclosed(caught) == [f"unclosed <Etcd {etcd.endpoints}>"]


def unclosed(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in caught if warning.category is ResourceWarning]


async def test_a_forgotten_close_on_asyncio_is_one_too(etcd: EtcdServer) -> None:
    gc.collect()  # as above
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = aio.Etcd(etcd.endpoints)
        await client.put(b"k", b"v")
        del client
        gc.collect()
    assert unclosed(caught) == [f"unclosed <Etcd {etcd.endpoints}>"]


def test_an_adopted_channel_is_used_and_left_open(etcd: EtcdServer) -> None:
    with grpc.insecure_channel(etcd.endpoints) as channel:
        with Etcd.from_channel(channel) as client:
            client.put(b"k", b"v")
            with client.list_watch(b"k") as watch:
                assert isinstance(next(watch), WatchSnapshot)
        with Etcd.from_channel(channel) as again:
            assert existing(again.get(b"k")).value == b"v"


async def test_an_adopted_aio_channel(etcd: EtcdServer) -> None:
    async with grpc.aio.insecure_channel(etcd.endpoints) as channel, aio.Etcd.from_channel(channel) as client:
        await client.put(b"k", b"v")
        assert existing(await client.get(b"k")).value == b"v"


def test_a_channel_that_is_closed_under_a_client_is_said(etcd: EtcdServer) -> None:
    channel = grpc.insecure_channel(etcd.endpoints)
    with Etcd.from_channel(channel) as client:
        client.put(b"k", b"v")
        channel.close()
        with pytest.raises(Closed):
            client.get(b"k")
        with client.list_watch(b"k") as watch:
            lost = next(watch)
            assert isinstance(lost, Disconnected)
            assert isinstance(lost.error, Closed)
        keeper = client.keep_alive(lambda _: None)
        keeper.add(LeaseId(1), 30, remaining_seconds=0)
        wait_until(lambda: isinstance(keeper.state.error, Closed), "the keep-alive says so")


async def test_an_aio_channel_that_is_closed_under_a_client_is_said(etcd: EtcdServer) -> None:
    channel = grpc.aio.insecure_channel(etcd.endpoints)
    async with aio.Etcd.from_channel(channel) as client:
        await client.put(b"k", b"v")
        await channel.close()
        with pytest.raises(Closed):
            await client.get(b"k")
        async with client.list_watch(b"k") as watch:
            lost = await anext(watch)
            assert isinstance(lost, Disconnected)
            assert isinstance(lost.error, Closed)


async def test_an_aio_channel_that_is_closed_during_a_call_ends_nobodys_task() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0)  # it is accepted by the event loop
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{silent.getsockname()[1]}")
        identity = {"user": "u", "password": "p"}
        async with (
            aio.Etcd.from_channel(channel, timeout_seconds=600, **identity) as client,
            aio.Etcd.from_channel(channel, timeout_seconds=600, **identity) as other,
        ):
            calling = asyncio.create_task(client.get(b"k"))
            keeper = other.keep_alive(lambda _: None, streams=1)
            keeper.add(LeaseId(1), 30, remaining_seconds=0)
            connection, _ = await asyncio.get_running_loop().sock_accept(silent)
            with connection:  # which answers nothing, so both wait for it
                await channel.close()
                with pytest.raises(Unavailable):
                    await calling
                await until(lambda: isinstance(keeper.state.error, Unavailable | Closed))


def test_nothing_happens_at_import() -> None:
    code = (
        "import socket, threading\n"
        "import grpc.aio, google.protobuf.message_factory\n"  # what they do themselves is not ours
        "loaded = set(threading.enumerate())\n"
        "def refuse(*_): raise AssertionError('a socket was made')\n"
        "socket.socket.__init__ = refuse\n"
        "from grpc_etcd.etcd import Etcd, aio, messages\n"
        "assert set(threading.enumerate()) == loaded\n"
        "assert messages._pool.cache_info().currsize == 0\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_call_to_nowhere_fails_at_once(opened: Opened) -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable):
        opened("127.0.0.1:1").get(b"k")
    assert time.monotonic() - began < 20


FORK = """
import os, sys, threading, time
from grpc_etcd.etcd import Etcd
client = Etcd(sys.argv[1])
client.put(b"fork", b"parent")
pid = os.fork()
if pid == 0:
    try:
        with Etcd(sys.argv[1]) as own:
            own.put(b"fork/child", b"1")
        client.put(b"fork/inherited", b"1")
        client.close()
    except BaseException as error:
        print("child:", repr(error), flush=True)
        os._exit(1)
    os._exit(0)
status = os.waitpid(pid, 0)[1]
client.put(b"fork/after", b"1")
client.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


# With 0 no channel of gRPC's works in a child, whoever made it; so that is gRPC's word, not ours.
@pytest.mark.parametrize("support", [{}, {"GRPC_ENABLE_FORK_SUPPORT": "1"}], ids=["default", "enabled"])
def test_a_client_is_usable_on_both_sides_of_a_fork(etcd: EtcdServer, support: dict[str, str]) -> None:
    environment = os.environ | support
    done = subprocess.run(
        [sys.executable, "-c", FORK, etcd.endpoints],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with Etcd(etcd.endpoints) as client:
        keys = [record.key for record in client.get_prefix(b"fork").records]
    assert keys == [b"fork", b"fork/after", b"fork/child", b"fork/inherited"]

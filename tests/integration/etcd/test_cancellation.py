"""A cancelled task is cancelled, whatever happens to its client at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from grpc_etcd.etcd import EtcdError, aio
from testbed.etcd import EtcdServer
from testbed.proxy import TcpProxy

Use = Callable[[aio.Etcd], Awaitable[object]]


async def follow(client: aio.Etcd) -> None:
    async for _ in client.list_watch(b"k"):
        pass


USES: dict[str, Use] = {
    "get": lambda client: client.get(b"k"),
    "get_prefix": lambda client: client.get_prefix(b"k"),
    "put": lambda client: client.put(b"k", b"v"),
    "lease": lambda client: client.lease(30),
    "list_watch": follow,
}


@pytest.fixture
def silent(etcd: EtcdServer) -> Iterator[TcpProxy]:
    """The way to an etcd that answers until it is made a black hole."""
    with TcpProxy.start(etcd.endpoints) as proxy:
        yield proxy


async def connect(proxy: TcpProxy) -> aio.Etcd:
    """Give a client that is connected and gets no answer any more."""
    client = aio.Etcd(proxy.address)
    await client.get(b"k")
    proxy.black_hole()
    return client


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("closes_first", [False, True])
async def test_a_retry_loop_ends_when_it_is_cancelled_while_the_client_closes(
    silent: TcpProxy, use: Use, *, closes_first: bool
) -> None:
    client = await connect(silent)
    begun = asyncio.Event()

    async def retry() -> None:
        while True:
            begun.set()
            try:
                await use(client)
            except EtcdError:
                await asyncio.sleep(0)

    task = asyncio.create_task(retry())
    await begun.wait()
    await asyncio.sleep(0.1)  # the call is under way, which nothing tells; were it not, the test would pass too
    closing = asyncio.create_task(client.close()) if closes_first else None
    task.cancel()
    if closing is None:
        await client.close()
    else:
        await closing
    await asyncio.wait({task}, timeout=30)
    assert task.cancelled()


async def test_a_timeout_of_ones_own_is_a_timeout_while_the_client_closes(silent: TcpProxy) -> None:
    client = await connect(silent)
    loop = asyncio.get_running_loop()

    async def get() -> None:
        async with asyncio.timeout_at(loop.time() + 0.3) as timeout:
            asyncio.get_running_loop().call_later(0.1, lambda: timeout.reschedule(loop.time()))
            asyncio.get_running_loop().call_later(0.1, lambda: closing.append(loop.create_task(client.close())))
            await client.get(b"k")

    closing: list[asyncio.Task[None]] = []
    with pytest.raises(TimeoutError):
        await get()
    await asyncio.gather(*closing)
    await client.close()


async def test_a_close_that_is_cancelled_closes_all_the_same(etcd: EtcdServer) -> None:
    client = aio.Etcd(etcd.endpoints)
    watches = [client.list_watch(b"k"), client.list_watch(b"l")]
    for watch in watches:
        await anext(watch)
    readers = [asyncio.create_task(drain(watch)) for watch in watches]
    await asyncio.sleep(0)
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing, *readers}, timeout=30)
    assert closing.cancelled()
    assert all(reader.done() and not reader.cancelled() for reader in readers)
    with pytest.raises(EtcdError):
        await client.get(b"k")
    await client.close()


async def drain(watch: aio.ListWatch) -> None:
    async for _ in watch:
        pass

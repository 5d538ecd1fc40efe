"""A client that has been closed: whoever asks it for a stream is told so, and does not wait for news for ever."""

import pytest

from grpc_etcd.etcd import Closed, Etcd, aio

NOWHERE = "127.0.0.1:9"


def assert_gives_no_stream(etcd: Etcd | aio.Etcd) -> None:
    with pytest.raises(Closed):
        etcd.list_watch(b"b/")
    with pytest.raises(Closed):
        etcd.watch_hub()
    with pytest.raises(Closed):
        etcd.keep_alive(print)


def test_a_closed_client_gives_no_stream_that_nobody_would_end() -> None:
    etcd = Etcd(NOWHERE)
    before = etcd.list_watch(b"a/")
    etcd.close()
    assert list(before) == []
    assert_gives_no_stream(etcd)
    etcd.close()


async def test_a_closed_client_of_asyncio_gives_none_either() -> None:
    etcd = aio.Etcd(NOWHERE)
    before = etcd.list_watch(b"a/")
    await etcd.close()
    assert [news async for news in before] == []
    assert_gives_no_stream(etcd)
    await etcd.close()

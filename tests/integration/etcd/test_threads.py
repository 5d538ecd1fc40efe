"""A process that may start no thread for a stream of grpcio's follows etcd, and keeps its leases, as soon as it may."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from grpc_etcd.etcd import Etcd, ops
from grpc_etcd.etcd.blocking.connection import Connection
from grpc_etcd.etcd.calls import FIRST_PAGE_KEYS, Method
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from tests.unit.client.test_threads import no_threads

from .conftest import Follower, wait_renewed

TTL_SECONDS = 15


class Scarce(Connection):
    """Has a thread for whoever opens a stream, and none for grpcio."""

    tries = 0

    def stream(self, method: Method, requests: Iterator[Any]) -> Any:
        self.tries += 1
        with no_threads():
            return super().stream(method, requests)


@pytest.fixture
def client(etcd: EtcdServer) -> Iterator[Etcd]:
    with Etcd(etcd.endpoints) as client:
        client.status()
        yield client


def fail_once(client: Etcd) -> None:
    """Wait until the first stream could not be opened; all others can."""
    link: Any = client._connection
    wait_until(lambda: link.tries, "a stream that fails", 60)
    link.__class__ = Connection


def test_a_range_is_followed_once_grpcio_may_have_its_thread(client: Etcd) -> None:
    follower = Follower(client.watch_hub())
    client._connection.__class__ = Scarce
    follower.watch.follow(b"scarce/", follower.news.append)
    fail_once(client)
    follower.wait_listed()
    client.put(b"scarce/key", b"value")
    follower.wait(lambda: b"scarce/key" in follower.view(), "what has changed since")


def test_a_long_listing_is_read_once_grpcio_may_have_its_thread(client: Etcd) -> None:
    """It never was, nor was the client ever closed, where grpcio had taken that thread for one that runs."""
    keys = [b"long/%d" % number for number in range(FIRST_PAGE_KEYS + 1)]
    for first in range(0, len(keys), 100):
        client.transaction((), [ops.put(key, b"") for key in keys[first : first + 100]])
    with no_threads(), pytest.raises(RuntimeError, match="ulimit -u"):
        client.get_prefix(b"long/")
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(client.get_prefix, b"long/").result(60).records) == len(keys)


def test_a_lease_is_renewed_once_grpcio_may_have_its_thread(client: Etcd) -> None:
    lease = client.lease(TTL_SECONDS)
    keeper = client.keep_alive(print)
    client._connection.__class__ = Scarce
    keeper.add(lease, TTL_SECONDS, remaining_seconds=0)
    fail_once(client)
    wait_renewed(client, lease)

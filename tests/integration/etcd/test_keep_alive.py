"""Many leases kept alive over a few streams.

Leases last much longer than a busy machine makes etcd or the client wait. That one lives on because it is renewed is
seen by its time to live, which rises.
"""

import asyncio
import time
from collections.abc import Sequence

import pytest

from grpc_etcd.etcd import Etcd, LeaseId
from grpc_etcd.etcd.aio import Etcd as AioEtcd
from grpc_etcd.etcd.renewing import Renewals
from testbed.conditions import existing, until, wait_until
from testbed.etcd import EtcdServer

from .conftest import Opened, wait_renewed

TTL_SECONDS = 15


def test_leases_live_while_kept_and_run_out_afterwards(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    leases = [client.lease(TTL_SECONDS) for _ in range(40)]
    for lease in leases:
        client.put(b"kept/%d" % lease, b"", lease=lease)
    lost: list[int] = []
    keeper = client.keep_alive(lost.append)
    for lease in leases:
        keeper.add(lease, TTL_SECONDS)
    end = time.monotonic() + 1.5 * TTL_SECONDS
    wait_until(lambda: time.monotonic() > end, "longer than the leases' life")
    assert len(client.get_prefix(b"kept/").records) == 40
    assert (len(keeper), lost) == (40, [])
    assert keeper.state.connected
    keeper.remove(leases[0])
    wait_until(lambda: client.time_to_live(leases[0]) is None, "the lease that is no longer kept has run out")
    keeper.close()
    wait_until(lambda: not client.get_prefix(b"kept/").records, "all leases have run out")


def test_a_lease_that_is_gone_is_reported_once(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    lease, other = client.lease(TTL_SECONDS), client.lease(TTL_SECONDS)
    lost: list[int] = []
    keeper = client.keep_alive(lost.append)
    keeper.add(lease, TTL_SECONDS)
    keeper.add(other, TTL_SECONDS, remaining_seconds=0)
    client.revoke(lease)
    wait_until(lambda: lost, "the loss is reported")
    wait_renewed(client, other)
    assert lost == [lease]
    assert len(keeper) == 1


@pytest.mark.faults
def test_leases_outlive_a_restart_of_etcd(own_etcd: EtcdServer, opened: Opened) -> None:
    client = opened(own_etcd.endpoints)
    lease = client.lease(TTL_SECONDS)
    client.put(b"stale", b"", lease=lease)
    lost: list[int] = []
    keeper = client.keep_alive(lost.append)
    keeper.add(lease, TTL_SECONDS, remaining_seconds=0)
    for _ in range(3):
        own_etcd.kill()
        wait_until(lambda: not keeper.state.connected, "the loss of the stream is visible")
        assert existing(keeper.state.stale_since) <= time.time()
        own_etcd.restart()
        wait_until(lambda: keeper.state.connected, "renewed again")
    wait_renewed(client, lease)
    assert existing(client.get(b"stale")).lease == lease
    assert lost == []


def test_whoever_fails_at_the_news_of_a_lost_lease_costs_no_other(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    lease, other = client.lease(TTL_SECONDS), client.lease(TTL_SECONDS)
    told = []

    def fail(lost: int) -> None:
        told.append(lost)
        raise ZeroDivisionError

    keeper = client.keep_alive(fail, streams=1)
    keeper.add(lease, TTL_SECONDS, remaining_seconds=0)
    keeper.add(other, TTL_SECONDS, remaining_seconds=0)
    client.revoke(lease)
    wait_until(lambda: told == [lease], "the loss is reported")
    wait_renewed(client, other)
    wait_renewed(client, other)  # once may be the answer to what was asked before the failure


def guard_prefixes(etcd: EtcdServer) -> str:
    """Let a user write under two prefixes; give root's word."""
    admin = etcd.enable_auth("root")
    etcd.add_user("keeper", "word", ["mine/", "theirs/"], admin=admin)
    return admin


def keys_of(leases: Sequence[LeaseId]) -> list[tuple[bytes, LeaseId]]:
    return [(b"%s/%d" % (b"mine" if number % 4 else b"theirs", each), each) for number, each in enumerate(leases)]


def test_a_lease_that_may_not_be_renewed_takes_no_other_with_it(own_etcd: EtcdServer) -> None:
    admin, lost = guard_prefixes(own_etcd), list[int]()
    with Etcd(own_etcd.endpoints, user="keeper", password="word") as client:  # noqa: S106 (a test's)
        keeper = client.keep_alive(lost.append, streams=1)
        leases = [client.lease(TTL_SECONDS) for _ in range(40)]
        for key, lease in keys_of(leases):
            client.put(key, b"", lease=lease)
            keeper.add(lease, TTL_SECONDS)
        own_etcd.etcdctl("role", "revoke-permission", "--prefix=true", "keeper", "theirs/", user=admin)
        wait_until(lambda: len(lost) == 10, "those that etcd renews no longer have run out")
        wait_renewed(client, leases[1])
        assert len(client.get_prefix(b"mine/").records) == 30


async def test_nor_does_it_with_asyncio(own_etcd: EtcdServer) -> None:
    """Grpcio leaves a task of its own behind when a stream ends while a request is being written."""
    admin, lost = guard_prefixes(own_etcd), list[int]()
    async with AioEtcd(own_etcd.endpoints, user="keeper", password="word") as client:  # noqa: S106 (a test's)
        keeper = client.keep_alive(lost.append, streams=1)
        leases = [await client.lease(TTL_SECONDS) for _ in range(40)]
        for key, lease in keys_of(leases):
            await client.put(key, b"", lease=lease)
            keeper.add(lease, TTL_SECONDS)
        deny = ("role", "revoke-permission", "--prefix=true", "keeper", "theirs/")
        await asyncio.to_thread(own_etcd.etcdctl, *deny, user=admin)
        await until(lambda: len(lost) == 10)
        with Etcd(own_etcd.endpoints, user="keeper", password="word") as looking:  # noqa: S106 (a test's)
            await asyncio.to_thread(wait_renewed, looking, leases[1])
        assert len((await client.get_prefix(b"mine/")).records) == 30


class Stumbling(Renewals):
    """Renewals with which something unforeseen happens once, just when some are to be sent."""

    stumbles = 0

    def due(self, now: float) -> list[bytes]:
        requests = super().due(now)
        if requests and not self.stumbles:
            self.stumbles += 1
            raise ZeroDivisionError
        return requests


async def test_what_nobody_foresaw_at_sending_with_asyncio_is_no_end_of_the_renewals(etcd: EtcdServer) -> None:
    async with AioEtcd(etcd.endpoints) as client:
        keeper, lease = client.keep_alive(lambda _: None, streams=1), await client.lease(TTL_SECONDS)
        renewals = keeper._streams[0]._renewals = Stumbling()
        keeper.add(lease, TTL_SECONDS, remaining_seconds=0)
        await until(lambda: renewals.stumbles)
        await until(lambda: keeper.renewed_at(lease))

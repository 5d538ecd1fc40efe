"""Leases of units on a real etcd: granted ahead, and kept alive for nobody who is gone or whom another serves."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.writer.leasing import AT_ONCE, Leases
from testbed.conditions import PATIENCE_SECONDS, POLL_SECONDS, until
from testbed.etcd import EtcdServer

TTL_SECONDS = 300


@pytest.fixture
async def client(etcd: EtcdServer) -> AsyncIterator[Etcd]:
    async with Etcd(etcd.endpoints) as opened:
        yield opened


@pytest.fixture
async def leases(client: Etcd) -> AsyncIterator[Leases]:
    made = Leases(client, TTL_SECONDS, lambda _: None)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.wait([running])


def some_leases(count: int) -> list[int]:
    return [lease_id("c1", str(uuid.uuid4())) for _ in range(count)]


async def test_leases_that_are_wanted_are_granted_soon_and_once(client: Etcd, leases: Leases) -> None:
    wanted = some_leases(3 * AT_ONCE)
    for lease in wanted * 2:
        leases.want(lease)
    await until(lambda: len(leases) == len(wanted))
    assert set(wanted) <= set(await client.leases())
    for lease in wanted:
        leases.revoke(lease)
    assert len(leases) == 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while set(wanted) & set(await client.leases()):  # noqa: ASYNC110  etcd decides
            await asyncio.sleep(POLL_SECONDS)


async def test_leases_adopted_while_they_were_wanted_hold_up_no_other(client: Etcd, leases: Leases) -> None:
    adopted, (late,) = some_leases(AT_ONCE), some_leases(1)
    for lease in adopted:
        await client.lease(TTL_SECONDS, lease)
    for lease in adopted:
        leases.want(lease)
        leases.adopt(lease)
    leases.want(late)
    await until(lambda: len(leases) == AT_ONCE + 1)
    assert late in await client.leases()


async def test_what_is_granted_for_who_is_gone_or_served_by_another_is_not_kept(leases: Leases) -> None:
    for end in (leases.revoke, lambda _: leases.release_all()):
        (lease,) = some_leases(1)
        granting = asyncio.create_task(leases.ensure([lease]))
        await asyncio.sleep(0)  # it has asked, and there is no answer yet
        end(lease)
        await granting
        assert len(leases) == 0

"""Leases of units on a real etcd: granted ahead, and kept alive for nobody who is gone or whom another serves."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import Unavailable
from grpc_etcd.etcd.model import LeaseId
from grpc_etcd.etcd.renewing import STEPS_PER_PERIOD
from grpc_etcd.registry.own import OwnerRecord, owner_key
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.registry.leases import AT_ONCE, Leases
from testbed.apiserver import ApiServer
from testbed.conditions import PATIENCE_SECONDS, POLL_SECONDS, existing, until, wait_until
from testbed.etcd import EtcdServer
from tests.e2e.conftest import MakeScene, Scene
from tests.e2e.test_seams import note_pod, parts, wait_addresses
from tests.unit.operator_core.conftest import make_raw_service

TTL_SECONDS = 300
RENEWED = "etcd_debugging_lease_renewed_total"


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


class Hasty(Etcd):
    """Fails at the first grants, as while no member leads."""

    failures = 0

    async def lease(self, ttl_seconds: int, lease_id: int = 0) -> LeaseId:
        if self.failures:
            self.failures -= 1
            raise Unavailable("no member leads")
        return await super().lease(ttl_seconds, lease_id)


async def test_a_lease_that_could_not_be_had_is_asked_for_again(etcd: EtcdServer) -> None:
    async with Hasty(etcd.endpoints) as client:
        made = Leases(client, TTL_SECONDS, lambda _: None)
        running = asyncio.create_task(made.run())
        held, new = some_leases(1), some_leases(2)
        await client.lease(TTL_SECONDS, held[0])  # with keys under it that would run out
        client.failures = len(held + new)
        for lease in held + new:
            made.want(lease)
        await until(lambda: len(made) == len(held + new))
        released = some_leases(1)
        client.failures = 1
        made.want(released[0])
        await until(lambda: not client.failures)
        made.release_all()
        made.want(new[0])
        await until(lambda: len(made))
        assert released[0] not in await client.leases()
        running.cancel()
        await asyncio.wait([running])


async def test_what_a_leader_wrote_last_is_kept_alive_by_the_next_that_hears_of_it_late(etcd: EtcdServer) -> None:
    async with parts(etcd) as made:
        lease = await made.client.lease(TTL_SECONDS, lease_id("c1", "unknown"))
        record = OwnerRecord(namespace="shop", pod="pod", keys=(b"/jupiter/greeter/providers/x",)).to_json()
        await made.client.put(owner_key("c1", "unknown"), record, lease=lease)
        await until(lambda: lease in made.controller.leases._kept)


@pytest.mark.parametrize("ready", [True, False])
async def test_the_lease_of_a_pod_that_nobody_selects_any_more_is_left_to_run_out(
    etcd: EtcdServer, *, ready: bool
) -> None:
    async with parts(etcd) as made:
        lease = lease_id("c1", "p1")
        note_pod(made.reconciler, "p1", ready=ready)
        await until(lambda: lease in made.controller.leases._kept)
        await wait_addresses(made, *([b"10.0.0.1:9000"] if ready else []))
        note_pod(made.reconciler, "p1", ready=ready, labels={})
        await until(lambda: lease not in made.controller.leases._kept)
        await wait_addresses(made)
        note_pod(made.reconciler, "p1")
        await wait_addresses(made, b"10.0.0.1:9000")
        assert lease in made.controller.leases._kept


async def test_the_leases_of_a_grpcservices_pods_are_left_to_run_out_with_it(etcd: EtcdServer) -> None:
    async with parts(etcd) as made:
        for number in range(1, 4):
            note_pod(made.reconciler, f"p{number}", ip=f"10.0.0.{number}")
        await wait_addresses(made, *(b"10.0.0.%d:9000" % number for number in range(1, 4)))
        made.reconciler.note_service("MODIFIED", make_raw_service("s1", selector={"matchLabels": {"app": "other"}}))
        await wait_addresses(made)
        await until(lambda: len(made.controller.leases) == 0)


def test_keys_stay_for_two_thirds_of_their_time_when_the_last_replica_has_ended(scene: Scene) -> None:
    """Leases are renewed each third of their time to live, so one that is about to be has two thirds left."""
    ttl_seconds = 15
    replica = scene.start(f"--lease-ttl={ttl_seconds}", "--leader-ttl=3").wait_leading()
    scene.apply(policy={"timeout": "5s"})
    pods = [scene.pod() for _ in range(10)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    scene.wait_condition("Programmed", "True", "Programmed")
    running = time.monotonic() + ttl_seconds
    wait_until(lambda: time.monotonic() > running, "each lease has been renewed, at a moment of its own")
    before = scene.registry.keys("/jupiter/")
    assert len(before) >= len(pods)
    replica.process.kill()
    ended = time.monotonic()
    wait_until(lambda: scene.registry.keys("/jupiter/") != before, "the first ones have run out")
    assert time.monotonic() - ended > ttl_seconds * 2 / 3 - 1, "keys went while the operator was away for a moment"
    scene.registry.wait_addresses()


def test_keys_of_pods_outlive_a_change_of_the_lease_ttl(scene: Scene) -> None:
    short_seconds = 15
    replica = scene.start(f"--lease-ttl={short_seconds}").wait_leading()
    scene.apply(policy={"timeout": "5s"})
    pods = [scene.pod() for _ in range(5)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    scene.wait_condition("Programmed", "True", "Programmed")
    before = scene.registry.keys()
    standby = scene.start("--lease-ttl=3600")
    wait_until(lambda: len(standby.lines("listed")) == 2, "the standby is warm")
    replica.process.stop()
    standby.wait_leading()
    over = time.monotonic() + 2 * short_seconds
    wait_until(lambda: scene.registry.keys() != before or time.monotonic() > over, "leases would have run out")
    assert scene.registry.keys() == before
    assert existing(scene.client.time_to_live(scene.lease(pods[0].uid))).granted_seconds == short_seconds


def test_an_idle_operator_renews_each_lease_three_times_in_its_time_and_no_more(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene
) -> None:
    """Counted by etcd. What falls due within a quarter of the period goes out with what is due."""
    scene, ttl_seconds, leader_ttl_seconds = make_scene(apiserver, own_etcd), 30, 60
    replica = scene.start(f"--lease-ttl={ttl_seconds}", f"--leader-ttl={leader_ttl_seconds}").wait_leading()
    scene.apply()
    pods = [scene.pod() for _ in range(20)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    leases = replica.metric("grpc_etcd_operator_leases")
    began, before = time.monotonic(), own_etcd.metric(RENEWED)
    wait_until(lambda: own_etcd.metric(RENEWED) - before >= 2 * leases, "each has been renewed twice")
    renewed, elapsed_seconds = own_etcd.metric(RENEWED) - before, time.monotonic() - began
    rounds = [elapsed_seconds * 3 / each / (1 - 1 / STEPS_PER_PERIOD) + 1 for each in (ttl_seconds, leader_ttl_seconds)]
    assert renewed <= leases * rounds[0] + rounds[1]
    assert own_etcd.metric("etcd_debugging_server_lease_expired_total") == 0

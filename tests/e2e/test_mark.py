"""The synced mark stands only while the leader is in step: put once, never rewritten, gone as soon as that ends."""

import asyncio
import time
from typing import Any

import pytest

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.jupiter import Jupiter
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import synced_key
from grpc_etcd_operator.core.desired import Desired, Unit, Wanted
from grpc_etcd_operator.core.scope import Scope
from grpc_etcd_operator.writer.electing import Election
from grpc_etcd_operator.writer.marking import Mark
from grpc_etcd_operator.writer.station import Station
from testbed.conditions import until, wait_until
from testbed.proxy import TcpProxy

LEADER_TTL_SECONDS = 3


def mark_of(scene: Any) -> Any:
    return scene.client.get(f"/grpc-etcd/synced/{scene.cluster}".encode())


def test_it_is_put_once_under_the_leaders_lease_and_outlives_changes(scene: Any) -> None:
    scene.apply()
    pods = [scene.pod() for _ in range(3)]
    scene.start().wait_leading()
    mark = mark_of(scene)
    # In step means that all of the first complete lists is written before.
    assert max(record.mod_revision for record in scene.registry.keys().values()) < mark.mod_revision
    assert mark.lease == scene.client.get(f"/grpc-etcd/leader/{scene.cluster}".encode()).lease
    for pod in pods:
        scene.kubelet.unready(pod)
    scene.registry.wait_addresses()
    scene.wait_condition("Programmed", "True", "NoReadyPods")
    assert mark_of(scene) == mark


def test_it_is_put_again_when_somebody_deletes_it(scene: Any) -> None:
    replica = scene.start().wait_leading()
    first = mark_of(scene)
    scene.client.delete(first.key)
    wait_until(lambda: mark_of(scene), "it is put again")
    assert mark_of(scene).lease == first.lease
    wait_until(lambda: replica.lines("somebody else deleted the synced mark; it is put again"), "it is told")


@pytest.mark.faults
def test_it_is_gone_while_the_registry_is_out_of_the_leaders_reach(scene: Any) -> None:
    with TcpProxy.start(scene.etcd.endpoints) as proxy:
        scene.start(f"--leader-ttl={LEADER_TTL_SECONDS}", etcd=proxy.address).wait_leading()
        scene.apply()
        pod = scene.pod()
        scene.registry.wait_addresses(pod.address)
        first = mark_of(scene)
        proxy.black_hole()
        wait_until(lambda: mark_of(scene) is None, "it runs out with the leader's lease")
        assert scene.registry.addresses() == [pod.address]
        proxy.heal()
        wait_until(lambda: mark_of(scene), "in step again")
        assert mark_of(scene).create_revision > first.create_revision
        assert scene.registry.addresses() == [pod.address]


class OneUnit:
    """The facts of a world with one unit, which wants one record once `wants` is set."""

    def __init__(self) -> None:
        self.wants: Wanted | None = None

    def desired(self, uid: str, registry: str) -> Desired | None:
        assert registry == "default"
        return Desired(Unit(uid, "shop", "pod-1"), (self.wants,) if self.wants else ())

    def outranks(self, uid: str, rival: str) -> bool:
        raise AssertionError(f"{uid} and {rival}: there is only one unit")

    def may_write(self) -> bool:
        return True

    def has_seen_all(self) -> bool:
        return True


async def test_it_is_gone_while_a_change_is_overdue(etcd: Any) -> None:
    facts, overdue_seconds = OneUnit(), 1.0
    layout, endpoint = Jupiter(), Endpoint(name="greeter", address="10.0.0.1:9000")
    encoded = layout.encode("greeter", endpoint)
    assert isinstance(encoded, KeyValue)
    station = Station(
        "default",
        "c1",
        Etcd(etcd.endpoints),
        identity="test",
        scope=Scope(),
        lease_ttl_seconds=30,
        leader_ttl_seconds=LEADER_TTL_SECONDS,
        facts=facts,
        is_fresh=lambda: True,
        advise=str,
        on_outcome=lambda _registry, _outcome: None,
        on_change=lambda: None,
        overdue_seconds=overdue_seconds,
    )
    running = asyncio.create_task(station.run())

    await until(lambda: station.mark.is_put, 20.0)
    # Nothing is written before what stands under its prefix is known, and that is not even followed yet.
    facts.wants = Wanted(encoded.key, encoded.value, "s1", layout, endpoint)
    prefix = station.streams.learn(layout, "greeter")
    station.enqueue(["p1"])
    began = time.monotonic()
    await until(lambda: not station.mark.is_put, 20.0)
    assert time.monotonic() - began >= overdue_seconds
    assert await station.etcd.get(synced_key("c1")) is None
    assert await station.etcd.get(encoded.key) is None
    station.feed.follow([prefix])
    await until(lambda: station.mark.is_put, 20.0)
    assert await station.etcd.get(encoded.key)
    running.cancel()
    await asyncio.wait([running])
    await station.close()


async def test_it_follows_the_leaders_word_on_being_in_step(etcd: Any) -> None:
    won = asyncio.Event()
    in_step, key = False, synced_key("c1")
    async with Etcd(etcd.endpoints) as client, asyncio.TaskGroup() as group:
        election = Election(client, "c1", "test", Scope(), LEADER_TTL_SECONDS, won.set)
        mark = Mark(client, "c1", election, lambda: in_step)
        parts = [group.create_task(part.run()) for part in (election, mark)]

        async def found(*, there: bool) -> Any:
            async with asyncio.timeout(20):
                while ((record := await client.get(key)) is not None) != there:  # noqa: ASYNC110  etcd decides
                    await asyncio.sleep(0.02)
            return record

        await won.wait()
        assert await client.get(key) is None
        in_step = True
        first = await found(there=True)
        in_step = False
        await found(there=False)
        in_step = True
        second = await found(there=True)
        assert second.create_revision > first.mod_revision
        assert (first.version, second.version) == (1, 1)
        await election.resign()
        assert await client.get(key) is None
        for part in parts:
            part.cancel()

"""The synced key stands only while the leader is synced: put once, never rewritten, gone as soon as that ends."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.errors import DeadlineExceeded
from grpc_etcd.etcd.model import Record, TransactionResult
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import synced_key
from grpc_etcd_operator.controller.outcomes import Outcome
from grpc_etcd_operator.controller.registry_controller import RegistryController, Views
from grpc_etcd_operator.core.desired import Desired, DesiredRecord, Owner
from grpc_etcd_operator.core.scope import Candidate
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.registry.election import Election
from grpc_etcd_operator.registry.synced_key import SyncedKey
from testbed.conditions import PATIENCE_SECONDS, existing, until, wait_until
from testbed.etcd import EtcdServer
from testbed.proxy import TcpProxy
from tests.e2e.conftest import Scene
from tests.e2e.facts import AllSeen

LEADER_TTL_SECONDS = 3
LONG_LEADER_TTL_SECONDS = 60  # which no stall of a busy machine lets run out


def mark_of(scene: Scene) -> Record | None:
    return scene.client.get(f"/grpc-etcd/synced/{scene.cluster}".encode())


def test_it_is_put_once_under_the_leaders_lease_and_outlives_changes(scene: Scene) -> None:
    scene.apply()
    pods = [scene.pod() for _ in range(3)]
    scene.start(f"--leader-ttl={LONG_LEADER_TTL_SECONDS}").wait_leading()
    mark = existing(mark_of(scene))
    # In step means that all of the first complete lists is written before.
    assert max(record.mod_revision for record in scene.registry.keys().values()) < mark.mod_revision
    assert mark.lease == existing(scene.client.get(f"/grpc-etcd/leader/{scene.cluster}".encode())).lease
    for pod in pods:
        scene.kubelet.unready(pod)
    scene.registry.wait_addresses()
    scene.wait_condition("Programmed", "True", "NoReadyPods")
    assert mark_of(scene) == mark


def test_it_is_put_again_when_somebody_deletes_it(scene: Scene) -> None:
    replica = scene.start(f"--leader-ttl={LONG_LEADER_TTL_SECONDS}").wait_leading()
    first = existing(mark_of(scene))
    scene.client.delete(first.key)
    wait_until(lambda: mark_of(scene), "it is put again")
    assert existing(mark_of(scene)).lease == first.lease
    wait_until(lambda: replica.lines("synced_key_overwritten"), "it is told")


def test_one_that_somebody_else_puts_does_not_outlive_the_leader(scene: Scene) -> None:
    scene.start(f"--leader-ttl={LONG_LEADER_TTL_SECONDS}").wait_leading()
    first = existing(mark_of(scene))
    scene.client.put(first.key, first.value)
    wait_until(
        lambda: (found := mark_of(scene)) is not None and found.lease == first.lease, "it has the leader's lease again"
    )


@pytest.mark.faults
def test_it_is_gone_while_the_registry_is_out_of_the_leaders_reach(scene: Scene) -> None:
    with TcpProxy.start(scene.etcd.endpoints) as proxy:
        scene.start(f"--leader-ttl={LEADER_TTL_SECONDS}", etcd=proxy.address).wait_leading()
        scene.apply()
        pod = scene.pod()
        scene.registry.wait_addresses(pod.address)
        first = existing(mark_of(scene))
        proxy.black_hole()
        wait_until(lambda: mark_of(scene) is None, "it runs out with the leader's lease")
        assert scene.registry.addresses() == [pod.address]
        proxy.heal()
        wait_until(lambda: mark_of(scene), "synced again")
        assert existing(mark_of(scene)).create_revision > first.create_revision
        assert scene.registry.addresses() == [pod.address]


class OneUnit(AllSeen):
    """The facts of a world with one unit, which wants one record once `wants` is set."""

    def __init__(self) -> None:
        self.wants: DesiredRecord | None = None

    def desired(self, uid: str, registry: str) -> Desired | None:
        assert registry == "default"
        return Desired(Owner(uid, "shop", "pod-1"), (self.wants,) if self.wants else ())


async def test_it_is_gone_while_a_change_is_overdue(etcd: EtcdServer) -> None:
    facts, overdue_seconds = OneUnit(), 1.0
    layout, endpoint = Jupiter(), Endpoint(name="greeter", address="10.0.0.1:9000")
    encoded = layout.encode("greeter", endpoint)
    assert isinstance(encoded, KeyValue)
    controller = RegistryController(
        "default",
        "c1",
        Etcd(etcd.endpoints),
        Candidate("test"),
        Views(facts, lambda: True, lambda: 0.0, lambda: False, str, lambda _registry, _outcome: None, lambda: None),
        Isolation(),
        lease_ttl_seconds=30,
        leader_ttl_seconds=LONG_LEADER_TTL_SECONDS,
        overdue_seconds=overdue_seconds,
    )
    running = asyncio.create_task(controller.run())

    await until(lambda: controller.synced_key.is_put)
    # Nothing is written before what stands under its prefix is known, and that is not even followed yet.
    facts.wants = DesiredRecord(encoded.key, encoded.value, "s1", layout, endpoint)
    prefix = controller.streams.learn(layout, "greeter")
    controller.enqueue(["p1"])
    began = time.monotonic()
    await until(lambda: not controller.synced_key.is_put)
    assert time.monotonic() - began >= overdue_seconds
    assert await controller.etcd.get(synced_key("c1")) is None
    assert await controller.etcd.get(encoded.key) is None
    controller.feed.follow([prefix])
    await until(lambda: controller.synced_key.is_put)
    assert await controller.etcd.get(encoded.key)
    running.cancel()
    await asyncio.wait([running])
    await controller.close()


async def keep_looking(mark: SyncedKey) -> None:
    while True:
        mark.look()
        await asyncio.sleep(0.02)


async def test_it_follows_the_leaders_word_on_being_in_step(etcd: EtcdServer) -> None:
    won = asyncio.Event()
    in_step, key = False, synced_key("c1")
    async with Etcd(etcd.endpoints) as client, asyncio.TaskGroup() as group:
        election = Election(client, "c1", Candidate("test"), LONG_LEADER_TTL_SECONDS, won.set)
        mark = SyncedKey(client, "c1", election, lambda: in_step)
        parts = [group.create_task(run()) for run in (election.run_alone, mark.run, partial(keep_looking, mark))]

        async def found(*, there: bool) -> Record | None:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while ((record := await client.get(key)) is not None) != there:  # noqa: ASYNC110  etcd decides
                    await asyncio.sleep(0.02)
            return record

        await won.wait()
        assert await client.get(key) is None
        in_step = True
        first = existing(await found(there=True))
        in_step = False
        await found(there=False)
        in_step = True
        second = existing(await found(there=True))
        assert second.create_revision > first.mod_revision
        assert (first.version, second.version) == (1, 1)
        await election.resign()
        assert await client.get(key) is None
        for part in parts:
            part.cancel()


class LosesAnswer(Etcd):
    """Puts the mark, and never learns of it the first time; the leader is not synced by then."""

    def __init__(self, endpoints: str, on_lost: Callable[[], None]) -> None:
        super().__init__(endpoints)
        self.on_lost, self.lost, self.deregistrations = on_lost, 0, 0

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[ops.Op], failure: Sequence[ops.Op] = ()
    ) -> TransactionResult:
        result = await super().transaction(compare, success, failure)
        self.deregistrations += list(success) == [ops.delete(synced_key("c1"))]
        if not self.lost and any(isinstance(each, ops.PutOp) and each.key == synced_key("c1") for each in success):
            self.lost += 1
            self.on_lost()
            raise DeadlineExceeded("the answer was lost")
        return result


async def test_one_whose_answer_was_lost_does_not_stay_when_the_leader_is_out_of_step(etcd: EtcdServer) -> None:
    won, in_step = asyncio.Event(), False

    def fall_out_of_step() -> None:
        nonlocal in_step
        in_step = False

    async with LosesAnswer(etcd.endpoints, fall_out_of_step) as client, asyncio.TaskGroup() as group:
        election = Election(client, "c1", Candidate("test"), LONG_LEADER_TTL_SECONDS, won.set)
        mark = SyncedKey(client, "c1", election, lambda: in_step)
        parts = [group.create_task(run()) for run in (election.run_alone, mark.run, partial(keep_looking, mark))]
        await until(lambda: client.deregistrations)
        in_step = True
        await until(lambda: client.lost)
        assert not mark.is_put
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await client.get(synced_key("c1")):  # noqa: ASYNC110  etcd decides
                await asyncio.sleep(0.02)
        in_step = True
        await until(lambda: mark.is_put)
        assert await client.get(synced_key("c1"))
        for part in parts:
            part.cancel()


class Restless(AllSeen):
    """Facts of a service whose Pods all change continuously, faster than its clients tolerate, and of an idle one."""

    def __init__(self, units: int) -> None:
        self.busy = [f"busy-{number}" for number in range(units)]
        self.weight = 0

    def desired(self, uid: str, registry: str) -> Desired:
        name, _, number = uid.partition("-")
        weight = self.weight % 1000 if name == "busy" else 100
        endpoint = Endpoint(name=name, address=f"10.0.0.{number}:9000", weight=weight)
        encoded = Jupiter().encode(name, endpoint)
        assert isinstance(encoded, KeyValue)
        return Desired(
            Owner(uid, registry, uid), (DesiredRecord(encoded.key, encoded.value, name, Jupiter(), endpoint),)
        )

    def sources(self, uid: str) -> list[str]:
        return [uid]


async def test_a_service_that_never_rests_keeps_no_new_leader_from_vouching(etcd: EtcdServer) -> None:
    facts, written = Restless(200), set[str]()
    client = Etcd(etcd.endpoints)

    def take(_: str, outcome: Outcome) -> None:
        if outcome.plan:
            written.add(outcome.uid)

    controller = RegistryController(
        "default",
        "c1",
        client,
        Candidate("test"),
        Views(facts, lambda: True, lambda: 0.0, lambda: False, str, take, lambda: None),
        Isolation(),
        lease_ttl_seconds=30,
        leader_ttl_seconds=LONG_LEADER_TTL_SECONDS,
    )
    controller.feed.follow([controller.streams.learn(Jupiter(), name) for name in ("busy", "calm")])

    async def change_on_and_on() -> None:
        while True:
            facts.weight += 1
            controller.enqueue(facts.busy)
            await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(change_on_and_on()), asyncio.create_task(controller.run())]
    controller.enqueue(["calm-1"])
    await until(lambda: controller.synced_key.is_put)
    assert written == {*facts.busy, "calm-1"}
    assert not controller.writer.may_settle()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await controller.close()

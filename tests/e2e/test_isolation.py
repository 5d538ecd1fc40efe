"""An exception that nobody foresaw, thrown at each edge of a station in turn: all other objects are served."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.model import LeaseId, TransactionResult
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import owner_key
from grpc_etcd_operator.controller.outcomes import Outcome
from grpc_etcd_operator.controller.registry_controller import RegistryController, Views
from grpc_etcd_operator.core.desired import Desired, DesiredRecord, Owner
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.scope import Candidate
from grpc_etcd_operator.isolation import Isolation, supervise
from testbed.conditions import until
from testbed.etcd import EtcdServer
from tests.e2e.facts import AllSeen

CLUSTER, POISONED, GOOD = "c1", "poisoned", ("good-1", "good-2", "good-3")
LAYOUT = Jupiter()


class PoisonError(Exception):
    """Nobody foresees it."""


def key_of(uid: str) -> KeyValue:
    number = [POISONED, *GOOD].index(uid) + 1
    encoded = LAYOUT.encode("greeter", Endpoint(name="greeter", address=f"10.0.0.{number}:9000"))
    assert isinstance(encoded, KeyValue)
    return encoded


@dataclass
class Facts(AllSeen):
    """Four units, one of which fails wherever `fails` says so."""

    fails: set[str] = field(default_factory=set)

    def check(self, edge: str, uid: str) -> None:
        if uid == POISONED and edge in self.fails:
            raise PoisonError(edge)

    def desired(self, uid: str, registry: str) -> Desired:
        self.check("planner", uid)
        record = key_of(uid)
        return Desired(Owner(uid, registry), (DesiredRecord(record.key, record.value, f"service of {uid}", LAYOUT),))

    def sources(self, uid: str) -> list[str]:
        self.check("sources", uid)
        return [f"service of {uid}"]


class FailingEtcd(Etcd):
    """A real client that fails unexpectedly, before anything is sent, for one unit."""

    facts: Facts

    async def lease(self, ttl_seconds: int, lease_id_: int = 0) -> LeaseId:
        if lease_id_ == lease_id(CLUSTER, POISONED):
            self.facts.check("lease", POISONED)
        return await super().lease(ttl_seconds, lease_id_)

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[ops.Op], failure: Sequence[ops.Op] = ()
    ) -> TransactionResult:
        if any(getattr(each, "key", b"") == key_of(POISONED).key for each in success):
            self.facts.check("transaction", POISONED)
        return await super().transaction(compare, list(success), failure)


@dataclass
class Running:
    controller: RegistryController
    facts: Facts
    isolation: Isolation
    outcomes: dict[str, Outcome]


@asynccontextmanager
async def running(etcd: EtcdServer, *fails: str) -> AsyncIterator[Running]:
    facts, isolation, outcomes = Facts(set(fails)), Isolation(), dict[str, Outcome]()

    def take(_: str, outcome: Outcome) -> None:
        facts.check("outcome", outcome.uid)
        outcomes[outcome.uid] = outcome

    client = FailingEtcd(etcd.endpoints)
    client.facts = facts
    views = Views(facts, lambda: True, lambda: 0.0, lambda: False, str, take, lambda: None)
    controller = RegistryController(
        "default", CLUSTER, client, Candidate("test"), views, isolation, lease_ttl_seconds=30, leader_ttl_seconds=60
    )
    controller.feed.follow([controller.streams.learn(LAYOUT, "greeter")])
    task = asyncio.create_task(controller.run())
    controller.enqueue([GOOD[0], POISONED, *GOOD[1:]])
    yield Running(controller, facts, isolation, outcomes)
    task.cancel()
    await asyncio.wait([task])
    await controller.close()


async def has(controller: RegistryController, uids: Iterable[str]) -> bool:
    return all([await controller.etcd.get(key_of(uid).key) for uid in uids])


async def wait_written(controller: RegistryController, *uids: str) -> None:
    async with asyncio.timeout(60):
        while not await has(controller, uids):  # noqa: ASYNC110  etcd decides
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("edge", ["planner", "lease", "transaction"])
async def test_a_unit_that_fails_is_told_alone_and_tried_again(etcd: EtcdServer, edge: str) -> None:
    async with running(etcd, edge) as run:
        await wait_written(run.controller, *GOOD)
        await until(lambda: run.controller.synced_key.is_put)
        await until(lambda: POISONED in run.outcomes)
        assert [fault.reason for fault in run.outcomes[POISONED].faults] == ["InternalError"]
        assert [fault.source for fault in run.outcomes[POISONED].faults] == [f"service of {POISONED}"]
        assert sum(run.isolation.counts.values()) > 0
        assert all(not run.outcomes[uid].faults for uid in GOOD)
        run.facts.fails.clear()
        await wait_written(run.controller, POISONED)
        await until(lambda: not run.outcomes[POISONED].faults)


@pytest.mark.parametrize("edges", [("outcome",), ("planner", "sources"), ("planner", "outcome")])
async def test_what_fails_while_a_failure_is_told_ends_nothing(etcd: EtcdServer, edges: tuple[str, ...]) -> None:
    async with running(etcd, *edges) as run:
        await wait_written(run.controller, *GOOD)
        await until(lambda: sum(run.isolation.counts.values()) > 0)
        run.facts.fails.clear()
        await wait_written(run.controller, POISONED)


@pytest.mark.parametrize("value", [b"\xff\x00", b"{}", b"[" * 100_000, b'{"namespace":"x","keys":[7]}', b'{"keys":{}}'])
async def test_an_owner_record_that_nobody_can_read_holds_up_nobody(etcd: EtcdServer, value: bytes) -> None:
    async with Etcd(etcd.endpoints) as writer:
        await writer.put(owner_key(CLUSTER, "stranger"), value)
        await writer.put(key_of(POISONED).key.replace(b"10.0.0.1", b"\xff\xfe"), value)
    async with running(etcd) as run:
        await wait_written(run.controller, POISONED, *GOOD)
        await until(lambda: run.controller.synced_key.is_put)


async def test_a_part_that_fails_is_started_again_alone() -> None:
    isolation, runs = Isolation(), Counter[str]()

    def part(name: str, failures: int) -> Callable[[], Coroutine[object, object, None]]:
        async def run() -> None:
            runs[name] += 1
            if runs[name] <= failures:
                raise PoisonError(name)
            await asyncio.Event().wait()

        return run

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(supervise(name, part(name, failures), isolation))
            for name, failures in (("bad", 2), ("good", 0))
        ]
        await until(lambda: runs["bad"] == 3)
        assert (runs["good"], isolation.counts["bad"]) == (1, 2)
        for task in tasks:
            task.cancel()

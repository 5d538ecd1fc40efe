"""The writer's work queue on a real etcd: what waits keeps its time, and deregistrations need no space."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from grpc_etcd.etcd import Etcd as BlockingEtcd
from grpc_etcd.etcd import NoSpace, ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.model import TransactionResult
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.own import owner_key, owner_prefix
from grpc_etcd_operator.controller.outcomes import Outcome
from grpc_etcd_operator.controller.parts import Parts as WriterParts
from grpc_etcd_operator.controller.reconciler import Reconciler
from grpc_etcd_operator.core.desired import Desired, DesiredRecord, Owner
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.scope import Candidate
from grpc_etcd_operator.core.write_budget import Bucket
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.registry.cache import RegistryCache
from grpc_etcd_operator.registry.election import Election
from grpc_etcd_operator.registry.leases import Leases
from grpc_etcd_operator.registry.prefixes import Streams
from grpc_etcd_operator.registry.refusals import Refusing
from grpc_etcd_operator.registry.trouble import BACKOFF
from testbed.conditions import until
from testbed.etcd import EtcdServer
from tests.e2e.facts import AllSeen

CLUSTER = "queue"
PREFIX = b"/jupiter/greeter/providers/"
NAMES = (b"/jupiter/stays/providers/%d" % number for number in itertools.count(10))
MANY = 300  # keys of one unit: more than a transaction holds


class HeldEtcd(Etcd):
    """A real client that sends a transaction only when none of its keys is held any more, and fails at some."""

    def __init__(self, endpoints: str) -> None:
        super().__init__(endpoints)
        self.held: dict[bytes, asyncio.Event] = {}
        self.waiting: set[bytes] = set()
        self.failing: set[bytes] = set()
        self.conflicts = 0

    def hold(self, key: bytes) -> asyncio.Event:
        """Hold what touches a key from now on; the event lets it go."""
        self.held[key] = asyncio.Event()
        return self.held[key]

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[ops.Op], failure: Sequence[ops.Op] = ()
    ) -> TransactionResult:
        for key in [each.key for each in success if each.key in self.held]:
            self.waiting.add(key)
            try:
                await self.held[key].wait()
            finally:
                self.waiting.discard(key)
        if any(each.key in self.failing for each in success):
            raise ZeroDivisionError
        result = await super().transaction(compare, success, failure)
        self.conflicts += bool(success) and not result.succeeded
        return result


class SometimesBlind(Election):
    """Counts how often it is asked whether this replica may write, which one that took over blind may not."""

    is_blind, asked = False, 0

    @property
    def may_write(self) -> bool:
        self.asked += 1
        return super().may_write and not self.is_blind


@dataclass
class Wishes(AllSeen):
    """The facts of a world in which each unit wants some keys; `asked` counts how often what a unit wants was asked."""

    keys: dict[str, Iterable[bytes]] = field(default_factory=dict)
    newest: str = ""
    asked: Counter[str] = field(default_factory=Counter)

    def desired(self, uid: str, registry: str) -> Desired | None:
        assert registry == "default"
        self.asked[uid] += 1
        wanted = tuple(DesiredRecord(key, b"value", f"service of {uid}") for key in self.keys.get(uid, ()))
        return Desired(Owner(uid, "shop", uid), wanted, gone=uid not in self.keys)

    def outranks(self, uid: str, rival: str) -> bool:
        assert self.newest, f"{uid} and {rival}: no two want one key"
        return uid == self.newest


@dataclass
class Parts:
    writer: Reconciler
    election: SometimesBlind
    client: HeldEtcd
    wishes: Wishes
    streams: Streams
    isolation: Isolation
    outcomes: list[Outcome]
    troubles: list[bool]
    running: list[asyncio.Task[None]]

    def wish(self, uid: str, *keys: bytes) -> None:
        """Let a unit want these keys; none: it is gone."""
        if keys:
            self.wishes.keys[uid] = keys
        else:
            self.wishes.keys.pop(uid)
        self.writer.enqueue([uid], urgent=not keys)

    async def keys(self) -> set[bytes]:
        """Give the keys that are registered."""
        return {record.key for record in (await self.client.get_prefix(PREFIX, keys_only=True)).records}

    async def wait_keys(self, keys: Iterable[bytes]) -> None:
        """Wait until just these are registered."""
        wanted = set(keys)
        async with asyncio.timeout(60):
            while await self.keys() != wanted:  # noqa: ASYNC110  etcd decides
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """End the writer's run, as when it fails."""
        running = self.running.pop()
        running.cancel()
        await asyncio.wait([running])

    def start(self) -> None:
        """Run the writer."""
        self.running.append(asyncio.create_task(self.writer.run()))


@asynccontextmanager
async def work(etcd: EtcdServer, services: Sequence[str] = ("greeter",)) -> AsyncIterator[Parts]:
    outcomes: list[Outcome] = []
    troubles: list[bool] = []
    wishes, isolation = Wishes(), Isolation()
    async with HeldEtcd(etcd.endpoints) as client:
        election = SometimesBlind(client, CLUSTER, Candidate("test"), 60, lambda: None)
        streams = Streams(lambda _prefixes: True)
        for service in services:
            streams.learn(Jupiter(), service)
        parts = WriterParts(
            "default",
            CLUSTER,
            client,
            wishes,
            RegistryCache(CLUSTER),
            election,
            Leases(client, 300, lambda _lease: None),
            streams,
            Refusing(client, election, streams, owner_prefix(CLUSTER)),
            isolation,
        )
        writer = Reconciler(
            parts, outcomes.append, lambda: troubles.append(writer.trouble.error is not None), tidy_seconds=0.2
        )
        made = Parts(writer, election, client, wishes, streams, isolation, outcomes, troubles, [])
        campaign = asyncio.create_task(election.run_alone())
        await until(lambda: election.is_leading)
        made.start()
        yield made
        await made.stop()
        campaign.cancel()
        await asyncio.wait([campaign])


def key_of(name: str) -> bytes:
    return PREFIX + name.encode()


async def test_the_rest_of_a_change_that_is_written_in_parts_has_waited_as_long_as_all_of_it(etcd: EtcdServer) -> None:
    keys = [key_of(f"{number:03}") for number in range(MANY)]
    async with work(etcd) as made:
        go_on = made.client.hold(owner_key(CLUSTER, "big"))
        made.wish("big", *keys)
        await until(lambda: made.client.waiting)
        moment = time.monotonic()
        made.writer.enqueue(["big"])  # something about it has changed meanwhile
        held_again = made.client.hold(owner_key(CLUSTER, "big"))
        go_on.set()
        await until(lambda: made.outcomes and made.client.waiting)
        assert made.outcomes[0].plan
        assert made.outcomes[0].plan.is_part
        assert not made.writer.has_caught_up(moment)
        held_again.set()
        await made.wait_keys(keys)
        await until(lambda: made.writer.has_caught_up(moment))


async def test_what_a_run_that_failed_left_under_way_has_waited_since_before(etcd: EtcdServer) -> None:
    async with work(etcd) as made:
        go_on = made.client.hold(key_of("a"))
        made.wish("a", key_of("a"))
        await until(lambda: made.client.waiting)
        moment = time.monotonic()
        made.writer.enqueue(["a"])
        await made.stop()
        made.start()
        await until(lambda: made.client.waiting)
        assert not made.writer.has_caught_up(moment)
        go_on.set()
        await until(lambda: made.writer.has_caught_up(moment))


async def test_what_waits_for_bytes_is_written_at_once_when_etcd_has_lost_all(etcd: EtcdServer) -> None:
    async with work(etcd) as made:
        made.writer._work._budget.registrations = Bucket(burst_bytes=1.0, bytes_per_second=0.001)
        made.wish("a", key_of("a"))
        await made.wait_keys([key_of("a")])
        made.wish("b", key_of("b"))
        await until(lambda: made.writer.rate_limited == 1)
        assert await made.keys() == {key_of("a")}
        made.writer.begin_history()
        await made.wait_keys([key_of("a"), key_of("b")])
        assert made.writer.rate_limited == 0


async def test_a_unit_that_failed_while_it_was_written_leaves_nothing_waiting_when_it_goes(etcd: EtcdServer) -> None:
    async with work(etcd) as made:
        made.client.failing.add(key_of("a"))
        made.wish("a", key_of("a"))
        await until(lambda: made.isolation.counts["writer"])
        made.wish("a")
        await until(made.writer.may_settle)
        await until(lambda: made.writer.has_caught_up(time.monotonic()))
        assert made.writer.overdue_seconds() == 0


async def test_who_waits_for_its_turn_after_a_conflict_is_not_overdue_while_others_are_written(
    etcd: EtcdServer,
) -> None:
    async with work(etcd) as made:
        first, other = made.client.hold(key_of("a")), made.client.hold(key_of("b"))
        made.wish("a", key_of("a"))
        await until(lambda: key_of("a") in made.client.waiting)
        made.wish("b", key_of("b"))
        await until(lambda: key_of("b") in made.client.waiting)
        await made.client.put(key_of("a"), b"another", lease=lease_id(CLUSTER, "a"))
        again = made.client.hold(key_of("a"))
        first.set()
        await until(lambda: made.client.conflicts)
        conflict = time.monotonic()
        await asyncio.sleep(0.5)  # overdue is what has waited so long, and nothing was written meanwhile
        assert made.writer.overdue_seconds() >= 0.5
        other.set()
        await until(lambda: made.outcomes)
        overdue = made.writer.overdue_seconds()
        assert overdue <= time.monotonic() - conflict - 0.5
        again.set()
        await until(lambda: made.writer.overdue_seconds() == 0 and made.writer.may_settle())


def fill(etcd: EtcdServer) -> None:
    """Write until etcd has no space left."""
    filler = 0
    with BlockingEtcd(etcd.endpoints) as client:
        while "NOSPACE" not in etcd.etcdctl("alarm", "list", check=False):
            with contextlib.suppress(NoSpace):
                client.put(f"filler-{filler}".encode(), b"x" * 500_000)
            filler += 1


def make_space(etcd: EtcdServer) -> None:
    with BlockingEtcd(etcd.endpoints) as client:
        client.delete_prefix(b"filler-")
        etcd.etcdctl("compact", str(client.get_prefix(b"filler-").revision))
    etcd.etcdctl("defrag")
    etcd.etcdctl("alarm", "disarm")


@pytest.mark.faults
async def test_all_that_only_goes_is_deregistered_from_an_etcd_without_space_and_the_lack_is_told_once() -> None:
    big = [key_of(f"{number:03}") for number in range(MANY)]
    with EtcdServer.start(flags=["--quota-backend-bytes=6000000"]) as small:
        async with work(small) as made:
            made.wish("big", *big)
            made.wish("two", key_of("stays"), key_of("goes"))
            await made.wait_keys([*big, key_of("stays"), key_of("goes")])
            await asyncio.to_thread(fill, small)
            made.wish("late", key_of("late"))
            await until(lambda: made.troubles)
            made.wish("big")
            made.wish("two", key_of("stays"))
            await made.wait_keys([key_of("stays")])
            await until(lambda: made.writer.trouble.failures > len(BACKOFF.pauses))
            assert made.troubles == [True], "there was no space all the while"
            assert isinstance(made.writer.trouble.error, NoSpace)
            await asyncio.to_thread(make_space, small)
            await made.wait_keys([key_of("stays"), key_of("late")])
            await until(made.writer.may_settle)
            assert made.troubles[-1] is False
            owners = (await made.client.get_prefix(owner_prefix(CLUSTER), keys_only=True)).records
            assert {each.key for each in owners} == {owner_key(CLUSTER, uid) for uid in ("two", "late")}


@pytest.mark.faults
async def test_a_settling_touch_for_which_there_is_no_space_is_tried_again_and_the_lack_is_told_once() -> None:
    with EtcdServer.start(flags=["--quota-backend-bytes=6000000"]) as small:
        async with work(small) as made:
            keys = [key_of(f"{number}") for number in range(3)]
            for key in keys:
                made.wish(key.decode(), key)
            await made.wait_keys(keys)
            await asyncio.to_thread(fill, small)
            for key in keys:
                made.wish(key.decode())
            await made.wait_keys([])
            await until(lambda: made.writer.trouble.counts.get("NoSpace", 0) > 2)
            assert made.troubles == [True], "there was no space all the while"
            await asyncio.to_thread(make_space, small)
            await until(lambda: made.troubles[-1] is False)


async def test_two_pods_that_want_hundreds_of_keys_alike_are_compared_once_and_not_for_each(etcd: EtcdServer) -> None:
    """Pods on their node's network, say: what a rival wants takes long to work out, and nobody else is served then."""
    keys = [key_of(f"{number:03}") for number in range(MANY)]
    async with work(etcd) as made:
        made.wishes.newest = "new"
        made.wish("old", *keys)
        await made.wait_keys(keys)
        made.wishes.asked.clear()
        made.wish("new", *keys)

        async def has_all() -> bool:
            lease = await made.client.time_to_live(lease_id(CLUSTER, "new"), keys=True)
            return lease is not None and set(keys) <= set(lease.keys)

        async with asyncio.timeout(60):
            while not await has_all():  # noqa: ASYNC110  etcd decides
                await asyncio.sleep(0.02)
        assert made.wishes.asked["old"] < MANY // 10


async def test_the_flush_key_of_a_service_that_is_gone_is_deleted_and_others_stay(etcd: EtcdServer) -> None:
    """All are under one lease, which is kept alive for those that stay."""
    flush_keys = {name: f"/jupiter/{name}/settled/{CLUSTER}".encode() for name in ("gone", "stays")}

    async def find_flush_keys(made: Parts) -> list[str]:
        return [name for name, key in flush_keys.items() if await made.client.get(key)]

    async with work(etcd, tuple(flush_keys)) as made, asyncio.timeout(60):
        for turn in range(3):
            for name in flush_keys:
                made.wish(f"{name}-{turn}", f"/jupiter/{name}/providers/{turn}".encode())
        while await find_flush_keys(made) != ["gone", "stays"]:  # noqa: ASYNC110  etcd decides
            await asyncio.sleep(0.02)
        for turn in range(3):
            made.wish(f"gone-{turn}")
        await until(made.writer.may_settle)
        made.streams.forget(Jupiter().prefix("gone"))
        while await find_flush_keys(made) != ["stays"]:
            made.wish("pod", next(NAMES))
            await asyncio.sleep(0.02)


async def test_who_leads_and_may_not_write_yet_does_not_look_again_and_again_whether_it_may(etcd: EtcdServer) -> None:
    async with work(etcd) as made:
        keys = [key_of(f"{number}") for number in range(3)]
        for key in keys:
            made.wish(key.decode(), key)
        await made.wait_keys(keys)  # a burst, after which clients are owed a flush key
        made.election.is_blind = True
        made.wish("more", key_of("more"))
        blind_at, made.election.asked = time.monotonic(), 0
        await until(lambda: time.monotonic() - blind_at > 2)
        assert made.election.asked < 20
        made.election.is_blind = False
        made.writer.wake()
        await made.wait_keys([*keys, key_of("more")])

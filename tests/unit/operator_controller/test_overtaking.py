"""Requests that hang are overtaken by those about other objects; what they are about waits, and little else."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from grpc_etcd_operator.isolation import MOST_LATE, Isolation, Overtaking, Request
from testbed.conditions import PATIENCE_SECONDS, until


class World:
    """Requests that end when they are let."""

    def __init__(self) -> None:
        self.isolation, self.late, self.let, self.done = Isolation(), 0, asyncio.Event(), list[str]()
        self.overtaking = Overtaking("here", self.isolation, self.note_late, patience_seconds=0.01)

    def note_late(self) -> None:
        self.late += 1

    def hang(self, uid: str, namespace: str = "slow", error: Exception | None = None) -> Request:
        async def work() -> None:
            await self.let.wait()
            if error:
                raise error
            self.done.append(uid)

        return Request(uid, namespace, work)

    def ask(self, uid: str, namespace: str = "slow") -> Request:
        async def work() -> None:
            self.done.append(uid)

        return Request(uid, namespace, work)


@pytest.fixture
async def cluster_cache() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.overtaking.close()


async def test_what_hangs_is_overtaken_and_told_when_it_ends(cluster_cache: World) -> None:
    await cluster_cache.overtaking.run([cluster_cache.hang("a"), cluster_cache.ask("b")])
    await cluster_cache.overtaking.run([cluster_cache.ask("c")])
    assert cluster_cache.done == ["b", "c"]
    assert cluster_cache.overtaking.holds_up("a", "slow")
    assert not cluster_cache.overtaking.holds_up("b", "slow")
    cluster_cache.let.set()
    await until(lambda: cluster_cache.late == 1)
    assert cluster_cache.done == ["b", "c", "a"]
    assert not cluster_cache.overtaking.holds_up("a", "slow")


async def test_of_one_namespace_only_a_few_are_waited_for(cluster_cache: World) -> None:
    await cluster_cache.overtaking.run([cluster_cache.hang(str(number)) for number in range(MOST_LATE)])
    assert cluster_cache.overtaking.holds_up("another", "slow")
    assert not cluster_cache.overtaking.holds_up("another", "well")


async def test_who_gives_up_its_place_is_waited_for_by_its_object_alone(cluster_cache: World) -> None:
    async def rest() -> None:
        cluster_cache.overtaking.give_way()
        await cluster_cache.let.wait()

    patient = Overtaking("here", cluster_cache.isolation, cluster_cache.note_late, patience_seconds=3600)
    cluster_cache.overtaking = patient
    async with asyncio.timeout(PATIENCE_SECONDS):  # nor does `run` wait for it
        await patient.run([Request(str(number), "slow", rest) for number in range(MOST_LATE)])
    assert not patient.holds_up("another", "slow")
    assert patient.holds_up("0", "slow")
    cluster_cache.let.set()
    await until(lambda: not patient.holds_up("0", "slow"))


async def test_those_without_a_place_ask_a_few_at_a_time_in_their_order(cluster_cache: World) -> None:
    order = list[int]()

    async def ask(number: int) -> None:
        async with cluster_cache.overtaking.later_place("slow"):
            order.append(number)
            await cluster_cache.let.wait()

    asking = [asyncio.create_task(ask(number)) for number in range(3 * MOST_LATE)]
    await asyncio.sleep(0.02)
    assert order == list(range(MOST_LATE))
    async with cluster_cache.overtaking.later_place("well"):
        cluster_cache.let.set()
    await asyncio.gather(*asking)
    assert order == list(range(3 * MOST_LATE))


async def test_an_error_is_the_callers_or_told_where_nobody_waits(cluster_cache: World) -> None:
    cluster_cache.let.set()
    with pytest.raises(ValueError, match="at once"):
        await cluster_cache.overtaking.run([cluster_cache.hang("a", error=ValueError("at once"))])
    cluster_cache.let.clear()
    await cluster_cache.overtaking.run([cluster_cache.hang("a", error=ValueError("late"))])
    cluster_cache.let.set()
    await until(lambda: cluster_cache.late == 1)
    assert cluster_cache.isolation.counts == {"here": 1}


async def test_closing_ends_what_hangs(cluster_cache: World) -> None:
    await cluster_cache.overtaking.run([cluster_cache.hang("a")])
    await cluster_cache.overtaking.close()
    assert not cluster_cache.overtaking.holds_up("a", "slow")
    assert cluster_cache.late == 0

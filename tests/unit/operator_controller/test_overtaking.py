"""Requests that hang are overtaken by those about other objects; what they are about waits, and little else."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from grpc_etcd_operator.isolation import MOST_LATE, Isolation, Overtaking, Request
from testbed.conditions import until


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
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.overtaking.close()


async def test_what_hangs_is_overtaken_and_told_when_it_ends(world: World) -> None:
    await world.overtaking.run([world.hang("a"), world.ask("b")])
    await world.overtaking.run([world.ask("c")])
    assert world.done == ["b", "c"]
    assert world.overtaking.holds_up("a", "slow")
    assert not world.overtaking.holds_up("b", "slow")
    world.let.set()
    await until(lambda: world.late == 1)
    assert world.done == ["b", "c", "a"]
    assert not world.overtaking.holds_up("a", "slow")


async def test_of_one_namespace_only_a_few_are_waited_for(world: World) -> None:
    await world.overtaking.run([world.hang(str(number)) for number in range(MOST_LATE)])
    assert world.overtaking.holds_up("another", "slow")
    assert not world.overtaking.holds_up("another", "well")


async def test_an_error_is_the_callers_or_told_where_nobody_waits(world: World) -> None:
    world.let.set()
    with pytest.raises(ValueError, match="at once"):
        await world.overtaking.run([world.hang("a", error=ValueError("at once"))])
    world.let.clear()
    await world.overtaking.run([world.hang("a", error=ValueError("late"))])
    world.let.set()
    await until(lambda: world.late == 1)
    assert world.isolation.counts == {"here": 1}


async def test_closing_ends_what_hangs(world: World) -> None:
    await world.overtaking.run([world.hang("a")])
    await world.overtaking.close()
    assert not world.overtaking.holds_up("a", "slow")
    assert world.late == 0

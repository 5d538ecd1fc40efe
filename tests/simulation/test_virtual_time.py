"""The loop whose clock jumps: it keeps order, is the same for the same seed, and has nothing real in it."""

import asyncio
import os
import random
import time
import urllib.request
import uuid

import pytest

from tests.simulation.virtual_time import START_UNIX, RealWorldError, StandstillError, VirtualLoop, run, virtual_time

YEAR_SECONDS = 365 * 86_400.0


def test_a_year_passes_at_once_and_the_clocks_agree() -> None:
    with virtual_time(1) as clock:
        began = time.monotonic()

        async def sleep() -> float:
            await asyncio.sleep(YEAR_SECONDS)
            return asyncio.get_running_loop().time()

        assert run(sleep(), clock) == pytest.approx(began + YEAR_SECONDS)
        assert time.monotonic() - began == pytest.approx(YEAR_SECONDS)
        assert time.time() == pytest.approx(START_UNIX + YEAR_SECONDS)
        assert clock.elapsed == pytest.approx(YEAR_SECONDS)
    assert time.time() != pytest.approx(START_UNIX + YEAR_SECONDS, abs=YEAR_SECONDS / 2)


def test_timers_fire_in_the_order_of_their_times() -> None:
    fired: list[float] = []

    async def fire(seconds: float) -> None:
        await asyncio.sleep(seconds)
        fired.append(seconds)

    async def main() -> None:
        await asyncio.gather(*map(fire, (3, 0.5, 2, 0, 1)))

    with virtual_time(1) as clock:
        run(main(), clock)
    assert fired == [0, 0.5, 1, 2, 3]


def test_one_seed_is_one_run() -> None:
    def draw(seed: int) -> list[object]:
        async def main() -> list[object]:
            order: list[object] = []
            tasks = {asyncio.create_task(asyncio.sleep(random.random())) for _ in range(20)}
            done, _ = await asyncio.wait(tasks, timeout=0.5)
            order += [uuid.uuid4(), os.urandom(4), random.Random().random(), asyncio.get_running_loop().time()]
            order += [sorted(tasks, key=hash).index(each) for each in done]
            return order

        with virtual_time(seed) as clock:
            return run(main(), clock)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_the_process_has_its_own_chance_again_afterwards() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    with virtual_time(1):
        random.random()
    assert random.random() == expected
    assert os.urandom(16) != os.urandom(16)


def test_what_waits_for_ever_is_told_so() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with virtual_time(1) as clock, pytest.raises(StandstillError, match="nothing is due"):
        run(main(), clock)


def test_what_goes_round_in_circles_is_told_so() -> None:
    async def main() -> None:
        while True:  # noqa: ASYNC110  which is the point
            await asyncio.sleep(0)

    with virtual_time(1) as clock, pytest.raises(StandstillError, match="in circles"):
        run(main(), clock)


@pytest.mark.parametrize("what", ["thread", "socket", "server", "sleep", "child"])
def test_nothing_real_happens(what: str) -> None:
    async def main() -> None:
        match what:
            case "thread":
                await asyncio.to_thread(time.monotonic)
            case "socket":
                await asyncio.open_connection("127.0.0.1", 1)
            case "server":
                await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
            case "sleep":
                time.sleep(0.1)  # noqa: ASYNC251  which is the point
            case "child":
                await asyncio.create_subprocess_exec("true")

    with virtual_time(1) as clock, pytest.raises(RealWorldError):
        run(main(), clock)


def test_what_nobody_catches_is_kept() -> None:
    async def fail() -> None:
        raise ValueError("nobody looks")

    async def main() -> list[object]:
        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        del task
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return [context["exception"] for context in loop.faults]

    with virtual_time(1) as clock:
        (found,) = run(main(), clock)
    assert isinstance(found, ValueError)


def test_modules_that_took_the_functions_by_name_follow_too() -> None:
    from aiohttp import connector  # noqa: PLC0415  any module that has `from time import monotonic`

    with virtual_time(1) as clock:
        assert getattr(connector, "monotonic")() == clock.now  # noqa: B009  no public name
    assert urllib.request  # whose own `time` module is as it was

"""One simulation: a seed, some hours, and what came of it.

Rounds follow one another: some things happen, the world is healed, and within a bound everything must be as the oracle
says. What went wrong is raised with the timeline.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.simulation.checks import Checks
from tests.simulation.scenarios import Round, Scenario, Step
from tests.simulation.timeline import Timeline
from tests.simulation.virtual_time import VirtualLoop, run, virtual_time
from tests.simulation.world import World

SETTLE_SECONDS = 300.0  # within which all must be well once it is healed
LOOK_SECONDS = 1.0
GLANCE_SECONDS = 7.0  # arbitrary: dear
SLOW_SECONDS = 30.0  # after so long the timeline says what is still missing
CALM = 0.2  # the share of rounds after which there is some quiet. Arbitrary
CALM_SECONDS = 400.0  # of quiet after a round, now and then: what must stay as it is
BEGIN_SECONDS = 30.0
DRILLS = 0.5  # the share of rounds that begin with one. Arbitrary
processor_seconds = time.process_time


class SimulationError(AssertionError):
    """Something is wrong that must never be, or does not become right; `scenario` is what happened in `hours`."""

    def __init__(self, text: str, seed: int = 0, scenario: Scenario = (), hours: float = 0.0) -> None:
        super().__init__(text)
        self.seed, self.scenario, self.hours = seed, scenario, hours


@dataclass
class Outcome:
    """What a simulation did."""

    seed: int
    hours: float = 0.0
    processor_seconds: float = 0.0
    longest_settling: float = 0.0
    happened: Counter[str] = field(default_factory=Counter)
    seconds_with: Counter[str] = field(default_factory=Counter)  # of the rounds in which something happened
    rounds: list[Round] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Simulated seconds per second of processor time."""
        return self.hours * 3600 / max(self.processor_seconds, 1e-9)


def simulate(seed: int, hours: float, scenario: Scenario | None = None, *, checks: type[Checks] = Checks) -> Outcome:
    """Simulate some hours, or the rounds of a scenario; raise SimulationError with the timeline when it fails."""
    outcome, began = Outcome(seed), processor_seconds()
    with virtual_time(seed) as clock:
        timeline = Timeline(clock)
        with logged(timeline):
            try:
                run(Simulation(seed, timeline, outcome, checks).run(hours, scenario), clock)
            except Exception as error:
                hours = clock.elapsed / 3600
                text = f"seed {seed} fails after {hours:.3f} h: {error}\n{timeline.tell()}"
                raise SimulationError(text, seed, tuple(outcome.rounds), hours) from error
            finally:
                outcome.hours = clock.elapsed / 3600
    outcome.processor_seconds = processor_seconds() - began
    return outcome


@contextmanager
def logged(timeline: Timeline) -> Iterator[None]:
    """Let the operator log to a timeline, and nowhere else."""
    log, kopf = logging.getLogger(), logging.getLogger("kopf")
    handlers, level = log.handlers[:], log.level
    log.handlers[:] = [timeline]
    log.setLevel(logging.INFO)
    kopf.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.handlers[:] = handlers
        log.setLevel(level)


class Simulation:
    """Runs rounds in one world."""

    def __init__(self, seed: int, timeline: Timeline, outcome: Outcome, checks: type[Checks]) -> None:
        self._seed, self._timeline, self._outcome, self._checks = seed, timeline, outcome, checks
        self._chance = random.Random(f"rounds {seed}")
        self._deck: list[str] = []

    async def run(self, hours: float, scenario: Scenario | None) -> None:
        """Run until the hours are over, or the scenario."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        world = World(self._seed, self._timeline, self._checks)
        world.begin()
        watching = asyncio.create_task(self._look(world))
        await asyncio.sleep(BEGIN_SECONDS)
        await self._settle(world)
        for round_ in scenario or ():
            await self._round(world, round_)
        while not scenario and loop.clock.elapsed < hours * 3600:
            await self._round(world, self._draw(world))
        watching.cancel()
        await world.end()
        self._judge(world)
        self._outcome.happened = world.happened

    @staticmethod
    async def _look(world: World) -> None:
        while True:
            await asyncio.sleep(GLANCE_SECONDS)
            world.look()

    def _draw(self, world: World) -> Round:
        chance, names, number = self._chance, world.likely, len(self._outcome.rounds) + 1
        drawn = [chance.choice(names) for _ in range(chance.randrange(1, 9))]
        if chance.random() < DRILLS:
            drawn.insert(0, self._deal(world))
        return tuple(Step(number, index, name) for index, name in enumerate(drawn, 1))

    def _deal(self, world: World) -> str:
        """Give the next drill of a shuffled deck, so that each has its turn."""
        if not self._deck:
            self._deck = list(world.drills.events)
            self._chance.shuffle(self._deck)
        return self._deck.pop()

    async def _round(self, world: World, steps: Round) -> None:
        began = asyncio.get_running_loop().time()
        self._outcome.rounds.append(steps)
        for step in steps:
            world.chance.seed(f"{self._seed} {step.round}.{step.number}")
            await world.happen(step.name)
            await asyncio.sleep(world.chance.choice([0.0, 0.01, 0.3, 2.0, 10.0, 40.0]))
            self._judge(world)
        world.heal()
        await self._settle(world)
        for name in {step.name for step in steps}:
            self._outcome.seconds_with[name] += round(asyncio.get_running_loop().time() - began)
        world.chance.seed(f"{self._seed} {steps[0].round}")
        if world.chance.random() < CALM:
            await asyncio.sleep(CALM_SECONDS)
            if left := world.unsettled():
                raise SimulationError(f"nothing has happened, and all is not well any more: {left}")
        self._judge(world)

    async def _settle(self, world: World) -> None:
        began = asyncio.get_running_loop().time()
        told = began + SLOW_SECONDS
        while left := self._unsettled(world):
            await asyncio.sleep(LOOK_SECONDS)
            self._judge(world)
            if asyncio.get_running_loop().time() > told:
                told += SLOW_SECONDS
                self._timeline.note("world", f"not yet as it ought to be: {left}")
            if asyncio.get_running_loop().time() - began > SETTLE_SECONDS:
                raise SimulationError(f"not as it ought to be {SETTLE_SECONDS:g} s after all was healed: {left}")
        self._outcome.longest_settling = max(self._outcome.longest_settling, asyncio.get_running_loop().time() - began)

    @staticmethod
    def _unsettled(world: World) -> dict[str, Any]:
        unready: dict[str, Any] = {
            f"{each.name} is unready": each.readiness for each in world.replicas if each.readiness
        }
        return world.unsettled() or unready

    def _judge(self, world: World) -> None:
        """Raise when something has happened that must never happen."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        faults = [*world.faults, *self._timeline.unexpected]
        faults += [f"{each.name} has ended: {each.failure!r}" for each in world.replicas if each.failure]
        faults += [f"nobody caught {context}" for context in loop.faults if _is_unexpected(context)]
        if faults:
            raise SimulationError("; ".join(faults))


def _is_unexpected(context: dict[str, Any]) -> bool:
    """Say whether what nobody caught is a fault: not that a connection broke which aiohttp was closing just then."""
    is_closing = str(context.get("message")).endswith("never retrieved")
    return bool(context.get("exception")) and not (
        is_closing and isinstance(context["exception"], aiohttp.ClientConnectionError)
    )

"""Scenarios: rounds of events, written as text, and how a long one that fails is made short.

    1.1 pod comes, 1.2 etcd is full; 4.1 drill leader is blind

Each event has the number of its round and its own; what it draws hangs on these and on the seed, so that it does the
same whatever else is left out. Numbers may be left out: then they are counted.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")
SHRINK_SECONDS = 120.0  # of processor time. Arbitrary
_STEP = re.compile(r"(?:(\d+)\.(\d+) )?([a-z_ ]+)")


class Step(NamedTuple):
    """One event of a round."""

    round: int
    number: int
    name: str


Round = tuple[Step, ...]
Scenario = tuple[Round, ...]


def number(rounds: Iterable[Iterable[str]]) -> Scenario:
    """Make a scenario of names of events."""
    return tuple(
        tuple(Step(round_, index, name) for index, name in enumerate(names, 1))
        for round_, names in enumerate(rounds, 1)
    )


def parse(text: str) -> Scenario:
    """Read a scenario; a ValueError says what is none."""
    return tuple(
        tuple(_parse_step(part.strip(), (round_, index)) for index, part in enumerate(each.split(","), 1))
        for round_, each in enumerate(text.split(";"), 1)
    )


def _parse_step(text: str, counted: tuple[int, int]) -> Step:
    found = _STEP.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no event of a scenario")
    given = (int(found[1]), int(found[2])) if found[1] else counted
    return Step(*given, found[3].replace(" ", "_"))


def write(scenario: Sequence[Round]) -> str:
    """Write a scenario."""
    return "; ".join(
        ", ".join(f"{step.round}.{step.number} {step.name.replace('_', ' ')}" for step in round_) for round_ in scenario
    )


def shrink(
    scenario: Scenario,
    fails: Callable[[Scenario], bool],
    seconds: float = SHRINK_SECONDS,
    clock: Callable[[], float] = time.process_time,
) -> Scenario:
    """Leave out rounds, and then single events, as long as it fails without them and there is time."""
    until = clock() + seconds

    def still_fails(some: Sequence[Round]) -> bool:
        return clock() < until and fails(tuple(some))

    rounds = _thin_out(scenario, still_fails)
    steps = [step for round_ in rounds for step in round_]
    left = _thin_out(steps, lambda some: still_fails(_gather(some)))
    return _gather(left)


def _gather(steps: Iterable[Step]) -> Scenario:
    rounds: dict[int, list[Step]] = {}
    for step in steps:
        rounds.setdefault(step.round, []).append(step)
    return tuple(map(tuple, rounds.values()))


def _thin_out(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """Leave out halves, then quarters, and so on."""
    size = len(items) // 2
    while size:
        start = 0
        while start < len(items):
            fewer = [*items[:start], *items[start + size :]]
            if fewer and fails(fewer):
                items = fewer
            else:
                start += size
        size //= 2
    return items

"""Simulates until some hours are over, seed after seed: `python -m tests.simulation --hours 100 --seed 1`.

Prints what it did, and for how many simulated hours each fault was about. The first seed that fails is shrunk: printed
are the timeline of what is left of it, and how that is repeated.
"""

import argparse
import gc
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.simulation import fault_table, scenarios
from tests.simulation.scenarios import Scenario
from tests.simulation.simulate import Outcome, SimulationError, simulate

HOURS_PER_SEED = 1.0  # in which each drill has its turn about once
MOST_SEEDS = 1 << 30


def main() -> int:
    """Run; return the exit code."""
    options = parse()
    seed = options.seed if options.seed is not None else random.randrange(MOST_SEEDS)
    hours = min(HOURS_PER_SEED, options.hours)
    gc.set_threshold(50_000, 50, 100)  # as the operator does
    try:
        if options.scenario:
            print_outcome(simulate(seed, 0, scenarios.parse(options.scenario)))
        else:
            run_seeds(seed, hours, options)
    except SimulationError as error:
        if options.shrink and not options.scenario:
            print(str(error).partition("\n")[0], flush=True)
            error = shrink(error)
        print(error)
        return 1
    return 0


def run_seeds(seed: int, hours: float, options: argparse.Namespace) -> None:
    """Simulate seed after seed."""
    spent = measure(time.process_time if options.processor else time.monotonic)
    total, happened, seconds_with = 0.0, Counter[str](), Counter[str]()
    while total < options.hours and spent() < options.seconds:
        outcome = simulate(seed, hours)
        print_outcome(outcome)
        total += outcome.hours
        happened += outcome.happened
        seconds_with += outcome.seconds_with
        seed += 1
    if options.table:
        fault_table.put_into(options.table, fault_table.make(total, happened, seconds_with))
    print(f"{total:.1f} simulated hours; what happened, how often, and for how many hours it was about:")
    for name, times in sorted(happened.items()):
        print(f"  {name.replace('_', ' '):<36} {times:6}  {seconds_with[name] / 3600:8.1f} h")


def print_outcome(outcome: Outcome) -> None:
    """Print what a seed came to."""
    print(
        f"seed {outcome.seed}: {outcome.hours:.1f} h, {outcome.speed:,.0f} simulated s per s of processor time, "
        f"settled within {outcome.longest_settling:.0f} s",
        flush=True,
    )


def shrink(error: SimulationError) -> SimulationError:
    """Make what happened until a seed failed as short as time allows; return how that fails."""
    found = error

    def fails(scenario: Scenario) -> bool:
        nonlocal found
        try:
            simulate(error.seed, 0, scenario)
        except SimulationError as another:
            found = another
            return True
        return False

    short = scenarios.shrink(error.scenario, fails)
    print(f'repeat it: make simulate SEED={error.seed} SCENARIO="{scenarios.write(short)}"', flush=True)
    return found


def measure(clock: Callable[[], float]) -> Callable[[], float]:
    """Return what says how long it has been since now."""
    began = clock()
    return lambda: clock() - began


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="the first seed; default: any")
    parser.add_argument("--hours", type=float, default=10.0, help="simulated hours in all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other seed after so many")
    parser.add_argument("--processor", action="store_true", help="count seconds of processor time")
    parser.add_argument("--scenario", help='only this: "pod comes, etcd is full; drill leader is blind"')
    parser.add_argument("--table", type=Path, help="put the table of faults into this page, if all ends well")
    parser.add_argument("--no-shrink", dest="shrink", action="store_false", help="print what failed as it is")
    return parser.parse_args()


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of strings are iterated in an order that hangs on it
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])  # noqa: S606  itself
    sys.exit(main())

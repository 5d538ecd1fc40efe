"""Simulates until some hours are over, seed after seed: `python -m tests.simulation --hours 100 --seed 1`.

Prints what it did; of the first seed that fails, the timeline.
"""

import argparse
import os
import random
import sys
import time
from collections import Counter

from tests.simulation.simulate import SimulationError, simulate

HOURS_PER_SEED = 2.0
MOST_SEEDS = 1 << 30


def main() -> int:
    """Run; return the exit code."""
    options = parse()
    seed = options.seed if options.seed is not None else random.randrange(MOST_SEEDS)
    began, hours, happened = time.monotonic(), 0.0, Counter[str]()
    while hours < options.hours and time.monotonic() - began < options.seconds:
        try:
            outcome = simulate(seed, min(HOURS_PER_SEED, options.hours))
        except SimulationError as error:
            print(error)
            print(f"repeat it: make simulate SEED={seed} HOURS={min(HOURS_PER_SEED, options.hours):g}")
            return 1
        hours += outcome.hours
        happened += outcome.happened
        print(
            f"seed {seed}: {outcome.hours:.1f} h, {outcome.speed:,.0f} simulated s per s of processor time, "
            f"settled within {outcome.longest_settling:.0f} s",
            flush=True,
        )
        seed += 1
    print(f"{hours:.1f} simulated hours; what happened, and how often:")
    for name, times in sorted(happened.items()):
        print(f"  {name.replace('_', ' '):<36} {times}")
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="the first seed; default: any")
    parser.add_argument("--hours", type=float, default=10.0, help="simulated hours in all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other seed after so many")
    return parser.parse_args()


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of strings are iterated in an order that hangs on it
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])  # noqa: S606  itself
    sys.exit(main())

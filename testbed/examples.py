"""How many examples Hypothesis draws: the same ones for everybody who checks a change, or many others in a hunt.

A check that fails by chance fails on somebody who has changed something else. So the tests draw the same examples
every time that the same command is given (Hypothesis also draws constants of the modules that are imported), and
`make hunt` draws others, many times as many, to find what the usual ones do not meet.
"""

import os

from hypothesis import HealthCheck, settings

USUAL = 100  # Hypothesis' own number of examples of a test that names none
HUNT_TIMES = "HUNT_TIMES"
# No deadline for one example or for drawing it: a busy machine is not slow code.
CALM = settings(deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])


def register_profiles() -> None:
    """Tell Hypothesis of both profiles and begin with the same examples; `--hypothesis-profile hunt` draws others."""
    times = int(os.environ.get(HUNT_TIMES, "20"))  # arbitrary: some minutes on one core
    settings.register_profile("same", CALM, max_examples=USUAL, derandomize=True)
    settings.register_profile("hunt", CALM, max_examples=USUAL * times, derandomize=False)
    settings.load_profile("same")


def examples(usual: int) -> int:
    """Give the number for a test that draws `usual` examples in a check: as many times more as a hunt asks for."""
    return usual * settings().max_examples // USUAL

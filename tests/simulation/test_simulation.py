"""The simulation itself: it runs, it is the same for the same seed, and it finds what is broken on purpose."""

import pytest

from tests.simulation.checks import Checks
from tests.simulation.mutants import MUTANTS, ROOT, Mutant
from tests.simulation.simulate import SimulationError, simulate

QUIET = (("pod_comes",), ("pod_is_terminated", "service_changes_weight"))


def test_some_rounds_end_well() -> None:
    outcome = simulate(1, 0, QUIET)
    assert outcome.hours > 0.01
    assert outcome.happened["pod_comes"] == 1


@pytest.mark.parametrize(
    "drill", ["drill_leader_is_blind", "drill_renewals_fail", "drill_stranger_is_first", "drill_write_fails_once"]
)
def test_a_drill_ends_well(drill: str) -> None:
    assert simulate(1, 0, ((drill,), ("pod_comes",))).happened[drill] == 1


def test_one_seed_is_one_run() -> None:
    first, second = (simulate(2, 0, QUIET) for _ in range(2))
    assert (first.hours, first.longest_settling) == (second.hours, second.longest_settling)


class Blind(Checks):
    """An oracle that wants what never comes."""

    def unsettled(self) -> dict[str, object]:
        return {"missing keys": ["/jupiter/never"]}


def test_what_never_comes_true_is_told_with_the_timeline() -> None:
    with pytest.raises(SimulationError, match="never") as caught:
        simulate(3, 0, QUIET, checks=Blind)
    assert "put /jupiter/alpha/providers" in str(caught.value)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_has_its_place_in_the_code(mutant: Mutant) -> None:
    texts = [path.read_text() for part in ("operator", "resolver") for path in (ROOT / part).rglob("*.py")]
    assert [text.count(mutant.old) for text in texts if mutant.old in text] == [1]

"""The simulation itself: it runs, it is the same for the same seed, and it finds what is broken on purpose."""

import asyncio
import re
from pathlib import Path

import pytest

from testbed.models.etcd_channel import open_etcd
from testbed.models.etcd_server import EtcdModel
from tests.simulation import fault_table
from tests.simulation.checks import Checks
from tests.simulation.drills import Drills
from tests.simulation.mutants import MUTANTS, ROOT, Mutant
from tests.simulation.scenarios import Scenario, number, parse, shrink, write
from tests.simulation.simulate import SimulationError, simulate
from tests.simulation.virtual_time import run, virtual_time

QUIET = number((("pod_comes",), ("pod_is_terminated", "service_changes_weight")))


def test_some_rounds_end_well() -> None:
    outcome = simulate(1, 0, QUIET)
    assert outcome.hours > 0.005  # settling included
    assert outcome.happened["pod_comes"] == 1


@pytest.mark.parametrize("drill", [name for name in dir(Drills) if name.startswith("drill_")])
def test_a_drill_ends_well(drill: str) -> None:
    assert simulate(1, 0, number(((drill,), ("pod_comes",)))).happened[drill] == 1


def test_one_seed_is_one_run() -> None:
    first, second = (simulate(2, 0, QUIET) for _ in range(2))
    assert (first.hours, first.longest_settling) == (second.hours, second.longest_settling)


@pytest.mark.parametrize(
    ("seed", "scenario"),
    [
        (1006, "18.3 operator is frozen, 18.4 api loses the crd"),
        (2008, "4.1 drill keys go by and by, 4.2 api loses the crd"),
    ],
)
def test_a_crd_that_is_away_just_when_kopf_starts_is_watched_when_it_comes_back(seed: int, scenario: str) -> None:
    """Kopf looks only once what the API server serves: the replica stayed unready until liveness ended it."""
    simulate(seed, 0, parse(scenario))


def test_a_grpcservice_deleted_just_before_its_crd_may_have_gone_with_it() -> None:
    """Then its keys stay for five minutes, as docs/architecture.md says."""
    simulate(1, 0, parse("service comes or goes, api loses the crd"))


def test_a_reader_that_was_cut_off_shows_no_endpoint_that_came_and_went_meanwhile() -> None:
    events = ("14.2 pod comes", "14.4 reader is cut off", "14.8 service comes or goes", "14.9 pod comes")
    simulate(498017792, 0, parse(", ".join(events)))


def test_a_reader_that_lost_its_connection_before_it_watched_sees_what_a_restored_etcd_has_again() -> None:
    """Its listing was later than the backup and held nothing newer, so that all which it had seen was there again."""
    happened = ("etcd is backed up", "etcd takes a right", "etcd loses a key", "reader is updated late")
    numbers = (2, 3, 5, 6, 7, 8)
    events = (*happened, "reader is restarted", "etcd is restored")
    listed = (f"15.{number} {event}" for number, event in zip(numbers, events, strict=True))
    simulate(954932457, 0, parse(", ".join(listed)))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_service_is_seen_as_a_restored_api_server_has_it(seed: int) -> None:
    """Its watch went on from a version that the API server, restored, had passed by the time."""
    simulate(seed, 0, parse("api is backed up, target loses its selector, api is restored, pod storm"))


def test_a_replica_that_waits_for_the_api_server_ends_when_it_is_told_to() -> None:
    restart = "operator is restarted"
    simulate(3, 0, parse(f"network to kubernetes, {restart}, {restart}, {restart}"))


def test_a_lease_of_before_runs_out_after_etcd_was_restarted() -> None:
    async def restart() -> object:
        server = EtcdModel()
        client = open_etcd(server)
        await client.put(b"key", b"", lease=await client.lease(5))
        server.stop()
        server.start()
        await asyncio.sleep(20.0)
        await client.close()
        return server.space.get(b"key")

    with virtual_time(1) as clock:
        assert run(restart(), clock) is None


class Blind(Checks):
    """An oracle that wants what never comes."""

    def unsettled(self) -> dict[str, object]:
        return {"missing keys": ["/jupiter/never"]}


def test_what_never_comes_true_is_told_with_the_timeline() -> None:
    with pytest.raises(SimulationError, match="never") as caught:
        simulate(3, 0, QUIET, checks=Blind)
    assert "put /jupiter/alpha/providers" in str(caught.value)


def test_a_scenario_that_fails_is_made_as_short_as_it_may_be() -> None:
    long = number((("pod_comes", "pod_flaps"), ("etcd_is_full",), ("pod_storm", "clock_jumps", "pod_comes")))

    def fails(some: Scenario) -> bool:
        names = [step.name for round_ in some for step in round_]
        return "pod_flaps" in names and "clock_jumps" in names

    short = shrink(long, fails)
    assert write(short) == "1.2 pod flaps; 3.2 clock jumps"
    assert parse(write(short)) == short


def test_a_scenario_needs_no_numbers() -> None:
    assert parse("pod comes, pod flaps; clock jumps") == number((("pod_comes", "pod_flaps"), ("clock_jumps",)))
    with pytest.raises(ValueError, match="is no event"):
        parse("pod comes;")


def test_the_table_of_faults_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{fault_table.BEGIN}\nold\n{fault_table.END}\nafter\n")
    fault_table.put_into(page, fault_table.make(2.5, {"etcd_is_full": 3}, {"etcd_is_full": 5400}))
    text = page.read_text()
    assert "| etcd is full | 3 | 1.5 |" in text
    assert "old" not in text
    assert (text[:6], text[-6:]) == ("before", "after\n")


def test_the_pages_table_names_what_may_happen() -> None:
    table = (ROOT / "docs/architecture.md").read_text().partition(fault_table.BEGIN)[2]
    drills = {name.replace("_", " ") for name in dir(Drills) if name.startswith("drill_")}
    assert drills <= set(re.findall(r"^\| (drill [a-z ]+) \|", table, re.MULTILINE))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_has_its_place_in_the_code(mutant: Mutant) -> None:
    texts = [path.read_text() for part in ("operator", "resolver") for path in (ROOT / part).rglob("*.py")]
    for edit in mutant.edits:
        assert [text.count(edit.old) for text in texts if edit.old in text] == [1], edit.old

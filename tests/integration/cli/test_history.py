"""`grpc-etcd history` on a real etcd: what it tells, what etcd has forgotten, and what may not be read."""

import time
from collections.abc import Iterator

import pytest

from grpc_etcd.registry.own import ClockReading, OwnerRecord, clock_key, format_time, owner_key
from testbed.conditions import existing
from testbed.etcd import EtcdServer

from .conftest import CommandLine

ADDRESS, OTHER = "10.0.0.7:9000", "10.0.0.8:9000"
HOUR = 3600.0


@pytest.fixture
def shell(own_etcd: EtcdServer) -> Iterator[CommandLine]:
    """Run commands on an etcd that remembers nothing else."""
    shell = CommandLine(own_etcd)
    yield shell
    shell.close()


def record(shell: CommandLine, ago_seconds: float = 0.0) -> int:
    """Put the clock key as an operator does; return the revision that it speaks of."""
    revision = shell.etcd.status().revision
    reading = ClockReading(revision, time.time() - ago_seconds)
    shell.etcd.put(clock_key("c1"), reading.to_json())
    return revision


def test_what_came_changed_and_went_is_told_with_times_and_pods(shell: CommandLine) -> None:
    key = shell.put(ADDRESS, weight=100)
    owner = OwnerRecord(namespace="shop", pod="greeter-0", keys=(key,))
    shell.etcd.put(owner_key("c1", "uid-1"), owner.to_json())
    record(shell, ago_seconds=2 * HOUR)  # all that is before this is older than what is asked for
    shell.put(ADDRESS, weight=50)
    changed = record(shell, ago_seconds=60)
    shell.put(OTHER)
    shell.put(OTHER, service="other")
    added = record(shell, ago_seconds=30)
    shell.etcd.delete(key)
    record(shell, ago_seconds=20)
    shell.put(ADDRESS)  # of which nothing has been recorded yet
    found = shell.run_json("history", "greeter")
    assert [(each["change"], each["pod"], each["endpoints"]) for each in found] == [
        ("changed", "shop/greeter-0", 1),
        ("added", None, 2),
        ("removed", "shop/greeter-0", 1),
        ("added", "shop/greeter-0", 2),
    ]
    assert [each["revision"] for each in found[:2]] == [changed, added - 1]
    assert found[0]["time"] == pytest.approx(time.time() - 60, abs=30)
    assert found[1]["time"] == pytest.approx(time.time() - 30, abs=25)
    assert found[3]["time"] is None
    table = shell.run("history", "greeter")
    assert "weight 100.0 -> 50.0" in table or "weight 100 -> 50" in table
    assert [line.split()[2] for line in table.splitlines()[1:3]] == ["changed", "added"]
    assert len(shell.run_json("history", "greeter", "--since", "3h")) == 5
    assert [each["change"] for each in shell.run_json("history", "greeter", "--since", "5s")] == ["added"]
    record(shell, ago_seconds=6)
    assert "greeter has not changed since revision" in shell.run("history", "greeter", "--since", "5s")


def test_the_endpoints_of_a_moment_are_told_by_time_and_by_revision(shell: CommandLine) -> None:
    key = shell.put(ADDRESS)
    then = record(shell, ago_seconds=60)
    shell.etcd.delete(key)
    shell.put(OTHER)
    record(shell, ago_seconds=20)
    at_time = shell.run_json("history", "greeter", "--at", "40s")
    assert [each["address"] for each in at_time["endpoints"]] == [ADDRESS]
    at_revision = shell.run_json("history", "greeter", "--at", str(then))
    assert at_revision == at_time | {"time": None}
    assert at_revision["revision"] == then
    assert ADDRESS in shell.run("history", "greeter", "--at", str(then))
    assert "no revision is known" in shell.run("history", "greeter", "--at", "2h", code=1)
    assert "has no revision" in shell.run("history", "greeter", "--at", "999999999", code=1)


def test_what_etcd_has_forgotten_is_said(shell: CommandLine) -> None:
    shell.put(ADDRESS)
    old = record(shell, ago_seconds=3 * HOUR)
    shell.put(OTHER)
    kept = record(shell, ago_seconds=2 * HOUR)
    shell.etcd.compact(kept)
    told = shell.run("history", "greeter", "--since", "1d")
    assert f"etcd has no history before revision {kept}" in told
    assert "compacted" in shell.run("history", "greeter", "--at", str(old), code=1)
    assert "compacted" in shell.run("history", "greeter", "--at", "150m", code=1)


def test_a_clock_that_was_copied_from_another_etcd_says_nothing_of_this_one(shell: CommandLine) -> None:
    shell.put(ADDRESS)
    for revision in (500_000, 10**30, 0, -7):  # as `etcdctl make-mirror` copies it, and what nobody writes
        shell.etcd.put(clock_key("c1"), ClockReading(revision, time.time() - HOUR).to_json())
        assert "no revision is known" in shell.run("history", "greeter", "--at", "60s", code=1)
        assert [each["time"] for each in shell.run_json("history", "greeter", "--since", "60s")] == [None]
    shell.put(OTHER)
    kept = record(shell, ago_seconds=30)
    assert shell.run_json("history", "greeter", "--at", "20s")["revision"] == kept
    assert len(shell.run_json("history", "greeter", "--since", "60s")) == 2


def test_without_a_clock_all_that_etcd_has_is_told_without_times(shell: CommandLine) -> None:
    shell.put(ADDRESS)
    found = shell.run_json("history", "greeter", "--since", "1s")
    assert [(each["change"], each["time"]) for each in found] == [("added", None)]
    assert "There are no times" in shell.run("history", "greeter")


def test_what_no_clock_can_say_changes_nothing(shell: CommandLine) -> None:
    """A key of a cluster that is gone, or copied from another etcd, must not hide what the others say."""
    shell.put(ADDRESS)
    known = record(shell, ago_seconds=3 * HOUR)
    shell.put(OTHER)
    record(shell, ago_seconds=2 * HOUR)
    told, at = (
        shell.run_json("history", "greeter", "--since", "4h"),
        shell.run_json("history", "greeter", "--at", "150m"),
    )
    assert at["revision"] == known
    for value in (
        b'{"revision":900000,"time":"2026-01-01T00:00:00Z"}',  # of another etcd
        b'{"revision":1000000000000000000000000000000,"time":"2026-01-01T00:00:00Z"}',
        b'{"revision":-5,"time":"2026-01-01T00:00:00Z"}',
        b'{"revision":5,"time":"0001-01-01T00:00:00+23:59"}',
        b'{"revision":5,"time":"9999-12-31T23:59:59.999999Z"}',
    ):
        shell.etcd.put(clock_key("gone"), value)
        assert shell.run_json("history", "greeter", "--since", "4h") == told
        assert shell.run_json("history", "greeter", "--at", "150m") == at
        shell.run("history", "greeter", "--since", "4h")


def test_a_cluster_whose_clock_runs_ahead_hides_no_other(shell: CommandLine) -> None:
    shell.put(ADDRESS)
    then = record(shell, ago_seconds=3 * HOUR)
    ahead = ClockReading(then, time.time() + HOUR)
    shell.etcd.put(clock_key("ahead"), ahead.to_json())
    shell.put(OTHER)
    shown = record(shell, ago_seconds=2 * HOUR)
    assert shell.run_json("history", "greeter", "--at", "90m")["revision"] == shown


def test_when_a_moment_was_recorded_is_told(shell: CommandLine) -> None:
    """What came after the last reading has no time: who asks for a later moment must see that."""
    shell.put(ADDRESS)
    shell.etcd.put(b"/jupiter/greeter/providers/grpc://10.0.0.9:9000", b"rubbish")
    revision = record(shell, ago_seconds=HOUR)
    shell.put(OTHER)
    recorded = shell.run_json("history", "greeter", "--at", "5s")["time"]
    assert recorded == pytest.approx(time.time() - HOUR, abs=60)
    told = shell.run("history", "greeter", "--at", "5s")
    assert f"greeter at revision {revision}, recorded at {format_time(recorded)}: 1 endpoints." in told
    assert shell.run_json("history", "greeter", "--at", str(revision))["time"] is None


@pytest.mark.parametrize("moment", ["0", "00", "007"])
def test_a_revision_that_no_etcd_has_is_refused(shell: CommandLine, moment: str) -> None:
    """To etcd, 0 means "now"."""
    assert "is not a time" in shell.run("history", "greeter", "--at", moment, code=2)


@pytest.mark.parametrize("moment", ["", "yesterday", "-5m", "5", "1e9d", "99999999999d", "2026-13-01", "0001-01-01"])
def test_a_moment_that_is_none_is_refused(shell: CommandLine, moment: str) -> None:
    assert "is not a time" in shell.run("history", "greeter", "--since", moment, code=2)


def test_a_long_history_is_told_completely(shell: CommandLine) -> None:
    for number in range(1500):  # more than etcd sends at once
        shell.put(ADDRESS, weight=number % 7)
    assert existing(shell.etcd.get(shell.put(ADDRESS, weight=9))).version > 1500
    found = shell.run_json("history", "greeter")
    assert len(found) == 1501
    assert [each["after"]["weight"] for each in found[:8]] == [0, 1, 2, 3, 4, 5, 6, 0]

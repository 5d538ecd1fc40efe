"""How long changes of a ring are gathered: not at all at first, and then so that what gRPC keeps is bounded."""

import pytest

from grpc_etcd.xds.rings import Rings

KEPT_SECONDS = 900.0  # by gRPC


def change_for_hours(size: int) -> list[float]:
    """Change the set as often as it may be; give when each ring came."""
    rings, now, times = Rings(), 0.0, []
    while now < 2 * 3600:
        times.append(now)
        now += max(0.01 + 0.0003 * size, rings.pause_seconds(size, now))
    return times


@pytest.mark.parametrize("size", [1, 10, 40, 100])
def test_rings_that_follow_each_other_for_hours_take_a_bounded_memory(size: int) -> None:
    times = change_for_hours(size)
    rings = max(sum(KEPT_SECONDS >= end - time >= 0 for time in times) for end in range(0, 7200, 300))
    assert rings * (size + 5) < 30_000, "half as much again as in the long run, after the first burst"


def test_a_few_changes_wait_for_nothing() -> None:
    rings = Rings()
    assert max(rings.pause_seconds(100, now) for now in range(10)) < 0.25


def test_no_change_waits_longer_than_five_seconds() -> None:
    rings = Rings()
    assert max(rings.pause_seconds(1000, now) for now in range(0, 5000, 5)) == 5


def test_what_grpc_has_dropped_makes_nobody_wait() -> None:
    rings = Rings()
    before = [rings.pause_seconds(100, 0.0) for _ in range(200)][-1]
    assert before > 1
    assert rings.pause_seconds(100, KEPT_SECONDS + 1) < 0.1

"""How the changes of one namespace wait for one another, and for those of no other."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import pytest

from grpc_etcd_operator.sources.noting import REST_FACTOR, Resting
from testbed.conditions import until

WORK_SECONDS = 0.02


def event(namespace: str, uid: str, version: int) -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "uid": uid, "resourceVersion": str(version)}}


class Taken:
    """What was passed on, and when; by a clock of its own, what is of the namespace `busy` takes long."""

    def __init__(self) -> None:
        self.events: list[tuple[str | None, str, int]] = []
        self.times: list[tuple[float, float]] = []
        self._now = 0.0
        self.resting = Resting(self._note, lambda: self._now)

    def _note(self, kind: str | None, raw: Mapping[str, Any]) -> None:
        began, metadata = time.monotonic(), raw["metadata"]
        if metadata["namespace"] == "busy":
            self._now += WORK_SECONDS
        self.events.append((kind, metadata["uid"], int(metadata["resourceVersion"])))
        self.times.append((began, time.monotonic()))


async def test_a_namespace_takes_a_part_of_the_time_and_of_each_object_the_latest_counts() -> None:
    taken = Taken()
    for version in range(1, 101):
        for uid in ("a", "b", "c"):
            taken.resting("MODIFIED", event("busy", uid, version))
    await until(lambda: len(taken.events) >= 4)
    assert taken.events == [
        ("MODIFIED", uid, version) for uid, version in (("a", 1), ("b", 100), ("c", 100), ("a", 100))
    ]
    for (_, ended), (began, _) in zip(taken.times, taken.times[1:], strict=False):
        assert began - ended > 0.9 * REST_FACTOR * WORK_SECONDS


async def test_no_other_namespace_waits() -> None:
    taken = Taken()
    for version in range(1, 101):
        taken.resting("MODIFIED", event("busy", "a", version))
        taken.resting("MODIFIED", event("calm", "z", version))
    assert taken.events == [("MODIFIED", "a", 1), *(("MODIFIED", "z", version) for version in range(1, 101))]


@pytest.mark.parametrize("kind", [None, "DELETED"])
async def test_a_list_and_a_deletion_wait_for_nothing_and_nothing_older_comes_after_them(kind: str | None) -> None:
    taken = Taken()
    for version in (1, 2):
        taken.resting("MODIFIED", event("busy", "a", version))
    taken.resting(kind, event("busy", "a", 3))
    taken.resting("ADDED", event("busy", "b", 1))
    await until(lambda: len(taken.events) == 3)
    assert taken.events == [("MODIFIED", "a", 1), (kind, "a", 3), ("ADDED", "b", 1)]


async def test_what_waits_ends_with_its_source() -> None:
    taken = Taken()
    for version in (1, 2):
        taken.resting("MODIFIED", event("busy", "a", version))
    taken.resting.close()
    await asyncio.sleep(2 * REST_FACTOR * WORK_SECONDS)  # nothing that could be waited for is to happen
    assert taken.events == [("MODIFIED", "a", 1)]


async def test_a_namespace_that_has_rested_is_forgotten() -> None:
    taken = Taken()
    taken.resting("MODIFIED", event("busy", "a", 1))
    await until(lambda: not taken.resting.namespaces)
    taken.resting("MODIFIED", event("busy", "a", 2))
    assert taken.events[-1] == ("MODIFIED", "a", 2)

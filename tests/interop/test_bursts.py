"""Many endpoints of one service come and go at once, written the way each layout says that its clients tolerate it.

Real clients of both Jupiters drop the newest state when events come too close together, and then miss new backends or
call dead ones until the next event; go-micro's watchers take one event of each watch response.
"""

import math
import time

import pytest

from grpc_etcd.etcd import Op, ops
from grpc_etcd.layouts.rate_limits import CATCH_UP, Change, RateLimitedQueue
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from testbed.conditions import wait_until
from tests.interop.conftest import Backends, Interop

pytestmark = pytest.mark.interop

GREETER = "greeter"


def _key_values(interop: Interop, addresses: list[str]) -> dict[str, KeyValue]:
    written = {}
    for address in addresses:
        record = interop.layout.encode(GREETER, Endpoint(name=GREETER, address=address))
        assert isinstance(record, KeyValue)
        written[address] = record
    return written


class PacedWriter:
    """Writes as the queue says, against the real clock, and puts the flush key when it is due.

    One that is `held_up` is late by as much as may be made up, again and again: what it writes comes in bursts.
    """

    def __init__(self, interop: Interop, *, held_up: bool = False) -> None:
        self._interop, self._held_up = interop, held_up
        self._queue: RateLimitedQueue[str, str] = RateLimitedQueue(lambda _: interop.layout.limits)

    def write(self, operations: dict[str, Op]) -> None:
        for address in operations:
            self._queue.push(Change(address, 1, {GREETER: 1}))
        while (at := self._queue.ask_again_at()) is not None:
            time.sleep(max(0.0, at - time.monotonic()) + self._hold_up_seconds())
            while batch := self._queue.take(time.monotonic()):
                self._interop.etcd.transaction([], [operations[change.of] for change in batch])
        self._touch()

    def _hold_up_seconds(self) -> float:
        """Wait a little less than what is not made up any more."""
        limits = self._interop.layout.limits
        share = 0.95 if self._held_up else 0.0
        return share * CATCH_UP * limits.keys_per_transaction / (limits.keys_per_second or math.inf)

    def _touch(self) -> None:
        while (at := self._queue.flush_at()) is not None:
            time.sleep(max(0.0, at - time.monotonic()))
            for service in self._queue.flushes_due(time.monotonic()):
                flush = self._interop.layout.settled(service, "c1")
                assert flush is not None
                self._interop.etcd.put(*flush)


@pytest.mark.parametrize("held_up", [False, True])
@pytest.mark.parametrize("interop", ["jupiter027", "jupiter011"], indirect=True)
@pytest.mark.parametrize("backends", [120], indirect=True)
def test_all_of_120_backends_are_called_and_then_none(interop: Interop, backends: Backends, *, held_up: bool) -> None:
    written = _key_values(interop, backends.addresses)
    writer = PacedWriter(interop, held_up=held_up)
    with interop.run("call").start() as calling:
        wait_until(lambda: calling.events("called"), "the first calls")
        writer.write({address: ops.put(*record) for address, record in written.items()})
        wait_until(lambda: calling.answering() == set(backends.addresses), "calls to all 120 backends")
        writer.write({address: ops.delete(record.key) for address, record in written.items()})
        wait_until(calling.has_only_failed, "no calls to any of 120 backends")


@pytest.mark.parametrize("interop", ["gomicro4", "gomicro5", "gozero", "naming"], indirect=True)
def test_a_watch_sees_all_of_40_endpoints_and_then_none(interop: Interop) -> None:
    written = _key_values(interop, [f"127.0.1.{number}:9000" for number in range(1, 41)])
    writer = PacedWriter(interop)
    with interop.run("watch").start() as watch:
        watch.wait_for("set")
        writer.write({address: ops.put(*record) for address, record in written.items()})
        watch.wait_for_set(set(written))
        writer.write({address: ops.delete(record.key) for address, record in written.items()})
        watch.wait_for_set(set())

"""Instruments: what a process costs, when an address becomes visible, and what many such figures come to.

Visibility is the arrival of an etcd watch event in this process, for provider keys and for EndpointSlices alike; the
latter are read from the API server's own etcd, so that its watch cache costs them nothing.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from grpc_etcd.etcd import Deleted, Etcd, WatchEvents, WatchSnapshot
from grpc_etcd.etcd.model import Record
from testbed.conditions import PATIENCE_SECONDS, wait_until

TICKS = os.sysconf("SC_CLK_TCK")
DELIMITED, VARINT = 2, 0
Ready = Callable[[bytes, bytes], frozenset[str]]


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_mib(pid: int) -> float:
    """Largest resident set of a process so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of all values does not exceed; NaN of nothing."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else float("nan")


def median(values: Iterable[float]) -> float:
    """The median; NaN of nothing."""
    found = list(values)
    return statistics.median(found) if found else float("nan")


def ready_in_provider(key: bytes, _: bytes) -> frozenset[str]:
    """The address that a provider key makes visible."""
    head, separator, address = key.rpartition(b"/providers/grpc://")
    return frozenset({address.decode().rpartition(":")[0]}) if head and separator else frozenset()


def ready_in_slice(_: bytes, value: bytes) -> frozenset[str]:
    """The addresses that an EndpointSlice, as the API server stores it, calls ready.

    Fields: discovery.k8s.io/v1 EndpointSlice.endpoints = 2; Endpoint.addresses = 1, .conditions = 2; .ready = 1.
    """
    body = value.removeprefix(b"k8s\x00")
    raw = next(content for number, content in fields_of(body) if number == 2 and isinstance(content, bytes))
    found: set[str] = set()
    for number, endpoint in fields_of(raw):
        if number == 2 and isinstance(endpoint, bytes):
            parts = list(fields_of(endpoint))
            conditions = next((each for n, each in parts if n == 2 and isinstance(each, bytes)), b"")
            if dict(fields_of(conditions)).get(1):
                found.update(each.decode() for n, each in parts if n == 1 and isinstance(each, bytes))
    return frozenset(found)


def fields_of(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a protobuf message, as far as these messages have kinds: numbers and delimited ones."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        value, at = varint(message, at)
        if tag & 7 == DELIMITED:
            yield tag >> 3, message[at : at + value]
            at += value
        elif tag & 7 == VARINT:
            yield tag >> 3, value
        else:
            raise ValueError(f"wire type {tag & 7} at {at}")


def varint(message: bytes, at: int) -> tuple[int, int]:
    """Decode a number and say where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


class Visibility:
    """Follows which addresses are visible in an etcd, and when each came and went. A thread reads the watch."""

    def __init__(self, endpoints: str, prefix: bytes, ready_in: Ready) -> None:
        self._etcd = Etcd(endpoints)
        self._ready_in = ready_in
        self._by_key: dict[bytes, frozenset[str]] = {}
        self._pending: dict[tuple[str, bool], tuple[str, float]] = {}
        self.visible: set[str] = set()
        self.last_change = 0.0
        self.latencies: dict[str, list[float]] = {}
        self._listed = threading.Event()
        self._watch = self._etcd.list_watch(prefix)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        self._listed.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()
        self._thread.join()
        self._etcd.close()

    def expect(self, kind: str, address: str, *, visible: bool) -> None:
        """Take the time until an address becomes visible, or is not any more, from now on."""
        self._pending[address, visible] = (kind, time.monotonic())

    @property
    def unmet(self) -> int:
        """Count what is expected and has not happened."""
        return len(self._pending)

    def wait_count(self, count: int, since: float, timeout_seconds: float = 120.0) -> float:
        """Wait until so many addresses are visible; return the seconds from `since` to the last change."""
        wait_until(lambda: len(self.visible) == count, f"{count} visible addresses", timeout_seconds)
        return self.last_change - since

    def _follow(self) -> None:
        for news in self._watch:
            now = time.monotonic()
            match news:
                case WatchSnapshot(records=records):
                    listed = {record.key for record in records}
                    for key in [key for key in self._by_key if key not in listed]:
                        self._see(key, frozenset(), now)
                    for record in records:
                        self._see_record(record, now)
                    self._listed.set()
                case WatchEvents(events=events):
                    for event in events:
                        if isinstance(event, Deleted):
                            self._see(event.key, frozenset(), now)
                        else:
                            self._see_record(event.record, now)

    def _see_record(self, record: Record, now: float) -> None:
        self._see(record.key, self._ready_in(record.key, record.value), now)

    def _see(self, key: bytes, addresses: frozenset[str], now: float) -> None:
        before = self._by_key.get(key, frozenset())
        self._by_key[key] = addresses
        for address, visible in [(a, True) for a in addresses - before] + [(a, False) for a in before - addresses]:
            (self.visible.add if visible else self.visible.discard)(address)
            self.last_change = now
            if expected := self._pending.pop((address, visible), None):
                self.latencies.setdefault(expected[0], []).append((now - expected[1]) * 1000)

"""What happened to a service, by etcd's own revisions: who came, changed and went, when, and of which Pod. Pure.

etcd keeps no times. The operator's clock key has them: a reading says of all revisions up to one that they were there
by then. `past` fetches the events.
"""

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from grpc_etcd.etcd import Event, Put, Record
from grpc_etcd.inspect.entries import endpoint_json
from grpc_etcd.registry.catalog import service_of
from grpc_etcd.registry.endpoint import Endpoint, Kind
from grpc_etcd.registry.layout import Layout, Rejected
from grpc_etcd.registry.own import CLOCK_PREFIX, OWNER_PREFIX, ClockReading, OwnerRecord

Read = Endpoint | Rejected


@dataclass(frozen=True, slots=True)
class Change:
    """One record that came, changed or went.

    `time` (Unix seconds): by when, None where no reading says; `endpoints`: how many endpoints the service had after
    this revision. `pod` is `namespace/name`, empty where no operator's record names one.
    """

    revision: int
    time: float | None
    layout: str
    key: bytes
    before: Read | None
    after: Read | None
    pod: str
    endpoints: int

    @property
    def what(self) -> str:
        """Return what happened, in a word."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"

    @property
    def address(self) -> str:
        """Return the endpoint's address; the key where its value cannot be decoded."""
        read = self.after if self.after is not None else self.before
        return read.address if isinstance(read, Endpoint) else self.key.decode(errors="replace")


class Times:
    """When revisions were committed, by the readings of all clock keys."""

    def __init__(self, readings: Iterable[ClockReading]) -> None:
        self._readings = sorted(readings)
        self._revisions = [reading.revision for reading in self._readings]

    def find(self, revision: int) -> float | None:
        """Return by when a revision was there; None where nothing is known of it."""
        place = bisect.bisect_left(self._revisions, revision)
        return min((each.time for each in self._readings[place : place + 1]), default=None)


class Past:
    """The service's records, taken from one revision to the next. What one costs is what it changes."""

    def __init__(self, service: str, layouts: Sequence[Layout], records: Iterable[Record]) -> None:
        self._service, self._layouts = service, layouts
        self._known: dict[tuple[str, bytes], Read] = {}
        self._owned: dict[bytes, tuple[bytes, ...]] = {}  # the keys of this service that an owner record names
        self._pods: dict[bytes, str] = {}  # by key
        for record in records:
            self._take(record.key, record.value)

    def changes(self, events: Iterable[Event], times: Times) -> Iterator[Change]:
        """Return what events change, in order of their revisions."""
        ordered = sorted(events, key=lambda event: event.revision)
        for revision, together in groupby(ordered, key=lambda event: event.revision):
            before: dict[tuple[str, bytes], Read | None] = {}
            gone: dict[bytes, str] = {}
            for event in together:
                old, left = self._take(event.key, event.record.value if isinstance(event, Put) else None)
                before = old | before
                gone |= left
            endpoints = count_endpoints(self._known.values()) if before else 0
            time = times.find(revision)
            for (layout, key), old_read in sorted(before.items()):
                new, pod = self._known.get((layout, key)), self._pods.get(key) or gone.get(key, "")
                if old_read != new:
                    yield Change(revision, time, layout, key, old_read, new, pod, endpoints)

    def _take(self, key: bytes, value: bytes | None) -> tuple[dict[tuple[str, bytes], Read | None], dict[bytes, str]]:
        """Take a record or its end; return what its places held before, and the Pods that own keys no longer."""
        if key.startswith(OWNER_PREFIX):
            return {}, self._take_owner(key, value)
        before: dict[tuple[str, bytes], Read | None] = {}
        for layout in self._layouts:
            if service_of(layout, key) == self._service:
                place = layout.name, key
                before[place] = self._known.pop(place, None)
                read = None if value is None else layout.decode(self._service, key, value)
                if read is not None:
                    self._known[place] = read
        return before, {}

    def _take_owner(self, key: bytes, value: bytes | None) -> dict[bytes, str]:
        gone = {each: self._pods.pop(each) for each in self._owned.pop(key, ()) if each in self._pods}
        owner = None if value is None else OwnerRecord.from_json(value)
        if isinstance(owner, OwnerRecord) and owner.pod:
            mine = tuple(each for each in owner.keys if self._is_mine(each))
            if mine:
                self._owned[key] = mine
                self._pods |= dict.fromkeys(mine, f"{owner.namespace}/{owner.pod}")
        return gone

    def _is_mine(self, key: bytes) -> bool:
        return any(service_of(layout, key) == self._service for layout in self._layouts)


def count_endpoints(reads: Iterable[Read]) -> int:
    """Count the endpoints that clients may call: one address is one, however many records have it."""
    return len({read.address for read in reads if isinstance(read, Endpoint) and read.kind is Kind.PROVIDER})


def read_clock(record: Record) -> ClockReading | None:
    """Read a clock key; None where it speaks of what was not there yet when it was put, as after a copy to here."""
    reading = ClockReading.from_json(record.value)
    return reading if isinstance(reading, ClockReading) and 0 < reading.revision < record.mod_revision else None


def readings_of(events: Iterable[Event]) -> Iterator[ClockReading]:
    """Read the clock keys' events."""
    puts = (event.record for event in events if isinstance(event, Put))
    return filter(None, (read_clock(record) for record in puts if record.key.startswith(CLOCK_PREFIX)))


def differences(change: Change) -> Mapping[str, tuple[Any, Any]]:
    """Return the fields that a change has changed, with the values before and after."""
    if not (isinstance(change.before, Endpoint) and isinstance(change.after, Endpoint)):
        return {}
    before, after = endpoint_json(change.before), endpoint_json(change.after)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def change_json(change: Change) -> dict[str, Any]:
    """Write a change for programs."""
    return {
        "revision": change.revision,
        "time": change.time,
        "change": change.what,
        "layout": change.layout,
        "key": change.key.decode(errors="replace"),
        "pod": change.pod or None,
        "endpoints": change.endpoints,
        "before": _read_json(change.before),
        "after": _read_json(change.after),
    }


def _read_json(read: Read | None) -> dict[str, Any] | None:
    if read is None:
        return None
    return {"rejected": read.reason} if isinstance(read, Rejected) else endpoint_json(read)

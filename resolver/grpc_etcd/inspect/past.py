"""Read etcd as it was: a service's records at a revision, and all events since."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from grpc_etcd.etcd import (
    Compacted,
    Disconnected,
    Etcd,
    Event,
    PermissionDenied,
    Progress,
    WatchEvents,
)
from grpc_etcd.inspect.entries import Entry, make_entries
from grpc_etcd.inspect.history import Change, Past, Times, read_clock, readings_of
from grpc_etcd.inspect.reading import granted_prefix, list_prefix
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.own import CLOCK_PREFIX, OWNER_PREFIX, ClockReading, OwnerRecord

PROGRESS_SECONDS = 0.1  # how soon it is known that there is nothing more


@dataclass(frozen=True, slots=True)
class History:
    """Changes since a revision. `is_cut`: etcd no longer has all that was asked for; `is_timed`: it has a clock key."""

    since: int
    changes: tuple[Change, ...]
    is_cut: bool
    is_timed: bool


def read_history(etcd: Etcd, layouts: Sequence[Layout], service: str, since: float) -> History:
    """Read what happened to a service since a time (Unix seconds); all that etcd has where it has no clock key."""
    for layout in layouts:
        list_prefix(etcd, layout.prefix(service), granted_prefix(layout, service))
    prefixes = [layout.prefix(service) for layout in layouts]
    known, now = prefixes[0], _now(etcd, prefixes[0])
    start, is_cut = find_past(etcd, known, since)
    prefixes += [OWNER_PREFIX] if _may_read(etcd, OWNER_PREFIX) else []
    records = [record for prefix in prefixes for record in etcd.get_prefix(prefix, revision=start).records]
    events = [event for prefix in prefixes for event in read_events(etcd, prefix, start + 1, now)]
    is_timed = bool(_read_clock(etcd))
    clock = list(read_events(etcd, CLOCK_PREFIX, start + 1, _now(etcd, known))) if is_timed else []
    changes = Past(service, layouts, records).changes(events, Times(readings_of(clock)))
    return History(start, tuple(changes), is_cut, is_timed)


def read_at(etcd: Etcd, layouts: Sequence[Layout], service: str, revision: int) -> list[Entry]:
    """Read all records of a service as they were at a revision; Compacted where etcd no longer has it."""
    owners = None
    if _may_read(etcd, OWNER_PREFIX):
        records = etcd.get_prefix(OWNER_PREFIX, revision=revision).records
        read = [OwnerRecord.from_json(record.value) for record in records]
        owners = {key: each for each in read if isinstance(each, OwnerRecord) for key in each.keys}
    found = []
    for layout in layouts:
        list_prefix(etcd, layout.prefix(service), granted_prefix(layout, service))
        listing = etcd.get_prefix(layout.prefix(service), revision=revision)
        found += [each for each in make_entries(layout, listing.records, owners) if each.service == service]
    return found


def find_moment(etcd: Etcd, layouts: Sequence[Layout], service: str, time: float) -> int | None:
    """Return the last revision that is known to have been there by a time (Unix seconds); None where none is."""
    prefix = layouts[0].prefix(service)
    return _find_known(etcd, prefix, _now(etcd, prefix), time) or None


def find_past(etcd: Etcd, prefix: bytes, time: float) -> tuple[int, bool]:
    """Return the last revision that is known to have been there by a time, or the oldest that etcd has.

    The second says that etcd no longer has what was asked for.
    """
    now = _now(etcd, prefix)
    oldest, _ = find_revision(etcd, prefix, now, lambda _: False)
    known = _find_known(etcd, prefix, now, time)
    return max(known, oldest), known < oldest and oldest > 1


def _find_known(etcd: Etcd, prefix: bytes, now: int, time: float) -> int:
    """Return the last revision that a clock key says was there by a time; 0: none says so.

    What etcd had when a reading was the last may have come since: the key is put after what it speaks of.
    """
    revision, _ = find_revision(etcd, prefix, now, lambda each: all(at.time <= time for at in _read_clock(etcd, each)))
    return max((reading.revision for reading in _read_clock(etcd, revision) if reading.time <= time), default=0)


def find_revision(etcd: Etcd, prefix: bytes, last: int, is_past: Callable[[int], bool]) -> tuple[int, bool]:
    """Return the last revision that is past; where etcd no longer has it, the oldest that it has, and True."""
    low, high, is_there = 0, last, True
    while low < high:
        middle = (low + high + 1) // 2
        answer = _ask(etcd, prefix, middle, is_past)
        if answer is False:
            high = middle - 1
        else:
            low, is_there = middle, answer is not None
    return (max(low, 1), False) if is_there else (low + 1, True)


def _ask(etcd: Etcd, prefix: bytes, revision: int, is_past: Callable[[int], bool]) -> bool | None:
    """Return whether a revision is past; None where etcd no longer has it."""
    try:
        etcd.get(prefix, revision=revision)
        return is_past(revision)
    except Compacted:
        return None


def read_events(etcd: Etcd, prefix: bytes, first: int, last: int) -> Iterator[Event]:
    """Return the events of a prefix from one revision to another."""
    if first > last:
        return
    watch = etcd.list_watch(prefix, start_revision=first, progress_seconds=PROGRESS_SECONDS)
    try:
        for news in watch:
            match news:
                case WatchEvents(events=events):
                    yield from (event for event in events if event.revision <= last)
                case Disconnected(error=error):
                    raise error
            if isinstance(news, WatchEvents | Progress) and news.revision >= last:
                return
    finally:
        watch.close()


def _read_clock(etcd: Etcd, revision: int = 0) -> list[ClockReading]:
    """Read the clock keys as they were at a revision; 0 is now."""
    try:
        records = etcd.get_prefix(CLOCK_PREFIX, revision=revision).records
    except PermissionDenied:
        return []
    return read_clock(record.value for record in records)


def _may_read(etcd: Etcd, prefix: bytes) -> bool:
    try:
        etcd.get_prefix(prefix, keys_only=True)
    except PermissionDenied:
        return False
    return True


def _now(etcd: Etcd, prefix: bytes) -> int:
    return etcd.get_prefix(prefix, keys_only=True).revision

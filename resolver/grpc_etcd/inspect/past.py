"""Read what happened in etcd: which revision was there by a time, and all events since."""

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
from grpc_etcd.inspect.history import Change, Past, Times, read_clock, readings_of
from grpc_etcd.inspect.reading import list_service
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.own import CLOCK_PREFIX, OWNER_PREFIX, ClockReading

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
    now = max(list_service(etcd, layout, service).revision for layout in layouts)
    prefixes = [layout.prefix(service) for layout in layouts]
    start, is_cut = find_past(etcd, prefixes[0], now, since)
    records = [record for prefix in prefixes for record in etcd.get_prefix(prefix, revision=start).records]
    try:
        records += etcd.get_prefix(OWNER_PREFIX, revision=start).records
        prefixes.append(OWNER_PREFIX)
    except PermissionDenied:
        pass  # Pods are not named then
    events = [event for prefix in prefixes for event in read_events(etcd, prefix, start + 1, now)]
    is_timed = bool(_read_clock(etcd))
    last = etcd.get_prefix(CLOCK_PREFIX).revision if is_timed else 0
    times = Times(readings_of(read_events(etcd, CLOCK_PREFIX, start + 1, last)))
    return History(start, tuple(Past(service, layouts, records).changes(events, times)), is_cut, is_timed)


def find_moment(etcd: Etcd, layouts: Sequence[Layout], service: str, time: float) -> int | None:
    """Return the last revision that is known to have been there by a time (Unix seconds); None where none is."""
    now = list_service(etcd, layouts[0], service).revision
    return _find_known(etcd, layouts[0].prefix(service), now, time) or None


def find_past(etcd: Etcd, prefix: bytes, now: int, time: float) -> tuple[int, bool]:
    """Return the last revision that is known to have been there by a time, or the oldest that etcd has.

    The second says that etcd no longer has what was asked for.
    """
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
    return read_clock(records)

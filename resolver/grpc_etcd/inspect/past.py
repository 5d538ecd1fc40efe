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
    """Changes since a revision. `is_cut`: etcd no longer has all that was asked for; `is_timed`: it has a clock key.

    `is_owner_known`: False where the owner records may not be read, so that no Pod is named.
    """

    since: int
    changes: tuple[Change, ...]
    is_cut: bool
    is_timed: bool
    is_owner_known: bool


def read_history(etcd: Etcd, layouts: Sequence[Layout], service: str, since: float) -> History:
    """Read what happened to a service since a time (Unix seconds); all that etcd has where it has no clock key."""
    now = max(list_service(etcd, layout, service).revision for layout in layouts)
    prefixes = [layout.prefix(service) for layout in layouts]
    start, is_cut = find_past(etcd, prefixes[0], now, since)
    records = [record for prefix in prefixes for record in etcd.get_prefix(prefix, revision=start).records]
    try:
        records += etcd.get_prefix(OWNER_PREFIX, revision=start).records
        prefixes.append(OWNER_PREFIX)
        is_owner_known = True
    except PermissionDenied:
        is_owner_known = False
    events = [event for prefix in prefixes for event in read_events(etcd, prefix, start + 1, now)]
    is_timed = bool(_clock_keys(etcd))
    last = etcd.get_prefix(CLOCK_PREFIX).revision if is_timed else 0
    times = Times(readings_of(read_events(etcd, CLOCK_PREFIX, start + 1, last)))
    changes = tuple(Past(service, layouts, records).changes(events, times))
    return History(start, changes, is_cut, is_timed, is_owner_known)


def find_moment(etcd: Etcd, layouts: Sequence[Layout], service: str, time: float) -> ClockReading | None:
    """Return the last reading by a time (Unix seconds), so that its revision was there by then; None: there is none."""
    now = list_service(etcd, layouts[0], service).revision
    return _find_known(etcd, layouts[0].prefix(service), now, time)


def may_read_times(etcd: Etcd) -> bool:
    """Return whether this user may read the times that operators have recorded."""
    try:
        etcd.get_prefix(CLOCK_PREFIX, keys_only=True)
    except PermissionDenied:
        return False
    return True


def find_past(etcd: Etcd, prefix: bytes, now: int, time: float) -> tuple[int, bool]:
    """Return the last revision that is known to have been there by a time, or the oldest that etcd has.

    The second says that etcd no longer has what was asked for.
    """
    oldest, _ = find_revision(etcd, prefix, now, lambda _: False)
    reading = _find_known(etcd, prefix, now, time)
    known = reading.revision if reading else 0
    return max(known, oldest), known < oldest and oldest > 1


def _find_known(etcd: Etcd, prefix: bytes, now: int, time: float) -> ClockReading | None:
    """Return the last reading that a clock key held by a time; None: none did.

    What etcd had when a reading was the last may have come since: the key is put after what it speaks of. Each key is
    looked at by itself, since a cluster whose clock runs ahead would hide the others'.
    """
    found = []
    for key in _clock_keys(etcd):

        def is_past(revision: int, key: bytes = key) -> bool:
            reading = _read_clock(etcd, key, revision)
            return reading is None or reading.time <= time

        revision, _ = find_revision(etcd, prefix, now, is_past)
        reading = _read_clock(etcd, key, revision)
        if reading and reading.time <= time:
            found.append(reading)
    return max(found, default=None)


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


def _clock_keys(etcd: Etcd) -> list[bytes]:
    """Return the clock keys; none where they may not be read."""
    try:
        return [record.key for record in etcd.get_prefix(CLOCK_PREFIX, keys_only=True).records]
    except PermissionDenied:
        return []


def _read_clock(etcd: Etcd, key: bytes, revision: int) -> ClockReading | None:
    """Read a clock key as it was at a revision; None where it says nothing of use."""
    record = etcd.get(key, revision=revision)
    return record and read_clock(record)

"""What proves that etcd still holds the history that was followed: rule 3 of the hub."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from grpc_etcd.etcd.errors import HistoryChanged
from grpc_etcd.etcd.hub.watch import Watch, Witness
from grpc_etcd.etcd.model import Record

# How many keys are tried, newest first, for one that may be read, before a proof is given up. Arbitrary.
MOST_PROBES = 8


class Probe(NamedTuple):
    """A read that proves the history: what was seen in a range, and at which revision to look (0: now).

    `has_second`: a proof follows by the newest record that is still there.
    """

    watch: Watch
    witness: Witness | None
    revision: int
    has_second: bool = False

    @property
    def key(self) -> bytes:
        """The key to read."""
        return self.witness.key if self.witness else self.watch.key


def make_proofs(watches: Sequence[Watch]) -> Iterator[deque[Probe]]:
    """Return the proofs that these ranges' history has not changed, each as some keys of which one must be read."""
    newest = sorted(watches, key=lambda watch: watch.witness.revision if watch.witness else 0, reverse=True)
    if not newest:
        return
    found: list[Probe] = []
    if newest[0].witness and newest[0].witness.record is None:
        # A key that came and went proves little by being away: the newest that is still there must be what it was.
        found = [Probe(each, each.newest_record, each.revision) for each in watches if each.newest_record]
        found.sort(key=lambda probe: probe.witness.revision if probe.witness else 0, reverse=True)
    yield deque(
        Probe(each, each.witness, each.revision if each.witness else 0, bool(found)) for each in newest[:MOST_PROBES]
    )
    if found:
        yield deque(found[:MOST_PROBES])


class Proofs:
    """What is still to be read of a stream that has been opened."""

    def __init__(self) -> None:
        self._left: deque[deque[Probe]] = deque()
        self.is_partial = False
        """What was deleted last is compacted away; the newest that is still there has to do."""

    def begin(self, watches: Iterable[Watch]) -> None:
        """Gather what was seen.

        What only listings have seen is a proof of its own for each epoch: a later one does not confirm it.
        """
        self.is_partial = False
        groups: dict[int | None, list[Watch]] = {}
        for watch in watches:
            if watch.next:
                groups.setdefault(None if watch.is_proven else watch.epoch, []).append(watch)
        self._left = deque(proof for group in groups.values() for proof in make_proofs(group))

    def next(self) -> Probe | None:
        """Return the next key of a proof to read; None when all is read. One that may be read is enough of each."""
        while self._left and not self._left[0]:
            self._left.popleft()
        return self._left[0].popleft() if self._left else None

    def rely_on_second(self) -> None:
        """Leave the newest deletion unproven, and go on with the proof behind it."""
        self.is_partial = True
        self.passed()

    def passed(self) -> None:
        """Go on with the next proof."""
        self._left.popleft()


def find_fault(probe: Probe, seen: int, found: Record | None, store: int) -> HistoryChanged | None:
    """Return why what was read of a store at a revision is not of the history of which revision `seen` was seen."""
    if store < seen:
        return HistoryChanged(f"revision {seen} was seen and is gone")
    if probe.witness and found != probe.witness.record:
        at = f"at revision {probe.revision}" if probe.revision else "when it was last seen"
        return HistoryChanged(f"{probe.key!r} is not what it was {at}")
    return None

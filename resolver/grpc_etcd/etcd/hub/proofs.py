"""What proves that etcd still holds the history that was followed: rule 3 of the hub."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from grpc_etcd.etcd.hub.watch import Watch, Witness

# How many keys are tried, newest first, for one that may be read, before a proof is given up. Arbitrary.
MOST_PROBES = 8


class Probe(NamedTuple):
    """A read that proves the history: what was seen in a range, and at which revision to look (0: now)."""

    watch: Watch
    witness: Witness | None
    revision: int

    @property
    def key(self) -> bytes:
        """The key to read."""
        return self.witness.key if self.witness else self.watch.key


def make_proofs(watches: Sequence[Watch]) -> Iterator[deque[Probe]]:
    """Return the proofs that these ranges' history has not changed, each as some keys of which one must be read."""
    newest = sorted(watches, key=lambda watch: watch.witness.revision if watch.witness else 0, reverse=True)
    if not newest:
        return
    yield deque(Probe(each, each.witness, each.revision if each.witness else 0) for each in newest[:MOST_PROBES])
    if newest[0].witness and newest[0].witness.record is None:
        # A key that came and went proves little by being away: the newest that is still there must be what it was.
        found = [Probe(each, each.newest_record, each.revision) for each in watches if each.newest_record]
        found.sort(key=lambda probe: probe.witness.revision if probe.witness else 0, reverse=True)
        yield deque(found[:MOST_PROBES])

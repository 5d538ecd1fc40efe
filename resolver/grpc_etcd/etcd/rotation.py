"""Which member of the cluster is asked, without I/O. All calls and streams use one member until it fails.

Rule 1: a member that does not answer, has no leader, or serves no clients hands on to the one whose own failure is the
        longest ago.
Rule 2: nothing is sent twice: a call goes on to the next member only if it is certain that it was not sent, or not
        looked at.
Rule 3: one that let a call wait may be frozen, with its connections open and its streams silent. As soon as another
        member answers, those streams are given up; while none does, the cluster is to blame and they stay.
Rule 4: where all members have one name, what serves no clients or has no leader is dialled again: another connection
        may lead to another.
"""

from collections.abc import Collection

from grpc_etcd.etcd.errors import DeadlineExceeded, EtcdError, NoLeader, NotServing, Unavailable, is_unsent

# How often a call is sent by new connections behind one name, until one leads to a member that serves. Arbitrary.
MOST_TRIES = 4
NOBODY: frozenset[int] = frozenset()


class Rotation:
    """The members by number, and which is current. Not thread-safe, but `current` may be read at any time."""

    def __init__(self, members: int) -> None:
        self._failed_at = [0] * members
        self._failures = 0
        self.current = 0
        self.silent = NOBODY

    def __len__(self) -> int:
        return len(self._failed_at)

    def failed(self, member: int, error: EtcdError) -> None:
        """Record that a call or a stream of a member has failed; only what speaks of the member itself counts."""
        if not isinstance(error, Unavailable | DeadlineExceeded):
            return
        self._failures += 1
        self._failed_at[member] = self._failures
        if isinstance(error, DeadlineExceeded) and len(self) > 1:
            self.silent |= {member}
        if member == self.current:
            self.current = min(range(len(self)), key=lambda each: (self._failed_at[each], (each - member) % len(self)))

    def answered(self, member: int) -> frozenset[int]:
        """Record that a member has answered; return those whose streams are to be given up."""
        silent, self.silent = self.silent - {member}, NOBODY
        return silent

    def is_to_be_dialled_again(self, error: EtcdError) -> bool:
        """Return whether a failure is one that another connection may not have."""
        return len(self) == 1 and isinstance(error, NotServing | NoLeader)

    def next(self, tried: Collection[int], error: EtcdError) -> int | None:
        """Return the member that a failed call goes on to, if it may; `tried` names all that were asked, in order."""
        if not is_unsent(error):
            return None
        if self.is_to_be_dialled_again(error):
            return self.current if len(tried) < MOST_TRIES else None
        left = set(range(len(self))) - set(tried)
        if not left:
            return None
        return self.current if self.current in left else min(left, key=lambda each: self._failed_at[each])

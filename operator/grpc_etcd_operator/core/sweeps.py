"""What a sweep concludes from a complete list, and when mass withdrawal needs a second look. Pure.

An absence seen in a list is only a suspicion: the caller confirms each one by a consistent read before it counts.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

BRAKE_COUNT = 10
BRAKE_SHARE = 0.5


class Seen(NamedTuple):
    """A Pod or GrpcService as lists and owner records name it."""

    uid: str
    namespace: str
    name: str


class Suspicions(NamedTuple):
    """What a list has that memory has not (`unseen`), and what memory has that the list has not."""

    unseen: tuple[str, ...]
    vanished: tuple[Seen, ...]


def compare_with_list(listed: Iterable[str], known: Mapping[str, Seen]) -> Suspicions:
    """Compare the UIDs of a complete list with what is in memory."""
    present = frozenset(listed)
    unseen = tuple(sorted(present - known.keys()))
    return Suspicions(unseen, tuple(seen for uid, seen in sorted(known.items()) if uid not in present))


def needs_brake(withdrawn: int, total: int) -> bool:
    """Say whether withdrawing so many of a registry's records at once must be confirmed one by one first."""
    return withdrawn > BRAKE_COUNT and withdrawn > total * BRAKE_SHARE

"""What etcd refuses, and how the rest of an owner goes on without it. Pure: times are passed in.

A permission that the operator's role lacks concerns all keys of a prefix; a value that etcd does not take concerns its
own key. What is refused is neither put nor deleted: the owner keeps what it holds there, and its GrpcService is
reported.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from grpc_etcd_operator.core.backoff import Backoff
from grpc_etcd_operator.core.desired import Desired, Fault
from grpc_etcd_operator.core.reasons import Reason

BACKOFF = Backoff((1.0, 2.0, 4.0, 5.0))  # before the next try. Arbitrary: a try is one small request
MOST_REMEMBERED = 10_000  # keys on trial of which it is known how often they have failed. Arbitrary
MOST_AT_ONCE = 16  # that are tried before others are written again, and in a second. Arbitrary
ROUND_SECONDS = 60.0  # within which each has its turn, be there more than are tried in a second until then. Arbitrary


@dataclass(slots=True)
class Refusal:
    """Why a prefix or key is refused, how often in a row, when to ask again, and which units go without it.

    `binds_leases` says that etcd takes no put under a lease with a key there.
    """

    reason: Reason
    message: str
    failures: int = 0
    until: float = 0.0
    units: set[str] = field(default_factory=set)
    binds_leases: bool = False


class Refusals:
    """The prefixes and keys that etcd refuses just now."""

    def __init__(self) -> None:
        self._of: dict[bytes, Refusal] = {}
        self._failures: dict[bytes, int] = {}
        self._rest_until = -math.inf
        self.ended = 0  # how many were refused and are no more, trials apart

    def __bool__(self) -> bool:
        return bool(self._of)

    def __contains__(self, key: object) -> bool:
        return key in self._of

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._of)

    def note(self, key: bytes, reason: Reason, message: str, now: float) -> Refusal:
        """Record that a prefix or key is refused; the pause grows with each in a row. Infinity: do not ask again."""
        refusal = self._of.setdefault(key, Refusal(reason, message, self._failures.pop(key, 0)))
        refusal.reason, refusal.message = reason, message
        refusal.failures += 1
        refusal.until = now + BACKOFF.after(refusal.failures)
        return refusal

    def end(self, key: bytes, *, is_trial: bool = False) -> set[str]:
        """Record that a prefix or key is no longer refused; return the units that went without it.

        After a trial, which may fail, the pauses go on where they were.
        """
        refusal = self._of.pop(key, None)
        self.ended += bool(refusal and not is_trial)
        if refusal and is_trial:
            self._failures[key] = refusal.failures
            if len(self._failures) > MOST_REMEMBERED:
                del self._failures[next(iter(self._failures))]
        return refusal.units if refusal else set()

    def find(self, *ranges: bytes | None) -> Refusal | None:
        """Return the first refusal among a key and its prefix."""
        return next((found for each in ranges if each is not None and (found := self._of.get(each))), None)

    def due(self, now: float) -> list[bytes]:
        """Return what is to be tried again, at most a few: nothing is written meanwhile, and there may be thousands."""
        if now < self._rest_until:
            return []
        due = [(refusal.until, key) for key, refusal in self._of.items() if refusal.until <= now]
        if len(due) >= MOST_AT_ONCE:
            self._rest_until = now + min(1.0, MOST_AT_ONCE * ROUND_SECONDS / len(self._of))
        return [key for _, key in heapq.nsmallest(MOST_AT_ONCE, due)]

    def next_at(self) -> float:
        """Return when the next is to be tried again; infinity for never."""
        return max(min((refusal.until for refusal in self._of.values()), default=math.inf), self._rest_until)


def spare(desired: Desired, held: Iterable[bytes], find: Callable[[bytes], Refusal | None]) -> Desired:
    """Leave out of what a unit wants all that etcd refuses; what it holds of that stays as it is."""
    refused = {wanted.key: found for wanted in desired.wanted if (found := find(wanted.key))}
    kept = {key: found for key in held if (found := find(key))}
    for found in (*refused.values(), *kept.values()):
        found.units.add(desired.unit.uid)
    faults = [
        Fault(wanted.source, found.reason, found.message)
        for wanted in desired.wanted
        if (found := refused.get(wanted.key))
    ]
    return replace(
        desired,
        wanted=tuple(wanted for wanted in desired.wanted if wanted.key not in refused),
        keeps=desired.keeps | kept.keys(),
        faults=(*desired.faults, *dict.fromkeys(faults)),
    )

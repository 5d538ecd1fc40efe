"""What the log says of registering: one line when something becomes different, none while it stays. Pure.

A key that is taken is reported after a second only: the process key by which the taker says that it shares the key may
come a moment later. An outage is one warning when it begins, or turns into another, and one line when it ends; so is a
refusal, of which nothing is logged when nobody wants the keys any more. A key that never was registered is not called
deregistered.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from grpc_etcd.registration.reconciler import KeyState

TAKEN_SECONDS = 1.0


class Fault(NamedTuple):
    """What etcd answers instead of what is wanted, and what to do about it.

    `is_refusal`: etcd is there. `spares_leases`: leases are kept alive all the same, so what is registered stays.
    """

    error: Exception
    remedy: str = ""
    is_refusal: bool = False
    spares_leases: bool = False


class Fact(NamedTuple):
    """Where a key stands, and with which value."""

    label: str
    standing: KeyState
    value: bytes = b""


class LogLine(NamedTuple):
    """A line of the log."""

    level: int
    text: str


@dataclass(slots=True)
class _Known:
    """What was last reported of a key."""

    fact: Fact
    since: float  # of this standing
    reported: KeyState = KeyState.PENDING
    value: bytes = b""
    left_at: float | None = None  # when it ceased to be registered; None before it ever was


@dataclass(slots=True)
class Transitions:
    """What has been reported so far."""

    _known: dict[bytes, _Known] = field(default_factory=dict)
    _fault: Fault | None = None
    _fault_since: float = 0.0

    @property
    def keys(self) -> frozenset[bytes]:
        """Return the keys that something has been reported of and that are not gone."""
        return frozenset(self._known)

    def observe(self, facts: Mapping[bytes, Fact], now: float) -> list[LogLine]:
        """Return what has become different."""
        return [line for key, fact in facts.items() for line in self._observe(key, fact, now)]

    def observe_fault(
        self, fault: Fault | None, ttl_seconds: int, now: float, *, is_wanted: bool = True
    ) -> list[LogLine]:
        """Return when what etcd answers begins to be a fault, becomes another one, and ends.

        `is_wanted` means that there are keys to register or deregister; else a fault ends without an answer.
        """
        before, self._fault = self._fault, fault
        if fault is None:
            return [self._end(before, now)] if before and is_wanted else []
        if before and type(fault.error) is type(before.error):
            return []
        if before is None:
            self._fault_since = now
        return [LogLine(logging.WARNING, f"Registration delayed, retrying: {_describe(fault, ttl_seconds)}")]

    def _end(self, fault: Fault, now: float) -> LogLine:
        what = "accepts registrations" if fault.is_refusal else "answers"
        return LogLine(logging.INFO, f"etcd {what} again after {now - self._fault_since:.1f} s")

    @property
    def due(self) -> float | None:
        """Return when to observe again though nothing happens; None: no need."""
        waiting = (
            known.since + TAKEN_SECONDS
            for known in self._known.values()
            if known.fact.standing is KeyState.TAKEN is not known.reported
        )
        return min(waiting, default=None)

    def _observe(self, key: bytes, fact: Fact, now: float) -> Iterator[LogLine]:
        known = self._known.get(key)
        if known is None:
            if fact.standing is KeyState.GONE:
                return
            known = self._known[key] = _Known(fact, now)
        if known.fact.standing is not fact.standing:
            known.since = now
        known.fact = fact
        match fact.standing:
            case KeyState.REGISTERED | KeyState.SHARED:
                yield from self._registered(known, now)
            case KeyState.TAKEN if known.reported is not KeyState.TAKEN and now >= known.since + TAKEN_SECONDS:
                known.reported = KeyState.TAKEN
                known.left_at = known.since if known.left_at is None else known.left_at
                yield LogLine(
                    logging.WARNING, f"{fact.label}: taken by another process; it is restored when that process ends"
                )
            case KeyState.PENDING if known.reported in (KeyState.REGISTERED, KeyState.SHARED):
                known.reported, known.left_at = KeyState.PENDING, now
            case KeyState.GONE:
                del self._known[key]
                if known.value:  # else it never was registered
                    yield LogLine(logging.INFO, f"{fact.label}: deregistered")

    def _registered(self, known: _Known, now: float) -> Iterator[LogLine]:
        beside = ", which another process registers too" if known.fact.standing is KeyState.SHARED else ""
        label, is_first = known.fact.label, not known.value
        if is_first:
            yield LogLine(logging.INFO, f"{label}: registered{beside}")
        elif known.value != known.fact.value:
            yield LogLine(logging.INFO, f"{label}: changed")
        elif known.reported not in (KeyState.REGISTERED, KeyState.SHARED):
            yield LogLine(logging.INFO, f"{label}: restored after {now - (known.left_at or now):.1f} s{beside}")
        known.reported, known.value, known.left_at = known.fact.standing, known.fact.value, None


def _describe(fault: Fault, ttl_seconds: int) -> str:
    said = f"{fault.error}. {fault.remedy}".rstrip(". ")
    if fault.spares_leases:
        return said
    return (
        f"{said}. Until then, keys that are there already last for up to {ttl_seconds} s, and clients keep their "
        "current endpoints"
    )

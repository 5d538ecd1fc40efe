"""What a process wants in the registry, and what to do about what is there. Pure.

A `Claim` is one record that the process wants under its lease. `verdict` compares it with the record that etcd holds
and says what to do. The law:

    held                                  -> verdict
    nothing                               -> put
    our value, our lease                  -> keep (an unchanged value is never rewritten)
    an older value or lease of ours       -> put
    edited in place, or put without lease -> keep the editor's enable and weight, and put the lease back
    another's lease, never claimed by us  -> put: a restart takes over what its predecessor left
    another's lease, after we had it      -> yield: whoever took it keeps it; two never fight over a key

Where several processes register a key, an edit holds for all of them, also for those that come later. A process key
says what its program wants, without the edit: so the edit is what a key differs in from the process key of its holder.

A process that leaves a key which is its own hands it over where other processes register it too (`processes`):

    other process keys                    -> what leaving does
    none                                  -> delete the key, and our process key
    some                                  -> put the newest one's value under its lease, and delete our process key
"""

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from grpc_etcd.layouts.configurators import METRIC_PREFIX, metric_target
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue, Layout, Rejected, WriteLimits


@dataclass(frozen=True, slots=True)
class Group:
    """The records whose readers see them together: one service in one layout, or the metric targets."""

    prefix: bytes
    limits: WriteLimits
    settled: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """One wanted record. Metric targets have no layout: their value is taken as it is."""

    key: bytes
    value: bytes
    group: Group
    layout: Layout | None = None
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What etcd holds under a key."""

    value: bytes
    lease: int
    revision: int


class Verdict(enum.Enum):
    """What to do about one claim."""

    PUT = enum.auto()
    KEEP = enum.auto()
    YIELD = enum.auto()


@dataclass(frozen=True, slots=True)
class Leases:
    """The lease of this process, and those that it had before; 0 is none."""

    current: int = 0
    former: frozenset[int] = frozenset()

    def __contains__(self, lease: int) -> bool:
        """Return whether `lease` is, or was, this process's."""
        return lease != 0 and (lease == self.current or lease in self.former)


class Values:
    """What may come to be under a key without anybody's edit: what this process has put, or let others put for it.

    In the order in which it was put. News report it in that order too, but late: one may report a former value when
    the answer to a later put is known.
    """

    def __init__(self, *values: bytes) -> None:
        self._values = list(values)

    def __contains__(self, value: bytes) -> bool:
        return value in self._values

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._values)

    def begin_with(self, value: bytes) -> None:
        """Record that a value was there before any that is on its way."""
        if value not in self._values:
            self._values.insert(0, value)

    def expect(self, value: bytes) -> None:
        """Record that a value is put now."""
        if self._values[-1:] != [value]:
            self._values.append(value)

    def reported(self, value: bytes) -> None:
        """Take news of a value; one that was put before it and comes after it is an edit."""
        if value in self._values:
            del self._values[: self._values.index(value)]


def make_claim(layout: Layout, endpoint: Endpoint, cluster: str) -> Claim | Rejected:
    """Return which record registers `endpoint` in `layout`; `cluster` names the writer in the flush key."""
    encoded = layout.encode(endpoint.name, endpoint)
    if isinstance(encoded, Rejected):
        return encoded
    group = Group(layout.prefix(endpoint.name), layout.limits, layout.settled(endpoint.name, cluster))
    return Claim(encoded.key, encoded.value, group, layout, endpoint)


def make_metric_claim(name: str, host: str, address: str) -> Claim:
    """Return which record makes `address` a Prometheus target, as Jupiter's `registerMetric` does."""
    key, value = metric_target(name, host, address)
    return Claim(key, value, Group(METRIC_PREFIX, WriteLimits()))


def verdict(claim: Claim, held: Held | None, leases: Leases, *, had: bool) -> Verdict:
    """Apply the law above to a claim that holds what an admin has edited; `had`: the key was this process's before."""
    if held is None:
        return Verdict.PUT
    if held.lease and held.lease not in leases:
        return Verdict.YIELD if had else Verdict.PUT
    return Verdict.KEEP if held.lease == leases.current and reads_alike(claim, held.value) else Verdict.PUT


def adopt_edit(claim: Claim, value: bytes, meant: Iterable[bytes] = ()) -> Claim:
    """Take over what an admin has edited in a value, enable and weight; all else stays as claimed.

    `meant` are values that programs have put there: what one of them says is no edit.
    """
    if claim.layout is None or claim.endpoint is None:
        return claim
    name, decode = claim.endpoint.name, claim.layout.decode
    edited, *known = (decode(name, claim.key, each) for each in (value, *meant))
    if not isinstance(edited, Endpoint):
        return claim
    ours = [each for each in known if isinstance(each, Endpoint)]
    enable = claim.endpoint.enable if any(each.enable == edited.enable for each in ours) else edited.enable
    weight = claim.endpoint.weight if any(each.weight == edited.weight for each in ours) else edited.weight
    endpoint = replace(claim.endpoint, enable=enable, weight=weight)
    encoded = claim.layout.encode(endpoint.name, endpoint)
    return claim if isinstance(encoded, Rejected) else replace(claim, value=encoded.value, endpoint=endpoint)


def handed_over(claim: Claim, value: bytes, meant: Iterable[bytes]) -> bytes:
    """Return what to leave to a process that wants `value`: with what an admin has edited in our claim."""
    if claim.layout is None or claim.endpoint is None:
        return value
    wanted = claim.layout.decode(claim.endpoint.name, claim.key, value)
    theirs = replace(claim, value=value, endpoint=wanted if isinstance(wanted, Endpoint) else None)
    return adopt_edit(theirs, claim.value, meant).value


def reads_alike(claim: Claim, value: bytes) -> bool:
    """Return whether readers see in an edited value what is claimed; then its bytes are left alone."""
    if claim.value == value:
        return True
    if claim.layout is None or claim.endpoint is None:
        return False
    name = claim.endpoint.name
    return claim.layout.decode(name, claim.key, value) == claim.layout.decode(name, claim.key, claim.value)

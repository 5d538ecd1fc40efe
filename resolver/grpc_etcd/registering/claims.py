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
"""

import enum
from dataclasses import dataclass, replace

from grpc_etcd.registry.configurators import METRIC_PREFIX, metric_target
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue, Layout, Pace, Rejected


@dataclass(frozen=True, slots=True)
class Group:
    """The records whose readers see them together: one service in one layout, or the metric targets."""

    prefix: bytes
    pace: Pace
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
        """Tell whether `lease` is, or was, this process's."""
        return lease != 0 and (lease == self.current or lease in self.former)


def make_claim(layout: Layout, endpoint: Endpoint, cluster: str) -> Claim | Rejected:
    """Say which record registers `endpoint` in `layout`; `cluster` names the writer in the settling touch."""
    encoded = layout.encode(endpoint.name, endpoint)
    if isinstance(encoded, Rejected):
        return encoded
    group = Group(layout.prefix(endpoint.name), layout.pace, layout.settled(endpoint.name, cluster))
    return Claim(encoded.key, encoded.value, group, layout, endpoint)


def make_metric_claim(name: str, host: str, address: str) -> Claim:
    """Say which record makes `address` a Prometheus target, as Jupiter's `registerMetric` does."""
    key, value = metric_target(name, host, address)
    return Claim(key, value, Group(METRIC_PREFIX, Pace()))


def verdict(claim: Claim, held: Held | None, leases: Leases, written: bytes | None) -> tuple[Verdict, Claim]:
    """Apply the law above; the claim that comes back holds what an admin edited.

    `written` is the value that this process last put under the key; None if it never did.
    """
    if held is None:
        return Verdict.PUT, claim
    if held.lease and held.lease not in leases:
        return (Verdict.PUT if written is None else Verdict.YIELD), claim
    kept = held.lease == leases.current
    if held.value == claim.value or written is None or held.value == written:
        return (Verdict.KEEP if kept and held.value == claim.value else Verdict.PUT), claim
    claim = adopt_edit(claim, held.value)
    return (Verdict.KEEP if kept and _reads_alike(claim, held.value) else Verdict.PUT), claim


def adopt_edit(claim: Claim, value: bytes) -> Claim:
    """Take over an admin's enable and weight from a value that was edited in place; all else stays as claimed."""
    if claim.layout is None or claim.endpoint is None:
        return claim
    edited = claim.layout.decode(claim.endpoint.name, claim.key, value)
    if not isinstance(edited, Endpoint):
        return claim
    endpoint = replace(claim.endpoint, enable=edited.enable, weight=edited.weight)
    encoded = claim.layout.encode(endpoint.name, endpoint)
    return claim if isinstance(encoded, Rejected) else replace(claim, value=encoded.value, endpoint=endpoint)


def _reads_alike(claim: Claim, value: bytes) -> bool:
    """Tell whether readers see in an edited value what is claimed; then its bytes are left alone."""
    if claim.layout is None or claim.endpoint is None:
        return claim.value == value
    name = claim.endpoint.name
    return claim.layout.decode(name, claim.key, value) == claim.layout.decode(name, claim.key, claim.value)

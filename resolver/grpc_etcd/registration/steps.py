"""What there may be to do next for a process that registers itself.

The reconciler says which, the worker does it. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from grpc_etcd.registration.records import Group
from grpc_etcd.registry.layout import KeyValue


@dataclass(frozen=True, slots=True)
class Grant:
    """Ask etcd for a lease."""


@dataclass(frozen=True, slots=True)
class Leased:
    """A value to be put under a lease."""

    value: bytes
    lease: int


@dataclass(frozen=True, slots=True)
class Write:
    """One transaction: it succeeds only if each key is still at the revision named (0: absent).

    `puts` go under `lease`; `handovers` are keys that others get, under their leases. Process keys are `announced` and
    `retracted`. `alone` are prefixes of process keys: all that are there must carry the lease named (0: there is none).
    """

    group: Group
    lease: int
    puts: Mapping[bytes, bytes] = field(default_factory=dict)
    deletes: frozenset[bytes] = frozenset()
    revisions: Mapping[bytes, int] = field(default_factory=dict)
    handovers: Mapping[bytes, Leased] = field(default_factory=dict)
    announced: Mapping[bytes, bytes] = field(default_factory=dict)
    retracted: frozenset[bytes] = frozenset()
    alone: Mapping[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flush:
    """Put the flush key of a group."""

    group: Group
    record: KeyValue
    lease: int


@dataclass(frozen=True, slots=True)
class Read:
    """Read keys of which it is not known what a write has made of them, and the process keys under `prefixes`."""

    keys: frozenset[bytes]
    prefixes: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out which keys may not be read: one of them holds up the watch of all."""

    keys: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to do before `until` (None: before there is news)."""

    until: float | None = None


Step = Grant | Write | Flush | Read | Probe | Idle

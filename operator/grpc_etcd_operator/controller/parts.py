"""What the parts that write to one registry share: the etcd, what is known of it, and what is asked of the operator."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd_operator.core.desired import Desired
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.registry.cache import RegistryCache
from grpc_etcd_operator.registry.election import Election
from grpc_etcd_operator.registry.leases import Leases
from grpc_etcd_operator.registry.prefixes import Streams
from grpc_etcd_operator.registry.refusals import Refusing


class Facts(Protocol):
    """What the writer asks of the rest of the operator."""

    def desired(self, uid: str, registry: str) -> Desired | None:
        """Return what a unit ought to have; None: hands off."""

    def outranks(self, uid: str, rival: str) -> bool:
        """Decide between two living units that want one key."""

    def may_write(self) -> bool:
        """Return whether a complete list of GrpcServices has been seen."""

    def has_seen_all(self) -> bool:
        """Return whether complete lists of both Pods and GrpcServices have been seen.

        An absence means nothing before.
        """

    def has_open_claims(self, moment: float) -> bool:
        """Return whether GrpcServices have waited since a moment (monotonic) for claims; nothing is written before."""

    def awaits_services(self) -> bool:
        """Return whether Services are named that were never listed: not all is known that is wanted."""

    def namespace_of(self, uid: str) -> str:
        """Name the namespace of a unit, also of one that is gone; empty where nothing is known of it."""

    def sources(self, uid: str) -> Iterable[str]:
        """Name the GrpcServices (by UID) that a unit's records are of, or would be."""


@dataclass(frozen=True, slots=True)
class Parts:
    """One registry: its name, the id of the cluster whose keys are written, and what else writing needs."""

    registry: str
    cluster: str
    etcd: Etcd
    facts: Facts
    registry_cache: RegistryCache
    election: Election
    leases: Leases
    streams: Streams
    refusing: Refusing
    isolation: Isolation

"""What the operator says of itself, from what is known of Kubernetes, of a registry's etcd, and of who leads. Pure.

The table is in docs/architecture.md. Per registry it says whether the leader may put the synced key, whether this
replica can do its part there, and what holds the GrpcServices of that registry up; `find_unready` makes of all
registries what /readyz says. Liveness is not here: it asks only whether this process still listens to Kubernetes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Self

from grpc_etcd_operator.core.reasons import Reason


class Sight(Enum):
    """What is known of Kubernetes."""

    INCOMPLETE = auto()  # complete lists were never seen
    SEEING = auto()
    BLIND = auto()


class Store(Enum):
    """What is known of a registry's etcd."""

    UNREACHABLE = auto()
    RELISTING = auto()  # it answers, and not everything has been read of the history that it has now
    LISTED = auto()


class Lead(Enum):
    """Who leads in a registry, as this replica knows."""

    LEADING = auto()
    STANDBY = auto()  # a peer leads, or has ceased to a moment ago
    VACANT = auto()  # nobody has led for more than a leader's time to live
    OTHER_INSTALLATION = auto()
    OTHER_CLUSTER = auto()


@dataclass(frozen=True, slots=True)
class Standing:
    """What follows for one registry. `reason` is that of Programmed=False for its GrpcServices; None: their own."""

    may_mark: bool
    is_serving: bool
    reason: Reason | None = None


class Complaint(str):
    """What is wrong with a registry, in a sentence; `reason` is that of Programmed=False."""

    __slots__ = ("reason",)
    reason: Reason

    def __new__(cls, text: str, reason: Reason) -> Self:
        """Make one."""
        made = super().__new__(cls, text)
        made.reason = reason
        return made


def judge(sight: Sight, store: Store, lead: Lead) -> Standing:
    """Look a situation up in the table."""
    sees = sight is Sight.SEEING
    if lead is Lead.OTHER_CLUSTER:
        return Standing(may_mark=False, is_serving=False, reason=Reason.FOREIGN_LEADER)
    if store is Store.UNREACHABLE:
        return Standing(may_mark=False, is_serving=False, reason=Reason.REGISTRY_UNAVAILABLE)
    if lead is Lead.VACANT:
        return Standing(may_mark=False, is_serving=False, reason=Reason.NO_LEADER)
    if lead is Lead.OTHER_INSTALLATION:
        return Standing(may_mark=False, is_serving=sees and store is Store.LISTED, reason=Reason.FOREIGN_LEADER)
    is_listed = store is Store.LISTED
    return Standing(may_mark=sees and is_listed and lead is Lead.LEADING, is_serving=sees and is_listed)


def find_unready(sight: Sight, leads: Iterable[Lead], standings: Iterable[Standing]) -> str | None:
    """Return why this replica cannot do its part; None: it can.

    Of several registries one that it can serve is enough.
    """
    if sight is Sight.INCOMPLETE:
        return "not all Pods and GrpcServices have been listed yet"
    if sight is Sight.BLIND:
        return "no connection to Kubernetes: its watches are silent or cannot be opened"
    if Lead.OTHER_CLUSTER in leads:
        return "another Kubernetes cluster uses this cluster id: give one of them another --cluster-id"
    return None if any(standing.is_serving for standing in standings) else "no registry can be served"

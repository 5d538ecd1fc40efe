"""What is known of who leads one registry, and what follows from it."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from grpc_etcd_operator.core.scope import Candidate, Relation, read_leader, relation
from grpc_etcd_operator.registry.cluster_key import ClusterKey

if TYPE_CHECKING:
    from grpc_etcd.etcd.model import Record


def _have_records() -> bool:
    return True


class LeaderView:
    """The leader's key and the cluster's as they were last reported, as this replica takes them.

    `candidate` may be replaced at any time: certificates are renewed. `has_records` says whether something in the
    registry is the cluster id's, or nobody knows.
    """

    def __init__(
        self, cluster: str, candidate: Candidate, ttl_seconds: int, has_records: Callable[[], bool] = _have_records
    ) -> None:
        self.candidate, self._ttl = candidate, ttl_seconds
        self._has_records = has_records
        self._leader: Record | None = None
        self.last_leader = b""  # what the key of whoever led last said
        self.cluster_key = ClusterKey(cluster)
        self.is_listed = False  # it has been seen who leads, or that nobody does
        self._vacant_since = time.monotonic()
        self._judged: tuple[Record | None, Candidate, Relation | None] = (None, candidate, None)

    @property
    def is_leader_known(self) -> bool:
        """Return whether anybody is known to lead."""
        return self._leader is not None

    @property
    def relation(self) -> Relation | None:
        """Return what the leader is to this replica; None: nobody is known to lead."""
        leader, candidate, known = self._judged
        if leader is not self._leader or candidate is not self.candidate:
            known = relation(self.candidate, self._leader.value) if self._leader else None
            self._judged = self._leader, self.candidate, known
        return known

    @property
    def refuses(self) -> bool:
        """Return whether somebody leads under our cluster id beside whom this replica must not lead."""
        return self.relation in (Relation.OTHER_INSTALLATION, Relation.OTHER_CLUSTER, Relation.TWIN)

    @property
    def twin(self) -> str:
        """Name the registry of the settings for which this process leads in the same etcd; empty: there is none."""
        leader = read_leader(self._leader.value) if self._leader and self.relation is Relation.TWIN else None
        return leader.registry if leader else ""

    @property
    def has_had_turn(self) -> bool:
        """Return whether nobody has to wait for this election: somebody leads, or nobody may soon."""
        return self.is_leader_known or self.is_vacant or self.is_foreign

    @property
    def last_registry(self) -> str:
        """Name the registry, of whatever settings, as which this etcd was led last; empty where nobody knows."""
        leader = read_leader(self.last_leader)
        return self.cluster_key.registry or (leader.registry if leader else "")

    def is_apart_from(self, other: "LeaderView", after_seconds: float) -> bool:
        """Return whether the other one's etcd is known to be another than this one's.

        The cluster's key, which outlives all leaders, is not the same in both, and they have not met the very same
        leader, so that one of them only learns of it later. Or, since an etcd may be a copy of another: there somebody
        leads, and here nobody has for longer than news of the same etcd could take.
        """
        if not (self.is_listed and other.is_listed):
            return False
        have_met = bool(self.last_leader) and self.last_leader == other.last_leader
        is_led_alone = other.is_leader_known and self.vacant_seconds > after_seconds
        return is_led_alone or (self.cluster_key.record != other.cluster_key.record and not have_met)

    @property
    def is_foreign(self) -> bool:
        """Return whether the cluster id is another Kubernetes cluster's."""
        is_anothers = self.cluster_key.is_anothers(self.candidate.fingerprint)
        return self.relation is Relation.OTHER_CLUSTER or (is_anothers and self._has_records())

    @property
    def is_vacant(self) -> bool:
        """Return whether nobody has led for longer than an election takes."""
        return self._leader is None and self.vacant_seconds > self._ttl

    @property
    def vacant_seconds(self) -> float:
        """Return for how long nobody has been known to lead."""
        return 0.0 if self._leader else time.monotonic() - self._vacant_since

    @property
    def is_leader_apart(self) -> bool:
        """Return whether the leader takes care of other namespaces, or of another cluster, and so cannot speak for us.

        Nor does it speak here where it leads the same etcd by another name: it does so by that.
        """
        if self.is_foreign or self.relation is Relation.TWIN:
            return True
        theirs = read_leader(self._leader.value) if self._leader else None
        return self.refuses and bool(theirs and theirs.scope.is_apart_from(self.candidate.scope))

"""The key of a cluster id that outlives all leaders: whose the keys are, and as which registry they were led last.

It holds the UID of kube-system, digests of the API server's CA, and the registry's name in the settings. Nobody writes
it but the leader, whose transactions compare it. Nothing here asks etcd: the election is told of it, and puts it.
"""

from grpc_etcd.etcd import compare, ops
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.model import LeaseId, Record, Revision
from grpc_etcd.registry.own import cluster_key
from grpc_etcd_operator.core.scope import Fingerprint, read_fingerprint, read_registry, write_holder


class ClusterKey:
    """What is known of the key; `record` is None where it is not there, or not known yet."""

    def __init__(self, cluster: str) -> None:
        self.key = cluster_key(cluster)
        self.record: Record | None = None

    @property
    def registry(self) -> str:
        """Name the registry, of whatever settings, as which this etcd was led last; empty where it does not say."""
        return read_registry(self.record.value) if self.record else ""

    def is_anothers(self, mine: Fingerprint) -> bool:
        """Say whether it is another cluster's than the one with this fingerprint."""
        return self.record is not None and not mine.is_same(read_fingerprint(self.record.value))

    def complete(self, mine: Fingerprint) -> Fingerprint:
        """Give what is known of this cluster, here or by whoever led before."""
        return mine.beside(read_fingerprint(self.record.value)) if self.record else mine

    def is_to_be_written(self, mine: Fingerprint, registry: str) -> bool:
        """Say whether it does not say this yet: it knows another CA of ours, or another name of this etcd."""
        mine = self.complete(mine)
        if not mine.is_known:
            return False
        return (read_fingerprint(self.record.value) if self.record else None, self.registry) != (mine, registry)

    def make_value(self, mine: Fingerprint, registry: str) -> bytes:
        """Give what it is to say."""
        return write_holder(self.complete(mine), registry)

    def is_unchanged(self) -> Compare:
        """Give the condition that it is in etcd as it is known here."""
        return compare.mod_revision(self.key, "==", self.record.mod_revision if self.record else 0)

    def read(self) -> ops.GetOp:
        """Give the read of it."""
        return ops.get(self.key)

    def note_put(self, value: bytes, revision: int) -> None:
        """Take it that it was put at a revision; it has no lease."""
        now = Revision(revision)
        self.record = Record(self.key, value, LeaseId(0), now, now, 1)

"""The replicas that could lead at once: each that sees Kubernetes and has everything listed says so by a key."""

from collections.abc import Iterable

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.model import LeaseId, Record


class Standbys:
    """The keys below `prefix` that stand under a lease, as far as the watch has reported; one may be this replica's."""

    def __init__(self, etcd: Etcd, prefix: bytes, identity: str) -> None:
        self._etcd, self.prefix, self.own_key = etcd, prefix, prefix + identity.encode()
        self._keys: set[bytes] = set()

    @property
    def has_others(self) -> bool:
        """Return whether another replica could lead at once."""
        return bool(self._keys - {self.own_key})

    def has(self, identity: str) -> bool:
        """Return whether another replica, of this identity, could lead at once."""
        return self.prefix + identity.encode() in self._keys - {self.own_key}

    @property
    def has_own(self) -> bool:
        """Return whether this replica has said that it could."""
        return self.own_key in self._keys

    def take_listing(self, records: Iterable[Record]) -> None:
        """Take all that there are."""
        self._keys = {record.key for record in records if record.lease}

    def take_change(self, key: bytes, record: Record | None) -> None:
        """Take a change. One without a lease was put by hand, or copied from another etcd: nobody stands by there."""
        (self._keys.add if record and record.lease else self._keys.discard)(key)

    def forget_own(self) -> None:
        """Record that this replica's key is gone."""
        self._keys.discard(self.own_key)

    async def announce(self, value: bytes, lease: LeaseId) -> None:
        """Record that this replica could lead at once."""
        await self._etcd.put(self.own_key, value, lease=lease)
        self._keys.add(self.own_key)

    async def deregister(self) -> None:
        """Record that it no longer could."""
        await self._etcd.delete(self.own_key)
        self.forget_own()

    def deregistering(self) -> ops.Op:
        """Return the operation that does so in a transaction."""
        return ops.delete(self.own_key)

"""The replicas that could lead at once: each that sees Kubernetes and has everything listed says so by a key.

Its value says which registries of the settings that replica does not reach. Older releases did not say so.
"""

from collections.abc import Iterable

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.model import LeaseId, Record


class Standbys:
    """The keys below `prefix` that stand under a lease, as far as the watch has reported; one may be this replica's."""

    def __init__(self, etcd: Etcd, prefix: bytes, identity: str) -> None:
        self._etcd, self.prefix, self.own_key = etcd, prefix, prefix + identity.encode()
        self._values: dict[bytes, bytes] = {}

    @property
    def has_others(self) -> bool:
        """Return whether another replica could lead at once."""
        return bool(self._values.keys() - {self.own_key})

    @property
    def others(self) -> list[bytes]:
        """Return what the other replicas that could lead at once say of themselves."""
        return [value for key, value in self._values.items() if key != self.own_key]

    @property
    def has_own(self) -> bool:
        """Return whether this replica has said that it could."""
        return self.own_key in self._values

    def has_said(self, value: bytes) -> bool:
        """Return whether this replica has said just this."""
        return self._values.get(self.own_key) == value

    def take_listing(self, records: Iterable[Record]) -> None:
        """Take all that there are."""
        self._values = {record.key: record.value for record in records if record.lease}

    def take_change(self, key: bytes, record: Record | None) -> None:
        """Take a change. One without a lease was put by hand, or copied from another etcd: nobody stands by there."""
        if record and record.lease:
            self._values[key] = record.value
        else:
            self._values.pop(key, None)

    def forget_own(self) -> None:
        """Record that this replica's key is gone."""
        self._values.pop(self.own_key, None)

    async def announce(self, value: bytes, lease: LeaseId) -> None:
        """Record that this replica could lead at once."""
        await self._etcd.put(self.own_key, value, lease=lease)
        self._values[self.own_key] = value

    async def deregister(self) -> None:
        """Record that it no longer could."""
        await self._etcd.delete(self.own_key)
        self.forget_own()

    def deregistering(self) -> ops.Op:
        """Return the operation that does so in a transaction."""
        return ops.delete(self.own_key)

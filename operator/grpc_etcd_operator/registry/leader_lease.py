"""The lease under which a replica leads or stands by: kept alive, and over by this process's own clock as well."""

import contextlib
import time
from collections.abc import Callable

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import LeaseNotFound
from grpc_etcd.etcd.model import LeaseId


class LeaderLease:
    """At most one lease at a time, `id` 0 for none. `on_lost` is called when etcd reports that it has expired."""

    def __init__(self, etcd: Etcd, ttl_seconds: int, on_lost: Callable[[], None]) -> None:
        self._etcd, self._ttl, self._on_lost = etcd, ttl_seconds, on_lost
        self._keep_alive = etcd.keep_alive(self._lost, streams=1)
        self._asked_at = 0.0
        self.id = LeaseId(0)
        self.is_given_up = False

    @property
    def has_run_out(self) -> bool:
        """Return whether the lease may have expired, by this process's own clock: others may lead from then on."""
        renewed_at = max(self._asked_at, self._keep_alive.renewed_at(self.id)) if self.id else 0.0
        return time.monotonic() > renewed_at + self._ttl

    async def ensure(self) -> None:
        """Have a lease, unless it is given up while a new one is granted."""
        if self.id:
            return
        asked_at = time.monotonic()
        lease = await self._etcd.lease(self._ttl)
        if self.is_given_up:
            await end_lease(self._etcd, lease)
            return
        self.id, self._asked_at = lease, asked_at
        self._keep_alive.add(lease, self._ttl, remaining_seconds=self._ttl)

    def give_up(self) -> LeaseId:
        """Have no lease any more, now and later; return which is to be revoked."""
        self.is_given_up = True
        lease = self.id
        self.drop()
        return lease

    def drop(self) -> None:
        """Forget the lease: it has expired."""
        self._keep_alive.remove(self.id)
        self.id = LeaseId(0)

    def let_run_out(self) -> None:
        """Renew it no more."""
        self._keep_alive.remove(self.id)

    def _lost(self, lease: LeaseId) -> None:
        if lease == self.id:
            self.drop()
            self._on_lost()


async def end_lease(etcd: Etcd, lease: int) -> None:
    """Revoke a lease, with all keys under it; it may have expired meanwhile."""
    with contextlib.suppress(LeaseNotFound):
        await etcd.revoke(lease)

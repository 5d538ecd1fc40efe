"""The leases of one registry's units: granted by deterministic ids, kept alive while we lead, revoked for the dead.

Leases are granted ahead, before there is anything to put under them: a Pod that turns ready waits for one round trip
less. A revoke cannot be fenced, so it is used only for units that are gone for good: their UID never comes back. What
is needed no longer for any other reason is left to expire.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.client import KEEP_ALIVE_STREAMS
from grpc_etcd.etcd.errors import EtcdError, LeaseExists, LeaseNotFound, Unavailable
from grpc_etcd.etcd.model import LeaseId

log = logging.getLogger(__name__)
AT_ONCE = 64
# One stream carries 1,400 renewals a second at least, also through a follower (measured): with such a time to live that
# is 28,000 leases. Each more wakes the process up as often again: 500 leases took a tenth more CPU with four.
LONG_TTL_SECONDS = 60
# Adopted leases are renewed within a third of this: nobody knows how little time they have left.
ADOPTED_REMAINING_SECONDS = 9.0
RETRY_SECONDS = 1.0  # until leases are asked for again that could not be had. Arbitrary


class Leases:
    """Which leases exist and are kept alive. `on_lost` is called with each one that etcd no longer knows."""

    def __init__(self, etcd: Etcd, ttl_seconds: int, on_lost: Callable[[int], None]) -> None:
        self._etcd, self._ttl, self._on_lost = etcd, ttl_seconds, on_lost
        self._kept: set[int] = set()
        self._running_out: set[int] = set()
        self._doomed: list[int] = []
        self._ahead: dict[int, None] = {}
        self._granting: dict[int, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        streams = 1 if ttl_seconds >= LONG_TTL_SECONDS else KEEP_ALIVE_STREAMS
        self._keep_alive = etcd.keep_alive(self._lost, streams=streams)

    def __len__(self) -> int:
        return len(self._kept)

    def adopt(self, lease: int) -> None:
        """Keep a lease alive that somebody granted before."""
        self._keep(lease, ADOPTED_REMAINING_SECONDS)

    def want(self, lease: int) -> None:
        """Grant a lease soon: something is, or will be, waiting to be put under it."""
        if lease not in self._kept and lease not in self._granting:
            self._ahead[lease] = None
            self._wake.set()

    async def ensure(self, leases: Iterable[int]) -> None:
        """Grant those leases that are not kept yet; an EtcdError says that some could not be had."""
        missing = [lease for lease in leases if lease not in self._kept]
        for start in range(0, len(missing), AT_ONCE):
            grants = [self._granting.get(lease) or self._begin(lease) for lease in missing[start : start + AT_ONCE]]
            await asyncio.wait(grants)
            if any(grant.cancelled() for grant in grants):
                raise Unavailable("gave up granting a lease")
            if failed := [error for grant in grants if (error := grant.exception())]:
                raise failed[0]

    def forget(self, lease: int) -> None:
        """Record that a lease no longer exists."""
        self._kept.discard(lease)
        self._keep_alive.remove(LeaseId(lease))

    def end(self, lease: int, *, is_gone: bool, is_over: bool) -> None:
        """Let go of a unit's lease if the unit is gone, or nothing is under the lease any more, nor awaited there."""
        if is_gone:
            self.revoke(lease)
        elif is_over:
            self.let_run_out(lease)

    def let_run_out(self, lease: int) -> None:
        """Keep a lease alive no longer; whoever needs it before it has expired adopts it."""
        self._ahead.pop(lease, None)
        if lease in self._kept or lease in self._granting:
            self._granting.pop(lease, None)
            self.forget(lease)
            self._running_out.add(lease)

    def revoke(self, lease: int) -> None:
        """Revoke a lease soon, whose unit is gone for good and whose keys are deleted."""
        self._ahead.pop(lease, None)
        if lease in self._kept or lease in self._granting or lease in self._running_out:
            self._granting.pop(lease, None)
            self.forget(lease)
            self._running_out.discard(lease)
            self._doomed.append(lease)
            self._wake.set()

    def release_all(self) -> None:
        """Keep nothing alive any more: another replica does."""
        for lease in list(self._kept):
            self.forget(lease)
        self._doomed.clear()
        self._running_out.clear()
        self._ahead.clear()
        self._granting.clear()

    async def run(self) -> None:
        """Grant what is wanted and revoke what is doomed, until cancelled.

        A lease that cannot be granted now is asked for again, for there may be keys under it that expire with it; one
        that cannot be revoked expires.
        """
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._doomed or self._ahead:
                    batch, self._doomed = self._doomed[:AT_ONCE], self._doomed[AT_ONCE:]
                    is_granted, *_ = await asyncio.gather(
                        self._grant_ahead(), *(self._revoke(lease) for lease in batch)
                    )
                    if not (is_granted or self._doomed):
                        await asyncio.sleep(RETRY_SECONDS)
        finally:
            granting, self._granting = self._granting, {}
            for grant in granting.values():
                grant.cancel()

    async def _grant_ahead(self) -> bool:
        """Grant some of what is wanted; return whether all of it could be had."""
        some = [lease for lease, _ in zip(self._ahead, range(AT_ONCE), strict=False)]
        for lease in some:
            del self._ahead[lease]
        try:
            await self.ensure(some)
        except EtcdError:
            return False
        return True

    def _begin(self, lease: int) -> asyncio.Task[None]:
        self._ahead.pop(lease, None)
        task = self._granting[lease] = asyncio.create_task(self._grant(lease))
        return task

    async def _grant(self, lease: int) -> None:
        remaining_seconds, is_to_come = None, False
        try:
            await self._etcd.lease(self._ttl, lease)
        except LeaseExists:
            remaining_seconds = 0.0  # it may have been left to expire, and keys come under it now
        except EtcdError:
            is_to_come = True
            raise
        finally:
            is_wanted = self._granting.get(lease) is asyncio.current_task()
            if is_wanted:
                del self._granting[lease]
            if is_wanted and is_to_come:
                self.want(lease)
        if is_wanted:
            self._keep(lease, remaining_seconds)

    def _keep(self, lease: int, remaining_seconds: float | None) -> None:
        self._running_out.discard(lease)
        if lease not in self._kept:
            self._kept.add(lease)
            self._keep_alive.add(LeaseId(lease), self._ttl, remaining_seconds=remaining_seconds)

    async def _revoke(self, lease: int) -> None:
        try:
            await self._etcd.revoke(lease)
        except LeaseNotFound:
            pass
        except EtcdError as error:
            log.debug(
                "Lease not revoked, it will expire",
                extra={"event": "lease_not_revoked", "fields": {"lease": f"{lease:x}", "error": str(error)}},
            )

    def _lost(self, lease: LeaseId) -> None:
        self._kept.discard(lease)
        self._on_lost(lease)

"""`cleanup`: withdraws everything that a cluster id owns in a registry, so that an uninstalled operator leaves nothing.

It leads while it works, so that no operator writes the keys anew, and lets its leadership run out at the end instead of
handing it over: a standby that dies a second later must not take over. Readers see empty sets while the synced mark
still stands, and obey; the mark goes last.
"""

import asyncio
import logging

from grpc_etcd.etcd import compare, ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import EtcdError, LeaseNotFound
from grpc_etcd.registry.own import OwnerRecord, owner_prefix, synced_key
from grpc_etcd_operator.core.leases import SETTLED, lease_id
from grpc_etcd_operator.core.scope import Scope
from grpc_etcd_operator.writer.electing import Election

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 60.0


async def withdraw_all(etcd: Etcd, cluster: str, leader_ttl_seconds: int) -> None:
    """Become leader, delete all owned keys and owner records, then the mark."""
    elected = asyncio.Event()
    election = Election(etcd, cluster, "cleanup", Scope(("cleanup",), "cleanup"), leader_ttl_seconds, elected.set)
    campaign = asyncio.create_task(election.run())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await elected.wait()
        await _keep_mark(etcd, cluster, election)
        listing = await etcd.get_prefix(owner_prefix(cluster))
        for record in listing.records:
            await _withdraw(etcd, cluster, record.key, record.value, election)
        await _revoke(etcd, lease_id(cluster, SETTLED))
        await etcd.transaction([election.fence()], [ops.delete(synced_key(cluster))])
        log.info("everything is withdrawn", extra={"fields": {"units": len(listing.records)}})
    finally:
        campaign.cancel()
        await asyncio.gather(campaign, return_exceptions=True)


async def _keep_mark(etcd: Etcd, cluster: str, election: Election) -> None:
    """Take the mark over from the last leader, so that readers believe the deletions."""
    put = ops.put(synced_key(cluster), b"withdrawing", lease=election.lease)
    await etcd.transaction([election.fence()], [put])


async def _withdraw(etcd: Etcd, cluster: str, key: bytes, value: bytes, election: Election) -> None:
    """Delete one unit's keys that still carry its lease, its owner record, and its lease."""
    uid = key.removeprefix(owner_prefix(cluster)).decode(errors="replace")
    lease = lease_id(cluster, uid)
    owner = OwnerRecord.from_json(value)
    for owned in owner.keys if isinstance(owner, OwnerRecord) else ():
        held = [election.fence(), compare.lease(owned, "==", lease)]
        await etcd.transaction(held, [ops.delete(owned)])
    await etcd.transaction([election.fence()], [ops.delete(key)])
    await _revoke(etcd, lease)


async def _revoke(etcd: Etcd, lease: int) -> None:
    try:
        await etcd.revoke(lease)
    except LeaseNotFound:
        pass
    except EtcdError as error:
        log.debug("a lease could not be revoked; it runs out", extra={"fields": {"error": str(error)}})

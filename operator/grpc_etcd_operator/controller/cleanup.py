"""`cleanup`: deletes everything that a cluster id owns in a registry, so that an uninstalled operator leaves nothing.

It leads while it works, so that no operator writes the keys again, and lets its leadership expire at the end instead
of handing it over: a standby that dies a second later must not take over. Readers see empty sets while the synced key
still stands, and obey; the synced key goes last. Keys that the role may not write stay with the owner records that name
them, for another cleanup to find.
"""

import asyncio
import logging
import uuid
from collections.abc import Iterable, Sequence

from grpc_etcd.etcd import compare, ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.errors import EtcdError, LeaseNotFound, PermissionDenied
from grpc_etcd.registry.own import OwnerRecord, clock_key, cluster_key, owner_prefix, standby_prefix, synced_key
from grpc_etcd_operator.core.leases import SETTLED, lease_id
from grpc_etcd_operator.core.scope import Candidate, Fingerprint, Scope, read_fingerprint
from grpc_etcd_operator.kube.cluster import find_identity
from grpc_etcd_operator.registry.connect import distinct, open_etcd
from grpc_etcd_operator.registry.election import WAIT_TTLS, Election, Outlook
from grpc_etcd_operator.registry.refusals import grant
from grpc_etcd_operator.settings import RegistrySettings, Settings, UnusableError
from grpc_etcd_operator.telemetry.remedies import remedy

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 60.0


class ForeignClusterError(Exception):
    """The cluster id is another Kubernetes cluster's, so what it owns is none of ours to deregister."""


class LeadLostError(Exception):
    """Somebody else leads by now: what is left must not be touched."""


class RefusedError(Exception):
    """Some keys may not be deregistered; all others are."""


async def clean_up(settings: Settings) -> None:
    """Deregister all that the cluster id owns, from every registry of the settings."""
    if settings.dry_run:
        log.info("Dry run: deleting nothing", extra={"event": "cleanup_skipped"})
        return
    cluster, fingerprint = await find_identity(settings)
    deregistrations = (_deregister_from(registry, cluster, fingerprint, settings) for registry in distinct(settings))
    # Side by side: one that is unavailable, or gone for good, keeps nothing in another.
    if faults := list(filter(None, await asyncio.gather(*deregistrations))):
        raise UnusableError("; ".join(faults))


async def _deregister_from(
    registry: RegistrySettings, cluster: str, fingerprint: Fingerprint, settings: Settings
) -> str | None:
    """Deregister all from one registry; return what is wrong if that cannot be done."""
    etcd, where = open_etcd(registry), f"registry {registry.name} at {','.join(registry.endpoints)}"
    try:
        await deregister_all(etcd, cluster, fingerprint, settings.leader_ttl_seconds)
    except (ForeignClusterError, RefusedError) as error:
        return f"{where}: {error}"
    except (TimeoutError, LeadLostError):
        return (
            f"{where}: an operator is still leader for cluster id {cluster}, or etcd is unavailable; "
            "stop the operator first (kubectl scale deployment --replicas=0), then run cleanup again"
        )
    except EtcdError as error:
        return f"{where}: {error}. {remedy(error, registry)}"
    finally:
        await etcd.close()
    return None


async def deregister_all(etcd: Etcd, cluster: str, fingerprint: Fingerprint, leader_ttl_seconds: int) -> None:
    """Become leader, delete all owned keys and owner records, then the synced key. May raise ForeignClusterError."""
    holder = await etcd.get(cluster_key(cluster))
    if holder and not fingerprint.is_same(read_fingerprint(holder.value)):
        raise ForeignClusterError(
            f"the cluster id {cluster} belongs to another Kubernetes cluster: nothing is deregistered; correct "
            f"--cluster-id or, if that cluster is gone for good: etcdctl del {holder.key.decode()}"
        )
    elected = asyncio.Event()
    candidate = Candidate("cleanup", Scope(("cleanup",), "cleanup"), nonce=uuid.uuid4().hex)
    # It is no able standby: no leader is to resign for it.
    outlook = Outlook(is_able=lambda: False)
    election = Election(etcd, cluster, candidate, leader_ttl_seconds, elected.set, outlook)
    campaign = asyncio.create_task(election.run_alone())
    try:
        await _wait(elected, election, max(PATIENCE_SECONDS, (WAIT_TTLS + 2) * leader_ttl_seconds))
        fence = election.fence(election.revision)
        await _keep_mark(etcd, cluster, fence, election.lease)
        listing = await etcd.get_prefix(owner_prefix(cluster))
        refused = set[bytes]()
        for record in listing.records:
            refused |= await _deregister(etcd, cluster, record.key, record.value, fence)
    finally:
        campaign.cancel()
        await asyncio.gather(campaign, return_exceptions=True)
    # Nobody takes part in elections here any more, who would put the cluster's key again.
    last = [] if refused else [ops.delete(cluster_key(cluster)), ops.delete(clock_key(cluster))]
    await _commit(etcd, fence, ops.delete(synced_key(cluster)), *last)
    await _revoke(etcd, lease_id(cluster, SETTLED))
    await etcd.delete_prefix(standby_prefix(cluster))
    if refused:
        raise RefusedError(_report(refused))
    log.info("All keys deleted", extra={"event": "cleanup_done", "fields": {"units": len(listing.records)}})


async def _wait(elected: asyncio.Event, election: Election, patience_seconds: float) -> None:
    try:
        async with asyncio.timeout(patience_seconds):
            await elected.wait()
    except TimeoutError:
        raise election.error or TimeoutError from None


async def _keep_mark(etcd: Etcd, cluster: str, fence: Sequence[Compare], lease: int) -> None:
    """Take the synced key over from the last leader, so that readers believe the deletions."""
    await _commit(etcd, fence, ops.put(synced_key(cluster), b"deregistering", lease=lease))


async def _commit(etcd: Etcd, fence: Sequence[Compare], *operations: ops.Op) -> None:
    if not (await etcd.transaction(fence, operations)).succeeded:
        raise LeadLostError("leadership was lost")


def _report(refused: Iterable[bytes]) -> str:
    grants = "; ".join(map(grant, sorted(refused)))
    return f"all is deregistered except keys that this user is not allowed to write: {grants}; then run cleanup again"


async def _deregister(etcd: Etcd, cluster: str, key: bytes, value: bytes, fence: Sequence[Compare]) -> set[bytes]:
    """Delete one unit's keys that still carry its lease, or none by an admin's edit, its owner record, and its lease.

    The prefixes are returned where that is refused; then owner record and lease stay. The revoke cannot be fenced, so
    it comes after a deletion that was.
    """
    uid = key.removeprefix(owner_prefix(cluster)).decode(errors="replace")
    lease = lease_id(cluster, uid)
    owner = OwnerRecord.from_json(value)
    refused = set[bytes]()
    for owned in owner.keys if isinstance(owner, OwnerRecord) else ():
        try:
            await _delete(etcd, owned, lease, fence)
        except PermissionDenied:
            directory = owned.partition(b"://")[0]
            refused.add(directory[: directory.rfind(b"/") + 1] or owned)
    if not refused:
        await _commit(etcd, fence, ops.delete(key))
        await _revoke(etcd, lease)
    return refused


async def _delete(etcd: Etcd, key: bytes, lease: int, fence: Sequence[Compare]) -> None:
    for held in (lease, 0):
        if (await etcd.transaction([*fence, compare.lease(key, "==", held)], [ops.delete(key)])).succeeded:
            return


async def _revoke(etcd: Etcd, lease: int) -> None:
    try:
        await etcd.revoke(lease)
    except LeaseNotFound:
        pass
    except EtcdError as error:
        log.debug(
            "Lease not revoked, it will expire",
            extra={"event": "lease_not_revoked", "fields": {"error": str(error)}},
        )

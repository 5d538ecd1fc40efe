"""`verify`: waits until an operator keeps every registry of the settings in sync; `helm test` runs it.

It reads with the operator's own settings and writes nothing: who leads for the cluster id in each etcd, and whether the
synced key is there. What each registry lacks is decided without I/O, in `find_lack`.
"""

import asyncio
import logging
import time

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import EtcdError
from grpc_etcd.registry.own import cluster_key, leader_key, synced_key
from grpc_etcd_operator.core.scope import Candidate, Relation, Scope, relation, write_refusal
from grpc_etcd_operator.kube.cluster import find_identity
from grpc_etcd_operator.registry.connect import distinct, open_etcd
from grpc_etcd_operator.settings import RegistrySettings, Settings, UnusableError
from grpc_etcd_operator.telemetry.remedies import remedy

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 60.0  # as the other commands have; a takeover and a first list take seconds
LOOK_SECONDS = 1.0
SEE_LOG = (
    "kubectl logs with --selector app.kubernetes.io/component=operator, and each replica's /readyz, have the reason"
)


async def wait_synced(settings: Settings, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until every registry has a leader and is synced; raise UnusableError with what each one lacks."""
    if settings.dry_run:
        raise UnusableError("a dry run writes nothing, so no registry has a leader: verify without --dry-run")
    cluster, fingerprint = await find_identity(settings)
    scope = Scope(settings.namespaces, settings.pod_selector)
    mine = Candidate("verify", scope, installation=settings.installation, fingerprint=fingerprint)
    deadline = time.monotonic() + patience_seconds
    # Side by side: one that is unavailable takes no time from another.
    looks = (_wait(registry, cluster, mine, deadline) for registry in distinct(settings))
    if lacks := list(filter(None, await asyncio.gather(*looks))):
        raise UnusableError("; ".join(lacks))
    log.info("Every registry has a leader and is synced", extra={"event": "verified", "fields": {"cluster": cluster}})


async def _wait(registry: RegistrySettings, cluster: str, mine: Candidate, deadline: float) -> str | None:
    """Look at one registry until it lacks nothing or time is up; return what it lacks."""
    etcd = open_etcd(registry)
    try:
        while lack := await _look(etcd, registry, cluster, mine):
            if time.monotonic() + LOOK_SECONDS > deadline:
                return f"registry {registry.name} at {','.join(registry.endpoints)}: {lack}"
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        await etcd.close()
    return None


async def _look(etcd: Etcd, registry: RegistrySettings, cluster: str, mine: Candidate) -> str | None:
    try:
        leader = await etcd.get(leader_key(cluster))
        synced = await etcd.get(synced_key(cluster))
    except EtcdError as error:
        return f"{error}. {remedy(error, registry)}"
    # One without a lease was copied from another etcd: nobody leads by it.
    value = leader.value if leader and leader.lease else None
    return find_lack(cluster, value, mine, is_synced=bool(synced and synced.lease))


def find_lack(cluster: str, leader: bytes | None, mine: Candidate, *, is_synced: bool) -> str | None:
    """Return what a registry lacks, None if nothing: `leader` is the value of the leader's key, None without one."""
    if leader is None:
        return f"no replica leads for cluster id {cluster}: {SEE_LOG}"
    found = relation(mine, leader)
    if found in {Relation.OTHER_CLUSTER, Relation.OTHER_INSTALLATION}:
        key = cluster_key(cluster).decode()
        return write_refusal(key, is_foreign=found is Relation.OTHER_CLUSTER, twin="")
    return None if is_synced else f"a replica leads for cluster id {cluster}, but the registry is not synced: {SEE_LOG}"

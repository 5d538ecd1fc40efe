"""Replicas know each other by their cluster's CA and UID, also while the CA is replaced or one is not known."""

import asyncio
import uuid
from dataclasses import replace

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd_operator.core.scope import Candidate, Fingerprint, Relation, read_fingerprint, read_leader
from grpc_etcd_operator.registry.election import Election
from grpc_etcd_operator.registry.leader_lease import LeaderLease
from testbed.conditions import until
from testbed.etcd import EtcdServer

OLD, BUNDLE, NEW = (Fingerprint("uid", frozenset(each)) for each in (["old"], ["old", "new"], ["new"]))


class DoubtfulLease(LeaderLease):
    """A lease that may seem to have run out, as while etcd does not answer."""

    is_in_doubt = False

    @property
    def has_run_out(self) -> bool:
        return self.is_in_doubt or super().has_run_out


async def test_replicas_know_their_leader_again_once_the_ca_has_been_replaced(etcd: EtcdServer) -> None:
    async with Etcd(etcd.endpoints) as client, asyncio.TaskGroup() as group:
        cluster = f"ca-{uuid.uuid4()}"
        first, second = (
            Election(client, cluster, Candidate(name, nonce=name, fingerprint=OLD), 60, lambda: None) for name in "ab"
        )
        first._lease = lease = DoubtfulLease(client, 60, first._lost_lease)
        runs = [group.create_task(first.run_alone())]
        await until(lambda: first.is_leading)
        term = first.term
        runs.append(group.create_task(second.run_alone()))
        await until(lambda: second.is_leader_known)
        for fingerprint in (BUNDLE, NEW):
            for election in (second, first):
                election.candidate = replace(election.candidate, fingerprint=fingerprint)
                assert not election.is_foreign
            for election in (second, first):
                await until(lambda: fingerprints(election) == {fingerprint})  # noqa: B023
            assert second.relation is Relation.PEER
        assert first.term == term
        lease.is_in_doubt = True
        await until(lambda: not first.revision)
        lease.is_in_doubt = False
        await until(lambda: first.is_leading)
        assert first.term == term
        for run in runs:
            run.cancel()


async def test_a_leader_that_may_not_read_kube_system_leaves_the_clusters_uid_known(etcd: EtcdServer) -> None:
    async with Etcd(etcd.endpoints) as client, asyncio.TaskGroup() as group:
        cluster, shared = f"uid-{uuid.uuid4()}", frozenset(["company"])
        known, unknown, stranger = (
            Election(client, cluster, Candidate(uid, nonce=uid, fingerprint=Fingerprint(uid, shared)), 60, lambda: None)
            for uid in ("uid", "", "other")
        )
        runs = [group.create_task(known.run_alone())]
        await until(lambda: known.is_leading)
        await known.resign()
        runs.append(group.create_task(unknown.run_alone()))
        await until(lambda: unknown.is_leading)
        renewed = Fingerprint("", shared | {"renewed"})
        unknown.candidate = replace(unknown.candidate, fingerprint=renewed)
        runs.append(group.create_task(stranger.run_alone()))
        await until(lambda: fingerprints(stranger) == {renewed, Fingerprint("uid", renewed.authorities)})
        assert stranger.is_foreign
        for run in runs:
            run.cancel()


def fingerprints(election: Election) -> set[Fingerprint]:
    """Give what a replica knows of the cluster behind the leader's key and the cluster's."""
    leader, holder = election._leader, election.cluster_key.record
    found = read_leader(leader.value) if leader else None
    return {found.fingerprint if found else Fingerprint(), read_fingerprint(holder.value if holder else b"")}

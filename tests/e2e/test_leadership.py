"""One writer per registry: hand-over, takeover, frozen leaders, foreign scopes. Nothing is lost or written twice."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from grpc_etcd.etcd import EtcdError, errors, ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.model import LeaseId, Listing, Record, TransactionResult
from grpc_etcd.registry.own import standby_prefix
from grpc_etcd_operator.core.scope import Candidate, Scope
from grpc_etcd_operator.registry.election import WAIT_TTLS, Election
from testbed.conditions import existing, until, wait_until
from testbed.etcd import EtcdServer
from testbed.replica import Replica
from tests.e2e.conftest import Scene

LEADER_TTL_SECONDS = 3
LONG_LEADER_TTL_SECONDS = 60
FROZEN_SECONDS = 60


def leader_of(scene: Scene) -> Record | None:
    return scene.client.get(f"/grpc-etcd/leader/{scene.cluster}".encode())


def revisions(scene: Scene) -> dict[str, int]:
    return {key: record.mod_revision for key, record in scene.registry.keys().items()}


def start_pair(scene: Scene, leader_ttl_seconds: int = LEADER_TTL_SECONDS) -> tuple[Replica, Replica]:
    """Start a leader and a warm standby."""
    leader = scene.start(f"--leader-ttl={leader_ttl_seconds}").wait_leading()
    standby = scene.start(f"--leader-ttl={leader_ttl_seconds}")
    wait_until(lambda: len(standby.lines("listed")) == 2, "the standby is warm")
    return leader, standby


def test_sigterm_hands_over_at_once_and_keys_stay(scene: Scene) -> None:
    leader, standby = start_pair(scene, LONG_LEADER_TTL_SECONDS)  # waiting for its end would be noticed
    scene.apply()
    pods = [scene.pod() for _ in range(3)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    before = revisions(scene)
    began = time.monotonic()
    assert leader.process.stop() == 0
    wait_until(lambda: standby.lines("leadership_acquired"), "the standby leads")
    assert time.monotonic() - began < 40  # on a busy machine; the product's promise is one second
    assert revisions(scene) == before
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(pods[1].address, pods[2].address)
    wait_until(scene.has_mark, "the mark is put again")


@pytest.mark.faults
def test_a_leaders_key_that_has_lost_its_lease_keeps_nobody_from_leading(scene: Scene) -> None:
    """As by `etcdctl put`, or in a copy made by `etcdctl make-mirror`, which copies no leases."""
    key, standbys = f"/grpc-etcd/leader/{scene.cluster}", f"/grpc-etcd/standby/{scene.cluster}/ghost"
    leader, standby = start_pair(scene)
    scene.apply()
    pods = [scene.pod() for _ in range(2)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    scene.etcd.etcdctl("put", standbys, "{}")
    told = existing(leader_of(scene))
    scene.etcd.etcdctl("put", key, told.value.decode())
    wait_until(lambda: (found := leader_of(scene)) and found.lease, "it has a lease again")
    scene.etcd.etcdctl("put", key, told.value.decode())
    leader.process.kill()
    wait_until(lambda: standby.lines("leadership_acquired"), "the standby leads")
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(pods[1].address)
    standby.process.stop()
    scene.etcd.etcdctl("put", key, told.value.decode())
    scene.start(f"--leader-ttl={LEADER_TTL_SECONDS}").wait_leading()
    scene.kubelet.unready(pods[1])
    scene.registry.wait_addresses()


@pytest.mark.parametrize("turn", range(20))  # both learn of it at the same time, so it is a race if it is one
async def test_who_has_resigned_does_not_campaign_again(etcd: EtcdServer, turn: int) -> None:
    async with Etcd(etcd.endpoints) as client, asyncio.TaskGroup() as group:
        cluster = f"resigned-{turn}-{uuid.uuid4()}"
        first, second = (Election(client, cluster, Candidate(name), 60, lambda: None) for name in "ab")
        runs = [group.create_task(first.run_alone())]
        await until(lambda: first.is_leading)
        runs.append(group.create_task(second.run_alone()))
        await until(lambda: second.is_leader_known)
        await first.resign()
        await until(lambda: second.is_leading)
        for run in runs:
            run.cancel()


async def test_who_refuses_to_lead_beside_another_installation_leaves_its_other_replicas_the_time_to_take_over(
    etcd: EtcdServer,
) -> None:
    """However long it has refused: each rollout of the other one hands over, and would be a race with it."""
    async with Etcd(etcd.endpoints) as client, asyncio.TaskGroup() as group:
        cluster, waits_seconds = f"patient-{uuid.uuid4()}", WAIT_TTLS * LEADER_TTL_SECONDS
        leader = Election(client, cluster, Candidate("a", Scope(("shop",))), LONG_LEADER_TTL_SECONDS, lambda: None)
        runs = [group.create_task(leader.run_alone())]
        await until(lambda: leader.is_leading)
        stranger = Election(client, cluster, Candidate("b"), LEADER_TTL_SECONDS, lambda: None)
        runs.append(group.create_task(stranger.run_alone()))
        await until(lambda: stranger.refuses)
        refused_at = time.monotonic()
        await until(lambda: time.monotonic() - refused_at > waits_seconds + 1)
        resigned_at = time.monotonic()
        await leader.resign()
        await until(lambda: stranger.is_leading)
        assert time.monotonic() - resigned_at > waits_seconds
        for run in runs:
            run.cancel()


class SlowEtcd(Etcd):
    """Waits before or after a call until the test lets it go on."""

    waits_at = ""

    def __init__(self, endpoints: str) -> None:
        super().__init__(endpoints)
        self.waiting, self.go_on = asyncio.Event(), asyncio.Event()

    async def hold(self, step: str) -> None:
        if step == self.waits_at:
            self.waiting.set()
            await self.go_on.wait()

    async def lease(self, ttl_seconds: int, lease_id: int = 0) -> LeaseId:
        await self.hold("before lease")
        granted = await super().lease(ttl_seconds, lease_id)
        await self.hold("after lease")
        return granted

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[ops.Op], failure: Sequence[ops.Op] = ()
    ) -> TransactionResult:
        await self.hold("before transaction")
        result = await super().transaction(compare, success, failure)
        await self.hold("after transaction")
        return result


@pytest.mark.parametrize("step", ["before lease", "after lease", "before transaction", "after transaction"])
async def test_who_resigns_while_its_campaign_waits_for_etcd_does_not_lead(etcd: EtcdServer, step: str) -> None:
    async with SlowEtcd(etcd.endpoints) as slow, Etcd(etcd.endpoints) as client:
        cluster = f"resigning-{uuid.uuid4()}"
        slow.waits_at = step
        wins: list[bool] = []
        leader = Election(slow, cluster, Candidate("a"), 60, lambda: wins.append(leader.is_leading))
        run = asyncio.create_task(leader.run_alone())
        await until(slow.waiting.is_set)
        await leader.resign()
        slow.waits_at = ""
        slow.go_on.set()
        follower = Election(client, cluster, Candidate("b"), 60, lambda: None)
        follows = asyncio.create_task(follower.run_alone())
        await until(lambda: follower.is_leading)
        assert not any(wins)
        assert not leader.is_leading
        for each in (run, follows):
            each.cancel()
        await asyncio.wait([run, follows])


class StallingEtcd(Etcd):
    """After the first transaction the process gets no CPU for a while."""

    stall_seconds = 0.0

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[ops.Op], failure: Sequence[ops.Op] = ()
    ) -> TransactionResult:
        result = await super().transaction(compare, success, failure)
        stall, self.stall_seconds = self.stall_seconds, 0.0
        time.sleep(stall)  # noqa: ASYNC251  nothing else runs meanwhile: that is what is tested
        return result


async def test_who_wins_while_its_lease_seems_to_have_expired_leads_only_once_that_turns_out_to_live(
    etcd: EtcdServer,
) -> None:
    """Whoever is called asks who leads, and would let all leases go. Where one second is asked for, etcd grants two."""
    async with StallingEtcd(etcd.endpoints) as stalling, asyncio.TaskGroup() as group:
        cluster, calls = f"stalled-{uuid.uuid4()}", list[tuple[bool, bool]]()
        candidate = Candidate("a", nonce="n")
        election = Election(
            stalling, cluster, candidate, 1, lambda: calls.append((election.revision != 0, election.is_leading))
        )
        stalling.stall_seconds = 1.2
        run = group.create_task(election.run_alone())
        await until(lambda: election.is_leading)
        assert not stalling.stall_seconds
        assert (True, False) not in calls
        run.cancel()


async def test_who_leads_is_no_standby_of_its_own(etcd: EtcdServer) -> None:
    async with Etcd(etcd.endpoints) as client, asyncio.TaskGroup() as group:
        cluster = f"own-standby-{uuid.uuid4()}"
        leader = Election(client, cluster, Candidate("a"), 60, lambda: None)
        run = group.create_task(leader.run_alone())
        await until(lambda: leader.is_leading)
        key = standby_prefix(cluster) + b"a"  # as of a term that was taken up again
        await client.put(key, b"{}", lease=leader.lease)
        async with asyncio.timeout(60):
            while await client.get(key):  # noqa: ASYNC110  etcd decides
                await asyncio.sleep(0.02)
        assert leader.is_leading
        run.cancel()


async def test_an_answer_that_comes_late_does_not_name_a_leader_that_has_gone(etcd: EtcdServer) -> None:
    async with Etcd(etcd.endpoints) as client, asyncio.TaskGroup() as group:
        cluster = f"late-{uuid.uuid4()}"
        first, second = (Election(client, cluster, Candidate(name), 60, lambda: None) for name in "ab")
        runs = [group.create_task(first.run_alone())]
        await until(lambda: first.is_leading)
        seen = await client.transaction([], [first.read()])  # what a transaction that the fence refuses has read
        runs.append(group.create_task(second.run_alone()))
        await until(lambda: second.is_leader_known)
        await first.resign()
        await until(lambda: second.is_leading)
        (read,) = seen.responses
        assert isinstance(read, Listing)
        second.note_read(read.records[0], seen.revision)
        assert second.is_leading
        for run in runs:
            run.cancel()


async def test_whoever_is_told_that_this_replica_leads_finds_a_leader(etcd: EtcdServer) -> None:
    found: list[bool] = []
    async with Etcd(etcd.endpoints) as client, asyncio.TaskGroup() as group:
        cluster = f"told-{uuid.uuid4()}"
        election = Election(client, cluster, Candidate("a"), 60, lambda: found.append(election.is_leader_known))
        run = group.create_task(election.run_alone())
        await until(lambda: found)
        assert found == [True]  # whoever finds none here writes no claims, and is not called again
        assert election.may_report
        run.cancel()


async def test_who_does_not_lead_has_no_fence_to_write_behind(etcd: EtcdServer) -> None:
    async with Etcd(etcd.endpoints) as client:
        election = Election(client, "c1", Candidate("a"), 60, lambda: None)
        assert election.term == 0
        with pytest.raises(ValueError, match="not leader"):  # "no replica leads" would hold whenever nobody does
            election.fence(election.term)


async def lead(client: Etcd, name: str) -> Election:
    """Win an election, and then do nothing more: as one that is frozen."""
    election = Election(client, "c1", Candidate(name, nonce=name), 60, lambda: None)
    campaign = asyncio.create_task(election.run_alone())
    await until(lambda: election.is_leading)
    campaign.cancel()
    await asyncio.wait([campaign])
    return election


async def test_a_leader_of_before_etcd_lost_its_data_writes_nothing_though_the_next_has_the_same_revision(
    own_etcd: EtcdServer,
) -> None:
    """It counts from the start again; the leader before has not heard of it yet, and holds a plan of its term."""
    async with Etcd(own_etcd.endpoints) as client:
        fences = []
        for name in ("old", "new"):
            election = await lead(client, name)
            fences.append((election.revision, election.fence(election.revision)))
            if name == "old":
                own_etcd.restart(fresh=True)
        (old_revision, old), (new_revision, new) = fences
        assert old_revision == new_revision
        assert not (await client.transaction(old, [ops.put(b"k", b"old")])).succeeded
        assert (await client.transaction(new, [ops.put(b"k", b"new")])).succeeded


class RefusedEtcd(Etcd):
    """A real client whose transactions fail with what the test sets."""

    failure: EtcdError | None = None
    asked = 0

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[ops.Op], failure: Sequence[ops.Op] = ()
    ) -> TransactionResult:
        self.asked += 1
        if self.failure:
            raise self.failure
        return await super().transaction(compare, success, failure)


class HastyEtcd(Etcd):
    """A real client whose first revocations fail, as when etcd is away for a moment."""

    failures = 2

    async def revoke(self, lease_id: int) -> None:
        if self.failures:
            self.failures -= 1
            raise errors.Unavailable("Socket closed")
        await super().revoke(lease_id)


async def test_a_predecessor_is_taken_over_from_though_etcd_is_away_at_first(etcd: EtcdServer) -> None:
    async with Etcd(etcd.endpoints) as client, HastyEtcd(etcd.endpoints) as hasty:
        cluster = f"taken-over-{uuid.uuid4()}"
        before, after = (
            Election(by, cluster, Candidate("a", nonce=nonce), LONG_LEADER_TTL_SECONDS * 10, lambda: None)
            for by, nonce in ((client, "1"), (hasty, "2"))
        )
        running = asyncio.create_task(before.run_alone())
        await until(lambda: before.is_leading)
        running.cancel()
        await asyncio.wait([running])
        running = asyncio.create_task(after.run_alone())
        await until(lambda: after.is_leading)  # and not only when the other's lease has run out
        running.cancel()
        await asyncio.wait([running])


async def test_who_was_not_let_in_says_so_until_etcd_answers(etcd: EtcdServer) -> None:
    async with Etcd(etcd.endpoints) as client, RefusedEtcd(etcd.endpoints) as refused, asyncio.TaskGroup() as group:
        cluster = f"refused-{uuid.uuid4()}"
        leader, standby = (
            Election(by, cluster, Candidate(name), 10, lambda: None) for by, name in ((client, "a"), (refused, "b"))
        )
        runs = [group.create_task(leader.run_alone())]
        await until(lambda: leader.is_leading)
        refused.failure = errors.AuthFailed("etcdserver: user name is empty")
        runs.append(group.create_task(standby.run_alone()))
        await until(lambda: standby.refused)
        refused.failure, refused.asked = errors.Unavailable("Socket closed"), 0
        await until(lambda: refused.asked > 1)
        assert standby.refused, "nobody has answered since"
        refused.failure = None
        await until(lambda: not standby.refused)
        for run in runs:
            run.cancel()


@pytest.mark.faults
def test_a_touch_that_a_killed_leader_owed_its_readers_is_put_by_the_next(scene: Scene) -> None:
    def touched() -> int:
        record = scene.client.get(f"/jupiter/greeter/settled/{scene.cluster}".encode())
        return int(record.mod_revision) if record else 0

    leader, _ = start_pair(scene)
    scene.apply()
    pods = [scene.pod(ready=False) for _ in range(3)]
    for change, addresses in itertools.cycle(
        [(scene.kubelet.ready, [p.address for p in pods]), (scene.kubelet.unready, [])]
    ):
        before = touched()
        for pod in pods:
            change(pod)
        scene.registry.wait_addresses(*addresses)
        leader.process.pause()
        if touched() == before:
            break
        leader.process.resume()  # the flush key was put before the process could be frozen
    leader.process.kill()
    wait_until(lambda: touched() > before, "the next leader puts the flush key")


@pytest.mark.faults
def test_sigkill_is_followed_by_a_takeover_that_rewrites_nothing(scene: Scene) -> None:
    leader, _ = start_pair(scene)
    scene.apply()
    pods = [scene.pod() for _ in range(3)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    before = revisions(scene)
    leader.process.kill()
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(pods[1].address, pods[2].address)
    after = revisions(scene)
    assert after == {key: revision for key, revision in before.items() if key in after}


@pytest.mark.faults
def test_a_leader_that_was_frozen_for_a_minute_changes_nothing_when_it_wakes(scene: Scene) -> None:
    leader, standby = start_pair(scene, FROZEN_SECONDS // 4)
    scene.apply()
    pod, other = scene.pod(), scene.pod()
    scene.registry.wait_addresses(pod.address, other.address)
    scene.kubelet.unready(pod)
    scene.registry.wait_addresses(other.address)
    wait_until(lambda: leader.lines("records_deleted"), "it is told")
    leader.process.pause()
    frozen_at = time.monotonic()
    scene.kubelet.ready(pod)
    wait_until(lambda: standby.lines("leadership_acquired"), "the standby leads")
    scene.registry.wait_addresses(pod.address, other.address)
    before = revisions(scene)
    wait_until(lambda: time.monotonic() - frozen_at > FROZEN_SECONDS, "a minute is over", 2 * FROZEN_SECONDS)
    assert revisions(scene) == before
    leader.process.resume()
    wait_until(lambda: leader.lines("leadership_lost"), "the old leader has noticed")
    scene.kubelet.unready(other)
    scene.registry.wait_addresses(pod.address)
    after = revisions(scene)
    assert after == {key: revision for key, revision in before.items() if key in after}
    assert (len(leader.lines("records_written")), len(leader.lines("records_deleted"))) == (2, 1)


def test_a_replica_with_another_scope_refuses_to_lead(scene: Scene) -> None:
    leader = scene.start(f"--leader-ttl={LONG_LEADER_TTL_SECONDS}").wait_leading()
    term = existing(leader_of(scene)).create_revision
    stranger = scene.start("--pod-selector=tier=other")
    wait_until(lambda: "another --cluster-id" in stranger.text(), "it says so")
    assert existing(leader_of(scene)).create_revision == term
    assert not stranger.lines("leadership_acquired")
    assert leader.process.is_running


def test_several_registries_are_independent(scene: Scene, tmp_path: Path, own_etcd: EtcdServer) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"registries: {{second: {{endpoints: '{own_etcd.endpoints}'}}}}\n")
    own_etcd.kill()
    scene.start(f"--config={config}")
    scene.apply(registries=["default", "second"])
    scene.apply("only", registries=["second"])
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    scene.wait_condition("Programmed", "False", "RegistryUnavailable")
    own_etcd.restart()
    key = f"/jupiter/only/providers/grpc://{pod.address}"
    wait_until(lambda: key in own_etcd.etcdctl("get", "--keys-only", "--prefix", "/jupiter/"), "the second one follows")
    scene.wait_condition("Programmed", "True", "Programmed")
    assert scene.registry.addresses("only") == []

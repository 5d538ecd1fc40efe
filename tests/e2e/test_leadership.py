"""One writer per registry: hand-over, takeover, frozen leaders, foreign scopes. Nothing is lost or written twice."""

import asyncio
import itertools
import time
import uuid
from typing import Any

import pytest

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd_operator.core.scope import Scope
from grpc_etcd_operator.writer.electing import Election
from testbed.conditions import until, wait_until
from testbed.etcd import EtcdServer

LEADER_TTL_SECONDS = 3
LONG_LEADER_TTL_SECONDS = 60
FROZEN_SECONDS = 60


def leader_of(scene: Any) -> Any:
    return scene.client.get(f"/grpc-etcd/leader/{scene.cluster}".encode())


def revisions(scene: Any) -> dict[str, int]:
    return {key: record.mod_revision for key, record in scene.registry.keys().items()}


def start_pair(scene: Any, leader_ttl_seconds: int = LEADER_TTL_SECONDS) -> tuple[Any, Any]:
    """Start a leader and a warm standby."""
    leader = scene.start(f"--leader-ttl={leader_ttl_seconds}").wait_leading()
    standby = scene.start(f"--leader-ttl={leader_ttl_seconds}")
    wait_until(lambda: len(standby.lines("a complete list has been seen")) == 2, "the standby is warm")
    return leader, standby


def test_sigterm_hands_over_at_once_and_keys_stay(scene: Any) -> None:
    leader, standby = start_pair(scene, LONG_LEADER_TTL_SECONDS)  # waiting for its end would be noticed
    scene.apply()
    pods = [scene.pod() for _ in range(3)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    before = revisions(scene)
    began = time.monotonic()
    assert leader.process.stop() == 0
    wait_until(lambda: standby.lines("this replica leads"), "the standby leads")
    assert time.monotonic() - began < 10  # on a busy machine; the product's promise is one second
    assert revisions(scene) == before
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(pods[1].address, pods[2].address)
    wait_until(scene.has_mark, "the mark is put again")


@pytest.mark.parametrize("turn", range(20))  # both hear of it at the same time, so it is a race if it is one
async def test_who_has_resigned_does_not_campaign_again(etcd: EtcdServer, turn: int) -> None:
    async with Etcd(etcd.endpoints) as client, asyncio.TaskGroup() as group:
        cluster = f"resigned-{turn}-{uuid.uuid4()}"
        first, second = (Election(client, cluster, name, Scope(), 10, lambda: None) for name in "ab")
        runs = [group.create_task(first.run())]
        await until(lambda: first.is_leading)
        runs.append(group.create_task(second.run()))
        await until(lambda: second.is_leader_known)
        await first.resign()
        await until(lambda: second.is_leading)
        for run in runs:
            run.cancel()


@pytest.mark.faults
def test_a_touch_that_a_killed_leader_owed_its_readers_is_put_by_the_next(scene: Any) -> None:
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
        leader.process.resume()  # the touch was put before the process could be frozen
    leader.process.kill()
    wait_until(lambda: touched() > before, "the next leader puts the touch")


@pytest.mark.faults
def test_sigkill_is_followed_by_a_takeover_that_rewrites_nothing(scene: Any) -> None:
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
def test_a_leader_that_was_frozen_for_a_minute_changes_nothing_when_it_wakes(scene: Any) -> None:
    leader, standby = start_pair(scene)
    scene.apply()
    pod, other = scene.pod(), scene.pod()
    scene.registry.wait_addresses(pod.address, other.address)
    scene.kubelet.unready(pod)
    scene.registry.wait_addresses(other.address)
    wait_until(lambda: leader.lines("withdrawn"), "it is told")
    leader.process.pause()
    frozen_at = time.monotonic()
    scene.kubelet.ready(pod)
    wait_until(lambda: standby.lines("this replica leads"), "the standby leads")
    scene.registry.wait_addresses(pod.address, other.address)
    before = revisions(scene)
    wait_until(lambda: time.monotonic() - frozen_at > FROZEN_SECONDS, "a minute is over", 2 * FROZEN_SECONDS)
    assert revisions(scene) == before
    leader.process.resume()
    wait_until(lambda: leader.lines("this replica no longer leads"), "the old leader has noticed")
    scene.kubelet.unready(other)
    scene.registry.wait_addresses(pod.address)
    after = revisions(scene)
    assert after == {key: revision for key, revision in before.items() if key in after}
    assert (len(leader.lines("written")), len(leader.lines("withdrawn"))) == (2, 1)


def test_a_replica_with_another_scope_refuses_to_lead(scene: Any) -> None:
    leader = scene.start().wait_leading()
    term = leader_of(scene).create_revision
    stranger = scene.start("--pod-selector=tier=other")
    wait_until(lambda: "another --cluster-id" in stranger.text(), "it says so")
    assert leader_of(scene).create_revision == term
    assert not stranger.lines("this replica leads")
    assert leader.process.is_running


def test_several_registries_are_independent(scene: Any, tmp_path: Any, own_etcd: Any) -> None:
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

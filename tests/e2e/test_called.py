"""From a GrpcService to the Pods that calls reach: one scene for each promise, by counted calls.

What a policy in etcd does to calls is held in tests/integration/client/test_policies.py; here nobody but the operator
writes to etcd, and only the Python client calls.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

import grpc_etcd
from testbed.conditions import PATIENCE_SECONDS, wait_until
from testbed.greeter import METHOD, GreeterServer, say_hello
from testbed.kubelet import Pod
from tests.e2e.conftest import Scene
from tests.integration.client.conftest import Load, answers, follows

OpenChannel = Callable[..., grpc.Channel]
CALLS = 200
HOLD = "hold"
ZONE = "topology.kubernetes.io/zone"
NO_LABELS: Mapping[str, str] = {}


@pytest.fixture
def open_channel(scene: Scene) -> Iterator[OpenChannel]:
    """Open a channel of a client somewhere: `open_channel(cluster="one", zone="a")`."""
    with ExitStack() as stack:

        def open_one(**where: Any) -> grpc.Channel:
            registry = stack.enter_context(grpc_etcd.Registry(scene.etcd.endpoints, **where))
            return stack.enter_context(registry.insecure_channel("greeter"))

        yield open_one


@pytest.fixture
def other_cluster(scene: Scene) -> Iterator[Scene]:
    """A scene with a cluster id of its own on the same etcd; its namespace is served by its own operator alone."""
    name = f"{scene.namespace}-other"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    made = Scene(scene.api, scene.etcd, scene.kubelet, name, scene.folder, scene.pod_watch)
    yield made
    made.close()


def serve(scene: Scene, count: int, labels: Mapping[str, str] = NO_LABELS) -> list[Pod]:
    """Start ready Pods with these labels, each with a real server behind its address."""
    found = {"app": "greeter", **labels}
    return [scene.kubelet.create_pod(namespace=scene.namespace, labels=found) for _ in range(count)]


def addresses(pods: Sequence[Pod]) -> list[str]:
    return [pod.address for pod in pods]


def share(channel: grpc.Channel, pods: Sequence[Pod]) -> float:
    """Call, and return which share of the calls these Pods have answered."""
    counted = answers(channel, CALLS)
    return sum(counted[pod.address] for pod in pods) / CALLS


class HoldingServer(GreeterServer):
    """A server that keeps calls with the name HOLD until they are released."""

    def __init__(self, address: str) -> None:
        self.is_holding, self.release = threading.Event(), threading.Event()
        super().__init__(address)

    def _answer(self, name: str, context: grpc.ServicerContext) -> str:
        if name == HOLD:
            self.is_holding.set()
            self.release.wait(PATIENCE_SECONDS)
        return super()._answer(name, context)


def test_a_pod_that_ends_gets_no_new_call_and_finishes_the_running_one(scene: Scene, open_channel: OpenChannel) -> None:
    scene.start()
    scene.apply()
    ends = scene.pod(ready=False, hold=True)
    channel = open_channel()
    with HoldingServer(ends.address) as server:
        scene.kubelet.ready(ends)
        follows(channel, [ends.address])
        running = say_hello(channel).future(HOLD, timeout=2 * PATIENCE_SECONDS)
        assert server.is_holding.wait(PATIENCE_SECONDS)
        with Load(channel) as load:
            stays = serve(scene, 1)
            follows(channel, [ends.address, *addresses(stays)])
            scene.kubelet.terminate(ends)
            follows(channel, addresses(stays))
            assert share(channel, stays) == 1
            comes = serve(scene, 1)
            follows(channel, addresses([*stays, *comes]))
            assert share(channel, comes) == pytest.approx(0.5, abs=0.1)
        assert not running.done()
        server.release.set()
        assert running.result() == ends.address
    assert load.failures == []
    scene.kubelet.finish(ends)


def test_calls_go_to_the_pods_whose_metadata_the_policy_asks_for(scene: Scene, open_channel: OpenChannel) -> None:
    def ask(version: str) -> None:
        scene.apply(metadataFromLabels=["version"], policy={"matchMetadata": {"version": version}})

    scene.start()
    ask("v1")
    old, new = serve(scene, 2, {"version": "v1"}), serve(scene, 2, {"version": "v2"})
    scene.registry.wait_addresses(*addresses([*old, *new]))
    channel = open_channel()
    follows(channel, addresses(old))
    assert share(channel, old) == 1
    with Load(channel) as load:
        ask("v2")
        follows(channel, addresses(new))
        assert share(channel, new) == 1
        ask("v3")  # which no Pod has: all are called
        follows(channel, addresses([*old, *new]))
    assert load.failures == []


def test_calls_stay_in_the_cluster_and_its_zone_while_they_can(
    scene: Scene, other_cluster: Scene, open_channel: OpenChannel
) -> None:
    scene.start()
    other_cluster.start()
    scene.apply(metadata={"cluster": "one"}, policy={"localityPreference": {"mode": "PreferCluster"}})
    other_cluster.apply(metadata={"cluster": "two"})
    near, next_door = serve(scene, 2, {ZONE: "a"}), serve(scene, 1, {ZONE: "b"})
    far = serve(other_cluster, 2, {ZONE: "a"})
    scene.registry.wait_addresses(*addresses([*near, *next_door, *far]))
    channel, elsewhere = open_channel(cluster="one", zone="a"), open_channel(cluster="two", zone="a")
    follows(channel, addresses(near))
    assert share(channel, near) == 1
    follows(elsewhere, addresses(far))
    assert share(elsewhere, far) == 1
    with Load(channel) as load:
        for pod in near:
            scene.kubelet.unready(pod)
        follows(channel, addresses(next_door))
        for pod in next_door:
            scene.kubelet.unready(pod)
        follows(channel, addresses(far))
        scene.kubelet.ready(near[0])
        follows(channel, addresses(near[:1]))
        assert share(channel, near[:1]) == 1
    assert load.failures == []


def test_a_pod_that_turns_ready_begins_with_few_calls_and_ends_with_its_share(
    scene: Scene, open_channel: OpenChannel
) -> None:
    scene.start()
    scene.apply(policy={"slowStart": {"window": "20s", "minWeightPercent": 5}})
    warm = serve(scene, 2)
    scene.registry.wait_addresses(*addresses(warm))
    channel = open_channel()
    follows(channel, addresses(warm))
    assert share(channel, warm[:1]) == pytest.approx(0.5, abs=0.1), "the first set is warm"
    with Load(channel) as load:
        cold = serve(scene, 1)
        wait_until(lambda: load.answers[cold[0].address], "the first call of the new one")
        assert share(channel, cold) < 0.2  # as many as after half of the window
        wait_until(lambda: share(channel, cold) > 0.27, "its whole share")
    assert load.failures == []


def test_a_canarys_share_of_a_method_follows_its_routes(scene: Scene, open_channel: OpenChannel) -> None:
    def route(stable: int, canary: int) -> None:
        routes = [{"id": "canary", "method": METHOD, "groups": {"stable": stable, "canary": canary}}]
        scene.apply("stable", name="greeter", selector=tracked("stable"), group="stable", routes=routes)

    def tracked(track: str) -> dict[str, Any]:
        return {"matchLabels": {"track": track}}

    scene.start()
    route(100, 0)
    scene.apply("canary", name="greeter", selector=tracked("canary"), group="canary")
    stable, canary = serve(scene, 2, {"track": "stable"}), serve(scene, 1, {"track": "canary"})
    scene.registry.wait_addresses(*addresses([*stable, *canary]))
    channel = open_channel()
    follows(channel, addresses(stable))
    assert share(channel, stable) == 1
    with Load(channel) as load:
        route(80, 20)
        follows(channel, addresses([*stable, *canary]))
        assert share(channel, canary) == pytest.approx(0.2, abs=0.12)  # four times the deviation of 200 calls
        route(0, 100)
        follows(channel, addresses(canary))
        assert share(channel, canary) == 1
    assert load.failures == []

"""Pods whose watch says less than the truth: out of the selector, on a dead node, or not told of at all."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.deletions import Deletions
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.resync import ResyncController
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.pods import GATE, PodMessage
from grpc_etcd_operator.core.scope import Scope
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.conditions import until, wait_until
from testbed.kubelet import Pod, pod_manifest, random_loopback_ip
from tests.e2e.conftest import API_VERSION, Scene
from tests.e2e.pod_watches import with_both
from tests.e2e.test_lists import open_client

STRATEGIC = "application/strategic-merge-patch+json"


def label(scene: Scene, pod: Pod, value: str | None) -> None:
    scene.api.client.patch(pod.item, {"metadata": {"labels": {"tier": value}}})


@with_both
def test_a_pod_that_leaves_the_selector_is_deregistered_and_comes_back_as_soon_as_it_is_selected(scene: Scene) -> None:
    replica = scene.start("--pod-selector=tier=grpc").wait_leading()
    scene.apply()
    pods = [scene.pod(labels={"app": "greeter", "tier": "grpc"}) for _ in range(2)]
    both = [pod.address for pod in pods]
    scene.registry.wait_addresses(*both)
    for _ in range(2):
        label(scene, pods[0], None)
        scene.registry.wait_addresses(both[1])
        label(scene, pods[0], "grpc")
        scene.registry.wait_addresses(*both)
    label(scene, pods[0], "other")
    scene.registry.wait_addresses(both[1])
    scene.api.client.delete(pods[1].item, grace_seconds=0)
    scene.registry.wait_addresses()
    wait_until(
        lambda: replica.metric("grpc_etcd_operator_leases") <= 1, "the lease of the one that is gone is given up"
    )
    assert replica.process.is_running
    assert replica.metric("grpc_etcd_operator_unexpected_errors_total", part="resync") == 0


@with_both
def test_a_pod_that_left_the_selector_while_nobody_looked_is_deregistered_and_not_taken_for_gone(scene: Scene) -> None:
    first = scene.start("--pod-selector=tier=grpc").wait_leading()
    scene.apply()
    pods = [scene.pod(labels={"app": "greeter", "tier": "grpc"}) for _ in range(2)]
    both = [pod.address for pod in pods]
    scene.registry.wait_addresses(*both)
    first.process.stop()
    label(scene, pods[0], None)
    scene.start("--pod-selector=tier=grpc")
    scene.registry.wait_addresses(both[1])
    label(scene, pods[0], "grpc")
    scene.registry.wait_addresses(*both)


def condition(kind: str, status: str, when: datetime, **more: str) -> dict[str, str]:
    return {"type": kind, "status": status, "lastTransitionTime": when.strftime("%Y-%m-%dT%H:%M:%SZ"), **more}


@with_both
def test_a_gated_pod_whose_node_dies_is_deregistered(scene: Scene) -> None:
    """No kubelet plays along: a dead one recomputes nothing."""
    scene.start().wait_leading()
    scene.apply()
    client, address = scene.api.client, random_loopback_ip()
    manifest = pod_manifest(
        "lonely",
        scene.namespace,
        labels={"app": "greeter"},
        annotations={},
        node="node-9",
        ports={"grpc": 50051},
        gates=(GATE,),
        pre_stop_seconds=0,
    )
    pod, start = client.create(manifest), datetime.now(UTC)

    def report(*conditions: dict[str, str]) -> None:
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": list(conditions)}
        client.patch(pod, {"status": status}, "status", STRATEGIC)

    def gate_is_open() -> bool:
        found = client.get("v1", "Pod", "lonely", scene.namespace)["status"]["conditions"]
        return any((each["type"], each["status"]) == (GATE, "True") for each in found)

    waiting = condition("Ready", "False", start, reason="ReadinessGatesNotReady")
    report(condition("ContainersReady", "True", start), waiting)
    scene.registry.wait_addresses(f"{address}:50051")
    wait_until(gate_is_open, "the gate is open")
    report(condition("Ready", "True", start + timedelta(seconds=1)))
    scene.registry.wait_addresses(f"{address}:50051")
    report(condition("Ready", "False", start + timedelta(seconds=50)))
    scene.registry.wait_addresses()
    report(condition("Ready", "True", start + timedelta(seconds=90)))
    scene.registry.wait_addresses(f"{address}:50051")


async def test_a_sweep_takes_up_a_pod_that_no_watch_has_told_of(scene: Scene) -> None:
    pods = [scene.pod() for _ in range(2)]
    reconciler = EventHandlers(ClusterCache(["default"]), {}, Timings(CollectorRegistry()))
    async with open_client(scene.api, scene.api.token) as client:
        resync = ResyncController(
            client, reconciler, Scope((scene.namespace,)), lambda _, __: None, lambda _: {}, Isolation()
        )
        resync.resync_soon(PODS, scene.namespace)
        sweeping = asyncio.create_task(resync.run())
        await until(lambda: len(reconciler.cluster_cache.pods) == len(pods) or sweeping.done())
        sweeping.cancel()
    assert {uid: pod.ready for uid, pod in reconciler.cluster_cache.pods.items()} == {pod.uid: True for pod in pods}


class Counting(Client):
    """Counts what is read singly."""

    reads = 0

    async def read_pod(self, namespace: str, name: str) -> PodMessage | None:
        self.reads += 1
        return await super().read_pod(namespace, name)

    async def read(self, resource: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        self.reads += 1
        return await super().read(resource, namespace, name)


class Telling(ResyncController):
    """Counts its sweeps."""

    sweeps = 0

    async def _try(self, task: tuple[str, str]) -> float:
        pause = await super()._try(task)
        self.sweeps += task[0] in {PODS, SERVICES}
        return pause


async def test_a_sweep_reads_again_what_is_remembered_in_another_version_and_nothing_else(scene: Scene) -> None:
    pods = [scene.pod() for _ in range(3)]
    for name in ("one", "two"):
        scene.apply(name)
    reconciler = EventHandlers(ClusterCache(["default"]), {}, Timings(CollectorRegistry()))
    cluster_cache = reconciler.cluster_cache
    async with open_client(scene.api, scene.api.token, Counting) as client:
        resync = Telling(client, reconciler, Scope((scene.namespace,)), lambda _, __: None, lambda _: {}, Isolation())
        sweeping = asyncio.create_task(resync.run())

        async def sweep() -> tuple[int, int]:
            """Sweep both resources once; give how much was read singly, and how much was found."""
            assert isinstance(client, Counting)
            reads, drift = client.reads, resync.drift
            for resource in (PODS, SERVICES):
                swept = resync.sweeps
                resync.resync_soon(resource, scene.namespace)
                await until(lambda swept=swept: resync.sweeps > swept or sweeping.done())
            return client.reads - reads, resync.drift - drift

        assert await sweep() == (5, 5)
        assert await sweep() == (0, 0)
        scene.kubelet.unready(pods[0])
        scene.apply("two", weight=3)
        assert await sweep() == (2, 2)
        assert not cluster_cache.pods[pods[0].uid].ready
        assert {each.spec.weight for each in cluster_cache.services.values() if each.spec} == {100, 3}
        scene.api.client.patch(pods[1].item, {"metadata": {"annotations": {"harmless": "change"}}})
        assert await sweep() == (1, 1)
        assert await sweep() == (0, 0)
        sweeping.cancel()


class Picky(EventHandlers):
    """Meets something that nobody foresaw in one Pod."""

    def note_listed_pod(self, message: PodMessage) -> None:
        if message.metadata.name == "poison":
            raise AttributeError(message.metadata.name)
        super().note_listed_pod(message)


class Silent(Client):
    """A client whose lists are never answered."""

    async def list_seen(self, *_: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None


async def test_a_grpcservice_that_is_deleted_waits_for_no_list_that_hangs(scene: Scene) -> None:
    scene.apply()
    reconciler, deletions = EventHandlers(ClusterCache(["default"]), {}, Timings(CollectorRegistry())), Deletions()
    raw = scene.api.client.get(API_VERSION, "GrpcService", "greeter", scene.namespace)
    reconciler.note_service("ADDED", raw)
    async with open_client(scene.api, scene.api.token) as client:
        silent = Silent(client.server, client._session)
        told, left_out = (lambda *_: None), (lambda *_: None)
        resync = ResyncController(
            silent, reconciler, Scope((scene.namespace,)), told, lambda _: {}, Isolation(), left_out, deletions
        )
        resync.resync_soon(PODS, scene.namespace)
        tasks = [asyncio.create_task(each()) for each in (resync.run, resync.judge_deletions)]
        scene.delete()
        deletions.note(reconciler.cluster_cache.services[raw["metadata"]["uid"]])
        await until(lambda: not reconciler.cluster_cache.services)
        for task in tasks:
            task.cancel()


async def test_a_pod_that_nobody_foresaw_ends_no_sweep(scene: Scene) -> None:
    scene.pod("poison")
    good = [scene.pod(name) for name in ("a-good", "z-good")]
    reconciler, isolation = Picky(ClusterCache(["default"]), {}, Timings(CollectorRegistry())), Isolation()
    async with open_client(scene.api, scene.api.token) as client:
        resync = ResyncController(
            client, reconciler, Scope((scene.namespace,)), lambda _, __: None, lambda _: {}, isolation
        )
        resync.resync_soon(PODS, scene.namespace)
        sweeping = asyncio.create_task(resync.run())
        await until(lambda: (isolation.counts["resync"] and len(reconciler.cluster_cache.pods) == 2) or sweeping.done())
        assert not sweeping.done()
        sweeping.cancel()
    assert reconciler.cluster_cache.pods.keys() == {pod.uid for pod in good}

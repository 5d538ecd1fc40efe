"""Gates say why they wait, and open as soon as they may."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.event_handlers import EventHandlers
from grpc_etcd_operator.controller.gates import Gates
from grpc_etcd_operator.controller.status_writer import StatusWriter
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.gates import OPEN, Gate
from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.services import parse_service
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.conditions import until
from tests.integration.operator_kube.scene import (
    ApiServer,
    Raw,
    count_lines,
    make_reconciler,
    make_reporter,
    posts,
    run,
)
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service, read_raw_pod

GATE = "grpc-etcd.dev/registered"
MANY = 30


def make_gated_pod(uid: str = "p1") -> Raw:
    raw = make_raw_pod(uid)
    raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
    return raw


class Overridden(dict[str, Any]):
    """A Pod whose gate a policy shuts again on its way, for as long as it is in force."""

    in_force = True

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "status" and self.in_force:
            value = {"conditions": [{**each, "status": "False"} for each in value["conditions"]]}
        super().__setitem__(key, value)

    @property
    def is_open(self) -> bool:
        return any(each["status"] == "True" for each in self.get("status", {}).get("conditions", ()))


class ScriptedGates(Gates):
    """Judges gates as the test says, and counts how often it was asked."""

    gate = Gate(is_open=False, reason=Reason.REGISTERING, is_waiting=True)
    asked = 0

    def judge(self, pod: Pod, down: Mapping[str, str]) -> Gate | None:  # noqa: ARG002  one answer for all
        self.asked += 1
        return self.gate


class PoisonedGates(Gates):
    """Meets something that nobody foresaw in one Pod."""

    def judge(self, pod: Pod, down: Mapping[str, str]) -> Gate | None:
        if pod.uid == "bad":
            raise AttributeError(pod.name)
        return super().judge(pod, down)


@pytest.mark.parametrize("is_refused", [False, True], ids=["unexpected", "refused"])
async def test_a_gate_that_fails_is_told_on_its_pod_and_the_others_open(
    api: tuple[ApiServer, Client], *, is_refused: bool
) -> None:
    server, client = api
    reconciler = make_reconciler()
    gates = Gates(reconciler) if is_refused else PoisonedGates(reconciler)
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict, gates=gates)
    for uid in ("bad", "good"):
        server.objects[f"pod-{uid}"] = make_gated_pod(uid)
        reconciler.cluster_cache.note_pod(read_raw_pod(server.objects[f"pod-{uid}"]))
    server.answers["/api/v1/namespaces/shop/pods/pod-bad/status"] = [422] * 9 if is_refused else []
    reconciler.statuses.look_at_all()
    await run(reporter, lambda: server.events and server.patches("pod-good"))
    events = [body for _, path, body in server.requests if path.endswith("/events")]
    assert {(each["reason"], each["regarding"]["name"]) for each in events} == {("InternalError", "pod-bad")}
    assert ("as told" in events[0]["note"]) == is_refused


async def test_a_gate_that_meets_a_conflict_is_tried_again(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = make_reconciler()
    raw = make_gated_pod()
    reporter = make_reporter(client, reconciler)
    path = "/api/v1/namespaces/shop/pods/pod-p1/status"
    server.answers[path] = [409, 409]
    reconciler.cluster_cache.note_pod(read_raw_pod(raw))
    reporter._queue.look_at_all()
    await run(reporter, lambda: len(server.patches("pod-p1")) > 2)
    assert server.patches("pod-p1")[-1]["status"]["conditions"][0]["status"] == "True"


async def test_a_gate_that_a_policy_shuts_on_its_way_is_told_and_opened_once_the_policy_has_ended(
    api: tuple[ApiServer, Client], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = api
    reconciler = make_reconciler()
    raw = make_gated_pod()
    pod = server.objects["pod-p1"] = Overridden(raw)
    reporter = make_reporter(client, reconciler)
    reconciler.cluster_cache.note_pod(read_raw_pod(raw))
    reconciler.statuses.look_at_all()
    await run(reporter, lambda: len(server.patches("pod-p1")) > 1)
    assert count_lines(caplog, "gate_changed") == 1
    pod.in_force = False
    with caplog.at_level(logging.INFO):
        await run(reporter, lambda: "gate opened" in caplog.text)  # its answer has come, too
    assert pod.is_open
    patches, asked = len(server.patches("pod-p1")), len(server.requests)
    await run(reporter, lambda: len(server.requests) > asked)
    assert len(server.patches("pod-p1")) == patches  # whose watch is late only asks


async def test_a_gate_that_waits_opens_as_soon_as_there_is_news(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = EventHandlers(ClusterCache(["default"]), {"default": None}, Timings(CollectorRegistry()))
    gates = ScriptedGates(reconciler)
    raw = make_gated_pod()
    pod = read_raw_pod(raw)
    reconciler.cluster_cache.note_pod(pod)
    reporter = StatusWriter(
        client, reconciler, reconciler.statuses, lambda: True, dict, patience_seconds=3600, gates=gates
    )
    running = asyncio.create_task(reporter.run())
    looks: tuple[Callable[[], None], ...] = (lambda: reporter._queue.look_at_gate(pod.uid), reporter._queue.look_at_all)
    for look in looks:
        asked, patches = gates.asked, len(server.patches(pod.name))
        gates.gate = ScriptedGates.gate
        reporter._queue.look_at_gate(pod.uid)
        await until(lambda asked=asked: gates.asked > asked)
        gates.gate = OPEN
        look()
        await until(lambda patches=patches: len(server.patches(pod.name)) > patches)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    reasons = {each["status"]["conditions"][0]["reason"] for each in server.patches(pod.name)}
    assert reasons == {"Registered"}, "nothing was said while it waited"


async def test_warnings_whose_events_are_not_answered_hold_up_no_gate_and_are_posted_later(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    reconciler = make_reconciler()
    reporter = make_reporter(client, reconciler)
    services = [parse_service(make_raw_service(name=f"s{each}", uid=f"s{each}"), {}) for each in range(MANY)]
    server.held_events.clear()
    reporter.warn(services, Reason.MASS_DELETION, "many are missing from a list")
    running = asyncio.create_task(reporter.run())
    await until(lambda: posts(server))
    raw = make_gated_pod()
    reconciler.cluster_cache.note_pod(read_raw_pod(raw))
    reporter._queue.look_at_gate("p1")
    await until(lambda: server.patches("pod-p1"))
    assert len(posts(server)) < MANY
    server.held_events.set()
    await until(lambda: len(server.events) == MANY)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_gate_that_is_open_by_now_gets_no_event_that_it_waits(api: tuple[ApiServer, Client]) -> None:
    """As after a hang of etcd while hundreds of Pods started, whose Events are posted one after the other."""
    server, client = api
    reconciler = make_reconciler()
    gates = ScriptedGates(reconciler)
    raws = [make_gated_pod(f"p{each}") for each in range(MANY)]
    for raw in raws:
        reconciler.cluster_cache.note_pod(read_raw_pod(raw))
    reporter = StatusWriter(
        client, reconciler, reconciler.statuses, lambda: True, dict, patience_seconds=0, gates=gates
    )
    server.held_events.clear()
    running = asyncio.create_task(reporter.run())
    reporter._queue.look_at_all()
    await until(lambda: len(reporter._news) + len(posts(server)) == MANY and posts(server))
    under_way = len(posts(server))
    gates.gate = OPEN
    for raw in raws:
        raw["status"]["conditions"].append({"type": GATE, "status": "True"})
        reconciler.cluster_cache.note_pod(read_raw_pod(raw))
    server.held_events.set()
    await until(lambda: not reporter._news)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(posts(server)) == under_way < MANY


async def test_a_gate_says_again_what_another_leader_has_overwritten(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = EventHandlers(ClusterCache(["default"]), {"default": None}, Timings(CollectorRegistry()))
    gates = ScriptedGates(reconciler)
    gates.gate = Gate(is_open=False, reason=Reason.PORT_NOT_FOUND, message="no port")
    raw, leads = make_gated_pod(), True
    pod = read_raw_pod(raw)
    reconciler.cluster_cache.note_pod(pod)
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: leads, dict, gates=gates)
    server.objects[pod.name] = {"metadata": {"uid": pod.uid}}
    running = asyncio.create_task(reporter.run())
    reporter._queue.look_at_all()
    await until(lambda: len(server.patches(pod.name)) == 1)
    leads = False
    reporter._queue.look_at_all()
    await until(lambda: not reporter._queue.wake.is_set())  # it has seen that another leads
    said = {"type": GATE, "status": "False", "reason": "Unwritable", "message": "of another leader"}
    server.objects[pod.name]["status"] = {"conditions": [said]}
    leads = True
    reporter._queue.look_at_all()
    await until(lambda: len(server.patches(pod.name)) == 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert server.patches(pod.name)[-1]["status"]["conditions"][0]["reason"] == "PortNotFound"

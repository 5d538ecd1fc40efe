"""What Kubernetes refuses is tried again, one object's trouble is its own, and no Event is posted twice."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.claim_granter import Granter
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.gates import Gates
from grpc_etcd_operator.controller.status_queue import StatusQueue
from grpc_etcd_operator.controller.status_writer import StatusWriter
from grpc_etcd_operator.core.claims import claims_of, write_claims
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.counts import Counts, EndpointCounts
from grpc_etcd_operator.core.gates import OPEN, Gate
from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.services import parse_service
from grpc_etcd_operator.core.vacancies import VACANT_SECONDS
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.conditions import Condition, until
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service, read_raw_pod

GATE = "grpc-etcd.dev/registered"
MANY = 30
Raw = dict[str, Any]


class ApiServer:
    """Answers what the test says, over real HTTP: `answers` holds status codes by path, each used once."""

    def __init__(self) -> None:
        self.answers: dict[str, list[int]] = {}
        self.requests: list[tuple[str, str, Raw]] = []
        self.objects: dict[str, Raw] = {}
        self.after_a_read: dict[str, Raw] = {}
        self.events: set[str] = set()
        self.refused_parts: set[str] = set()
        self.held: asyncio.Event | None = None
        self.held_events = asyncio.Event()
        self.held_events.set()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        self.requests.append((request.method, request.path, body))
        if self.held:
            await self.held.wait()
        if codes := self.answers.get(request.path):
            return web.json_response({"kind": "Status", "message": "as told"}, status=codes.pop(0))
        if self.refused_parts.intersection(body.get("status", ())):
            return web.json_response({"kind": "Status", "message": "not today"}, status=403)
        if request.path.endswith("/events"):
            await self.held_events.wait()
            return self._post_event(body["metadata"]["name"])
        if request.method == "GET":
            name = request.path.split("/")[-1]
            answer = web.json_response(self.objects.get(name, {"metadata": {"uid": ""}}))
            self.objects.update(self.after_a_read)
            return answer
        name = request.path.split("/")[-2]
        found = self.objects.get(name, {"metadata": {}})
        asked, is_version = body["metadata"].get("resourceVersion"), found["metadata"].get("resourceVersion")
        if asked and is_version and asked != is_version:
            return web.json_response({"kind": "Status", "message": "the object has been modified"}, status=409)
        found["status"] = {**found.get("status", {}), **body.get("status", {})}
        version = int(found["metadata"].get("resourceVersion", "0")) + 1
        found["metadata"]["resourceVersion"] = str(version)
        return web.json_response(found)

    def _post_event(self, name: str) -> web.Response:
        if name in self.events:
            return web.json_response({"message": "already exists"}, status=409)
        self.events.add(name)
        return web.json_response({})

    def patches(self, name: str) -> list[Raw]:
        return [body for method, path, body in self.requests if method == "PATCH" and f"/{name}/" in path]


@pytest.fixture
async def api() -> AsyncIterator[tuple[ApiServer, Client]]:
    server = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    client = Client(f"http://127.0.0.1:{runner.addresses[0][1]}", aiohttp.ClientSession())
    yield server, client
    await client.close()
    await runner.cleanup()


def make_reconciler(vacant_seconds: float = VACANT_SECONDS) -> EventHandlers:
    cluster_cache, timings = ClusterCache(["default"]), Timings(CollectorRegistry())
    reconciler = EventHandlers(
        cluster_cache, {"default": None}, timings, statuses=StatusQueue(cluster_cache, vacant_seconds)
    )
    reconciler.mark_complete(PODS)
    reconciler.mark_complete(SERVICES)
    return reconciler


async def run(part: StatusWriter | Granter, condition: Condition[object]) -> None:
    running = asyncio.create_task(part.run())
    await until(condition)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_gate_that_meets_a_conflict_is_tried_again(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = make_reconciler()
    raw = make_raw_pod()
    raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict)
    path = "/api/v1/namespaces/shop/pods/pod-p1/status"
    server.answers[path] = [409, 409]
    reconciler.cluster_cache.note_pod(read_raw_pod(raw))
    reporter._queue.look_at_all()
    await run(reporter, lambda: len(server.patches("pod-p1")) > 2)
    assert server.patches("pod-p1")[-1]["status"]["conditions"][0]["status"] == "True"


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


async def test_a_gate_that_a_policy_shuts_on_its_way_is_told_and_opened_once_the_policy_has_ended(
    api: tuple[ApiServer, Client], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = api
    reconciler = make_reconciler()
    raw = make_raw_pod()
    raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
    pod = server.objects["pod-p1"] = Overridden(raw)
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict)
    reconciler.cluster_cache.note_pod(read_raw_pod(raw))
    reconciler.statuses.look_at_all()
    await run(reporter, lambda: len(server.patches("pod-p1")) > 1)
    assert count_lines(caplog, "gate_changed") == 1
    pod.in_force = False
    await run(reporter, lambda: pod.is_open)
    patches, asked = len(server.patches("pod-p1")), len(server.requests)
    await run(reporter, lambda: len(server.requests) > asked)
    assert len(server.patches("pod-p1")) == patches  # whose watch is late only asks


class ScriptedGates(Gates):
    """Judges gates as the test says, and counts how often it was asked."""

    gate = Gate(is_open=False, reason=Reason.REGISTERING, is_waiting=True)
    asked = 0

    def judge(self, pod: Pod, down: Mapping[str, str]) -> Gate | None:  # noqa: ARG002  one answer for all
        self.asked += 1
        return self.gate


async def test_a_gate_that_waits_opens_as_soon_as_there_is_news(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = EventHandlers(ClusterCache(["default"]), {"default": None}, Timings(CollectorRegistry()))
    gates = ScriptedGates(reconciler)
    raw = make_raw_pod()
    raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
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
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict)
    services = [parse_service(make_raw_service(name=f"s{each}", uid=f"s{each}"), {}) for each in range(MANY)]
    server.held_events.clear()
    reporter.warn(services, Reason.MASS_DELETION, "many are missing from a list")
    running = asyncio.create_task(reporter.run())
    await until(lambda: posts(server))
    raw = make_raw_pod()
    raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
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
    raws = [make_raw_pod(f"p{each}") for each in range(MANY)]
    for raw in raws:
        raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
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


class BrokenTally(EndpointCounts):
    """Raises what nobody foresaw about one GrpcService."""

    def counts(self, service: str) -> Counts:
        if service == "bad":
            raise ZeroDivisionError
        return super().counts(service)


async def test_an_unexpected_error_about_one_object_is_told_on_it_and_the_others_go_on(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    reconciler, isolation = make_reconciler(), Isolation()
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict, isolation)
    for uid in ("bad", "good"):
        server.objects[uid] = make_raw_service(uid, name=uid)
        reconciler.note_service("ADDED", server.objects[uid])
    reconciler.endpoint_counts = BrokenTally()
    reporter._queue.look_at({"bad", "good"})
    await run(reporter, lambda: server.patches("good") and server.events and isolation.counts["statuses"] > 1)
    assert not server.patches("bad")
    assert {name.partition(".")[0] for name in server.events} == {"bad"}  # two where ten minutes end just then


async def test_a_selector_that_matches_nothing_is_warned_of_once_it_has_lasted(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = make_reconciler(0.5)
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict)
    server.objects["greeter"] = make_raw_service("s1")
    reconciler.note_service("ADDED", server.objects["greeter"])
    granter = Granter(client, reconciler, reconciler.claims, lambda: True, Isolation())
    reconciler.claims.set()
    await run(granter, lambda: reconciler.cluster_cache.verdict("s1").accepted)
    reporter._queue.look_at({"s1"})
    await run(reporter, lambda: server.events)
    posted = [body for _, path, body in server.requests if path.endswith("/events")]
    assert [(each["reason"], each["type"]) for each in posted] == [("NoPods", "Warning")]
    conditions = {each["type"]: each for each in server.patches("greeter")[-1]["status"]["conditions"]}
    assert (conditions["Programmed"]["status"], conditions["Programmed"]["reason"]) == ("False", "NoPods")


async def lead_beside_nobody(server: ApiServer, client: Client, *, vacant_seconds: float = 0.2) -> StatusWriter:
    """Make a new leader, which knows of GrpcServices without Pods what the API server has."""
    reconciler = make_reconciler(vacant_seconds)
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict)
    for raw in server.objects.values():
        reconciler.note_service(None, json.loads(json.dumps(raw)))
    return reporter


async def test_what_is_reported_of_a_grpcservice_that_is_gone_reaches_no_namesake(
    api: tuple[ApiServer, Client],
) -> None:
    """Of a custom resource the API server ignores the UID that a patch names, but not the resource version."""
    server, client = api
    server.objects["greeter"] = granted(make_raw_service())
    server.objects["greeter"]["metadata"]["resourceVersion"] = "7"
    reporter = await lead_beside_nobody(server, client)
    metadata = {**server.objects["greeter"]["metadata"], "uid": "another", "resourceVersion": "9"}
    namesake = {**server.objects["greeter"], "metadata": metadata, "status": {}}
    server.objects["greeter"] = namesake
    await run(reporter, lambda: len(server.patches("greeter")) > 1)
    assert namesake["status"] == {}


async def test_a_grpcservice_that_is_replaced_between_a_conflict_and_the_next_try_keeps_its_own_status(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    server.objects["greeter"] = granted(make_raw_service())
    server.objects["greeter"]["metadata"]["resourceVersion"] = "7"
    reporter = await lead_beside_nobody(server, client)
    was = server.objects["greeter"]
    server.objects["greeter"] = {**was, "metadata": {**was["metadata"], "resourceVersion": "8"}}
    metadata = {**was["metadata"], "uid": "another", "resourceVersion": "9"}
    namesake = {**was, "metadata": metadata, "status": {}}
    server.after_a_read = {"greeter": namesake}
    await run(reporter, lambda: len(server.patches("greeter")) > 1)
    assert namesake["status"] == {}


async def test_a_status_reaches_a_grpcservice_that_somebody_changes_faster_than_a_watch_reports(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    server.objects["greeter"] = granted(make_raw_service())
    server.objects["greeter"]["metadata"]["resourceVersion"] = "7"
    reporter = await lead_beside_nobody(server, client)
    server.objects["greeter"]["metadata"]["resourceVersion"] = "9"
    await run(reporter, lambda: "conditions" in server.objects["greeter"]["status"])


def granted(raw: Raw) -> Raw:
    """Give a GrpcService as it is once its claim has been granted."""
    spec = parse_service(raw).spec
    assert spec
    claims = write_claims(dict.fromkeys(claims_of(spec, ["default"]), "2026-01-01T00:00:00.000000Z"))
    return {**raw, "status": {**raw.get("status", {}), "claims": claims}}


def programmed(server: ApiServer) -> Raw:
    conditions = server.objects["greeter"].get("status", {}).get("conditions", ())
    return next((each for each in conditions if each["type"] == "Programmed"), {})


def posts(server: ApiServer) -> list[str]:
    return [body["reason"] for _, path, body in server.requests if path.endswith("/events")]


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(("False", "NoPods", "2026-01-01T00:00:00Z"), id="the leader before had no time to tell"),
        pytest.param(("False", "RegistryUnavailable", "2026-01-01T00:00:00Z"), id="something else was wrong"),
        pytest.param(("True", "NoPods", "2026-01-01T00:00:00Z"), id="the last Pod has just gone"),
        pytest.param(("True", "Programmed", "2026-01-01T00:00:00Z"), id="it was programmed"),
    ],
)
async def test_whoever_leads_tells_of_a_selector_that_matches_nothing_once(
    api: tuple[ApiServer, Client], before: tuple[str, str, str]
) -> None:
    server, client = api
    raw = granted(make_raw_service("s1"))
    status, reason, since = before
    condition = {"type": "Programmed", "status": status, "reason": reason, "lastTransitionTime": since, "message": "m"}
    condition["observedGeneration"] = raw["status"]["observedGeneration"] = raw["metadata"]["generation"]
    raw["status"]["conditions"] = [condition]
    server.objects["greeter"] = versioned(raw, 5)
    first = await lead_beside_nobody(server, client)
    await run(first, lambda: "for a while" in programmed(server).get("message", ""))
    assert posts(server) == ["NoPods"]
    assert (programmed(server)["status"], programmed(server)["reason"]) == ("False", "NoPods")
    server.events.clear()  # they live for an hour
    written = len(server.patches("greeter"))
    server.objects["other"] = versioned(granted(make_raw_service("s2", name="other")), 5)
    second = await lead_beside_nobody(server, client)
    await run(second, lambda: server.events)
    assert {name.partition(".")[0] for name in server.events} == {"other"}
    assert posts(server) == ["NoPods", "NoPods"]
    assert len(server.patches("greeter")) == written, "nothing new is to be said"


async def test_an_event_that_was_posted_and_not_noted_is_posted_under_the_same_name(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    server.objects["greeter"] = versioned(granted(make_raw_service("s1")), 5)
    held = await lead_beside_nobody(server, client, vacant_seconds=3600)
    await run(held, lambda: programmed(server).get("reason") == "NoPods")
    before = json.loads(json.dumps(server.objects["greeter"]))
    for times in (1, 2):  # the first ends before its status is written
        server.objects["greeter"] = json.loads(json.dumps(before))
        await run(await lead_beside_nobody(server, client), lambda times=times: len(posts(server)) >= times)
    assert len(server.events) == 1


async def test_an_event_that_kubernetes_does_not_take_is_posted_again(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    server.objects["greeter"] = versioned(granted(make_raw_service("s1")), 5)
    server.answers["/apis/events.k8s.io/v1/namespaces/shop/events"] = [500]
    reporter = await lead_beside_nobody(server, client)
    await run(reporter, lambda: server.events)
    assert posts(server) == ["NoPods", "NoPods"]


async def test_a_status_follows_whether_pods_may_be_read_and_waits_where_that_may_pass(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    server.objects["greeter"] = versioned(granted(make_raw_service("s1")), 5)
    reporter = await lead_beside_nobody(server, client)
    unseen: dict[str, str | None] = {PODS: "", SERVICES: None}
    reporter._reconciler.blindness = lambda resource, _: unseen[resource]
    looking = asyncio.create_task(reporter.look_at_sight())
    other = versioned(granted(make_raw_service("s2", name="other", enable=False)), 5)
    server.objects["other"] = other
    reporter._reconciler.note_service(None, json.loads(json.dumps(other)))
    await run(reporter, lambda: server.patches("other"))
    assert server.patches("greeter") == [], "nothing is known, and nothing is said"
    unseen[PODS] = "pods may not be read"
    await run(reporter, lambda: programmed(server).get("status") == "Unknown")
    assert server.objects["greeter"]["status"]["endpoints"] is None
    assert "NoPods" not in posts(server)
    unseen[PODS] = None
    await run(reporter, lambda: "for a while" in programmed(server).get("message", ""))
    assert posts(server).count("NoPods") == 1
    looking.cancel()
    await asyncio.wait([looking])


async def test_a_status_is_looked_at_again_where_pods_were_out_of_sight_only_for_a_moment(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    server.objects["greeter"] = versioned(granted(make_raw_service("s1")), 5)
    reporter = await lead_beside_nobody(server, client, vacant_seconds=3600)
    moments = [""]  # shorter than anybody takes who looks now and then, as when the watch begins with a list again
    reporter._reconciler.blindness = lambda *_: moments.pop() if moments else None
    await run(reporter, lambda: programmed(server).get("reason") == "NoPods")
    assert not moments


async def test_it_is_told_that_there_are_no_pods_where_they_were_out_of_sight_just_when_that_was_due(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    server.objects["greeter"] = versioned(granted(make_raw_service("s1")), 5)
    reporter = await lead_beside_nobody(server, client, vacant_seconds=3600)
    await run(reporter, lambda: programmed(server) and reporter._queue.schedule.next_pass_at() == math.inf)
    reporter._vacancies._due["s1"] = 0.0
    moments = [""]
    reporter._reconciler.blindness = lambda *_: moments.pop() if moments else None
    await reporter._report_vacancies()
    assert not moments
    await run(reporter, lambda: reporter._vacancies.next_at() < math.inf)


async def test_two_replicas_post_one_event(api: tuple[ApiServer, Client]) -> None:
    server, client = api

    def is_posted(times: int) -> bool:
        return len([path for _, path, _ in server.requests if path.endswith("/events")]) >= times

    for times in (1, 2):
        reconciler = make_reconciler()
        reconciler.note_service("ADDED", make_raw_service("s1"))
        reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict)
        reporter.warn(reconciler.cluster_cache.services.values(), Reason.MASS_DELETION, f"as replica {times} has it")
        await run(reporter, lambda times=times: is_posted(times))
    assert len(server.events) == 1


async def test_who_takes_over_tells_nothing_that_is_over(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler, leads = make_reconciler(), False
    reconciler.note_service("ADDED", make_raw_service("s1"))
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: leads, dict)
    services = list(reconciler.cluster_cache.services.values())
    reporter.warn(services, Reason.MASS_DELETION, "many were missing an hour ago")
    reporter._news = {key: each._replace(at=each.at - 3600) for key, each in reporter._news.items()}
    reporter.warn(services, Reason.INTERNAL_ERROR, "just now")
    leads = True
    await run(reporter, lambda: server.events)
    await run(reporter, lambda: not reporter._news)
    posted = [body for _, path, body in server.requests if path.endswith("/events")]
    assert [each["reason"] for each in posted] == ["InternalError"]


async def test_a_gate_says_again_what_another_leader_has_overwritten(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = EventHandlers(ClusterCache(["default"]), {"default": None}, Timings(CollectorRegistry()))
    gates = ScriptedGates(reconciler)
    gates.gate = Gate(is_open=False, reason=Reason.PORT_NOT_FOUND, message="no port")
    raw, leads = make_raw_pod(), True
    raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
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


async def test_a_long_message_of_an_event_is_cut_off_at_what_kubernetes_takes(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = make_reconciler()
    reconciler.note_service("ADDED", make_raw_service("s1"))
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict)
    reporter.warn(reconciler.cluster_cache.services.values(), Reason.MASS_DELETION, "\u4e16" * 1000)
    await run(reporter, lambda: server.events)
    posted = next(body for _, path, body in server.requests if path.endswith("/events"))
    assert posted["note"] == "\u4e16" * 341  # of three bytes each: 1024 bytes are taken, not characters


async def test_a_claim_holds_the_version_that_was_judged_and_is_judged_again_after_a_conflict(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    reconciler = make_reconciler()
    granter = Granter(client, reconciler, reconciler.claims, lambda: True, Isolation())
    server.answers["/apis/grpc-etcd.dev/v1alpha1/namespaces/shop/grpcservices/greeter/status"] = [409]
    server.objects["greeter"] = make_raw_service("s1")
    server.objects["greeter"]["metadata"]["resourceVersion"] = "5"
    reconciler.note_service("ADDED", server.objects["greeter"])
    await run(granter, lambda: reconciler.cluster_cache.verdict("s1").accepted)
    assert [each["metadata"]["resourceVersion"] for each in server.patches("greeter")] == ["5", "5"]


async def test_a_claim_is_granted_to_a_grpcservice_that_somebody_changes_faster_than_a_watch_reports(
    api: tuple[ApiServer, Client],
) -> None:
    """A label each 30 ms: what its claims were judged by is the same, so another version is no reason to wait."""
    server, client = api
    reconciler = make_reconciler()
    granter = Granter(client, reconciler, reconciler.claims, lambda: True, Isolation())
    reconciler.note_service("ADDED", versioned(make_raw_service("s1"), 7))
    server.objects["greeter"] = versioned(make_raw_service("s1"), 9)
    await run(granter, lambda: reconciler.cluster_cache.verdict("s1").accepted)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"metadata": {"generation": 9}}, id="it asks for something else"),
        pytest.param({"metadata": {"uid": "s2"}}, id="it is another"),
        pytest.param(
            {"status": {"claims": [{"registry": "default", "prefix": "/a/", "since": "2026-01-01T00:00:00.000000Z"}]}},
            id="another replica has granted it something",
        ),
    ],
)
async def test_no_claim_is_granted_to_what_was_not_judged(api: tuple[ApiServer, Client], change: Raw) -> None:
    server, client = api
    reconciler = make_reconciler()
    granter = Granter(client, reconciler, reconciler.claims, lambda: True, Isolation())
    reconciler.note_service("ADDED", versioned(make_raw_service("s1"), 7))
    raw = versioned(make_raw_service("s1"), 9)
    changed = {part: {**raw.get(part, {}), **change.get(part, {})} for part in ("metadata", "spec", "status")}
    server.objects["greeter"] = {**raw, **changed}
    before = json.dumps(changed["status"])
    await run(granter, lambda: len(server.patches("greeter")) > 1)
    assert {each["metadata"]["resourceVersion"] for each in server.patches("greeter")} == {"7"}
    assert json.dumps(server.objects["greeter"]["status"]) == before


async def test_an_event_that_an_answer_has_overtaken_takes_no_claim_back(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = make_reconciler()
    granter = Granter(client, reconciler, reconciler.claims, lambda: True, Isolation())
    old = versioned(make_raw_service("s1"), 5)
    server.objects["greeter"] = versioned(make_raw_service("s1"), 5)
    reconciler.note_service("ADDED", old)
    await run(granter, lambda: reconciler.cluster_cache.verdict("s1").accepted)
    reconciler.note_service("MODIFIED", versioned(make_raw_service("s1", weight=3), 4))
    assert reconciler.cluster_cache.verdict("s1").accepted
    reconciler.note_service(None, versioned(make_raw_service("s1", weight=3), 4))  # a list always counts
    assert not reconciler.cluster_cache.verdict("s1").accepted


def versioned(raw: Raw, version: int) -> Raw:
    raw["metadata"]["resourceVersion"] = str(version)
    return raw


async def test_an_old_crd_that_keeps_no_claims_is_named(
    api: tuple[ApiServer, Client], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = api
    reconciler = make_reconciler()
    granter = Granter(client, reconciler, reconciler.claims, lambda: True, Isolation())
    forgetful: Mapping[str, Any] = make_raw_service("s1")
    server.objects["greeter"] = ForgetsStatus(forgetful)
    reconciler.note_service("ADDED", make_raw_service("s1"))
    await run(granter, lambda: "its CRD is of an older release" in caplog.text)
    assert not reconciler.cluster_cache.verdict("s1").accepted


async def test_a_grant_is_later_than_all_that_are_known_whatever_the_clock_says(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = make_reconciler()
    granter = Granter(client, reconciler, reconciler.claims, lambda: True, Isolation())
    ahead = "2999-01-01T00:00:00.000000Z"  # the clock of whoever granted this
    claims = [{"registry": "default", "prefix": "/jupiter/other/", "since": ahead}]
    reconciler.note_service("ADDED", {**make_raw_service("s2", name="other"), "status": {"claims": claims}})
    server.objects["greeter"] = make_raw_service("s1")
    reconciler.note_service("ADDED", make_raw_service("s1"))
    await run(granter, lambda: reconciler.cluster_cache.verdict("s1").accepted)
    assert all(each["since"] > ahead for each in server.patches("greeter")[0]["status"]["claims"])


async def test_who_ends_waits_for_the_claims_that_it_is_writing_and_writes_no_more(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    reconciler = make_reconciler()
    granter = Granter(client, reconciler, reconciler.claims, lambda: True, Isolation())
    server.held = asyncio.Event()
    server.objects["greeter"] = make_raw_service("s1")
    reconciler.note_service("ADDED", make_raw_service("s1"))
    running = asyncio.create_task(granter.run())
    await until(lambda: server.patches("greeter"))
    ending = asyncio.create_task(granter.end(60))
    reconciler.note_service("ADDED", make_raw_service("s2", name="other"))
    server.held.set()
    await ending
    assert reconciler.cluster_cache.verdict("s1").accepted
    running.cancel()
    await asyncio.wait([running])
    assert not server.patches("other")


class PoisonError(Exception):
    """Nobody foresees it."""


class Poisoned(EventHandlers):
    """Fails for one GrpcService, as often as the test says, where its claims are reserved, given back or released."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.failures: dict[str, int] = {}

    def check(self, step: str, uid: str) -> None:
        if uid == "s1" and self.failures.get(step, 0) > 0:
            self.failures[step] -= 1
            raise PoisonError(step)

    def begin_grant(self, uid: str, since: str) -> list[dict[str, str]] | None:
        self.check("begin", uid)
        return super().begin_grant(uid, since)

    def end_grant(self, uid: str) -> None:
        super().end_grant(uid)
        self.check("end", uid)


@pytest.mark.parametrize(("step", "failures"), [("begin", 2), ("end", 1)])
async def test_what_is_unexpected_about_one_claim_is_counted_and_tried_again_while_others_are_granted(
    api: tuple[ApiServer, Client], step: str, failures: int
) -> None:
    server, client = api
    registries = {"default": None}
    reconciler, isolation = Poisoned(ClusterCache(registries), registries, Timings(CollectorRegistry())), Isolation()
    reconciler.mark_complete(PODS)
    reconciler.mark_complete(SERVICES)
    granter = Granter(client, reconciler, reconciler.claims, lambda: True, isolation)
    reconciler.failures[step] = failures
    for uid, name in (("s1", "greeter"), ("s2", "other")):
        server.objects[name] = versioned(make_raw_service(uid, name=name), 5)
        reconciler.note_service("ADDED", server.objects[name])
    running = asyncio.create_task(granter.run())
    await until(lambda: reconciler.cluster_cache.verdict("s2").accepted or running.done())
    await until(lambda: reconciler.cluster_cache.verdict("s1").accepted or running.done())
    assert not running.done()
    assert isolation.counts["claims"] == failures
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.parametrize("status", [400, 422])
async def test_a_status_that_the_api_server_finds_fault_with_is_told_counted_and_tried_again(
    api: tuple[ApiServer, Client], status: int
) -> None:
    server, client = api
    reconciler, isolation = make_reconciler(), Isolation()
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict, isolation)
    server.objects["greeter"] = make_raw_service("s1")
    server.answers["/apis/grpc-etcd.dev/v1alpha1/namespaces/shop/grpcservices/greeter/status"] = [status]
    reconciler.note_service("ADDED", make_raw_service("s1"))
    await run(reporter, lambda: len(server.patches("greeter")) > 1)
    assert isolation.counts["statuses"] == 1
    told = [body["note"] for _, path, body in server.requests if path.endswith("/events")]
    assert any("does not take this object's status" in message for message in told)


async def test_a_status_of_an_object_that_another_has_replaced_is_no_trouble(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler, isolation = make_reconciler(), Isolation()
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict, isolation)
    server.objects["greeter"] = make_raw_service("s2")
    server.answers["/apis/grpc-etcd.dev/v1alpha1/namespaces/shop/grpcservices/greeter/status"] = [422]
    reconciler.note_service("ADDED", make_raw_service("s1"))
    await run(reporter, lambda: any(method == "GET" for method, _, _ in server.requests))
    assert server.patches("greeter")
    assert not isolation.counts


def count_lines(caplog: pytest.LogCaptureFixture, event: str) -> int:
    """Count the lines of an event that everybody sees."""
    return sum(getattr(each, "event", "") == event for each in caplog.records if each.levelno >= logging.WARNING)


@pytest.mark.parametrize(("part", "event"), [("claims", "claim_refused"), ("conditions", "status_refused")])
async def test_what_a_policy_refuses_of_many_objects_is_one_line_of_the_log(
    api: tuple[ApiServer, Client], caplog: pytest.LogCaptureFixture, part: str, event: str
) -> None:
    server, client = api
    reconciler = make_reconciler()
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict)
    granter = Granter(client, reconciler, reconciler.claims, lambda: True, Isolation())
    server.refused_parts = {part}
    note_many(server, reconciler)

    def have_all_been_refused() -> bool:
        return all(sum(part in each["status"] for each in server.patches(f"svc-{n}")) > 1 for n in range(MANY))

    granting = asyncio.create_task(granter.run())
    await run(reporter, have_all_been_refused)
    assert count_lines(caplog, event) == 1
    granting.cancel()
    await asyncio.gather(granting, return_exceptions=True)


def note_many(server: ApiServer, reconciler: EventHandlers) -> None:
    for n in range(MANY):
        server.objects[f"svc-{n}"] = versioned(make_raw_service(f"s{n}", name=f"svc-{n}"), 5)
        reconciler.note_service("ADDED", server.objects[f"svc-{n}"])


async def test_a_claim_that_the_api_server_refuses_is_told_on_its_object_and_granted_once_it_does_not(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    reconciler = make_reconciler()
    reporter = StatusWriter(client, reconciler, reconciler.statuses, lambda: True, dict)
    granter = Granter(client, reconciler, reconciler.claims, lambda: True, Isolation())
    server.objects["greeter"] = versioned(make_raw_service("s1"), 5)
    server.refused_parts = {"claims"}
    reconciler.note_service("ADDED", server.objects["greeter"])

    def is_told() -> bool:
        conditions = server.objects["greeter"].get("status", {}).get("conditions", ())
        return any("not today" in each["message"] for each in conditions if each["type"] == "Accepted")

    granting = asyncio.create_task(granter.run())
    await run(reporter, is_told)
    server.refused_parts.clear()
    await run(reporter, lambda: reconciler.cluster_cache.verdict("s1").accepted and not is_told())
    granting.cancel()
    await asyncio.gather(granting, return_exceptions=True)


class ForgetsStatus(dict[str, Any]):
    """An object whose status keeps no field, as an API server does it with fields that its CRD lacks."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, {} if key == "status" else value)

"""What Kubernetes refuses is tried again, one object's trouble is its own, and no Event is posted twice."""

import asyncio
import json
import math

import pytest

from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.status_writer import StatusWriter
from grpc_etcd_operator.core.counts import Counts, EndpointCounts
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.isolation import Isolation, Subject
from grpc_etcd_operator.kube.client import Client
from tests.integration.operator_kube.scene import (
    ApiServer,
    Raw,
    count_lines,
    granted,
    make_granter,
    make_reconciler,
    make_reporter,
    posts,
    run,
    versioned,
)
from tests.unit.operator_core.conftest import make_raw_service

MANY = 30


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
    reporter = make_reporter(client, reconciler, isolation)
    for uid in ("bad", "good"):
        server.objects[uid] = make_raw_service(uid, name=uid)
        reconciler.note_service("ADDED", server.objects[uid])
    reconciler.endpoint_counts = BrokenTally()
    reporter._queue.look_at({"bad", "good"})
    await run(reporter, lambda: server.patches("good") and server.events and isolation.counts["statuses"] > 1)
    assert not server.patches("bad")
    assert {name.partition(".")[0] for name in server.events} == {"bad"}  # two where ten minutes end just then


async def test_what_cannot_be_read_or_reported_is_told_on_its_object_once_in_a_while(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    reconciler = make_reconciler()
    isolation = Isolation(reconciler.statuses.wake.set)
    server.objects["greeter"] = make_raw_service("s1")
    reconciler.note_service("ADDED", server.objects["greeter"])
    reporter = make_reporter(client, reconciler, isolation)
    for _ in range(3):
        isolation.caught("pods", Subject("p1", "pods", "shop", "unread"), ValueError())
        isolation.caught("outcome", Subject("s1"), ValueError())
        isolation.caught("outcome", Subject("gone"), ValueError())
        await run(reporter, lambda: len(server.events) > 1 and not isolation.faults._waiting)
    posted = [body for _, path, body in server.requests if path.endswith("/events")]
    told = sorted((each["regarding"]["kind"], each["regarding"]["name"], each["reason"]) for each in posted)
    assert told == [("GrpcService", "greeter", "InternalError"), ("Pod", "unread", "InternalError")]


async def test_a_selector_that_matches_nothing_is_warned_of_once_it_has_lasted(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = make_reconciler(0.5)
    reporter = make_reporter(client, reconciler)
    server.objects["greeter"] = make_raw_service("s1")
    reconciler.note_service("ADDED", server.objects["greeter"])
    granter = make_granter(client, reconciler)
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
    reporter = make_reporter(client, reconciler)
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


@pytest.mark.parametrize("version", [7, 9])
async def test_conditions_that_others_set_outlive_ours(api: tuple[ApiServer, Client], version: int) -> None:
    server, client = api
    server.objects["greeter"] = versioned(granted(make_raw_service()), 7)
    audited = {"type": "Audited", "status": "True", "reason": "Seen", "message": "by another controller"}
    if version == 7:
        server.objects["greeter"]["status"]["conditions"] = [audited]
    reporter = await lead_beside_nobody(server, client)
    if version == 9:  # set after this replica has read it
        versioned(server.objects["greeter"], 9)["status"]["conditions"] = [audited]
    await run(reporter, lambda: programmed(server))
    assert audited in server.objects["greeter"]["status"]["conditions"]


def programmed(server: ApiServer) -> Raw:
    conditions = server.objects["greeter"].get("status", {}).get("conditions", ())
    return next((each for each in conditions if each["type"] == "Programmed"), {})


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
    unseen[PODS] = "pods cannot be read"
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
        reporter = make_reporter(client, reconciler)
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


async def test_a_long_message_of_an_event_is_cut_off_at_what_kubernetes_takes(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = make_reconciler()
    reconciler.note_service("ADDED", make_raw_service("s1"))
    reporter = make_reporter(client, reconciler)
    reporter.warn(reconciler.cluster_cache.services.values(), Reason.MASS_DELETION, "\u4e16" * 1000)
    await run(reporter, lambda: server.events)
    posted = next(body for _, path, body in server.requests if path.endswith("/events"))
    assert posted["note"] == "\u4e16" * 341  # of three bytes each: 1024 bytes are taken, not characters


@pytest.mark.parametrize("status", [400, 422])
async def test_a_status_that_the_api_server_finds_fault_with_is_told_counted_and_tried_again(
    api: tuple[ApiServer, Client], status: int
) -> None:
    server, client = api
    reconciler, isolation = make_reconciler(), Isolation()
    reporter = make_reporter(client, reconciler, isolation)
    server.objects["greeter"] = make_raw_service("s1")
    server.answers["/apis/grpc-etcd.dev/v1alpha1/namespaces/shop/grpcservices/greeter/status"] = [status]
    reconciler.note_service("ADDED", make_raw_service("s1"))
    await run(reporter, lambda: len(server.patches("greeter")) > 1)
    assert isolation.counts["statuses"] == 1
    told = [body["note"] for _, path, body in server.requests if path.endswith("/events")]
    assert any("rejects this object's status" in message for message in told)


async def test_a_status_of_an_object_that_another_has_replaced_is_no_trouble(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler, isolation = make_reconciler(), Isolation()
    reporter = make_reporter(client, reconciler, isolation)
    server.objects["greeter"] = make_raw_service("s2")
    server.answers["/apis/grpc-etcd.dev/v1alpha1/namespaces/shop/grpcservices/greeter/status"] = [422]
    reconciler.note_service("ADDED", make_raw_service("s1"))
    await run(reporter, lambda: any(method == "GET" for method, _, _ in server.requests))
    assert server.patches("greeter")
    assert not isolation.counts


@pytest.mark.parametrize(("part", "event"), [("claims", "claim_refused"), ("conditions", "status_refused")])
async def test_what_a_policy_refuses_of_many_objects_is_one_line_of_the_log(
    api: tuple[ApiServer, Client], caplog: pytest.LogCaptureFixture, part: str, event: str
) -> None:
    server, client = api
    reconciler = make_reconciler()
    reporter = make_reporter(client, reconciler)
    granter = make_granter(client, reconciler)
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

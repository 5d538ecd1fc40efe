"""Claims are granted by what was judged, and one object's trouble is its own."""

import asyncio
import copy
import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.conditions import until
from tests.integration.operator_kube.scene import (
    ApiServer,
    Raw,
    make_granter,
    make_reconciler,
    make_reporter,
    run,
    versioned,
)
from tests.unit.operator_core.conftest import make_raw_service


class ForgetsStatus(dict[str, Any]):
    """An object whose status keeps no field, as an API server does it with fields that its CRD lacks."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, {} if key == "status" else value)


async def test_a_claim_holds_the_version_that_was_judged_and_is_judged_again_after_a_conflict(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    reconciler = make_reconciler()
    granter = make_granter(client, reconciler)
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
    granter = make_granter(client, reconciler)
    reconciler.note_service("ADDED", versioned(make_raw_service("s1"), 7))
    server.objects["greeter"] = versioned(make_raw_service("s1"), 9)
    await run(granter, lambda: reconciler.cluster_cache.verdict("s1").accepted)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"metadata": {"generation": 9}, "spec": {"name": "other"}}, id="it asks for something else"),
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
    granter = make_granter(client, reconciler)
    reconciler.note_service("ADDED", versioned(make_raw_service("s1"), 7))
    raw = versioned(make_raw_service("s1"), 9)
    changed = {part: {**raw.get(part, {}), **change.get(part, {})} for part in ("metadata", "spec", "status")}
    server.objects["greeter"] = {**raw, **changed}
    before = json.dumps(changed["status"])
    await run(granter, lambda: len(server.patches("greeter")) > 1)
    # After a refusal it is read, and judged again as what it is then, as long as it is the same one.
    later = [each for each in server.patches("greeter") if each["metadata"]["resourceVersion"] != "7"]
    assert not later or raw["metadata"]["uid"] == changed["metadata"]["uid"]
    name, held = (
        changed["spec"].get("name", "greeter"),
        {each["prefix"] for each in json.loads(before).get("claims", ())},
    )
    for patch in later:
        prefixes = {claim["prefix"] for claim in patch["status"]["claims"]}
        assert prefixes == held | {f"/jupiter/{name}/", f"/grpc-etcd/policy/jupiter/{name}/"}
    if not later:
        assert json.dumps(server.objects["greeter"]["status"]) == before


async def test_a_write_that_takes_effect_long_after_its_connection_was_lost_gives_nobody_a_name_of_anothers(
    api: tuple[ApiServer, Client],
) -> None:
    """Whatever is read before that shows nothing of it; a second write of the same version shuts it out."""
    server, client = api
    reconciler, late = make_reconciler(), asyncio.Event()
    server.late = late
    mine = versioned(make_raw_service("s1"), 5)
    theirs = versioned(make_raw_service("s2", name="parked", namespace="evil"), 5)
    theirs["spec"]["name"] = "greeter"
    server.objects |= {"greeter": copy.deepcopy(mine), "parked": copy.deepcopy(theirs)}
    reconciler.note_service("ADDED", mine)
    granting = asyncio.create_task(make_granter(client, reconciler).run())
    await until(lambda: server.patches("greeter"))
    reconciler.note_service("ADDED", theirs)
    await until(lambda: any(each.accepted for each in map(reconciler.cluster_cache.verdict, ("s1", "s2"))))
    late.set()
    await server.has_been_late.wait()
    holders = [name for name, each in server.objects.items() if each.get("status", {}).get("claims")]
    assert holders == ["greeter"]
    granting.cancel()
    await asyncio.gather(granting, return_exceptions=True)


async def test_an_event_that_an_answer_has_overtaken_takes_no_claim_back(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = make_reconciler()
    granter = make_granter(client, reconciler)
    old = versioned(make_raw_service("s1"), 5)
    server.objects["greeter"] = versioned(make_raw_service("s1"), 5)
    reconciler.note_service("ADDED", old)
    await run(granter, lambda: reconciler.cluster_cache.verdict("s1").accepted)
    reconciler.note_service("MODIFIED", versioned(make_raw_service("s1", weight=3), 4))
    assert reconciler.cluster_cache.verdict("s1").accepted
    reconciler.note_service(None, versioned(make_raw_service("s1", weight=3), 4))  # a list always counts
    assert not reconciler.cluster_cache.verdict("s1").accepted


async def test_an_old_crd_that_keeps_no_claims_is_named(
    api: tuple[ApiServer, Client], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = api
    reconciler = make_reconciler()
    granter = make_granter(client, reconciler)
    server.objects["greeter"] = ForgetsStatus(make_raw_service("s1"))
    reconciler.note_service("ADDED", make_raw_service("s1"))
    await run(granter, lambda: "its CRD is from an older release" in caplog.text)
    assert not reconciler.cluster_cache.verdict("s1").accepted


async def test_a_grant_is_later_than_all_that_are_known_whatever_the_clock_says(api: tuple[ApiServer, Client]) -> None:
    server, client = api
    reconciler = make_reconciler()
    granter = make_granter(client, reconciler)
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
    granter = make_granter(client, reconciler)
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
    granter = make_granter(client, reconciler, isolation)
    reconciler.failures[step] = failures
    for uid, name in (("s1", "greeter"), ("s2", "other")):
        server.objects[name] = versioned(make_raw_service(uid, name=name), 5)
        reconciler.note_service("ADDED", server.objects[name])
    running = asyncio.create_task(granter.run())
    await until(lambda: reconciler.cluster_cache.verdict("s2").accepted or running.done())
    assert ("unexpected error" in reconciler.open_claims.judge("s1").message) == (step == "begin")  # the other stands
    await until(lambda: reconciler.cluster_cache.verdict("s1").accepted or running.done())
    assert not running.done()
    assert "unexpected error" not in reconciler.open_claims.judge("s1").message
    assert isolation.counts["claims"] == failures
    running.cancel()
    await asyncio.wait([running])


async def test_a_claim_that_the_api_server_refuses_is_told_on_its_object_and_granted_once_it_does_not(
    api: tuple[ApiServer, Client],
) -> None:
    server, client = api
    reconciler = make_reconciler()
    reporter = make_reporter(client, reconciler)
    granter = make_granter(client, reconciler)
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

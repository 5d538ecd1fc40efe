"""Services that GrpcServices name: who is judged again when one changes, and what waits for the first list."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.events import News, make_event
from grpc_etcd_operator.controller.gates import Gates
from grpc_etcd_operator.controller.named_services import NamedServices
from grpc_etcd_operator.controller.status_writer import StatusWriter
from grpc_etcd_operator.controller.targets import Targets
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.isolation import Isolation, Subject
from grpc_etcd_operator.kube.client import TARGETS, Client
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.conditions import until
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service, read_raw_pod
from tests.unit.operator_core.test_followed_services import make_target

GATE = "grpc-etcd.dev/registered"


def raw_naming(uid: str, namespace: str = "shop", ref: str = "cart") -> dict[str, Any]:
    raw = make_raw_service(uid, name=uid, namespace=namespace)
    return {**raw, "spec": {"serviceRef": {"name": ref}}}


def make_handlers() -> EventHandlers:
    handlers = EventHandlers(ClusterCache(["default"]), {"default": None}, Timings(CollectorRegistry()))
    for resource in (PODS, SERVICES):
        handlers.mark_complete(resource)
    return handlers


def unresolved(handlers: EventHandlers) -> int:
    return sum(each.spec is None for each in handlers.cluster_cache.services.values())


def gated_pod() -> Pod:
    raw = make_raw_pod(labels={"app": "a"})
    raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
    return read_raw_pod(raw)


async def test_a_service_that_a_thousand_name_holds_up_nobody_else() -> None:
    handlers = make_handlers()
    targets = Targets(handlers, Isolation())
    for number in range(1000):
        handlers.note_service("ADDED", raw_naming(f"s{number}"))
    handlers.note_service("ADDED", raw_naming("other", "elsewhere"))
    targets.note("ADDED", make_target("cart", "a"))
    assert unresolved(handlers) > 990, "the namespace rests after the first"
    target = make_target("cart", "b")
    targets.note(None, type(target)(uid="x", namespace="elsewhere", name="cart", selector=target.selector, port=9000))
    assert handlers.cluster_cache.services["other"].spec
    await until(lambda: not unresolved(handlers))
    assert not handlers.awaits_services()
    targets.note("DELETED", make_target("cart", "a"))
    targets.take_list("", frozenset({"x"}))
    await until(lambda: handlers.cluster_cache.count_refusals()[Reason.SERVICE_NOT_FOUND] == 1000)
    targets.close()


@pytest.mark.parametrize(
    ("resource", "regarding"),
    [
        (TARGETS, ("v1", "Service")),
        (PODS, ("v1", "Pod")),
        (SERVICES, ("grpc-etcd.dev/v1alpha1", "GrpcService")),
        ("", ("grpc-etcd.dev/v1alpha1", "GrpcService")),
    ],
)
def test_an_event_is_about_the_object_that_made_trouble(resource: str, regarding: tuple[str, str]) -> None:
    subject = Subject("uid", resource, "shop", "cart")
    made = make_event(News(subject, Reason.INTERNAL_ERROR, "words", 0.0), "here")["regarding"]
    assert (made["apiVersion"], made["kind"], made["name"]) == (*regarding, "cart")


async def test_what_may_pass_is_no_refusal() -> None:
    handlers = make_handlers()
    targets = Targets(handlers, Isolation())
    handlers.note_service("ADDED", raw_naming("s1"))
    targets.note(None, make_target("cart", "a"))
    for fault, left in (("", 0), ("403", 1), ("", 1), (None, 0)):
        targets.note_fault("", fault)
        await until(lambda left=left: unresolved(handlers) == left)
    targets.close()


async def test_services_are_watched_only_once_one_is_named() -> None:
    handlers = make_handlers()
    waiting = {each: asyncio.create_task(handlers.named_services.wait(each)) for each in ("", "shop", "elsewhere")}
    handlers.note_service("ADDED", make_raw_service("plain"))
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting.values())
    handlers.note_service("ADDED", raw_naming("s1"))
    await until(waiting["shop"].done)
    await until(waiting[""].done)
    assert not waiting["elsewhere"].done()
    waiting["elsewhere"].cancel()
    await asyncio.wait_for(handlers.named_services.wait("shop"), 1)


def test_a_list_that_never_comes_is_waited_for_only_for_a_while() -> None:
    handlers = make_handlers()
    handlers.note_service("ADDED", raw_naming("s1"))
    assert handlers.awaits_services()
    assert handlers.named_services.is_awaited("s1")
    impatient = NamedServices(handlers.cluster_cache.references, patience_seconds=0.0)
    assert not impatient.are_awaited()
    handlers.forget_service("s1")
    assert not handlers.awaits_services()


@pytest.mark.parametrize("is_listed", [False, True])
async def test_no_gate_opens_for_want_of_a_service(*, is_listed: bool) -> None:
    """Else a rollout would go on with Pods that nobody can register."""
    handlers, pod = make_handlers(), gated_pod()
    handlers.cluster_cache.note_pod(pod)
    handlers.note_service("ADDED", raw_naming("s1"))
    targets = Targets(handlers, Isolation())
    if is_listed:
        targets.take_list("", frozenset())
        await until(lambda: handlers.cluster_cache.verdict("s1").reason is Reason.SERVICE_NOT_FOUND)
    gate = Gates(handlers).judge(pod, {})
    assert gate
    assert not gate.is_open
    assert "shop/s1" in gate.message
    targets.note(None, make_target("cart", "b"))
    await until(lambda: not unresolved(handlers))
    opened = Gates(handlers).judge(pod, {})
    assert opened
    assert opened.is_open
    targets.close()


@pytest.mark.parametrize("app", ["a", "b", None])
async def test_no_gate_opens_for_a_mistake_beside_the_name_of_a_service(app: str | None) -> None:
    """As with a selector: keys that stand stay, and so does the rollout, until the owner has mended the spec."""
    handlers, pod, raw = make_handlers(), gated_pod(), raw_naming("s1")
    handlers.cluster_cache.note_pod(pod)
    raw["spec"]["weight"] = -1
    awaited = asyncio.create_task(handlers.named_services.wait(""))
    await asyncio.sleep(0)
    handlers.note_service("ADDED", raw)
    await asyncio.wait_for(awaited, 1)
    assert not handlers.awaits_services()
    targets = Targets(handlers, Isolation())
    if app:
        targets.note("ADDED", make_target("cart", app))
    gate = Gates(handlers).judge(pod, {})
    assert gate
    assert (gate.is_open, gate.reason) == ((True, Reason.REGISTERED) if app == "b" else (False, Reason.INVALID_SPEC))
    targets.note("DELETED", make_target("cart", app or "a"))
    await until(lambda: handlers.cluster_cache.refused_for(pod))
    assert handlers.cluster_cache.services["s1"].claimed is None
    targets.close()


async def test_no_status_is_written_while_services_are_being_listed() -> None:
    handlers = make_handlers()
    handlers.note_service("ADDED", raw_naming("s1"))
    client = Client("http://127.0.0.1:1", None)  # type: ignore[arg-type]  # nothing is asked
    writer = StatusWriter(client, handlers, handlers.statuses, lambda: True, dict)

    def conditions() -> dict[str, tuple[str, str]]:
        status = writer._make_status(handlers.cluster_cache.services["s1"])
        return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]} if status else {}

    assert conditions() == {}
    targets = Targets(handlers, Isolation())
    targets.take_list("", frozenset())
    await until(lambda: not handlers.awaits_services())
    assert conditions() == {  # and not Stalled: the Service may come yet
        "Accepted": ("False", "ServiceNotFound"),
        "Programmed": ("False", "NotAccepted"),
        "Ready": ("False", "ServiceNotFound"),
    }
    targets.note_fault("shop", "services cannot be read (403 Forbidden)")
    await until(lambda: conditions()["Accepted"] == ("Unknown", "ServicesUnreadable"))
    targets.close()

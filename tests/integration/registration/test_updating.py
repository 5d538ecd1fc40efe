"""Change a registration in its place, deregister by what one has at hand, and receive at once of what cannot work."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from grpc_etcd import BoundServer, CompoundRegistry, Endpoint, Registry
from grpc_etcd.registration.registrar import State
from grpc_etcd.registry.endpoint import Kind
from testbed.conditions import existing, free_port, until, wait_until
from testbed.etcd import EtcdServer
from testbed.proxy import TcpProxy

from .conftest import ADDRESS, ENDPOINT, KEY, SERVICE, Admin

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def native(threads: int = 2) -> grpc.Server:
    return grpc.server(futures.ThreadPoolExecutor(threads))


def stored(admin: Admin) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(admin.record(KEY).value)
    return value


def test_a_registration_is_changed_in_its_place(admin: Admin, registry: Registry) -> None:
    registration = registry.register(ENDPOINT, allow_unroutable=True)
    assert registration.wait(30)
    registration.update(weight=5, metadata={"version": "v2"}, zone="eu-1a")
    assert registration.wait(30)
    registration.update(enable=False)
    assert registration.wait(30)
    assert (stored(admin)["weight"], stored(admin)["enable"], stored(admin)["zone"]) == (5, False, "eu-1a")
    assert stored(admin)["metadata"]["version"] == "v2"
    assert registration.endpoint.weight == 5
    admin.etcd.delete(KEY)
    admin.wait_for(lambda record: record)
    assert stored(admin)["enable"] is False, "what was changed is kept"
    assert registry.unregister(ENDPOINT), "the endpoint of before is still this registration's"
    assert admin.records() == {}


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"weight": -1}, ValueError, "weight"),
        ({"wieght": 1}, TypeError, "wieght.*weight"),
        ({"address": "127.0.9.1:1"}, TypeError, "register another"),
        ({"name": "other"}, TypeError, "register another"),
        ({"kind": 2}, TypeError, "not a Kind"),
        ({"kind": Kind.GOVERNOR}, ValueError, "key"),
    ],
)
def test_a_change_that_cannot_be_made_changes_nothing(
    admin: Admin, registry: Registry, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    registration = registry.register(ENDPOINT, allow_unroutable=True)
    assert registration.wait(30)
    before = admin.etcd.get(KEY)
    with pytest.raises(error, match=text):
        registration.update(**changes)
    assert registration.wait(30)
    assert admin.etcd.get(KEY) == before
    assert registration.unregister()
    with pytest.raises(ValueError, match="deregistered"):
        registration.update(weight=5)


def test_an_older_registration_of_the_same_address_deregisters_nothing(admin: Admin, registry: Registry) -> None:
    old = registry.register(ENDPOINT, allow_unroutable=True)
    new = registry.register(Endpoint(name=SERVICE, address=ADDRESS, weight=5), allow_unroutable=True)
    assert new.wait(30)
    assert old.status.state is State.DEREGISTERED
    assert not old.wait(30), "it says so at once"
    assert old.unregister()
    with pytest.raises(KeyError, match="is not registered here: it has been deregistered or replaced"):
        registry.unregister(old)
    assert new.status.state is State.REGISTERED
    assert stored(admin)["weight"] == 5


def test_a_wildcard_is_deregistered_by_the_endpoint_that_was_given(admin: Admin) -> None:
    given = Endpoint(name=SERVICE, address="0.0.0.0:9000", metadata={"a": "b"})
    with admin.registry(pod_ip="10.7.7.7") as registry:
        assert registry.register(given).wait(30)
        assert registry.unregister(given)
        assert admin.records() == {}
        assert registry.register(given).wait(30)
        assert registry.unregister(Endpoint(name=SERVICE, address="10.7.7.7:9000"))
        assert admin.records() == {}
        with pytest.raises(KeyError) as caught:
            registry.unregister(given)
        assert str(caught.value) == "this process does not register greeter at 0.0.0.0:9000; it registers nothing"


def test_what_is_no_endpoint_is_refused_with_a_sentence(registry: Registry) -> None:
    with pytest.raises(TypeError, match=r"Endpoint\(name='greeter'"):
        registry.register("greeter")  # type: ignore[arg-type]  # a mistake, as is tested
    with pytest.raises(TypeError, match="what register"):
        registry.unregister("greeter")  # type: ignore[arg-type]  # a mistake, as is tested


def test_layouts_are_given_by_name(admin: Admin, registry: Registry) -> None:
    registration = registry.register(ENDPOINT, layouts=["kratos", "jupiter"], allow_unroutable=True)
    assert registration.wait(30)
    assert KEY in admin.records()
    assert admin.etcd.get_prefix(b"/microservices/greeter/").records
    with pytest.raises(ValueError, match="there is no layout 'kratoss'"):
        registry.register(ENDPOINT, layouts=["kratoss"], allow_unroutable=True)
    with pytest.raises(ValueError, match="layouts is empty"):
        registry.register(ENDPOINT, layouts=[], allow_unroutable=True)


def test_a_bound_server_is_changed_before_and_after_its_start(admin: Admin, registry: Registry) -> None:
    server = registry.bind(native(), SERVICE, drain_seconds=0, allow_unroutable=True)
    server.update(weight=5)
    server.add_insecure_port(ADDRESS)
    server.start()
    assert server.registrations[0].wait(30)
    assert stored(admin)["weight"] == 5
    server.update(enable=False)
    assert server.registrations[0].wait(30)
    assert stored(admin)["enable"] is False
    server.stop(0).wait()


@pytest.mark.parametrize("kind", ["sync", "aio"])
async def test_a_server_without_a_port_that_others_can_dial_does_not_start(
    registry: Registry, kind: str, tmp_path: Path
) -> None:
    def make() -> Any:
        return registry.bind(native(), SERVICE) if kind == "sync" else registry.aio.bind(aio.server(), SERVICE)

    async def start(server: Any) -> None:
        started = server.start()
        if started is not None:
            await started

    with pytest.raises(ValueError, match="add_insecure_port"):
        await start(make())
    for address in (f"unix:{tmp_path}/server.sock", f"unix-abstract:{tmp_path}"):
        server = make()
        server.add_insecure_port(address)
        with pytest.raises(ValueError, match="socket of this machine"):
            await start(server)


def test_a_unix_socket_beside_a_port_is_passed_over(admin: Admin, registry: Registry, tmp_path: Path) -> None:
    server = registry.bind(native(), SERVICE, drain_seconds=0, allow_unroutable=True)
    server.add_insecure_port(f"unix:{tmp_path}/server.sock")
    server.add_insecure_port(ADDRESS)
    server.start()
    assert server.registrations[0].wait(30)
    assert list(admin.records()) == [KEY]
    server.stop(0).wait()


async def test_a_server_of_the_other_kind_is_refused_at_once(registry: Registry) -> None:
    for each in (registry, CompoundRegistry([registry])):
        with pytest.raises(TypeError, match=r"registry\.aio\.bind"):
            each.bind(aio.server(), SERVICE)  # type: ignore[arg-type]  # a mistake, as is tested
        with pytest.raises(TypeError, match=r"registry\.bind"):
            each.aio.bind(native(), SERVICE)  # type: ignore[arg-type]  # a mistake, as is tested
        with pytest.raises(TypeError, match="takes a gRPC server"):
            each.bind("greeter", SERVICE)  # type: ignore[arg-type]  # a mistake, as is tested


@pytest.mark.parametrize(
    ("endpoint", "options", "error", "text"),
    [
        (SERVICE, {"weight": 5}, TypeError, "weight"),
        (SERVICE, {"layouts": ["kratoss"]}, ValueError, "kratoss"),
        (SERVICE, {"health": 1}, TypeError, "health"),
        (SERVICE, {"drain_seconds": -1}, ValueError, "drain_seconds"),
        ("a/b", {}, ValueError, "'/'"),
        (5, {}, TypeError, "name or an Endpoint"),
        (Endpoint(name=SERVICE, address="127.0.0.1:1"), {}, ValueError, "loopback"),
    ],
)
async def test_options_of_bind_are_checked_at_once(
    registry: Registry, endpoint: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        registry.bind(native(), endpoint, **options)
    with pytest.raises(error, match=text):
        registry.aio.bind(aio.server(), endpoint, **options)


def test_the_lease_lasts_as_long_as_the_registry_is_told(admin: Admin) -> None:
    with admin.registry(lease_ttl_seconds=7) as registry:
        assert registry.register(ENDPOINT, allow_unroutable=True).wait(30)
        assert existing(admin.etcd.time_to_live(admin.record(KEY).lease)).granted_seconds == 7


# Cancellation


async def test_a_cancelled_task_leaves_nothing_registered(admin: Admin, registry: Registry) -> None:
    inside = asyncio.Event()

    async def serve() -> None:
        async with registry.aio.registered(ENDPOINT, allow_unroutable=True) as registration:
            assert await registration.wait_async(30)
            inside.set()
            await asyncio.sleep(600)

    task = asyncio.create_task(serve())
    await inside.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # an impatient one, during the deregistration
    await asyncio.wait({task}, timeout=30)
    assert task.cancelled()
    await until(lambda: not admin.records())


async def test_a_task_that_is_cancelled_while_it_begins_leaves_nothing_registered(
    admin: Admin, registry: Registry
) -> None:
    for passes in range(4):
        task = asyncio.create_task(register_for_ever(registry))
        for _ in range(passes):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=30)
        assert task.cancelled()
    await until(lambda: not registry.registrar.registrations and not admin.records())


async def register_for_ever(registry: Registry) -> None:
    async with registry.aio.registered(ENDPOINT, allow_unroutable=True):
        await asyncio.sleep(600)


def test_a_program_whose_wait_is_cancelled_ends() -> None:
    async def main(registry: Registry) -> None:
        registration = await registry.aio.register(ENDPOINT, allow_unroutable=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await registration.wait_async()

    with Registry(f"127.0.0.1:{free_port()}", stop_seconds=0.1) as registry:
        runner = threading.Thread(target=lambda: asyncio.run(main(registry)), daemon=True)
        runner.start()
        runner.join(30)
        assert not runner.is_alive(), "asyncio.run() waits for the thread that waits"


# Health


def test_a_server_is_registered_only_while_its_health_service_says_serving(admin: Admin, registry: Registry) -> None:
    servicer = health.HealthServicer()
    server = registry.bind(native(), SERVICE, drain_seconds=0, health=True, allow_unroutable=True)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(ADDRESS)
    servicer.set("", NOT_SERVING)
    server.start()
    assert isinstance(server, BoundServer)
    for _ in range(2):
        assert not server.registrations
        servicer.set("", SERVING)
        wait_until(admin.records, "it serves")
        assert all(registration.wait(30) for registration in server.registrations)
        servicer.set("", NOT_SERVING)
        wait_until(lambda: not admin.records(), "it does not serve")
    servicer.set("", SERVING)
    wait_until(admin.records, "it serves")
    server.stop(0).wait()
    assert admin.records() == {}


async def test_an_aio_server_is_asked_for_the_service_that_was_named(admin: Admin, registry: Registry) -> None:
    servicer = health.aio.HealthServicer()
    server = registry.aio.bind(aio.server(), SERVICE, drain_seconds=0, health="orders", allow_unroutable=True)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(ADDRESS)
    await servicer.set("orders", NOT_SERVING)
    await server.start()
    await servicer.set("orders", SERVING)
    await until(admin.records)
    await servicer.enter_graceful_shutdown()
    await until(lambda: not admin.records())
    await server.stop(0)


def test_a_server_without_a_health_service_says_so(
    admin: Admin, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    server = registry.bind(native(), SERVICE, drain_seconds=0, health=True, allow_unroutable=True)
    server.add_insecure_port(ADDRESS)
    server.start()
    wait_until(lambda: "has no health service" in caplog.text, "the fault is told")
    assert admin.records() == {}
    server.stop(0).wait()


# The log


def lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], bool]:
    return lambda text: any(text in record.getMessage() for record in caplog.records if record.name == "grpc_etcd")


def test_the_log_tells_what_becomes_of_a_registration(
    admin: Admin, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "grpc_etcd")
    told = lines(caplog)
    registration = registry.register(ENDPOINT, allow_unroutable=True)
    wait_until(lambda: told(f"{SERVICE} at {ADDRESS} (jupiter): registered"), "registered")
    registration.update(weight=5)
    wait_until(lambda: told("(jupiter): changed"), "changed")
    admin.etcd.delete(KEY)
    wait_until(lambda: told("restored after"), "restored")
    other = admin.etcd.lease(600)
    admin.etcd.put(KEY, b"theirs", lease=other)
    wait_until(lambda: told("taken by another process"), "taken")
    admin.etcd.revoke(other)
    assert registration.wait(30)
    registration.unregister()
    wait_until(lambda: told("(jupiter): deregistered"), "deregistered")


def test_an_outage_is_one_warning_and_one_line_when_it_ends(etcd: EtcdServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "grpc_etcd")
    told = lines(caplog)
    with TcpProxy.start(etcd.endpoints) as proxy:
        proxy.refuse()
        with Registry(proxy.address) as registry:
            registration = registry.register(ENDPOINT, allow_unroutable=True)
            wait_until(lambda: told("Registration delayed"), "the outage is told")
            assert not registration.wait(2)
            proxy.heal()
            assert registration.wait(60)
            wait_until(lambda: told("etcd answers again"), "its end is told")
    assert sum("Registration delayed" in record.getMessage() for record in caplog.records) == 1


def test_a_layout_that_cannot_say_disabled_refuses_it_and_nothing_changes(registry: Registry) -> None:
    registration = registry.register(ENDPOINT, layouts=["jupiter", "kratos"], allow_unroutable=True)
    assert registration.wait(30)
    with pytest.raises(ValueError, match="disabled"):
        registration.update(enable=False)
    assert registration.endpoint.enable
    assert registration.wait(30)

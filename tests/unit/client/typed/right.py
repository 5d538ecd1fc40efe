"""A program that uses every public name as it should be used; `mypy --strict` has nothing to say about it."""

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import assert_type

import grpc
import grpc.aio

import grpc_etcd
import grpc_etcd.aio
from grpc_etcd import testing

POLICY = grpc_etcd.Policy(
    load_balancing=grpc_etcd.LoadBalancing(type=grpc_etcd.Balancing.RING_HASH, hash_header="x-user"),
    locality_preference=grpc_etcd.LocalityPreference(mode=grpc_etcd.ZonePreference.PREFER_ZONE),
    slow_start=grpc_etcd.SlowStart(window_seconds=30),
    retry=grpc_etcd.Retry(attempts=3, retry_on=(grpc_etcd.RetryOn.UNAVAILABLE,)),
    outlier_detection=grpc_etcd.OutlierDetection(failure_percentage=50),
    timeout_seconds=2,
    subset=100,
)
ROUTE = grpc_etcd.MethodRoute(method="/helloworld.Greeter/SayHello", groups={"": 90, "canary": 10})
ENDPOINT = grpc_etcd.Endpoint(name="greeter", address="10.0.0.1:1", weight=3, zone="a", metadata={"team": "shop"})


def channels(registry: grpc_etcd.Registry) -> None:
    options = [("grpc.max_receive_message_length", 1 << 20)]
    with registry.insecure_channel("greeter", options, grpc.Compression.Gzip) as channel:
        assert_type(channel, grpc.Channel)
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/helloworld.Greeter/SayHello")
        call(b"", timeout=1, wait_for_ready=True)
    credentials = grpc.ssl_channel_credentials()
    assert_type(registry.secure_channel("greeter", credentials), grpc.Channel)
    assert_type(registry.target("greeter"), str)
    assert_type(grpc_etcd.insecure_channel("etcd:///greeter"), grpc.Channel)
    assert_type(grpc_etcd.secure_channel("etcd:///greeter", credentials), grpc.Channel)
    assert_type(grpc_etcd.default_registry(), grpc_etcd.Registry)
    assert_type(grpc_etcd.aio.insecure_channel("etcd:///greeter"), grpc.aio.Channel)
    assert_type(grpc_etcd.aio.secure_channel("etcd:///greeter", credentials), grpc.aio.Channel)


def reading(registry: grpc_etcd.Registry) -> None:
    registry.configure("greeter", POLICY, routes=[ROUTE], strict_removal=True)
    assert_type(registry.endpoints("greeter"), grpc_etcd.Snapshot)
    snapshot = registry.wait_for_endpoints("greeter", timeout_seconds=10, at_least=2)
    assert_type(snapshot.revision, int)
    for endpoint in snapshot.endpoints:
        assert_type(endpoint, grpc_etcd.Endpoint)
        assert_type(endpoint.address, str)
    assert_type(registry.watch("greeter"), Iterator[grpc_etcd.Snapshot])
    assert_type(registry.watch_services("greeter"), Iterator[grpc_etcd.Snapshot])
    assert_type(registry.read_endpoints("greeter"), tuple[grpc_etcd.Endpoint, ...])
    assert_type(registry.list_services("greeter"), tuple[grpc_etcd.Endpoint, ...])
    assert_type(registry.services(), Mapping[str, tuple[grpc_etcd.Endpoint, ...]])
    with registry.watch_all() as watch:
        assert_type(watch, grpc_etcd.ServicesWatch)
        for services in watch:
            assert_type(services, Mapping[str, tuple[grpc_etcd.Endpoint, ...]])
    with registry.on_change("greeter", lambda changed: changed.endpoints) as subscription:
        assert_type(subscription, grpc_etcd.ChangeSubscription)
    off = grpc_etcd.Policy(retry=grpc_etcd.Retry.OFF, outlier_detection=grpc_etcd.OutlierDetection.OFF)
    registry.configure("greeter", off)
    assert_type(registry.select(metadata={"version": "v2"}), grpc_etcd.SelectedRegistry)
    stats = registry.stats()
    assert_type(stats, grpc_etcd.RegistryStats)
    assert_type(stats["greeter"], grpc_etcd.ServiceStats)
    assert_type(stats["greeter"].connected, bool)
    for metric in stats.metrics():
        assert_type(metric, grpc_etcd.Metric)


def registering(registry: grpc_etcd.Registry, server: grpc.Server) -> None:
    registration = registry.register(ENDPOINT, metrics_address="10.0.0.1:9090", allow_unroutable=True)
    assert_type(registration, grpc_etcd.Registration)
    assert_type(registration.wait(1), bool)
    assert_type(registration.status, grpc_etcd.Status)
    assert_type(registration.status.state, grpc_etcd.State)
    assert_type(registration.status.fault, grpc_etcd.EtcdError | None)
    assert_type(registry.unregister(registration), bool)
    with registry.registered(ENDPOINT) as registered:
        assert_type(registered, grpc_etcd.Registration)
    bound: grpc_etcd.BoundServer = registry.bind(server, "greeter", drain_seconds=1)
    bound.start()
    grpc_etcd.stop_on_sigterm(bound, 5)


def several(here: grpc_etcd.Registry, there: grpc_etcd.Registry) -> None:
    with grpc_etcd.CompoundRegistry([here, there], zone="a") as both:
        assert_type(both.insecure_channel("greeter"), grpc.Channel)
        assert_type(both.list_services("greeter"), tuple[grpc_etcd.Endpoint, ...])
        registrations = both.register(ENDPOINT)
        assert_type(registrations, tuple[grpc_etcd.Registration, ...])
        assert_type(both.unregister(registrations), tuple[bool, ...])
        grpc_etcd.serve("127.0.0.1:0", both).stop()


async def on_asyncio(registry: grpc_etcd.Registry, both: grpc_etcd.CompoundRegistry) -> None:
    async with registry.aio.insecure_channel("greeter") as channel:
        assert_type(channel, grpc.aio.Channel)
        await channel.channel_ready()
    assert_type(registry.aio.secure_channel("greeter", grpc.ssl_channel_credentials()), grpc.aio.Channel)
    assert_type(await registry.aio.endpoints("greeter"), grpc_etcd.Snapshot)
    assert_type(await registry.aio.wait_for_endpoints("greeter", 10, at_least=1), grpc_etcd.Snapshot)
    assert_type(await registry.aio.list_services("greeter"), tuple[grpc_etcd.Endpoint, ...])
    assert_type(await registry.aio.services(), Mapping[str, tuple[grpc_etcd.Endpoint, ...]])
    async with registry.aio as followed:
        followed.configure("greeter", POLICY)
        assert_type(followed.stats(), grpc_etcd.RegistryStats)
    await registry.aio.close()
    async for snapshot in registry.aio.watch("greeter"):
        assert_type(snapshot, grpc_etcd.Snapshot)
    registration = await registry.aio.register(ENDPOINT)
    assert_type(registration, grpc_etcd.Registration)
    assert_type(await registry.aio.unregister(registration), bool)
    async with registry.aio.registered(ENDPOINT) as registered:
        assert_type(registered, grpc_etcd.Registration)
    async with both.aio.registered(ENDPOINT) as registrations:
        assert_type(registrations, tuple[grpc_etcd.Registration, ...])
    server: grpc_etcd.BoundAioServer = registry.aio.bind(grpc.aio.server(), "greeter")
    await server.start()
    grpc_etcd.stop_aio_on_sigterm(server, 5)


def options(layout: grpc_etcd.Layout) -> grpc_etcd.Registry:
    more: grpc_etcd.RegistryOptions = {"user": "app", "password_file": "secret", "ca": "ca.crt"}
    where: grpc_etcd.RegisterOptions = {"allow_unroutable": True}
    registry = grpc_etcd.Registry("etcd:2379", **more)
    registry.register(ENDPOINT, **where)
    return grpc_etcd.Registry(
        "etcd:2379", tls=grpc_etcd.Tls(), layouts=layout, etcd_timeout_seconds=2, static={"greeter": "localhost:1"}
    )


def without_etcd() -> None:
    grpc_etcd.StaticRegistry({"greeter": "localhost:50051", "users": ["a:1", "b:1"]}, zone="a").close()
    memory = testing.MemoryEtcd()
    with testing.MemoryRegistry(memory, zone="a") as registry, testing.as_default(registry):
        registry.set_endpoints("greeter", "127.0.0.1:1", ENDPOINT)
        with registry.outage(loses_data=True):
            assert_type(registry.insecure_channel("greeter"), grpc.Channel)


def test_that_uses_the_fixture(grpc_etcd_registry: testing.MemoryRegistry) -> None:
    grpc_etcd_registry.set_endpoints("greeter")


def main() -> None:
    try:
        registry = grpc_etcd.Registry.from_environ(zone="a")
    except grpc_etcd.SettingsError as error:
        assert_type(error.faults, tuple[str, ...])
        raise
    with registry, grpc_etcd.Registry(["etcd-0:2379", "etcd-1:2379"], prefix="p", layouts=["kratos"]) as other:
        channels(registry)
        reading(registry)
        registering(registry, grpc.server(ThreadPoolExecutor(1)))
        several(registry, other)
        asyncio.run(on_asyncio(registry, grpc_etcd.CompoundRegistry([registry, other])))
    registry.close()

"""What monitoring systems read of a registry is what is: followed services, and what the process has registered."""

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from prometheus_client import CollectorRegistry

from grpc_etcd import Endpoint
from grpc_etcd.metrics.opentelemetry import instrument
from grpc_etcd.metrics.prometheus import RegistryCollector
from testbed.conditions import wait_until

from .conftest import SERVICE, World

PREFIX = "grpc_etcd_client_"


@pytest.fixture
def scraped() -> CollectorRegistry:
    return CollectorRegistry()


def test_prometheus_reads_followed_services_and_registrations(world: World, scraped: CollectorRegistry) -> None:
    world.put("10.0.0.1:1")
    registry = world.registry()

    def value(name: str, service: str = SERVICE) -> float | None:
        return scraped.get_sample_value(PREFIX + name, {"registry": registry.name, "service": service})

    scraped.register(RegistryCollector(registry))
    assert value("endpoints") is None, "nothing is followed, and nothing is made for the sake of metrics"
    registry.wait_for_endpoints(SERVICE, 30)
    assert (value("endpoints"), value("callable_endpoints"), value("connected"), value("stale")) == (1, 1, 1, 0)
    updates = value("updates_total")
    assert updates is not None
    assert updates >= 0
    with registry.registered(Endpoint(name="mine", address="10.0.0.9:1")) as registration:
        assert value("registrations", "mine") == 1
        registration.wait(30)
        assert value("registered", "mine") == 1
    assert value("registrations", "mine") in {0, None}


def test_registries_are_told_apart(world: World, scraped: CollectorRegistry) -> None:
    world.put("10.0.0.1:1")
    here, there = world.registry(name="here"), world.registry(name="there")
    scraped.register(RegistryCollector(here, there))
    here.wait_for_endpoints(SERVICE, 30)
    there.wait_for_endpoints(SERVICE, 30)
    for name in ("here", "there"):
        assert scraped.get_sample_value(PREFIX + "endpoints", {"registry": name, "service": SERVICE}) == 1


def test_opentelemetry_reads_the_same(world: World) -> None:
    world.put("10.0.0.1:1")
    registry, reader = world.registry(), InMemoryMetricReader()
    provider = MeterProvider([reader])
    instrument(provider.get_meter("test"), registry)

    def values() -> dict[str, float]:
        read = reader.get_metrics_data()
        scopes = [scope for resource in (read.resource_metrics if read else ()) for scope in resource.scope_metrics]
        points = [
            (metric.name, point) for scope in scopes for metric in scope.metrics for point in metric.data.data_points
        ]
        found = {}
        for name, point in points:
            attributes = dict(point.attributes or {})
            assert isinstance(point, NumberDataPoint)
            assert attributes["grpc.etcd_client.registry"] == registry.name
            found[f"{name} {attributes['grpc.etcd_client.service']}"] = float(point.value)
        return found

    registry.wait_for_endpoints(SERVICE, 30)
    assert values()[f"grpc.etcd_client.callable_endpoints {SERVICE}"] == 1
    world.put("10.0.0.2:1")
    wait_until(lambda: values()[f"grpc.etcd_client.endpoints {SERVICE}"] == 2, "the second endpoint")
    provider.shutdown()

"""What monitoring systems read of a registry is what is: followed services, and what the process has registered."""

import subprocess
import sys

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


def read_values(reader: InMemoryMetricReader) -> dict[tuple[str, str, str], float]:
    """Return what a meter exports, by metric, registry and service."""
    read = reader.get_metrics_data()
    scopes = [scope for resource in (read.resource_metrics if read else ()) for scope in resource.scope_metrics]
    found = {}
    for metric in (metric for scope in scopes for metric in scope.metrics):
        for point in metric.data.data_points:
            assert isinstance(point, NumberDataPoint)
            attributes = {name: str(value) for name, value in (point.attributes or {}).items()}
            key = attributes["grpc.etcd_client.registry"], attributes["grpc.etcd_client.service"]
            found[metric.name, *key] = float(point.value)
    return found


def test_opentelemetry_reads_the_same(world: World) -> None:
    world.put("10.0.0.1:1")
    registry, reader = world.registry(), InMemoryMetricReader()
    provider = MeterProvider([reader])
    instrument(provider.get_meter("test"), registry)
    registry.wait_for_endpoints(SERVICE, 30)
    assert read_values(reader)["grpc.etcd_client.callable_endpoints", registry.name, SERVICE] == 1
    world.put("10.0.0.2:1")
    wait_until(
        lambda: read_values(reader)["grpc.etcd_client.endpoints", registry.name, SERVICE] == 2, "the second endpoint"
    )
    provider.shutdown()


def read_registries(reader: InMemoryMetricReader) -> list[str]:
    return sorted(registry for name, registry, _ in read_values(reader) if name == "grpc.etcd_client.endpoints")


def test_opentelemetry_reads_registries_that_are_added_to_a_meter(world: World) -> None:
    """The SDK drops a second instrument of a name without a word, and all that it would have observed."""
    world.put("10.0.0.1:1")
    reader, other_reader = InMemoryMetricReader(), InMemoryMetricReader()
    provider, other = MeterProvider([reader]), MeterProvider([other_reader])
    registries = [world.registry(name=f"registry-{number}") for number in range(3)]
    for registry in registries:
        registry.wait_for_endpoints(SERVICE, 30)
    for registry in registries[:2]:
        instrument(provider.get_meter("test"), registry)
    instrument(other.get_meter("test"), registries[2])
    assert read_registries(reader) == ["registry-0", "registry-1"]
    assert read_registries(other_reader) == ["registry-2"], "another meter has registries of its own"
    registries[0].close()
    instrument(provider.get_meter("test"), registries[2])
    assert read_registries(reader) == ["registry-1", "registry-2"]
    for each in (provider, other):
        each.shutdown()


PROGRAM = """
import sys
from opentelemetry.metrics import get_meter, set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from grpc_etcd.metrics.opentelemetry import instrument
from grpc_etcd.testing import MemoryRegistry

registries = [MemoryRegistry(name=name) for name in ("first", "second", "third")]
for registry in registries:
    registry.set_endpoints("greeter", "127.0.0.1:1")
    registry.wait_for_endpoints("greeter", 30)
instrument(get_meter("app"), registries[0])
instrument(get_meter("app"), registries[1])
reader = InMemoryMetricReader()
set_meter_provider(MeterProvider([reader]))
instrument(get_meter("app"), registries[2])
metrics = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
found = next(metric for metric in metrics if metric.name == "grpc.etcd_client.endpoints").data.data_points
print(*sorted(point.attributes["grpc.etcd_client.registry"] for point in found))
"""


def test_opentelemetry_reads_registries_of_before_the_provider_is_set() -> None:
    """Each meter is another object until then, and they become one."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["first", "second", "third"], done.stderr

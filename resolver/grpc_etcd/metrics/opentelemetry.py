"""The metrics of registries for OpenTelemetry. Needs the package opentelemetry-api.

    instrument(get_meter("app"), registry)

Names follow those of gRPC's own metrics, such as `grpc.etcd_client.endpoints`, and so do the attributes
`grpc.etcd_client.registry` and `grpc.etcd_client.service`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Protocol

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from grpc_etcd.client.stats import Metric, RegistryStats

PREFIX, OURS = "grpc_etcd_client_", "grpc.etcd_client."


class HasStats(Protocol):
    """A registry of any kind."""

    def stats(self) -> RegistryStats:
        """Return its state."""


def instrument(meter: Meter, *registries: HasStats) -> None:
    """Let a meter observe the metrics of some registries for as long as it lives."""
    for metric in RegistryStats("", ()).metrics():
        make = meter.create_observable_counter if metric.is_counter else meter.create_observable_gauge
        name = OURS + metric.name.removeprefix(PREFIX)
        make(name, callbacks=[partial(_observe, metric.name, registries)], description=metric.meaning)


def _observe(name: str, registries: tuple[HasStats, ...], _: CallbackOptions) -> Iterator[Observation]:
    for registry in registries:
        stats = registry.stats()
        for service, value in _find(name, stats).samples.items():
            yield Observation(value, {f"{OURS}registry": stats.name, f"{OURS}service": service})


def _find(name: str, stats: RegistryStats) -> Metric:
    return next(metric for metric in stats.metrics() if metric.name == name)

"""The metrics of registries for the Prometheus client. Needs the package prometheus-client.

REGISTRY.register(RegistryCollector(registry))
"""

from collections.abc import Iterator
from typing import Protocol

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: install it with pip install 'grpc-etcd[prometheus]'", name=error.name, path=error.path
    ) from error

from grpc_etcd.client.stats import RegistryStats


class HasStats(Protocol):
    """A registry of any kind."""

    def stats(self) -> RegistryStats:
        """Return its state."""


class RegistryCollector(Collector):
    """Reads the metrics of some registries at each scrape; labels: registry (its name) and service."""

    def __init__(self, *registries: HasStats) -> None:
        self._registries = registries

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Return the metrics without samples."""
        yield from _read(RegistryStats("", ()))

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Return the metrics as they are now."""
        yield from _read(*(registry.stats() for registry in self._registries))


def _read(*all_stats: RegistryStats) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    for metrics in zip(*(stats.metrics() for stats in all_stats), strict=True):
        first = metrics[0]
        kind = CounterMetricFamily if first.is_counter else GaugeMetricFamily
        family = kind(first.name, first.meaning, labels=["registry", "service"])
        for stats, metric in zip(all_stats, metrics, strict=True):
            for service, value in metric.samples.items():
                family.add_metric([stats.name, service], value)
        yield family

"""The metrics of registries for OpenTelemetry. Needs the package opentelemetry-api.

    instrument(get_meter("app"), registry)

Names follow those of gRPC's own metrics, such as `grpc.etcd_client.endpoints`, and so do the attributes
`grpc.etcd_client.registry` and `grpc.etcd_client.service`.
"""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

try:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: install it with pip install 'grpc-etcd[opentelemetry]'", name=error.name, path=error.path
    ) from error

from grpc_etcd.client.stats import Metric, RegistryStats

PREFIX, OURS = "grpc_etcd_client_", "grpc.etcd_client."
Scope = tuple[str, str, str]


class HasStats(Protocol):
    """A registry of any kind."""

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""

    def stats(self) -> RegistryStats:
        """Return its state."""


# The registries of each meter. The SDK keeps the first instrument of a name, and drops the callbacks of a second one
# without a word; so a meter gets the instruments once, and they observe whatever is in its list.
_of_meters: WeakKeyDictionary[Meter, list[HasStats]] = WeakKeyDictionary()
_of_scopes: dict[Scope, list[HasStats]] = {}
_lock = threading.Lock()


def instrument(meter: Meter, *registries: HasStats) -> None:
    """Let a meter observe the metrics of some registries, besides those that it observes already, until they close."""
    with _lock:
        observed = _find_observed(meter)
        is_first = not observed
        observed[:] = dict.fromkeys([*(each for each in observed if not each.closed), *registries])
    if is_first:
        _make_instruments(meter, observed)


def _find_observed(meter: Meter) -> list[HasStats]:
    """Return the list of a meter's registries.

    Meters of the global provider are one for each scope, also those that `get_meter` gives before that provider is set:
    each of these is another object, and all become the same meter then.
    """
    scope = meter.name, meter.version or "", meter.schema_url or ""
    is_of_api = type(meter).__module__.startswith("opentelemetry.metrics")
    if is_of_api or get_meter(scope[0], scope[1], schema_url=meter.schema_url) is meter:
        return _of_scopes.setdefault(scope, [])
    return _of_meters.setdefault(meter, [])


def _make_instruments(meter: Meter, observed: list[HasStats]) -> None:
    for metric in RegistryStats("", ()).metrics():
        make = meter.create_observable_counter if metric.is_counter else meter.create_observable_gauge
        name = OURS + metric.name.removeprefix(PREFIX)
        make(name, callbacks=[partial(_observe, metric.name, observed)], description=metric.meaning)


def _observe(name: str, registries: list[HasStats], _: CallbackOptions) -> Iterator[Observation]:
    for registry in tuple(registries):
        stats = registry.stats()
        for service, value in _find(name, stats).samples.items():
            yield Observation(value, {f"{OURS}registry": stats.name, f"{OURS}service": service})


def _find(name: str, stats: RegistryStats) -> Metric:
    return next(metric for metric in stats.metrics() if metric.name == name)

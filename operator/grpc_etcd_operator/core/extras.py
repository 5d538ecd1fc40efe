"""Records beside the endpoints that Jupiter's own world knows: weighted routes and Prometheus targets. Pure."""

from collections.abc import Mapping

from grpc_etcd.registry import gojson
from grpc_etcd.registry.jupiter import Jupiter
from grpc_etcd.registry.layout import KeyValue, Layout
from grpc_etcd_operator.core.services import Route


def metric_target(name: str, host: str, address: str) -> KeyValue:
    """Give the record that Jupiter's registerMetric puts (pkg/registry/etcdv3/registry.go, v0.2.7)."""
    return KeyValue(f"/prometheus/job/{name}/{host}/{address}".encode(), address.encode())


def route_record(layout: Layout, service: str, scheme: str, route: Route) -> KeyValue | None:
    """Write a route as Jupiter's RouteConfig (pkg/registry/endpoint.go, v0.2.7); None for layouts without routes."""
    if not isinstance(layout, Jupiter):
        return None
    q = gojson.quoted
    upstream = f'"nodes":{_weights(route.addresses)},"groups":{_weights(route.groups)}'
    value = (
        f'{{"id":{q(route.id)},"scheme":{q(scheme)},"host":"","deployment":"","uri":{q(route.method)},'
        f'"upstream":{{{upstream}}}}}'
    )
    key = layout.prefix(service) + f"configurators/{scheme}:///routes/{route.id}".encode()
    return KeyValue(key, gojson.to_bytes(value))


def _weights(weights: Mapping[str, int]) -> str:
    if not weights:
        return "null"
    return "{" + ",".join(f"{gojson.quoted(name)}:{weights[name]}" for name in sorted(weights)) + "}"

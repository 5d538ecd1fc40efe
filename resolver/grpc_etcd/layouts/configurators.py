"""What Jupiter keeps beside its endpoints: routes and settings (configurators), and targets for Prometheus.

Key `/{prefix}/{name}/configurators/{scheme}://{host}/{routes|providers|consumers}/{id}` (v0.2.7, pkg/registry/etcdv3/
registry.go, updateAddrList), values the JSON of the structs in pkg/registry/endpoint.go. Jupiter parses them and obeys
none; our client obeys routes. As in Jupiter the key decides on id, scheme and host. Its administration page, Juno,
writes keys without such a path, which no reader takes. A target, `/prometheus/job/{name}/{host}/{address}`, holds the
address as plain text; v0.8.0 and later leave the last part away, and juno-agent splits the key at its slashes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from grpc_etcd.layouts import gojson
from grpc_etcd.layouts.gourl import Url, parse_url
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.endpoint import EMPTY, address_fault, name_fault, scheme_fault
from grpc_etcd.registry.layout import KeyValue, Layout, Rejected

METRIC_PREFIX = b"/prometheus/job/"

_ROUTE_FIELDS = gojson.fold_names("id", "scheme", "host", "deployment", "uri", "upstream")
_UPSTREAM_FIELDS = gojson.fold_names("nodes", "groups")
_PROVIDER_FIELDS = gojson.fold_names("id", "scheme", "host", "region", "zone", "deployment", "metadata", "enable")
_CONSUMER_FIELDS = gojson.fold_names("id", "scheme", "host")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteConfig:
    """How calls of one method (`uri`, such as `/shop.Greeter/SayHello`) are shared by weight.

    `nodes` weighs addresses, `groups` groups of endpoints; an endpoint that both name has its address' weight.
    """

    id: str
    scheme: str = "grpc"
    host: str = ""
    deployment: str = ""
    uri: str = ""
    nodes: Mapping[str, int] | None = field(default=None, hash=False)
    groups: Mapping[str, int] | None = field(default=None, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    """What an administrator sets for one provider, or for all where `host` is empty."""

    id: str
    scheme: str = "grpc"
    host: str = ""
    region: str = ""
    zone: str = ""
    deployment: str = ""
    metadata: Mapping[str, str] | None = field(default=None, hash=False)
    enable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerConfig:
    """What an administrator sets for one consumer; the struct holds nothing more."""

    id: str
    scheme: str = "grpc"
    host: str = ""


Configurator = RouteConfig | ProviderConfig | ConsumerConfig

_FOLDERS: Mapping[type[Configurator], str] = {
    RouteConfig: "routes",
    ProviderConfig: "providers",
    ConsumerConfig: "consumers",
}


def configurators_prefix(prefix: str, service: str) -> bytes:
    """Return the prefix of all configurators of a service; `prefix` is that of the layout `jupiter`."""
    return f"/{prefix.strip('/')}/{service}/configurators/".encode(errors="replace")


def encode_configurator(prefix: str, service: str, configurator: Configurator) -> KeyValue | Rejected:
    """Write a configurator as Jupiter's structs stand."""
    if fault := _fault(service, configurator):
        return Rejected(fault)
    url = f"{configurator.scheme}://{configurator.host}/{_FOLDERS[type(configurator)]}/{configurator.id}"
    return KeyValue(configurators_prefix(prefix, service) + url.encode(), gojson.to_bytes(_written(configurator)))


class Route(Protocol):
    """What a route needs to be written, whoever holds it."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def groups(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def addresses(self) -> Mapping[str, int]: ...  # noqa: D102


def route_record(layout: Layout, service: str, scheme: str, route: Route) -> KeyValue | None:
    """Write a route for a layout that has configurators; None for the others. A bad id is a ValueError."""
    if not isinstance(layout, Jupiter):
        return None
    groups, nodes = dict(route.groups) or None, dict(route.addresses) or None
    config = RouteConfig(id=route.id, scheme=scheme, uri=route.method, groups=groups, nodes=nodes)
    record = encode_configurator(layout.prefix_name, service, config)
    if isinstance(record, Rejected):
        raise ValueError(record.reason)  # noqa: TRY004  # the value is bad, not its type
    return record


def decode_configurator(prefix: str, service: str, key: bytes, value: bytes) -> Configurator | Rejected | None:
    """Read a configurator; None means that the key is none that Jupiter reads."""
    start = configurators_prefix(prefix, service)
    if not key.startswith(start):
        return None
    url = parse_url(key[len(start) :].decode(errors="surrogateescape"))
    if url is None:
        return Rejected(f"the key {key!r} contains no URL")
    _, folder, identity = ([*url.path.split("/", 2), "", ""])[:3]
    try:
        return _read(folder, identity, url, value)
    except gojson.GoJsonError as error:
        return Rejected(f"the value is not Jupiter's: {error}")


def _fault(service: str, configurator: Configurator) -> str | None:
    if fault := name_fault(service) or scheme_fault(configurator.scheme) or name_fault(configurator.id):
        return fault
    if any(character in configurator.id for character in "%?#"):
        return f"the id {configurator.id!r} contains a character that has a meaning in URLs"
    return address_fault(configurator.host) if configurator.host else None


def _written(configurator: Configurator) -> str:
    q = gojson.quoted
    head = f'"id":{q(configurator.id)},"scheme":{q(configurator.scheme)},"host":{q(configurator.host)}'
    match configurator:
        case RouteConfig():
            upstream = f'{{"nodes":{_weights(configurator.nodes)},"groups":{_weights(configurator.groups)}}}'
            tail = f',"deployment":{q(configurator.deployment)},"uri":{q(configurator.uri)},"upstream":{upstream}'
        case ProviderConfig():
            tail = (
                f',"region":{q(configurator.region)},"zone":{q(configurator.zone)}'
                f',"deployment":{q(configurator.deployment)},"metadata":{gojson.quoted_map(configurator.metadata)}'
                f',"enable":{gojson.boolean(configurator.enable)}'
            )
        case ConsumerConfig():
            tail = ""
    return f"{{{head}{tail}}}"


def _weights(weights: Mapping[str, int] | None) -> str:
    if weights is None:
        return "null"
    return "{" + ",".join(f"{gojson.quoted(name)}:{weights[name]:d}" for name in sorted(weights)) + "}"


def _read(folder: str, identity: str, url: Url, value: bytes) -> Configurator | None:
    match folder:
        case "routes":
            return _read_route(identity, url, gojson.parse_struct(value, _ROUTE_FIELDS))
        case "providers":
            return _read_provider(identity, url, gojson.parse_struct(value, _PROVIDER_FIELDS))
        case "consumers":
            gojson.parse_struct(value, _CONSUMER_FIELDS)
            return ConsumerConfig(id=identity, scheme=url.scheme, host=url.host)
    return None


def _read_route(identity: str, url: Url, struct: Mapping[str, Any]) -> RouteConfig:
    upstream = gojson.as_struct(struct.get("upstream"), _UPSTREAM_FIELDS)
    return RouteConfig(
        id=identity,
        scheme=url.scheme,
        host=url.host,
        deployment=gojson.text(struct, "deployment"),
        uri=gojson.text(struct, "uri"),
        nodes=gojson.integer_map(upstream, "nodes"),
        groups=gojson.integer_map(upstream, "groups"),
    )


def _read_provider(identity: str, url: Url, struct: Mapping[str, Any]) -> ProviderConfig:
    return ProviderConfig(
        id=identity,
        scheme=url.scheme,
        host=url.host,
        region=gojson.text(struct, "region"),
        zone=gojson.text(struct, "zone"),
        deployment=gojson.text(struct, "deployment"),
        metadata=MappingProxyType(gojson.text_map(struct, "metadata") or EMPTY),
        enable=gojson.flag(struct, "enable"),
    )


def metric_target(name: str, host: str, address: str) -> KeyValue:
    """Write an address that Prometheus is to scrape as Jupiter's `registerMetric` does up to v0.7.2; `host` is a Pod's.

    What cannot stand in such a key is a ValueError.
    """
    if fault := name_fault(name) or name_fault(host) or address_fault(address):
        raise ValueError(fault)
    return KeyValue(METRIC_PREFIX + f"{name}/{host}/{address}".encode(), address.encode())

"""Layout `jupiter`: what Jupiter v0.2.0 to v0.7.0 write and read (github.com/douyu/jupiter, read and run at v0.2.7).

Key `/{prefix}/{name}/{kind}/{scheme}://{address}` (pkg/registry/registry.go, GetServiceKey), value the JSON of
`server.ServiceInfo` (pkg/server/server.go): 14 fields in struct order, none left out. The default prefix is `jupiter`;
v0.7.0 and most of the installed base say `wsd-reg`. Readers drop the newest state when events come close together
(queues of 100 and 10 in pkg/client/etcdv3/watch.go and etcdv3/registry.go), hence pace and flush key; they re-dial
every backend at each event, hence: never rewrite an unchanged key. They do not look at `weight`, and at `enable` only
from v0.2.9 on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from grpc_etcd.layouts import gojson
from grpc_etcd.layouts.gourl import parse_url
from grpc_etcd.registry.endpoint import (
    EMPTY,
    Endpoint,
    Kind,
    ServiceDescription,
    address_fault,
    name_fault,
    scheme_fault,
)
from grpc_etcd.registry.frozen import FrozenDict
from grpc_etcd.registry.layout import KeyValue, Rejected, WriteLimits

SEGMENTS = {Kind.UNKNOWN: "unknown", Kind.PROVIDER: "providers", Kind.GOVERNOR: "governors", Kind.CONSUMER: "consumers"}
KINDS = {segment: kind for kind, segment in SEGMENTS.items()}
LIMITS = WriteLimits(keys_per_transaction=8, keys_per_second=500, flush_key=True)
SETTLED_VALUE = b"settled"  # plain text: readers that expect JSON skip it

# Juno takes a key for one of Jupiter's only when this is not empty (api/apiv1/provider/provider.go, isJupiterKey).
VERSION_FIELD = "jupiterVersion"
VERSION = "0.2.0"  # the constant that v0.2.7 writes (pkg/pkg.go)

_FIELDS = gojson.fold_names(
    "name",
    "appId",
    "scheme",
    "address",
    "weight",
    "enable",
    "healthy",
    "metadata",
    "region",
    "zone",
    "kind",
    "deployment",
    "group",
    "services",
)
_SERVICE_FIELDS = gojson.fold_names("namespace", "name", "labels", "methods")


@dataclass(frozen=True, slots=True)
class Jupiter:
    """The layout of Jupiter 0.2.5 to 0.7.0 under one prefix, given without slashes at its ends."""

    prefix_name: str = "jupiter"
    name: ClassVar[str] = "jupiter"
    limits: ClassVar[WriteLimits] = LIMITS
    can_disable: ClassVar[bool] = True

    def prefix(self, service: str) -> bytes:
        """Return the prefix of all of a service's keys: providers, governors, consumers and configurators."""
        return f"/{self.prefix_name}/{service}/".encode(errors="replace")

    def encode(self, service: str, endpoint: Endpoint) -> KeyValue | Rejected:
        """Write an endpoint of any kind; a weight is an integer where it is whole, as Juno needs it."""
        if fault := service_info_fault(service, endpoint):
            return Rejected(fault)
        url = f"{SEGMENTS[endpoint.kind]}/{endpoint.scheme}://{endpoint.address}"
        key = f"/{self.prefix_name}/{service}/{url}"
        head, tail = service_info(service, endpoint, VERSION)
        services = _quoted_services(endpoint.services)
        return KeyValue(key.encode(), gojson.to_bytes(f'{{{head},{tail},"services":{services}}}'))

    def decode(self, service: str, key: bytes, value: bytes) -> Endpoint | Rejected | None:
        """Read a provider, governor or consumer; the key decides on scheme and kind, the value on the address."""
        prefix = self.prefix(service)
        if not key.startswith(prefix):
            return None
        segment, slash, url = key[len(prefix) :].decode(errors="surrogateescape").partition("/")
        kind = KINDS.get(segment)
        if kind is None or not slash:
            return None
        parsed = parse_url(url)
        if parsed is None:
            return Rejected(f"the key ends with {url!r}, which is not a URL")
        try:
            struct = gojson.parse_struct(value, _FIELDS)
            return read_service_info(service, struct, parsed.scheme, kind)
        except gojson.GoJsonError as error:
            return Rejected(f"the value is not Jupiter's: {error}")

    def settled(self, service: str, cluster: str) -> KeyValue:
        """Return a key that readers ignore except for publishing their full set."""
        return KeyValue(self.prefix(service) + f"settled/{cluster}".encode(errors="replace"), SETTLED_VALUE)


def service_info_fault(service: str, endpoint: Endpoint) -> str | None:
    """Return why Jupiter's readers would drop or misread this endpoint."""
    if fault := name_fault(service) or scheme_fault(endpoint.scheme) or address_fault(endpoint.address):
        return fault
    if not 0 <= endpoint.weight < float("inf"):
        return f"the weight {endpoint.weight} is not a finite number of at least 0"
    return None


def service_info(service: str, endpoint: Endpoint, version: str) -> tuple[str, str]:
    """Write the fields of ServiceInfo as text: those up to `kind`, and those from there on that all versions share."""
    q = gojson.quoted
    metadata = endpoint.metadata
    if not metadata.get(VERSION_FIELD):
        metadata = {**metadata, VERSION_FIELD: version}
    head = (
        f'"name":{q(service)},"appId":{q(endpoint.app_id)},"scheme":"{endpoint.scheme}","address":"{endpoint.address}",'
        f'"weight":{gojson.number(endpoint.weight)},"enable":{gojson.boolean(endpoint.enable)},'
        f'"healthy":{gojson.boolean(endpoint.healthy)},"metadata":{gojson.quoted_map(metadata)},'
        f'"region":{q(endpoint.region)},"zone":{q(endpoint.zone)},"kind":{int(endpoint.kind)}'
    )
    return head, f'"deployment":{q(endpoint.deployment)},"group":{q(endpoint.group)}'


def read_service_info(service: str, struct: Mapping[str, Any], scheme: str, kind: Kind) -> Endpoint | Rejected:
    """Read the fields of ServiceInfo; raise GoJsonError where a Go reader's Unmarshal would fail."""
    gojson.text(struct, "name"), gojson.text(struct, "scheme")
    gojson.integer(struct, "kind", 0, gojson.UINT8_MAX)
    metadata = gojson.text_map(struct, "metadata")
    address = gojson.text(struct, "address")
    if fault := address_fault(address):
        return Rejected(fault)
    return Endpoint(
        name=service,
        address=address,
        scheme=scheme,
        weight=max(0, gojson.real(struct, "weight")),  # Go reads any number; below 0 it gets no call, as with 0
        enable=gojson.flag(struct, "enable"),
        healthy=gojson.flag(struct, "healthy"),
        metadata=FrozenDict(metadata) if metadata else EMPTY,
        region=gojson.text(struct, "region"),
        zone=gojson.text(struct, "zone"),
        kind=kind,
        deployment=gojson.text(struct, "deployment"),
        group=gojson.text(struct, "group"),
        app_id=gojson.text(struct, "appId"),
        services=_read_services(struct.get("services")),
    )


def _quoted_services(services: Mapping[str, ServiceDescription] | None) -> str:
    if services is None:
        return "null"
    q = gojson.quoted
    return "{" + ",".join(f"{q(name)}:{_quoted_service(services[name])}" for name in sorted(services)) + "}"


def _quoted_service(service: ServiceDescription) -> str:
    q = gojson.quoted
    methods = "null" if service.methods is None else "[" + ",".join(q(method) for method in service.methods) + "]"
    return (
        f'{{"namespace":{q(service.namespace)},"name":{q(service.name)},'
        f'"labels":{gojson.quoted_map(service.labels)},"methods":{methods}}}'
    )


def _read_services(parsed: Any) -> Mapping[str, ServiceDescription] | None:
    if parsed is None:
        return None
    if not isinstance(parsed, dict):
        raise gojson.GoJsonError("services is not an object")
    # A null in this map of pointers is nil in Go; there is nothing in it to keep.
    return FrozenDict({name: _read_service(item) for name, item in parsed.items() if item is not None})


def _read_service(parsed: Any) -> ServiceDescription:
    struct = gojson.as_struct(parsed, _SERVICE_FIELDS)
    methods = gojson.texts(struct, "methods")
    return ServiceDescription(
        namespace=gojson.text(struct, "namespace"),
        name=gojson.text(struct, "name"),
        labels=gojson.text_map(struct, "labels"),
        methods=None if methods is None else tuple(methods),
    )

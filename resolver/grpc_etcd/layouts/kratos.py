"""Layout `kratos`: github.com/go-kratos/kratos, contrib/registry/etcd v2 and v3 (bytes from v3.0.0).

Key `{namespace}/{name}/{id}`, value `{"id","name","version","metadata","endpoints"}` (registry/registry.go), URLs as
endpoints. `metadata.weight` is the weight, an integer as text, 100 where it is missing; `version` is repeated from the
metadata. Readers watch keys, then get all of `{namespace}/{name}` (without a slash, so siblings' too) and filter by
name. One value there that is not JSON makes each get fail: nothing foreign may be written under this prefix, hence no
flush key. They tolerate transactions of any size. IPv6 is carried in brackets.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from grpc_etcd.layouts import gojson
from grpc_etcd.layouts.gourl import Url, parse_url
from grpc_etcd.registry.endpoint import EMPTY, Endpoint, address_fault, name_fault, scheme_fault
from grpc_etcd.registry.frozen import FrozenDict
from grpc_etcd.registry.layout import CANNOT_DISABLE, KeyValue, Rejected, WriteLimits

DEFAULT_WEIGHT = 100  # selector/node/direct
_FIELDS = gojson.fold_names("id", "name", "version", "metadata", "endpoints")


@dataclass(frozen=True, slots=True)
class Kratos:
    """The layout of kratos in one namespace, which begins with a slash and ends without."""

    prefix_name: str = "/microservices"
    name: ClassVar[str] = "kratos"
    limits: ClassVar[WriteLimits] = WriteLimits()
    can_disable: ClassVar[bool] = False

    def prefix(self, service: str) -> bytes:
        """Return the prefix of this service's keys alone, with the slash that kratos' own readers forget."""
        return f"{self.prefix_name}/{service}/".encode(errors="replace")

    def encode(self, service: str, endpoint: Endpoint) -> KeyValue | Rejected:
        """Write one instance with one URL; a weight other than the default goes into the metadata."""
        if fault := _fault(service, endpoint):
            return Rejected(fault)
        if not endpoint.enable:
            return CANNOT_DISABLE
        metadata = dict(endpoint.metadata)
        if endpoint.weight != DEFAULT_WEIGHT:
            metadata["weight"] = str(int(endpoint.weight))
        identity = endpoint.instance or endpoint.address
        q = gojson.quoted
        value = (
            f'{{"id":{q(identity)},"name":{q(service)},"version":{q(metadata.get("version", ""))},'
            f'"metadata":{gojson.quoted_map(metadata or None)},"endpoints":["{endpoint.scheme}://{endpoint.address}"]}}'
        )
        return KeyValue(self.prefix(service) + identity.encode(), gojson.to_bytes(value))

    def decode(self, service: str, key: bytes, value: bytes) -> Endpoint | Rejected | None:
        """Read one instance: its first URL for gRPC, else its first at all."""
        if not key.startswith(self.prefix(service)):
            return None
        try:
            struct = gojson.parse_struct(value, _FIELDS)
            identity, version = gojson.text(struct, "id"), gojson.text(struct, "version")
            name = gojson.text(struct, "name")
            metadata = gojson.text_map(struct, "metadata") or {}
            urls = gojson.texts(struct, "endpoints") or []
        except gojson.GoJsonError as error:
            return Rejected(f"the value is not kratos': {error}")
        if name != service:
            return Rejected(f"the value names the service {name!r}; kratos' readers skip it")
        return _read(service, identity, {"version": version} | metadata if version else metadata, urls)

    def settled(self, service: str, cluster: str) -> KeyValue | None:  # noqa: ARG002
        """Return none: these readers lose nothing, and a value that is not JSON stops them."""
        return None


def _fault(service: str, endpoint: Endpoint) -> str | None:
    if fault := name_fault(service) or scheme_fault(endpoint.scheme) or address_fault(endpoint.address):
        return fault
    if endpoint.instance and (fault := name_fault(endpoint.instance)):
        return f"the instance cannot end a key: {fault}"
    if endpoint.weight < 0 or not float(endpoint.weight).is_integer():
        return f"the weight {endpoint.weight} is not an integer of at least 0, which kratos requires"
    return None


def _read(service: str, identity: str, metadata: dict[str, str], texts: list[str]) -> Endpoint | Rejected:
    urls = [url for url in map(parse_url, texts) if url is not None]
    url = min(urls, key=_preference, default=None)
    if url is None:
        return Rejected("the value contains no URL under endpoints")
    if fault := address_fault(url.host):
        return Rejected(fault)
    weight = _read_weight(metadata)
    kept: Any = {name: text for name, text in metadata.items() if name != "weight" or weight is None}
    return Endpoint(
        name=service,
        address=url.host,
        scheme=url.scheme,
        weight=DEFAULT_WEIGHT if weight is None else weight,
        metadata=FrozenDict(kept) if kept else EMPTY,
        instance=identity,
    )


def _preference(url: Url) -> int:
    return {"grpc": 0, "grpcs": 1}.get(url.scheme, 2)


def _read_weight(metadata: dict[str, str]) -> int | None:
    text = metadata.get("weight", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(gojson.INT64_MAX)) else None

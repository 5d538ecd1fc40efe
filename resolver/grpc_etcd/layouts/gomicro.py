"""Layout `go-micro`: github.com/go-micro/plugins/v4/registry/etcd v1.2.0 and go-micro.dev/v5 v5.30.0, both run.

Key `/micro/registry/{service}/{node id}`, value the JSON of a service with exactly this one node. A node's fields stand
in the order id, address, metadata in v4 and metadata, id, address in v5; readers take either, we write v5's. gRPC
clients choose nodes by `metadata.protocol` = `grpc`. Weight, zone and enable have no place in it. The watchers of both
take only the first event of each watch response, hence one key of a service in a transaction. IPv6 is carried in
brackets.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from grpc_etcd.layouts import gojson
from grpc_etcd.registry.endpoint import EMPTY, Endpoint, address_fault, name_fault, scheme_fault
from grpc_etcd.registry.frozen import FrozenDict
from grpc_etcd.registry.layout import CANNOT_DISABLE, KeyValue, Rejected, WriteLimits

ROOT = "/micro/registry"
_FIELDS = gojson.fold_names("name", "version", "metadata", "endpoints", "nodes")
_NODE_FIELDS = gojson.fold_names("metadata", "id", "address")


@dataclass(frozen=True, slots=True)
class GoMicro:
    """The layout of go-micro 4 and 5."""

    name: ClassVar[str] = "go-micro"
    limits: ClassVar[WriteLimits] = WriteLimits(keys_per_transaction=1, keys_per_second=500)
    can_disable: ClassVar[bool] = False

    def prefix(self, service: str) -> bytes:
        """Return the prefix of a service's nodes."""
        return f"{ROOT}/{service}/".encode(errors="replace")

    def encode(self, service: str, endpoint: Endpoint) -> KeyValue | Rejected:
        """Write a service with one node; the scheme is in the node's metadata as its protocol."""
        if fault := name_fault(service) or scheme_fault(endpoint.scheme) or address_fault(endpoint.address):
            return Rejected(fault)
        if not endpoint.enable:
            return CANNOT_DISABLE
        node = endpoint.instance or f"{service}-{endpoint.address}"
        if fault := name_fault(node):
            return Rejected(f"the instance cannot end a key: {fault}")
        q = gojson.quoted
        metadata = gojson.quoted_map({**endpoint.metadata, "protocol": endpoint.scheme})
        value = (
            f'{{"name":{q(service)},"version":{q(endpoint.metadata.get("version", ""))},"metadata":{{}},"endpoints":[],'
            f'"nodes":[{{"metadata":{metadata},"id":{q(node)},"address":"{endpoint.address}"}}]}}'
        )
        return KeyValue(self.prefix(service) + node.encode(), gojson.to_bytes(value))

    def decode(self, service: str, key: bytes, value: bytes) -> Endpoint | Rejected | None:
        """Read the one node of a service."""
        if not key.startswith(self.prefix(service)):
            return None
        try:
            struct = gojson.parse_struct(value, _FIELDS)
            nodes = struct.get("nodes")
            if not isinstance(nodes, list) or not nodes:
                return Rejected("the value is not go-micro's: it contains no node")
            return _read(service, _text(struct, "version"), gojson.as_struct(nodes[0], _NODE_FIELDS))
        except gojson.GoJsonError as error:
            return Rejected(f"the value is not go-micro's: {error}")

    def settled(self, service: str, cluster: str) -> KeyValue | None:  # noqa: ARG002
        """Return none: one key at a time is what these readers need."""
        return None


def _read(service: str, version: str, node: dict[str, Any]) -> Endpoint | Rejected:
    address = _text(node, "address")
    if fault := address_fault(address):
        return Rejected(fault)
    found = node.get("metadata")
    metadata = {name: _text(found, name) for name in found} if isinstance(found, dict) else {}
    scheme = metadata.pop("protocol", "grpc")
    if version:
        metadata.setdefault("version", version)
    return Endpoint(
        name=service,
        address=address,
        scheme=scheme,
        metadata=FrozenDict(metadata) if metadata else EMPTY,
        instance=_text(node, "id"),
    )


def _text(struct: dict[str, Any], field: str) -> str:
    """Read a string; what is none is empty, for these readers skip the errors of json.Unmarshal."""
    item = struct.get(field)
    return item if isinstance(item, str) else ""

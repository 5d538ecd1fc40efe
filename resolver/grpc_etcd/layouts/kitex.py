"""Layout `kitex`: github.com/kitex-contrib/registry-etcd, run at v0.2.6.

Key `{prefix}/{service}/{host:port}`, value `{"network","address","weight","tags"}` (common.go). Readers do not watch:
they list each 5 s, and an empty list is an error that keeps the old result. A weight of 0 or less becomes 10 with them,
so weight 0 is refused. IPv6 is refused too: the writer puts it without brackets (`%s:%d`), where no reader can find the
port. Transactions of any size are borne.
"""

from dataclasses import dataclass
from typing import ClassVar

from grpc_etcd.layouts import gojson
from grpc_etcd.registry.endpoint import EMPTY, Endpoint, address_fault, name_fault
from grpc_etcd.registry.frozen import FrozenDict
from grpc_etcd.registry.layout import CANNOT_DISABLE, KeyValue, Rejected, WriteLimits

DEFAULT_WEIGHT = 10  # discovery.DefaultWeight of kitex, for a weight of 0 or less
_FIELDS = gojson.fold_names("network", "address", "weight", "tags")


@dataclass(frozen=True, slots=True)
class Kitex:
    """The layout of kitex' etcd registry under one prefix."""

    prefix_name: str = "kitex/registry-etcd"
    name: ClassVar[str] = "kitex"
    limits: ClassVar[WriteLimits] = WriteLimits()
    can_disable: ClassVar[bool] = False

    def prefix(self, service: str) -> bytes:
        """Return the prefix that readers list."""
        return f"{self.prefix_name}/{service}/".encode(errors="replace")

    def encode(self, service: str, endpoint: Endpoint) -> KeyValue | Rejected:
        """Write address, weight and metadata, which kitex calls tags."""
        if fault := _fault(service, endpoint):
            return Rejected(fault)
        if not endpoint.enable:
            return CANNOT_DISABLE
        value = (
            f'{{"network":"tcp","address":"{endpoint.address}","weight":{int(endpoint.weight)},'
            f'"tags":{gojson.quoted_map(endpoint.metadata or None)}}}'
        )
        return KeyValue(self.prefix(service) + endpoint.address.encode(), gojson.to_bytes(value))

    def decode(self, service: str, key: bytes, value: bytes) -> Endpoint | Rejected | None:
        """Read an instance; the value's address counts."""
        if not key.startswith(self.prefix(service)):
            return None
        try:
            struct = gojson.parse_struct(value, _FIELDS)
            gojson.text(struct, "network")
            address, weight = gojson.text(struct, "address"), gojson.integer(struct, "weight")
            tags = gojson.text_map(struct, "tags")
        except gojson.GoJsonError as error:
            return Rejected(f"the value is not kitex': {error}")
        if fault := address_fault(address):
            return Rejected(fault)
        metadata = FrozenDict(tags) if tags else EMPTY
        return Endpoint(
            name=service, address=address, weight=weight if weight > 0 else DEFAULT_WEIGHT, metadata=metadata
        )

    def settled(self, service: str, cluster: str) -> KeyValue | None:  # noqa: ARG002
        """Return none: these readers do not watch."""
        return None


def _fault(service: str, endpoint: Endpoint) -> str | None:
    if fault := name_fault(service) or address_fault(endpoint.address):
        return fault
    if endpoint.address.startswith("["):
        return f"kitex cannot encode the IPv6 address {endpoint.address}: its keys and values omit the brackets"
    if endpoint.weight < 1 or not float(endpoint.weight).is_integer():
        return f"the weight {endpoint.weight} is not an integer above 0; kitex reads 0 as {DEFAULT_WEIGHT}"
    return None

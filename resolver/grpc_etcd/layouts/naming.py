"""Layout `etcd-naming`: etcd's own (go.etcd.io/etcd/client/v3/naming/endpoints and /resolver, read at v3.6.16).

Key `{target}/{address}`, value `{"Op":0,"Addr":...,"Metadata":...}` in that order and without tags (endpoints/internal/
update.go). `Op` is not looked at; a put adds, a delete removes. Metadata may be any JSON; we write a map of strings, or
null for none. Weight, zone and enable have no place in it. Readers take transactions of any size; they die for good
when their watch is compacted away (resolver.go, watch). IPv6 is written in brackets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from grpc_etcd.layouts import gojson
from grpc_etcd.registry.endpoint import EMPTY, Endpoint, address_fault, name_fault
from grpc_etcd.registry.frozen import FrozenDict
from grpc_etcd.registry.layout import CANNOT_DISABLE, KeyValue, Rejected, WriteLimits

SETTLED_TAIL = b"settled"  # the flush key of the layout jupiter-v2, whose keys this one reads too
_FIELDS = gojson.fold_names("Op", "Addr", "Metadata")


@dataclass(frozen=True, slots=True)
class EtcdNaming:
    """The layout of etcd's naming package; `prefix_name` is in front of the service's name, if it is not empty."""

    prefix_name: str = ""
    name: ClassVar[str] = "etcd-naming"
    limits: ClassVar[WriteLimits] = WriteLimits()
    can_disable: ClassVar[bool] = False

    def prefix(self, service: str) -> bytes:
        """Return the target and its slash, as Manager.NewWatchChannel lists it from v3.5.10 on."""
        target = f"{self.prefix_name}/{service}/" if self.prefix_name else f"{service}/"
        return target.encode(errors="replace")

    def encode(self, service: str, endpoint: Endpoint) -> KeyValue | Rejected:
        """Write address and metadata."""
        if fault := name_fault(service) or address_fault(endpoint.address):
            return Rejected(fault)
        if not endpoint.enable:
            return CANNOT_DISABLE
        metadata = gojson.quoted_map(endpoint.metadata or None)
        value = f'{{"Op":0,"Addr":"{endpoint.address}","Metadata":{metadata}}}'
        return KeyValue(self.prefix(service) + endpoint.address.encode(), gojson.to_bytes(value))

    def decode(self, service: str, key: bytes, value: bytes) -> Endpoint | Rejected | None:
        """Read what any writer put; the value's address counts, and whatever of the metadata is a string."""
        prefix = self.prefix(service)
        if not key.startswith(prefix) or key[len(prefix) :] == SETTLED_TAIL:
            return None
        try:
            struct = gojson.parse_struct(value, _FIELDS)
            gojson.integer(struct, "Op", 0, gojson.UINT8_MAX)
            address = gojson.text(struct, "Addr")
        except gojson.GoJsonError as error:
            return Rejected(f"the value is not etcd naming's: {error}")
        if fault := address_fault(address):
            return Rejected(fault)
        return Endpoint(name=service, address=address, metadata=_texts_of(struct.get("Metadata")))

    def settled(self, service: str, cluster: str) -> KeyValue | None:  # noqa: ARG002
        """Return none: these readers lose nothing in a burst."""
        return None


def _texts_of(metadata: Any) -> Mapping[str, str]:
    if not isinstance(metadata, dict):
        return EMPTY
    texts = {name: item for name, item in metadata.items() if isinstance(item, str)}
    return FrozenDict(texts) if texts else EMPTY

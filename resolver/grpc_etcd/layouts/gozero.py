"""Layout `go-zero`: github.com/zeromicro/go-zero, core/discov, run at v1.10.3.

Key `{key}/{id}`, value the bare `host:port`, no JSON. go-zero's own publisher takes the lease id as id, or a configured
number above 0; ours is a positive int64 made of the endpoint's identity, so that a new lease brings no second key.
Nothing but the address is carried. Readers take any value under `{key}/` for an address, de-duplicate by value, and
tolerate transactions of any size. IPv6 is carried in brackets.
"""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from grpc_etcd.layouts.gojson import INT64_MAX
from grpc_etcd.registry.endpoint import Endpoint, address_fault, name_fault
from grpc_etcd.registry.layout import CANNOT_DISABLE, KeyValue, Rejected, WriteLimits


@dataclass(frozen=True, slots=True)
class GoZero:
    """The layout of go-zero; `prefix_name` is in front of the service's name, if it is not empty."""

    prefix_name: str = ""
    name: ClassVar[str] = "go-zero"
    limits: ClassVar[WriteLimits] = WriteLimits()
    can_disable: ClassVar[bool] = False

    def prefix(self, service: str) -> bytes:
        """Return the configured key and its slash."""
        key = f"{self.prefix_name}/{service}/" if self.prefix_name else f"{service}/"
        return key.encode(errors="replace")

    def encode(self, service: str, endpoint: Endpoint) -> KeyValue | Rejected:
        """Write the address."""
        if fault := name_fault(service) or address_fault(endpoint.address):
            return Rejected(fault)
        if not endpoint.enable:
            return CANNOT_DISABLE
        number = stable_id(endpoint.instance or endpoint.address)
        return KeyValue(self.prefix(service) + str(number).encode(), endpoint.address.encode())

    def decode(self, service: str, key: bytes, value: bytes) -> Endpoint | Rejected | None:
        """Read the address; what is none is rejected, though go-zero's own clients would dial it."""
        prefix = self.prefix(service)
        if not key.startswith(prefix):
            return None
        address = value.decode(errors="replace")
        if fault := address_fault(address):
            return Rejected(fault)
        return Endpoint(name=service, address=address, instance=key[len(prefix) :].decode(errors="replace"))

    def settled(self, service: str, cluster: str) -> KeyValue | None:  # noqa: ARG002
        """Return none: these readers lose nothing in a burst, and would dial the flush key's value."""
        return None


def stable_id(identity: str) -> int:
    """Make a positive int64 of an endpoint's identity; one that is such a number already stays as it is."""
    if identity.isascii() and identity.isdigit() and identity[0] != "0" and int(identity[:20]) <= INT64_MAX:
        return int(identity)
    digest = hashlib.blake2b(identity.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest) % INT64_MAX + 1

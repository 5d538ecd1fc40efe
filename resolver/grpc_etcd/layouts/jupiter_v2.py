"""Layout `jupiter-v2`: what Jupiter v0.7.1 and later write and read (github.com/douyu/jupiter, run at v0.11.21).

Key `{scheme}:{name}:v1:{mode}/{address}`, no leading slash, no prefix. Value `{"Op":0,"Addr":...,"MetadataX":{...}}`,
the newest ServiceInfo, which v0.11.7 and later write; v0.9.4 to v0.11.6 call it `Metadata`, v0.7.1 to v0.9.3 write
null there, and all three are read. Readers take only the address, from the key, and only where Go's net.SplitHostPort
accepts it; so etcd's naming resolver reads these keys too, with `grpc:{name}:v1:{mode}` as target. They lose events in
bursts as their forebears do: same pace, same flush key. A governor's scheme is `govern`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from grpc_etcd.layouts import gojson
from grpc_etcd.layouts.jupiter import LIMITS, SETTLED_VALUE, read_service_info, service_info, service_info_fault
from grpc_etcd.layouts.naming import SETTLED_TAIL
from grpc_etcd.registry.endpoint import Endpoint, Kind, address_fault
from grpc_etcd.registry.layout import KeyValue, Rejected, WriteLimits

VERSION = "v0.11.13"  # what v0.11.21 writes as metadata.jupiterVersion
GOVERNOR_SCHEME = "govern"
ADDED, DELETED = 0, 1  # registry.Add and registry.Delete; readers drop the address of a value that says Delete

_FIELDS = gojson.fold_names("Op", "Addr", "MetadataX", "Metadata")
_INFO_FIELDS = gojson.fold_names(
    *("name", "appId", "scheme", "address", "weight", "enable", "healthy", "metadata", "region", "zone", "kind"),
    *("version", "mode", "hostname", "deployment", "group"),
)
_ALWAYS_THERE = {"address", "weight", "enable"}


@dataclass(frozen=True, slots=True)
class JupiterV2:
    """The layout of Jupiter 0.7.1 and later for one mode (APP_MODE) and scheme.

    The literal default mode was `unkown-mode` up to v0.10.2.
    """

    mode: str = "unknown-mode"
    scheme: str = "grpc"
    name: ClassVar[str] = "jupiter-v2"
    limits: ClassVar[WriteLimits] = LIMITS
    can_disable: ClassVar[bool] = True

    def prefix(self, service: str) -> bytes:
        """Return the target and its slash."""
        return f"{self.scheme}:{service}:v1:{self.mode}/".encode(errors="replace")

    def encode(self, service: str, endpoint: Endpoint) -> KeyValue | Rejected:
        """Write an endpoint under its own scheme, a governor under `govern`."""
        if fault := service_info_fault(service, endpoint):
            return Rejected(fault)
        key = f"{endpoint.scheme}:{service}:v1:{self.mode}/{endpoint.address}"
        head, tail = service_info(service, endpoint, VERSION)
        info = f'{{{head},"version":"v1","mode":{gojson.quoted(self.mode)},"hostname":"",{tail}}}'
        value = f'{{"Op":0,"Addr":"{endpoint.address}","MetadataX":{info}}}'
        return KeyValue(key.encode(), gojson.to_bytes(value))

    def decode(self, service: str, key: bytes, value: bytes) -> Endpoint | Rejected | None:
        """Read a record under any scheme's prefix of this service; the key decides on the address."""
        scheme, _, rest = key.partition(b":")
        expected = f"{service}:v1:{self.mode}/".encode(errors="replace")
        if not rest.startswith(expected):
            return None
        tail = rest[len(expected) :]
        if tail == SETTLED_TAIL:
            return None
        address = tail.decode(errors="replace")
        if fault := address_fault(address):
            return Rejected(f"the key does not end with an address: {fault}")
        try:
            return self._read(service, scheme.decode(errors="replace"), address, value)
        except gojson.GoJsonError as error:
            return Rejected(f"the value is not Jupiter's: {error}")

    def settled(self, service: str, cluster: str) -> KeyValue:  # noqa: ARG002
        """Return a key that readers ignore, as it ends with no address, except for publishing their full set."""
        return KeyValue(self.prefix(service) + SETTLED_TAIL, SETTLED_VALUE)

    @staticmethod
    def _read(service: str, scheme: str, address: str, value: bytes) -> Endpoint | Rejected | None:
        struct = gojson.parse_struct(value, _FIELDS)
        gojson.text(struct, "Addr")
        operation = gojson.integer(struct, "Op", 0, gojson.UINT8_MAX)
        if operation != ADDED:
            return None if operation == DELETED else Rejected(f"the value's operation {operation} is unknown")
        kind = Kind.GOVERNOR if scheme == GOVERNOR_SCHEME else Kind.PROVIDER
        parsed = _service_info(struct)
        if parsed is None:
            return Endpoint(name=service, address=address, scheme=scheme, kind=kind)
        info = gojson.as_struct(parsed, _INFO_FIELDS)
        for field in ("address", "version", "mode", "hostname"):
            gojson.text(info, field)
        return read_service_info(service, info | {"address": address}, scheme, kind)


def _service_info(struct: dict[str, Any]) -> Any:
    """Find the ServiceInfo: under the newest name, else under the older one, where others may keep what they like."""
    metadata = struct.get("Metadata")
    is_info = isinstance(metadata, dict) and metadata.keys() >= _ALWAYS_THERE
    return struct.get("MetadataX", metadata if is_info else None)

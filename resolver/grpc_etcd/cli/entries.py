"""What the command line knows of a registry: records with their keys, leases and owners, not just endpoints.

Pure: `reading` fetches the records.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from grpc_etcd.registry.endpoint import Endpoint, name_fault
from grpc_etcd.registry.layout import Layout, Rejected
from grpc_etcd.registry.own import ROOT, OwnerRecord

MARKER = "{service}"  # in no prefix that anybody would choose; "service" is in kratos's


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a service, as one layout reads it."""

    service: str
    layout: str
    key: bytes
    lease: int
    read: Endpoint | Rejected
    owner: OwnerRecord | None = None


def list_root(layout: Layout) -> bytes:
    """Give the prefix under which a layout keeps all services."""
    return layout.prefix(MARKER).partition(MARKER.encode())[0]


def service_of(layout: Layout, key: bytes) -> str | None:
    """Give the service that a key belongs to in a layout; None when it can be none of its keys."""
    root, _, tail = layout.prefix(MARKER).partition(MARKER.encode())
    if not key.startswith(root) or key.startswith((ROOT, b"/prometheus/")):
        return None
    name, separator, rest = key[len(root) :].partition(tail)
    text = name.decode(errors="replace")
    return text if separator and rest and name_fault(text) is None else None


class LeasedRecord(Protocol):
    """A record as etcd gives it."""

    @property
    def key(self) -> bytes:
        """Its key."""

    @property
    def value(self) -> bytes:
        """Its value."""

    @property
    def lease(self) -> int:
        """Its lease's id; 0 where it has none."""


def make_entries(
    layout: Layout, records: Iterable[LeasedRecord], owners: Mapping[bytes, OwnerRecord] | None = None
) -> list[Entry]:
    """Read records as a layout does; what is none of an endpoint's is left out."""
    entries = []
    for record in records:
        if (service := service_of(layout, record.key)) is None:
            continue
        if (read := layout.decode(service, record.key, record.value)) is not None:
            owner = (owners or {}).get(record.key)
            entries.append(Entry(service, layout.name, record.key, record.lease, read, owner))
    return entries


def entry_json(entry: Entry) -> dict[str, Any]:
    """Write an entry for programs."""
    common = {
        "service": entry.service,
        "layout": entry.layout,
        "key": entry.key.decode(errors="replace"),
        "lease": f"{entry.lease:x}" if entry.lease else None,
    }
    if isinstance(entry.read, Rejected):
        return common | {"rejected": entry.read.reason}
    owner = entry.owner
    return common | {
        "address": entry.read.address,
        "scheme": entry.read.scheme,
        "weight": entry.read.weight,
        "enable": entry.read.enable,
        "healthy": entry.read.healthy,
        "region": entry.read.region,
        "zone": entry.read.zone,
        "group": entry.read.group,
        "metadata": dict(entry.read.metadata),
        "owner": owner and {"namespace": owner.namespace, "pod": owner.pod, "node": owner.node},
    }

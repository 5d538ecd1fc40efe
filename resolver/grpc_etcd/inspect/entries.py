"""What the command line knows of a registry: records with their keys, leases and owners, not just endpoints.

Pure: `reading` fetches the records.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from grpc_etcd.registry.catalog import service_of
from grpc_etcd.registry.endpoint import Endpoint, Kind, ServiceDescription
from grpc_etcd.registry.layout import Layout, Rejected
from grpc_etcd.registry.own import OwnerRecord
from grpc_etcd.registry.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a service, as one layout reads it."""

    service: str
    layout: str
    key: bytes
    lease: int
    read: Endpoint | Rejected
    owner: OwnerRecord | None = None
    is_owner_known: bool = True  # False where the owner records may not be read: `owner` says nothing then

    @property
    def provider(self) -> Endpoint | None:
        """The endpoint that clients may call; None where it is rejected, or a governor or consumer."""
        return self.read if isinstance(self.read, Endpoint) and self.read.kind is Kind.PROVIDER else None


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
    """Read records as a layout does; what is none of an endpoint's is left out. No owners: they are not known."""
    entries = []
    for record in records:
        if (service := service_of(layout, record.key)) is None:
            continue
        if (read := layout.decode(service, record.key, record.value)) is not None:
            owner = (owners or {}).get(record.key)
            entries.append(Entry(service, layout.name, record.key, record.lease, read, owner, owners is not None))
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
    return (
        common
        | endpoint_json(entry.read)
        | {
            "owner": owner and {"namespace": owner.namespace, "pod": owner.pod, "node": owner.node},
            "ownerKnown": entry.is_owner_known,
        }
    )


def endpoint_json(endpoint: Endpoint) -> dict[str, Any]:
    """Write an endpoint for programs."""
    return {
        "address": endpoint.address,
        "scheme": endpoint.scheme,
        "weight": endpoint.weight,
        "enable": endpoint.enable,
        "healthy": endpoint.healthy,
        "region": endpoint.region,
        "zone": endpoint.zone,
        "group": endpoint.group,
        "deployment": endpoint.deployment,
        "appId": endpoint.app_id,
        "instance": endpoint.instance,
        "kind": endpoint.kind.name.lower(),
        "metadata": dict(endpoint.metadata),
        "services": endpoint.services and {name: _service_json(each) for name, each in endpoint.services.items()},
    }


def _service_json(service: ServiceDescription) -> dict[str, Any]:
    return {
        "namespace": service.namespace,
        "name": service.name,
        "labels": service.labels and dict(service.labels),
        "methods": service.methods and list(service.methods),
    }


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """Write a snapshot for programs."""
    return {
        "service": snapshot.service,
        "revision": snapshot.revision,
        "endpoints": [endpoint_json(each) for each in snapshot.endpoints],
        "rejected": {key.decode(errors="replace"): reason for key, reason in snapshot.rejected.items()},
    }

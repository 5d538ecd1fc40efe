"""The table of a service's endpoints, as they are or were."""

from collections.abc import Sequence
from typing import Any

from grpc_etcd.cli.printing import print_table
from grpc_etcd.inspect.entries import Entry
from grpc_etcd.registry.escaping import escape_bytes
from grpc_etcd.registry.layout import Rejected

COLUMNS = ("address", "weight", "state", "zone", "group", "layout", "lease", "owner")


def print_entries(entries: Sequence[Entry]) -> None:
    """Print endpoints for people."""
    print_table(COLUMNS, [endpoint_row(entry) for entry in entries])


def endpoint_row(entry: Entry) -> list[Any]:
    """Write an entry for people."""
    lease = f"{entry.lease:x}" if entry.lease else "none"
    if isinstance(entry.read, Rejected):
        return [escape_bytes(entry.key), "", entry.read.reason, "", "", entry.layout, lease, ""]
    state = "disabled" if not entry.read.enable else "enabled" if entry.read.healthy else "unhealthy"
    if entry.provider is None:  # as what Jupiter registers of an application beside its servers
        state = f"{entry.read.kind.name.lower()}, not called"
    nobody = "self-registered" if entry.is_owner_known else "unknown"
    owner = f"{entry.owner.namespace}/{entry.owner.pod}" if entry.owner else nobody
    weight = f"{entry.read.weight:g}"
    return [entry.read.address, weight, state, entry.read.zone, entry.read.group, entry.layout, lease, owner]

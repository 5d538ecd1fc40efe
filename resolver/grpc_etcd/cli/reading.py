"""Read a registry from etcd, each record with its lease and its owner."""

from collections.abc import Sequence

from grpc_etcd.cli.entries import Entry, list_root, make_entries
from grpc_etcd.etcd import Etcd, PermissionDenied
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.own import OWNER_PREFIX, OwnerRecord


def read_service(etcd: Etcd, layouts: Sequence[Layout], service: str) -> list[Entry]:
    """Read all records of one service."""
    owners = read_owners(etcd)
    return [
        entry
        for layout in layouts
        for entry in make_entries(layout, etcd.get_prefix(layout.prefix(service)).records, owners)
        if entry.service == service
    ]


def read_all(etcd: Etcd, layouts: Sequence[Layout]) -> list[Entry]:
    """Read all records of all services."""
    return [entry for layout in layouts for entry in make_entries(layout, etcd.get_prefix(list_root(layout)).records)]


def read_owners(etcd: Etcd) -> dict[bytes, OwnerRecord]:
    """Read which key belongs to whom; nothing where that may not be read."""
    try:
        records = etcd.get_prefix(OWNER_PREFIX).records
    except PermissionDenied:
        return {}
    owners = [OwnerRecord.from_json(record.value) for record in records]
    return {key: owner for owner in owners if isinstance(owner, OwnerRecord) for key in owner.keys}

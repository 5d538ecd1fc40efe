"""Read a registry from etcd, each record with its lease and its owner."""

from collections.abc import Iterable, Iterator, Sequence

from grpc_etcd.etcd import Etcd, Listing, PermissionDenied, Record
from grpc_etcd.inspect.entries import Entry, make_entries
from grpc_etcd.inspect.operators import OperatorFacts, owned_keys, parse_operators
from grpc_etcd.registry.catalog import list_root
from grpc_etcd.registry.escaping import escape_bytes, quote_argument
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.own import OWNER_PREFIX, ROOT, OwnerRecord


class ReadDenied(PermissionDenied):
    """A prefix may not be read; `remedy` is the command that grants it, for readers."""

    def __init__(self, prefix: bytes, granted: bytes, error: PermissionDenied) -> None:
        super().__init__(f"is not allowed to read {escape_bytes(prefix)}: {error.details}", error.code)
        self.remedy = grant("read", granted)


class WriteDenied(PermissionDenied):
    """A key may not be written; `remedy` is the command that grants it."""

    def __init__(self, key: bytes, granted: bytes, error: PermissionDenied) -> None:
        super().__init__(f"is not allowed to write {escape_bytes(key)}: {error.details}", error.code)
        self.remedy = grant("readwrite", granted)


def grant(right: str, *prefixes: bytes) -> str:
    """Write the commands that grant a role a permission."""
    arguments = (quote_argument(escape_bytes(each)) for each in prefixes)
    commands = (f"etcdctl role grant-permission ROLE --prefix=true {right} {each}" for each in arguments)
    return f"Grant it to a role of the user: {'; '.join(commands)}"


def granted_prefix(layout: Layout, service: str) -> bytes:
    """Return what a role is granted for a service: all services of its layout, where they have a prefix."""
    return list_root(layout) or layout.prefix(service)


def read_key(etcd: Etcd, layouts: Sequence[Layout], key: bytes) -> Record | None:
    """Read one key; may raise ReadDenied, which advises to grant all services of the key's layout, or the key alone."""
    try:
        return etcd.get(key)
    except PermissionDenied as error:
        roots = (root for root in map(list_root, layouts) if root and key.startswith(root))
        raise ReadDenied(key, next(roots, key), error) from error


def list_prefix(etcd: Etcd, prefix: bytes, granted: bytes | None = None, *, revision: int = 0) -> Listing:
    """Read a prefix, now or at a revision; may raise ReadDenied, which advises to grant `granted`."""
    try:
        return etcd.get_prefix(prefix, revision=revision)
    except PermissionDenied as error:
        raise ReadDenied(prefix, prefix if granted is None else granted, error) from error


def list_service(etcd: Etcd, layout: Layout, service: str, *, revision: int = 0) -> Listing:
    """Read the keys of one service in one layout, now or at a revision."""
    return list_prefix(etcd, layout.prefix(service), granted_prefix(layout, service), revision=revision)


def read_service(etcd: Etcd, layouts: Sequence[Layout], service: str, *, revision: int = 0) -> list[Entry]:
    """Read all records of one service, now or at a revision."""
    owners = read_owners(etcd, revision=revision)
    return [
        entry
        for layout in layouts
        for entry in make_entries(layout, list_service(etcd, layout, service, revision=revision).records, owners)
        if entry.service == service
    ]


def read_all(etcd: Etcd, layouts: Sequence[Layout]) -> list[Entry]:
    """Read all records of all services."""
    return [entry for layout in layouts for entry in make_entries(layout, list_prefix(etcd, list_root(layout)).records)]


def read_owners(etcd: Etcd, *, revision: int = 0) -> dict[bytes, OwnerRecord] | None:
    """Read which key belongs to whom, now or at a revision; None where that may not be read."""
    try:
        records = etcd.get_prefix(OWNER_PREFIX, revision=revision).records
    except PermissionDenied:
        return None
    owners = [OwnerRecord.from_json(record.value) for record in records]
    return {key: owner for owner in owners if isinstance(owner, OwnerRecord) for key in owner.keys}


PROVIDERS = b"/providers/"  # what stands between a service's name and its endpoints, in most layouts


def read_operators(etcd: Etcd, registry: str) -> OperatorFacts | None:
    """Read who leads and what operators have recorded; None where that may not be read."""
    try:
        records = etcd.get_prefix(ROOT).records
    except PermissionDenied:
        return None
    return parse_operators(records, _present(etcd, owned_keys(records)), registry)


def _present(etcd: Etcd, keys: Iterable[bytes]) -> Iterator[bytes]:
    """Return those of some keys that are there, or of which that may not be read."""
    wanted: dict[bytes, set[bytes]] = {}
    for key in keys:
        head, infix, _ = key.partition(PROVIDERS)
        wanted.setdefault(head + infix, set()).add(key)
    for prefix, some in wanted.items():
        try:
            yield from some & {record.key for record in etcd.get_prefix(prefix, keys_only=True).records}
        except PermissionDenied:
            yield from some

"""Change an endpoint in etcd that another process keeps registered: its weight, or whether it may be called.

The value is put under the lease that the key has, so it goes with its keeper as before. A keeper of this library takes
such an edit over (`registering.claims`); what the operator keeps it would put back, so that is refused with a remedy.
"""

import shlex
from dataclasses import replace
from typing import Any

from grpc_etcd.cli.connecting import Connection
from grpc_etcd.cli.printing import Failure
from grpc_etcd.etcd import LeaseNotFound, PermissionDenied, compare, ops
from grpc_etcd.inspect.checks import GRANT_OWNERS, UNREADABLE_OWNERS
from grpc_etcd.inspect.entries import Entry
from grpc_etcd.inspect.reading import WriteDenied, granted_prefix, read_service
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.escaping import escape_bytes
from grpc_etcd.registry.layout import Layout, Rejected

MOST_WEIGHT = 10_000  # what the operator takes of the annotation, as of spec.weight


def edit_endpoint(connection: Connection, name: str, address: str, **changes: Any) -> list[Entry]:
    """Change the fields named in every record of the service at this address; return the records as they were.

    Raises Failure, which says why it may not be done; then nothing is changed.
    """
    layouts = {layout.name: layout for layout in connection.layouts}
    entries = [
        entry
        for entry in read_service(connection.etcd, connection.layouts, name)
        if isinstance(entry.read, Endpoint) and entry.read.address == address
    ]
    if not entries:
        raise Failure(f"no endpoint of {name} is at {address}", f"`grpc-etcd get {name}` lists its endpoints.")
    values = [_edited(layouts[entry.layout], entry, changes) for entry in entries]
    for entry, value in zip(entries, values, strict=True):
        _put(connection, layouts[entry.layout], entry, value)
    return entries


def _edited(layout: Layout, entry: Entry, changes: dict[str, Any]) -> bytes:
    """Return the value that a record is to have."""
    assert isinstance(entry.read, Endpoint)  # noqa: S101 - the others were left out
    key = escape_bytes(entry.key)
    if not entry.is_owner_known:
        raise Failure(f"it is unknown whether an operator owns {key}: {UNREADABLE_OWNERS}", GRANT_OWNERS)
    if entry.owner:
        pod = f"--namespace {shlex.quote(entry.owner.namespace)} {shlex.quote(entry.owner.pod)}"
        raise Failure(f"{key} is owned by the operator, which would restore it", _advise(pod, changes))
    wanted = replace(entry.read, **changes)
    encoded = layout.encode(entry.service, wanted)
    read = None if isinstance(encoded, Rejected) else layout.decode(entry.service, encoded.key, encoded.value)
    if isinstance(encoded, Rejected) or not isinstance(read, Endpoint) or encoded.key != entry.key:
        raise Failure(f"{key} cannot be written: {encoded.reason if isinstance(encoded, Rejected) else read}")
    if missing := [field for field in changes if getattr(read, field) != changes[field]]:
        raise Failure(f"values of the layout {layout.name} have no {' and no '.join(missing)}; {key} stays as it is")
    return encoded.value


def _advise(pod: str, changes: dict[str, Any]) -> str:
    """Return the command that does for a Pod what was asked: what is typed as it stands must do nothing else."""
    if changes.get("enable"):
        annotation = "grpc-etcd.dev/weight-"
        what = "Remove the annotation from its Pod instead, so that the weight of its GrpcService applies again"
    else:
        weight = changes.get("weight", 0)
        whole = min(max(round(weight), 1), MOST_WEIGHT) if weight else 0  # a small one is not to end all calls
        annotation = f"grpc-etcd.dev/weight={whole} --overwrite"
        what = f"Set the weight of its Pod instead: a whole number from 0 (no calls) to {MOST_WEIGHT}"
    return f"{what}: kubectl annotate pod {pod} {annotation}"


def _put(connection: Connection, layout: Layout, entry: Entry, value: bytes) -> None:
    """Put a value under the lease that the key has, if the key is still as it was read."""
    record = connection.etcd.get(entry.key)
    gone = Failure(f"{escape_bytes(entry.key)} has been deleted or changed meanwhile; try again")
    if record is None or record.lease != entry.lease:
        raise gone
    if layout.decode(entry.service, entry.key, record.value) != entry.read:
        raise gone  # the value was made of what was there before
    guard = [compare.mod_revision(entry.key, "==", record.mod_revision)]
    try:
        result = connection.etcd.transaction(guard, [ops.put(entry.key, value, lease=record.lease)])
    except LeaseNotFound as error:
        raise gone from error
    except PermissionDenied as error:
        raise WriteDenied(entry.key, granted_prefix(layout, entry.service), error) from error
    if not result.succeeded:
        raise gone

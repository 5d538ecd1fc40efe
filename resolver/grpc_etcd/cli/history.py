"""`grpc-etcd history`: what happened to a service, and what it was at a moment, from what etcd remembers."""

import re
import time
from datetime import datetime, timedelta
from typing import Any

import click

from grpc_etcd.cli.connecting import Connection, connected_to_read, output_option, valid_name
from grpc_etcd.cli.endpoints import print_entries
from grpc_etcd.cli.printing import Failure, print_data, print_line, print_table
from grpc_etcd.etcd import Compacted, FutureRevision
from grpc_etcd.inspect.checks import GRANT_OWNERS, UNREADABLE_OWNERS
from grpc_etcd.inspect.entries import Entry, entry_json
from grpc_etcd.inspect.history import Change, change_json, count_endpoints, differences
from grpc_etcd.inspect.past import History, find_moment, may_read_times, read_history
from grpc_etcd.inspect.reading import read_service
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import Rejected
from grpc_etcd.registry.own import ClockReading, format_time

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
NOT_KEPT = "etcd no longer has that revision: it has been compacted (etcd's --auto-compaction-retention)"
EXAMPLES = """\b
Examples:
  grpc-etcd history greeter
  grpc-etcd history greeter --since 15m
  grpc-etcd history greeter --at 2026-05-01T10:30:00Z
  grpc-etcd history greeter --at 48211
"""


def read_time(value: str) -> float:
    """Read a time (RFC 3339), or how long ago, as Unix seconds."""
    if ago := re.fullmatch(r"([0-9]{1,9})([smhd])", value):
        return time.time() - int(ago[1]) * UNITS[ago[2]]
    try:
        at = datetime.fromisoformat(value)
        return (at if at.tzinfo else at.astimezone()).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is not a time such as 2026-05-01T10:30:00Z, 15m (ago) or 2h") from None


def valid_since(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Read a time."""
    return None if value is None else read_time(value)


def valid_at(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Read a time, or a revision, which is an int."""
    if value is not None and re.fullmatch(r"[1-9][0-9]{0,17}", value):
        return int(value)
    return None if value is None else read_time(value)


@click.command(epilog=EXAMPLES)
@click.argument("name", callback=valid_name)
@click.option("--since", metavar="TIME|AGO", callback=valid_since, help="Show the changes since then. Default: 1h.")
@click.option(
    "--at", metavar="TIME|AGO|REVISION", callback=valid_at, help="Show the endpoints at that time instead of changes."
)
@connected_to_read
@output_option
def history(connection: Connection, name: str, since: float | None, at: float | None, output: str) -> None:
    """Show what happened to a service, with times and Pods, or the endpoints that it had at a given time.

    Reads the revisions that etcd still has: nothing before its last compaction.
    Times are known only if an operator writes the registry, to the second.
    """
    if at is not None and since is not None:
        raise click.UsageError("--at and --since cannot be used together")
    if at is not None:
        print_moment(connection, name, at, output)
        return
    hour_ago = time.time() - timedelta(hours=1).total_seconds()
    found = read_history(connection.etcd, connection.layouts, name, hour_ago if since is None else since)
    if output != "table":
        print_data([change_json(change) for change in found.changes], output)
    elif found.changes:
        columns = ("time", "revision", "change", "address", "what", "layout", "pod", "endpoints")
        print_table(columns, [change_row(change) for change in found.changes])
    for remark in remarks(found, name):
        print_line(remark, error=True)


def remarks(found: History, name: str) -> list[str]:
    """Return what the table does not show."""
    said = []
    if not found.changes:
        said.append(f"{name} has not changed since revision {found.since}.")
    if not found.is_timed:
        said.append("There are no times: no operator has recorded any, or this user cannot read /grpc-etcd/clock/.")
    if not found.is_owner_known:
        said.append(f"Owners are unknown: {UNREADABLE_OWNERS} {GRANT_OWNERS}")
    if found.is_cut:
        said.append(f"etcd has no history before revision {found.since}: it has been compacted.")
    return said


def change_row(change: Change) -> list[Any]:
    """Write a change for people."""
    return [
        "" if change.time is None else format_time(change.time),
        change.revision,
        change.what,
        change.address,
        describe(change),
        change.layout,
        change.pod,
        change.endpoints,
    ]


def describe(change: Change) -> str:
    """Return what is different, or what was added."""
    read = change.after if change.after is not None else change.before
    if isinstance(read, Rejected):
        return read.reason
    changed = [f"{field} {before} -> {after}" for field, (before, after) in differences(change).items()]
    state = "" if read is None or read.enable else ", disabled"
    return ", ".join(changed) or f"weight {read.weight:g}{state}" if isinstance(read, Endpoint) else ""


def print_moment(connection: Connection, name: str, at: float, output: str) -> None:
    """Print the endpoints of a moment."""
    entries, revision, recorded = read_moment(connection, name, at)
    if output != "table":
        found = [entry_json(entry) for entry in entries]
        print_data({"revision": revision, "time": recorded, "endpoints": found}, output)
    elif entries:
        print_entries(entries)
    when = "" if recorded is None else f", recorded at {format_time(recorded)}"
    endpoints = count_endpoints(entry.read for entry in entries)
    print_line(f"{name} at revision {revision}{when}: {endpoints} endpoints.", error=True)


def read_moment(connection: Connection, name: str, at: float) -> tuple[list[Entry], int, float | None]:
    """Read the endpoints of a moment, its revision, and when that was recorded where a time was asked for.

    What came after the last reading has no time, so that may be long before the moment.
    """
    etcd, layouts = connection.etcd, connection.layouts
    reading = ClockReading(at, at) if isinstance(at, int) else find_moment(etcd, layouts, name, at)
    if reading is None:
        raise Failure(
            "no revision is known for that time: no operator had recorded times yet, etcd was compacted since, "
            "or this user cannot read /grpc-etcd/clock/",
            *([] if may_read_times(etcd) else [GRANT_OWNERS]),
        )
    try:
        entries = read_service(etcd, layouts, name, revision=reading.revision)
    except Compacted as error:
        raise Failure(NOT_KEPT) from error
    except FutureRevision as error:
        raise Failure(f"etcd has no revision {reading.revision} yet") from error
    return entries, reading.revision, None if isinstance(at, int) else reading.time

"""The commands. Each reads, prints, and decides nothing that another module could."""

import dataclasses
import json
import signal
import threading
from typing import Any

import click
from click.shell_completion import get_completion_class

from grpc_etcd.cli.connecting import Connection, connected, output_option
from grpc_etcd.cli.diagnosis import Finding, Level, find_faults
from grpc_etcd.cli.entries import Entry, entry_json
from grpc_etcd.cli.printing import print_data, print_table
from grpc_etcd.cli.probing import explain_failure, gather_facts
from grpc_etcd.cli.reading import read_all, read_owners, read_service
from grpc_etcd.etcd import EtcdError
from grpc_etcd.registry.endpoint import Endpoint, name_fault
from grpc_etcd.registry.layout import Rejected
from grpc_etcd.registry.snapshot import Snapshot, diff
from grpc_etcd.serving import serve

PROGRAM = "grpc-etcd"
EXAMPLES = """\b
Examples:
  export GRPC_ETCD_ENDPOINTS=etcd:2379
  grpc-etcd ls
  grpc-etcd get greeter -o json
  grpc-etcd watch greeter
  grpc-etcd check greeter
  grpc-etcd owner /jupiter/greeter/providers/grpc://10.0.0.7:9000
  grpc-etcd register greeter 0.0.0.0:9000 --weight 50
  grpc-etcd ads --listen 127.0.0.1:18000
"""

ADS_EXAMPLE = """\b
Example:
  grpc-etcd ads --listen 127.0.0.1:18000

\b
A client that has this bootstrap in GRPC_XDS_BOOTSTRAP_CONFIG dials xds:///greeter:
  {"xds_servers": [{"server_uri": "127.0.0.1:18000", "server_features": ["xds_v3"],
    "channel_creds": [{"type": "insecure"}]}], "node": {"id": "any"}}
"""


@click.group(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="grpc-etcd", prog_name=PROGRAM)
def cli() -> None:
    """Look at a gRPC service registry in etcd, register in it, and find what is wrong with it."""


def run() -> None:
    """Run the command line with this process's arguments."""
    cli(prog_name=PROGRAM)


def valid_name(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse what can be no service's name in any registry."""
    if value is not None and (fault := name_fault(value)):
        raise click.BadParameter(fault)
    return value


@cli.command(epilog="\b\nExamples:\n  grpc-etcd ls\n  grpc-etcd ls --layout kratos -o json")
@connected
@output_option
def ls(connection: Connection, output: str) -> None:
    """List the services of the registry."""
    services: dict[tuple[str, str], list[Entry]] = {}
    for entry in read_all(connection.etcd, connection.layouts):
        services.setdefault((entry.service, entry.layout), []).append(entry)
    rows = [
        {
            "service": service,
            "layout": layout,
            "endpoints": sum(isinstance(each.read, Endpoint) for each in entries),
            "enabled": sum(isinstance(each.read, Endpoint) and each.read.enable for each in entries),
            "rejected": sum(isinstance(each.read, Rejected) for each in entries),
        }
        for (service, layout), entries in sorted(services.items())
    ]
    if output != "table":
        print_data(rows, output)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        click.echo("There are no services here. Is the prefix right? `grpc-etcd check` looks elsewhere too.", err=True)


@cli.command(epilog="\b\nExamples:\n  grpc-etcd get greeter\n  grpc-etcd get greeter -o yaml")
@click.argument("name", callback=valid_name)
@connected
@output_option
def get(connection: Connection, name: str, output: str) -> None:
    """Show the endpoints of a service. Exits with 1 when it has none."""
    entries = read_service(connection.etcd, connection.layouts, name)
    if output != "table":
        print_data([entry_json(entry) for entry in entries], output)
    elif entries:
        columns = ("address", "weight", "state", "zone", "group", "layout", "lease", "owner")
        print_table(columns, [endpoint_row(entry) for entry in entries])
    if not any(isinstance(entry.read, Endpoint) for entry in entries):
        raise click.ClickException(f"{name} has no endpoints here; `grpc-etcd check {name}` says why")


def endpoint_row(entry: Entry) -> list[Any]:
    """Write an entry for people."""
    lease = f"{entry.lease:x}" if entry.lease else "none"
    if isinstance(entry.read, Rejected):
        return [entry.key.decode(errors="replace"), "", entry.read.reason, "", "", entry.layout, lease, ""]
    state = "enabled" if entry.read.enable else "disabled"
    owner = f"{entry.owner.namespace}/{entry.owner.pod}" if entry.owner else "self-registered"
    weight = f"{entry.read.weight:g}"
    return [entry.read.address, weight, state, entry.read.zone, entry.read.group, entry.layout, lease, owner]


@cli.command(epilog="\b\nExamples:\n  grpc-etcd watch greeter\n  grpc-etcd watch greeter -o json --changes 1")
@click.argument("name", callback=valid_name)
@click.option("--changes", type=click.IntRange(1), help="End after so many snapshots; default: never.")
@connected
@output_option
def watch(connection: Connection, name: str, changes: int | None, output: str) -> None:
    """Follow a service, change by change.

    One line for each endpoint that comes (+), goes (-) or changes (~).
    """
    last: Snapshot | None = None
    for number, snapshot in enumerate(connection.registry.watch_services(name), 1):
        if output == "table":
            print_difference(last, snapshot)
        else:
            addresses = [
                {"address": each.address, "weight": each.weight, "enable": each.enable} for each in snapshot.endpoints
            ]
            line = {"service": name, "revision": snapshot.revision, "endpoints": addresses}
            click.echo(json.dumps(line)) if output == "json" else print_data([line], output)
        last = snapshot
        if number == changes:
            return


def print_difference(old: Snapshot | None, new: Snapshot) -> None:
    """Print what became different; the first snapshot is all new."""
    difference = diff(old or Snapshot(new.service, 0, (), {}), new)
    for sign, endpoints in (("+", difference.added), ("-", difference.removed), ("~", difference.changed)):
        for each in endpoints:
            state = "" if each.enable else " disabled"
            click.echo(f"{new.revision} {sign} {each.address} weight {each.weight:g}{state}")
    if not new.endpoints:
        click.echo(f"{new.revision}   no endpoints")


@cli.command(epilog="\b\nExample:\n  grpc-etcd owner /jupiter/greeter/providers/grpc://10.0.0.7:9000")
@click.argument("record_key", metavar="KEY")  # `--key` is the client certificate's
@connected
@output_option
def owner(connection: Connection, record_key: str, output: str) -> None:
    """Name the Pod and the GrpcServices behind a key. Exits with 1 when nobody is known."""
    record = connection.etcd.get(record_key.encode())
    found = read_owners(connection.etcd).get(record_key.encode())
    if found is None:
        known = "an endpoint that registered itself, or that an admin put" if record else "there is no such key"
        raise click.ClickException(f"no operator stands behind {record_key}: {known}")
    data = {
        "key": record_key,
        "namespace": found.namespace,
        "pod": found.pod,
        "node": found.node,
        "grpcServices": list(found.grpc_services),
        "lease": f"{record.lease:x}" if record and record.lease else None,
    }
    if output == "table":
        print_table(("", "value"), [(name, ", ".join(v) if isinstance(v, list) else v) for name, v in data.items()])
    else:
        print_data(data, output)


@cli.command(epilog="\b\nExample:\n  grpc-etcd register greeter 0.0.0.0:9000 --metadata team=shop")
@click.argument("name", callback=valid_name)
@click.argument("address", metavar="HOST:PORT")
@click.option("--scheme", default="grpc", show_default=True, help="What is spoken there.")
@click.option("--weight", type=click.FloatRange(0), default=100.0, show_default=True, help="Its share of calls.")
@click.option("--zone", default="", help="Clients of the same zone prefer it.")
@click.option("--group", default="", help="What routes and canaries choose by.")
@click.option("--metadata", "pairs", metavar="KEY=VALUE", multiple=True, help="More to say of it; may be repeated.")
@click.option("--metrics-address", metavar="HOST:PORT", default="", help="Also make this a Prometheus target.")
@click.option("--allow-unroutable", is_flag=True, help="Register 127.0.0.1 and the like.")
@connected
def register(
    connection: Connection, name: str, address: str, pairs: tuple[str, ...], metrics_address: str, **fields: Any
) -> None:
    """Keep an endpoint registered while this command runs.

    SIGINT (Ctrl-C) or SIGTERM withdraws it and ends the command.
    """
    if bad := [pair for pair in pairs if "=" not in pair]:
        raise click.UsageError(f"--metadata {bad[0]} is not KEY=VALUE")
    allow_unroutable = fields.pop("allow_unroutable")
    metadata = dict(pair.split("=", 1) for pair in pairs)
    endpoint = Endpoint(name=name, address=address, metadata=metadata, **fields)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    registration = connection.registry.register(
        endpoint, metrics_address=metrics_address, allow_unroutable=allow_unroutable
    )
    while not registration.wait(1.0) and not over.is_set():
        if fault := registration.status.fault:
            click.echo(f"not yet: {fault}", err=True)
    if not over.is_set():
        click.echo(f"registered {name} at {registration.endpoint.address}")
    over.wait()
    if not registration.unregister():
        raise click.ClickException("etcd did not confirm the withdrawal; the key goes with its lease")
    click.echo(f"withdrawn {name} at {registration.endpoint.address}")


@cli.command(epilog="\b\nExamples:\n  grpc-etcd check\n  grpc-etcd check greeter -o json")
@click.argument("name", callback=valid_name, required=False)
@connected
@output_option
def check(connection: Connection, name: str | None, output: str) -> None:
    """Find what is wrong, and say what to do.

    Looks at etcd, the prefix, the layout, names, keys, leases, addresses and the operator's mark.
    Exits with 1 on a fault.
    """
    try:
        findings = find_faults(gather_facts(connection.etcd, connection.layouts, name))
    except EtcdError as error:
        findings = list(explain_failure(connection.settings, error))
    print_findings(findings, output)
    if any(finding.level is Level.FAULT for finding in findings):
        raise click.exceptions.Exit(1)


def print_findings(findings: list[Finding], output: str) -> None:
    """Print what was found."""
    if output != "table":
        print_data([dataclasses.asdict(each) | {"level": each.level.value} for each in findings], output)
        return
    for each in findings:
        click.secho(f"{each.level.value}: ", bold=True, nl=False, fg="red" if each.level is Level.FAULT else None)
        click.echo(f"{each.subject}: {each.problem}\n  {each.remedy}")
    if not any(each.level is Level.FAULT for each in findings):
        click.echo("No fault found.")


@cli.command(epilog=ADS_EXAMPLE)
@click.option("--listen", default="127.0.0.1:18000", show_default=True, metavar="HOST:PORT|unix:PATH")
@connected
def ads(connection: Connection, listen: str) -> None:
    """Serve the registry to gRPC clients in other languages.

    They follow it by xDS (ADS): their bootstrap names this server, and xds:///greeter is the service.
    """
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        server = serve(listen, connection.registry)
    except RuntimeError as error:
        raise click.ClickException(f"cannot listen on {listen}: {error}") from error
    click.echo(f"serving on {listen.rpartition(':')[0]}:{server.port}" if server.port else f"serving on {listen}")
    over.wait()
    server.stop()


@cli.command(epilog="\b\nExample:\n  grpc-etcd completion bash >> ~/.bashrc")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes this command in a shell."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"no completion for {shell}")
    click.echo(kind(cli, {}, PROGRAM, "_GRPC_ETCD_COMPLETE").source())

"""The commands. Each reads, prints, and decides nothing that another module could."""

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import get_completion_class

from grpc_etcd.cli.check import check
from grpc_etcd.cli.connecting import (
    Connection,
    before_commands,
    connected,
    connected_to_read,
    output_option,
    valid_name,
)
from grpc_etcd.cli.editing import edit_endpoint
from grpc_etcd.cli.endpoints import print_entries
from grpc_etcd.cli.following import follow_all
from grpc_etcd.cli.generating import generate
from grpc_etcd.cli.history import history
from grpc_etcd.cli.printing import (
    BadUsage,
    Failure,
    ending_with_reader,
    guarded_output,
    print_data,
    print_item,
    print_line,
    print_mapping,
    print_table,
)
from grpc_etcd.client.ads import serve
from grpc_etcd.etcd import PermissionDenied
from grpc_etcd.inspect.checks import GRANT_OWNERS, UNREADABLE_OWNERS
from grpc_etcd.inspect.entries import Entry, entry_json, snapshot_json
from grpc_etcd.inspect.probes import describe_absence
from grpc_etcd.inspect.reading import (
    ReadDenied,
    grant,
    granted_prefix,
    list_prefix,
    read_all,
    read_key,
    read_owners,
    read_service,
)
from grpc_etcd.inspect.remedies import explain
from grpc_etcd.registration.registrar import Registration, State, Status
from grpc_etcd.registry.catalog import list_root
from grpc_etcd.registry.endpoint import MAX_PORT, Endpoint
from grpc_etcd.registry.escaping import escape_bytes
from grpc_etcd.registry.layout import Rejected
from grpc_etcd.registry.snapshot import Snapshot, diff
from grpc_etcd.xds.admission import MOST_IN_ALL, MOST_PER_CLIENT

LOOK_SECONDS = 0.2  # how soon a change of a registration is reported. Arbitrary
PROGRAM = "grpc-etcd"
EXAMPLES = """\b
Examples:
  export GRPC_ETCD_ENDPOINTS=etcd.infra.svc.cluster.local:2379
  grpc-etcd ls
  grpc-etcd get greeter -o json
  grpc-etcd --prefix shop watch
  grpc-etcd watch greeter
  grpc-etcd check greeter
  grpc-etcd owner /jupiter/greeter/providers/grpc://10.0.0.7:9000
  grpc-etcd register greeter 0.0.0.0:9000 --weight 50
  grpc-etcd drain greeter 10.0.0.7:9000
  grpc-etcd set-weight greeter 10.0.0.7:9000 25
  grpc-etcd ads --listen 127.0.0.1:18000
  grpc-etcd generate -f k8s/
"""

ADS_EXAMPLE = """\b
Example:
  grpc-etcd ads --listen 127.0.0.1:18000

\b
A client with this bootstrap in GRPC_XDS_BOOTSTRAP_CONFIG uses the target xds:///greeter:
  {"xds_servers": [{"server_uri": "127.0.0.1:18000", "server_features": ["xds_v3"],
    "channel_creds": [{"type": "insecure"}]}], "node": {"id": "any"}}
"""


class Program(click.Group):
    """The program: whatever a command prints or fails with goes through `printing`."""

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        """Read the command line; --help prints here."""
        with guarded_output():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with guarded_output():
            return super().invoke(ctx)


@click.group(cls=Program, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="grpc-etcd", prog_name=PROGRAM)
@before_commands
def cli() -> None:
    """Inspect a gRPC service registry in etcd, find its problems, and register endpoints in it.

    Options can be given before or after the command.
    """


cli.add_command(generate)
cli.add_command(history)


def run() -> None:
    """Run the command line with this process's arguments."""
    cli(prog_name=PROGRAM)


def valid_weight(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    """Refuse what can be no endpoint's weight."""
    if not 0 <= value < math.inf:
        raise click.BadParameter(f"{value} is not a finite number of at least 0")
    return value


def valid_listen(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Refuse an address that gRPC takes for another: it counts ports beyond the last one from 0 again."""
    path = next((value.removeprefix(each) for each in ("unix:", "unix-abstract:") if value.startswith(each)), None)
    port = value.rpartition(":")[2]
    if not (path or (path is None and port.isdecimal() and int(port) <= MAX_PORT)):
        raise click.BadParameter(f"{value!r} is neither HOST:PORT, with a port up to {MAX_PORT}, nor unix:PATH")
    return value


@cli.command(epilog="\b\nExamples:\n  grpc-etcd ls\n  grpc-etcd ls --layout kratos -o json")
@connected_to_read
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
            "endpoints": sum(each.provider is not None for each in entries),
            "enabled": sum(each.provider is not None and each.provider.enable for each in entries),
            "rejected": sum(isinstance(each.read, Rejected) for each in entries),
        }
        for (service, layout), entries in sorted(services.items())
    ]
    if output != "table":
        print_data(rows, output)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        absence = describe_absence(connection.etcd, connection.layouts, None)
        print_line(f"There are no services here: {absence}. `grpc-etcd check` has details.", error=True)


@cli.command(epilog="\b\nExamples:\n  grpc-etcd get greeter\n  grpc-etcd get greeter -o yaml")
@click.argument("name", callback=valid_name)
@connected_to_read
@output_option
def get(connection: Connection, name: str, output: str) -> None:
    """Show the endpoints of a service. Exits with 1 if it has none."""
    entries = read_service(connection.etcd, connection.layouts, name)
    if output != "table":
        print_data([entry_json(entry) for entry in entries], output)
    elif entries:
        print_entries(entries)
    if not all(entry.is_owner_known for entry in entries):
        print_line(f"Owners are unknown: {UNREADABLE_OWNERS} {GRANT_OWNERS}", error=True)
    if not any(entry.provider for entry in entries):
        absence = "" if entries else f": {describe_absence(connection.etcd, connection.layouts, name)}"
        raise Failure(f"{name} has no endpoints here{absence}; `grpc-etcd check {name}` has details")


@cli.command(
    epilog="\b\nExamples:\n  grpc-etcd watch\n  grpc-etcd watch greeter\n  grpc-etcd watch greeter -o json --changes 1"
)
@click.argument("name", callback=valid_name, required=False)
@click.option("--changes", type=click.IntRange(1), help="Exit after this number of snapshots. Default: never.")
@connected_to_read
@output_option
def watch(connection: Connection, name: str | None, changes: int | None, output: str) -> None:
    """Print the changes of one service, or of all services.

    Prints one line for each endpoint that is added (+), removed (-) or changed (~).
    With NAME, shows the endpoints that clients of the service use; without it, what is stored in etcd.
    """
    last: dict[str, Snapshot] = {}
    with ending_with_reader():
        for number, snapshot in enumerate(follow(connection, name), 1):
            if output == "table":
                print_difference(last.get(snapshot.service), snapshot, named=name is None)
            else:
                print_item(snapshot_json(snapshot), output)
            last[snapshot.service] = snapshot
            if number == changes:
                return


def report_absence(connection: Connection, name: str | None, *, is_there: bool) -> None:
    """Report on standard error what is not there, and where there is something: waiting for it would be in vain."""
    if not is_there:
        absence = describe_absence(connection.etcd, connection.layouts, name)
        print_line(f"{absence}; waiting for the first", error=True)


def follow(connection: Connection, name: str | None) -> Iterator[Snapshot]:
    """Return the snapshots of one service or of all; what holds them up is reported on standard error."""
    if name is not None:
        # Missing permissions and unreachable members are reported.
        report_absence(connection, name, is_there=bool(read_service(connection.etcd, connection.layouts, name)))
        yield from connection.registry.watch_services(name)
        return
    is_there = any(list_prefix(connection.etcd, list_root(layout)).records for layout in connection.layouts)
    report_absence(connection, None, is_there=is_there)
    for each in follow_all(connection.etcd, connection.layouts):
        if isinstance(each, Snapshot):
            yield each
        else:
            print_line(f"watch interrupted, retrying: {' '.join(explain(each, connection.settings))}", error=True)


def print_difference(old: Snapshot | None, new: Snapshot, *, named: bool = False) -> None:
    """Print what became different; the first snapshot is all new."""
    difference = diff(old or Snapshot(new.service, 0, (), {}), new)
    head = f"{new.revision} {new.service}" if named else f"{new.revision}"
    for sign, endpoints in (("+", difference.added), ("-", difference.removed), ("~", difference.changed)):
        for each in endpoints:
            print_line(f"{head} {sign} {each.address} weight {each.weight:g}{describe_state(each)}")
    for key, reason in new.rejected.items():
        if old is None or old.rejected.get(key) != reason:
            print_line(f"{head} ! {escape_bytes(key)} {reason}")
    if not new.endpoints:
        print_line(f"{head}   no endpoints")


def describe_state(endpoint: Endpoint) -> str:
    """Return what keeps an endpoint from being called."""
    return ("" if endpoint.enable else " disabled") + ("" if endpoint.healthy else " unhealthy")


@cli.command(epilog="\b\nExample:\n  grpc-etcd owner /jupiter/greeter/providers/grpc://10.0.0.7:9000")
@click.argument("record_key", metavar="KEY")  # `--key` is the client certificate's
@connected_to_read
@output_option
def owner(connection: Connection, record_key: str, output: str) -> None:
    """Show the Pod and the GrpcServices that own a key. Exits with 1 if no operator owns it."""
    key = os.fsencode(record_key)  # what is not UTF-8 comes as surrogates
    owners = read_owners(connection.etcd)
    try:
        record = read_key(connection.etcd, connection.layouts, key)
    except ReadDenied as error:
        remedies = [GRANT_OWNERS] if owners is None else []  # both at once
        raise Failure(*explain(error, connection.settings), *remedies) from error
    if owners is None:
        raise Failure(f"unknown: {UNREADABLE_OWNERS}", GRANT_OWNERS)
    if (found := owners.get(key)) is None:
        known = "a server that registered itself, or an admin, has written it" if record else "there is no such key"
        raise Failure(f"no operator owns {record_key}: {known}")
    data = {
        "key": record_key,
        "namespace": found.namespace,
        "pod": found.pod,
        "node": found.node,
        "grpcServices": list(found.grpc_services),
        "lease": f"{record.lease:x}" if record and record.lease else None,
    }
    if output == "table":
        print_mapping(data)
    else:
        print_data(data, output)


@cli.command(epilog="\b\nExample:\n  grpc-etcd register greeter 0.0.0.0:9000 --metadata team=shop")
@click.argument("name", callback=valid_name)
@click.argument("address", metavar="HOST:PORT")
@click.option("--scheme", default="grpc", show_default=True, help="Scheme in front of the endpoint's address.")
@click.option(
    "--weight", type=click.FloatRange(0), default=100.0, show_default=True, help="Weight relative to other endpoints."
)
@click.option("--zone", default="", help="Zone; a policy can make clients prefer endpoints of their own zone.")
@click.option("--group", default="", help="Group, to which routes can send calls.")
@click.option(
    "--metadata", "pairs", metavar="KEY=VALUE", multiple=True, help="Endpoint metadata as KEY=VALUE; repeatable."
)
@click.option(
    "--metrics-address", metavar="HOST:PORT", default="", help="Also register this address as a Prometheus target."
)
@click.option(
    "--allow-unroutable", is_flag=True, help="Allow an address that other hosts cannot reach, such as 127.0.0.1."
)
@connected
def register(
    connection: Connection, name: str, address: str, pairs: tuple[str, ...], metrics_address: str, **fields: Any
) -> None:
    """Keep an endpoint registered while this command runs.

    SIGINT (Ctrl-C) or SIGTERM deregisters it and ends the command.
    """
    if bad := [pair for pair in pairs if "=" not in pair]:
        raise BadUsage(f"--metadata {bad[0]} is not KEY=VALUE")
    metadata = dict(pair.split("=", 1) for pair in pairs)
    unroutable = fields.pop("allow_unroutable")
    over = stopped_by_signal()
    silence_library()
    try:
        endpoint = Endpoint(name=name, address=address, metadata=metadata, **fields)
        registration = connection.registry.register(
            endpoint, metrics_address=metrics_address, allow_unroutable=unroutable
        )
    except ValueError as error:
        raise BadUsage(str(error).replace("allow_unroutable=True", "--allow-unroutable")) from error
    report_registration(connection, registration, over)
    if not registration.unregister():
        raise Failure("etcd did not confirm the deregistration; the key expires with its lease")
    print_line(f"deregistered {name} at {registration.endpoint.address}")


def stopped_by_signal() -> threading.Event:
    """Return an event that SIGINT (Ctrl-C) or SIGTERM sets."""
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    return over


def silence_library() -> None:
    """Keep to one voice: what the library would log of a registration, the command says itself."""
    logging.getLogger("grpc_etcd").setLevel(logging.CRITICAL)


def report_registration(connection: Connection, registration: Registration, over: threading.Event) -> None:
    """Report each change of where a registration stands, once, until the command is to end."""
    said = ""
    while not over.is_set():
        status = registration.status
        text = describe_registration(connection, registration, status)
        if text != said:
            print_line(text, error=status.state is not State.REGISTERED)
        said = text
        over.wait(LOOK_SECONDS)


def describe_registration(connection: Connection, registration: Registration, status: Status) -> str:
    """Return where a registration stands, and what to do where something is wrong."""
    endpoint = registration.endpoint
    if status.state is State.REGISTERED:
        return f"registered {endpoint.name} at {endpoint.address}"
    if status.state is State.TAKEN:
        return f"not registered: another process has registered {endpoint.address}; waiting until it is deregistered"
    if status.fault is None:
        return "not yet registered"
    problem, remedy = explain(status.fault, connection.settings)
    if isinstance(status.fault, PermissionDenied):
        prefixes = dict.fromkeys(granted_prefix(each, endpoint.name) for each in connection.layouts)
        metrics = [b"/prometheus/job/"] if any(key.startswith(b"/prometheus/") for key in registration.keys) else []
        remedy = grant("readwrite", *prefixes, *metrics)
    return f"not yet registered, retrying: {problem}. {remedy}"


def edited(connection: Connection, name: str, address: str, what: str, **changes: Any) -> None:
    """Change an endpoint, and say so for each of its keys."""
    for entry in edit_endpoint(connection, name, address, **changes):
        print_line(f"{name} at {address} ({entry.layout}): {what}")


@cli.command(epilog="\b\nExample:\n  grpc-etcd drain greeter 10.0.0.7:9000")
@click.argument("name", callback=valid_name)
@click.argument("address", metavar="HOST:PORT")
@connected
def drain(connection: Connection, name: str, address: str) -> None:
    """Stop new calls to an endpoint; `undrain` reverses it.

    The endpoint must be registered by its own server, which then keeps this change.
    Endpoints of Pods are refused, because the operator owns them.
    """
    edited(connection, name, address, "gets no new calls", enable=False)


@cli.command(epilog="\b\nExample:\n  grpc-etcd undrain greeter 10.0.0.7:9000")
@click.argument("name", callback=valid_name)
@click.argument("address", metavar="HOST:PORT")
@connected
def undrain(connection: Connection, name: str, address: str) -> None:
    """Allow new calls to an endpoint that was drained."""
    edited(connection, name, address, "gets calls", enable=True)


@cli.command("set-weight", epilog="\b\nExample:\n  grpc-etcd set-weight greeter 10.0.0.7:9000 25")
@click.argument("name", callback=valid_name)
@click.argument("address", metavar="HOST:PORT")
@click.argument("weight", type=float, callback=valid_weight)
@connected
def set_weight(connection: Connection, name: str, address: str, weight: float) -> None:
    """Change the weight of an endpoint.

    The endpoint must be registered by its own server, which then keeps this change.
    Endpoints of Pods are refused, because the operator owns them.
    """
    edited(connection, name, address, f"has the weight {weight:g}", weight=weight)


cli.add_command(check)


@cli.command(epilog=ADS_EXAMPLE)
@click.option(
    "--listen",
    default="127.0.0.1:18000",
    show_default=True,
    metavar="HOST:PORT|unix:PATH",
    callback=valid_listen,
    help="Address to listen on.",
)
@click.option(
    "--max-services",
    type=click.IntRange(min=1),
    default=MOST_IN_ALL,
    show_default=True,
    help="How many services all clients together may follow.",
)
@click.option(
    "--max-services-per-client",
    type=click.IntRange(min=1),
    default=MOST_PER_CLIENT,
    show_default=True,
    help="How many services the clients of one address may follow.",
)
@connected
def ads(connection: Connection, listen: str, max_services: int, max_services_per_client: int) -> None:
    """Run an xDS server (ADS) for gRPC clients in other languages.

    The bootstrap of a client contains the address of this server; its target for the service greeter is xds:///greeter.
    """
    over = stopped_by_signal()
    try:
        server = serve(
            listen,
            connection.registry,
            max_services=max_services,
            max_services_per_client=max_services_per_client,
        )
    except RuntimeError as error:
        raise Failure(f"cannot listen on {listen}: {error}") from error
    is_unix = listen.startswith("unix")
    print_line(f"serving on {listen}" if is_unix else f"serving on {listen.rpartition(':')[0]}:{server.port}")
    while not over.wait(LOOK_SECONDS):  # without an end, a signal that comes just before it would wake nobody
        pass
    server.stop()


@cli.command(epilog="\b\nExample:\n  grpc-etcd completion bash >> ~/.bashrc")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell completion script for this command."""
    kind = get_completion_class(shell)
    if kind is None:
        raise Failure(f"no completion for {shell}")
    click.echo(kind(cli, {}, PROGRAM, "_GRPC_ETCD_COMPLETE").source())

"""The command `check`: look at etcd and Kubernetes, print what is wrong, again and again if it is to wait.

What is wrong is decided in `inspect`, without I/O; what is looked at, and in which order, is decided here.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import click

from grpc_etcd.cli.connecting import (
    Connection,
    EtcdOptions,
    connecting_later,
    context_option,
    output_option,
    valid_name,
)
from grpc_etcd.cli.etcd_search import UnreachedError
from grpc_etcd.cli.kubeconfig import AccessError, find_access
from grpc_etcd.cli.manifests import check_manifests
from grpc_etcd.cli.printing import BadUsage, print_data, print_label, print_line
from grpc_etcd.cli.reaching import Search
from grpc_etcd.cli.sides import Look, Sides, look, unreached
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.findings import Finding, finding_json, merge_findings, sort_findings
from grpc_etcd.inspect.kubernetes import Kubernetes
from grpc_etcd.inspect.registration_checks import PASSING, settled
from grpc_etcd.settings import ENDPOINTS_FAULT

SETTLE_SECONDS = 2.0  # after which a Pod that has changed is registered. Arbitrary: it takes a fraction of a second
POLL_SECONDS = 1.0
NO_CLUSTER = Finding(
    Code.ONLY_ETCD,
    "Kubernetes",
    "it was not checked: there is neither a kubeconfig nor a service account",
    "No action is needed to check etcd alone; otherwise: export KUBECONFIG=FILE",
)
ONLY_FILES = replace(
    NO_CLUSTER,
    problem="manifests were checked against their own files only: there is neither a kubeconfig nor a service account",
    remedy="No action is needed if the files are all there is; to check against a cluster: export KUBECONFIG=FILE",
)
NOTHING_READ = 3  # the exit code
EPILOG = """\b
Examples:
  grpc-etcd check
  grpc-etcd check greeter -n shop
  grpc-etcd check -A -o json
  grpc-etcd check greeter -n shop --wait --timeout 120
  grpc-etcd check -f greeter.yaml
  kubectl grpc-etcd check greeter -n shop

\b
Exit codes:
  0  there is no error; there may be warnings and notes
  1  there is a finding of severity error
  2  the command line or a setting is wrong
  3  neither etcd nor Kubernetes could be read
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command, as they are called there."""

    name: str | None
    output: str
    context: str | None
    namespace: str | None
    operator_namespace: str | None
    all_namespaces: bool
    no_kubernetes: bool
    files: tuple[str, ...]
    wait: bool
    timeout: float

    @property
    def is_cluster_asked_for(self) -> bool:
        """Return whether an option asks for Kubernetes: then it is an error that it cannot be read."""
        return bool(self.context or self.namespace or self.all_namespaces)


@click.command(epilog=EPILOG)
@click.argument("name", callback=valid_name, required=False)
@context_option
@click.option("-n", "--namespace", help="Namespace of the GrpcServices. Default: that of the context.")
@click.option("-A", "--all-namespaces", is_flag=True, help="Check the GrpcServices of all namespaces.")
@click.option("--no-kubernetes", is_flag=True, help="Check only etcd.")
@click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    type=click.Path(exists=True, allow_dash=True),
    help="Check the GrpcServices in this manifest or directory before applying them; repeatable, - is standard input.",
)
@click.option("--wait", is_flag=True, help="Check again each second until there is no error.")
@click.option(
    "--timeout", type=click.FloatRange(0), default=60.0, show_default=True, help="Timeout of --wait in seconds."
)
@connecting_later
@output_option
def check(etcd: EtcdOptions, **given: Any) -> None:
    """Report the problems of the registry, or of one service, each with the command that fixes it.

    Checks etcd and, given a kubeconfig or a service account, Kubernetes: connection, permissions, leader,
    names, selectors, ports, Pods and their keys, readiness gates, records and addresses.
    Where no endpoints are set, etcd is reached through kubectl, as far as the caller's permissions allow.
    docs/checks.md explains each code.
    """
    options = Options(**given)
    if options.namespace and options.all_namespaces:
        raise BadUsage("--namespace and --all-namespaces exclude each other")
    kubernetes, fault = _open_kubernetes(options)
    if not (etcd.is_named or kubernetes or options.files or fault):
        raise BadUsage(ENDPOINTS_FAULT, "Nor is there a kubeconfig (KUBECONFIG) or a service account.")
    with ExitStack() as stack:
        looker = Looker(etcd, _make_sides(kubernetes, etcd, options), options, stack)
        found = _wait(looker, options) if options.wait else looker.look()
    missing = [] if fault or kubernetes or options.no_kubernetes else [ONLY_FILES if options.files else NO_CLUSTER]
    _end(Look([*fault, *missing, *found.findings], was_read=found.was_read), options.output)


class Looker:
    """Looks at both sides; connects to etcd as soon as it can, and stays connected until the stack is closed."""

    def __init__(self, etcd: EtcdOptions, sides: Sides, options: Options, stack: ExitStack) -> None:
        self._etcd, self._sides, self._options, self._stack = etcd, sides, options, stack
        if etcd.is_named:
            self._connect(stack.enter_context(etcd.connect()))

    def look(self) -> Look:
        """Look once."""
        if self._sides.connection is None and not self._options.files:
            self._reach()
        return check_manifests(self._sides, self._options.files) if self._options.files else _look_twice(self._sides)

    def _reach(self) -> None:
        """Connect through kubectl, where there is a kubeconfig."""
        kubernetes = self._sides.kubernetes
        if kubernetes is None or kubernetes.access.is_in_cluster:
            return
        search = Search(self._options.context, self._sides.namespace or None, self._options.operator_namespace)
        try:
            self._connect(self._stack.enter_context(self._etcd.reach(kubernetes, search)))
        except UnreachedError as error:
            self._sides = replace(self._sides, unreached=unreached(error))

    def _connect(self, connection: Connection) -> None:
        self._sides = replace(self._sides, connection=connection)


def _open_kubernetes(options: Options) -> tuple[Kubernetes | None, list[Finding]]:
    """Return how the API server is read; None where there is none, or with the reason why it cannot be."""
    if options.no_kubernetes:
        return None, []
    try:
        access = find_access(options.context)
    except AccessError as error:
        code = Code.KUBERNETES_FAILED if options.is_cluster_asked_for else Code.KUBERNETES_UNREACHABLE
        return None, [Finding(code, "kubeconfig", str(error), "kubectl config get-contexts")]
    return Kubernetes(access) if access else None, []


def _make_sides(kubernetes: Kubernetes | None, etcd: EtcdOptions, options: Options) -> Sides:
    own = kubernetes.access.namespace if kubernetes else "default"
    return Sides(
        connection=None,
        kubernetes=kubernetes,
        namespace="" if options.all_namespaces else options.namespace or own,
        name=options.name,
        registry=etcd.label,
        is_asked_for=options.is_cluster_asked_for,
        is_namespace_asked_for=bool(options.namespace),
    )


def _look_twice(sides: Sides) -> Look:
    """Look, and once more if something was found that may pass: then what is still there counts."""
    first = look(sides)
    if not any(each.code in PASSING for each in first.findings):
        return first
    time.sleep(SETTLE_SECONDS)
    second = look(sides, first.unregistered)
    return Look(settled(second.findings, first.findings), second.was_read)


def _wait(looker: Looker, options: Options) -> Look:
    """Look until there is no error, or until time is up; return the last look."""
    deadline = time.monotonic() + options.timeout
    said = ""
    while True:
        found = looker.look()
        codes = ", ".join(dict.fromkeys(each.code.value for each in found.findings if each.is_error))
        if found.was_read and not codes:
            return found
        if codes != said:
            print_line(f"waiting: {codes or 'nothing could be read'}", error=True)
        said = codes
        if time.monotonic() + POLL_SECONDS > deadline:
            return found
        time.sleep(POLL_SECONDS)


def _end(found: Look, output: str) -> None:
    findings = sort_findings(found.findings)
    if output == "table":
        print_findings(findings)
    else:
        print_data([finding_json(each) for each in findings], output)
    if not found.was_read:
        raise click.exceptions.Exit(NOTHING_READ)
    if any(each.is_error for each in findings):
        raise click.exceptions.Exit(1)


def print_findings(findings: list[Finding]) -> None:
    """Print what was found, for people."""
    for each in merge_findings(findings):
        label = f"{each.severity.value} {each.code.value}"
        print_label(label, f"{each.subject}: {each.problem}", is_bad=each.is_error)
        print_line(f"  {each.remedy}")
    if not any(each.is_error for each in findings):
        print_line("No error found.")
    else:
        print_line("docs/checks.md explains each code.")

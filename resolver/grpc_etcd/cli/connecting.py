"""The options that every command shares, and how errors become one sentence and an exit code.

0: done. 1: it failed, or `check` found an error. 2: the command line or a setting is wrong. 3: `check` saw nothing.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml
from click.core import ParameterSource

from grpc_etcd.cli.etcd_search import UnreachedError
from grpc_etcd.cli.kubeconfig import AccessError, find_access
from grpc_etcd.cli.operators_file import OPERATORS_KEYS, parse_operators_file
from grpc_etcd.cli.printing import OUTPUTS, BadUsage, Failure, is_of_output
from grpc_etcd.cli.reaching import Reach, Search, reaching
from grpc_etcd.cli.tunnels import LOOPBACK
from grpc_etcd.client.registry import Registry
from grpc_etcd.client.targets import service_name
from grpc_etcd.etcd import Etcd, EtcdError
from grpc_etcd.inspect.kubernetes import Kubernetes
from grpc_etcd.inspect.remedies import explain
from grpc_etcd.layouts.index import LAYOUT_NAMES
from grpc_etcd.registry.endpoint import name_fault
from grpc_etcd.registry.layout import Layout
from grpc_etcd.settings import ENDPOINTS_FAULT, ClientSettings, SettingsError, read_operators_variables, read_settings

Command = Callable[..., Any]

_FILE = click.Path(exists=True, dir_okay=False)
# The names of each shared option, and what click is reported of it.
OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--endpoints",), {"metavar": "HOST:PORT,...", "help": "etcd's addresses [GRPC_ETCD_ENDPOINTS]."}),
    (("--prefix",), {"help": "Key prefix. Default: the layout's own [GRPC_ETCD_PREFIX]."}),
    (
        ("--layout", "layouts"),
        {
            "multiple": True,
            "type": click.Choice(LAYOUT_NAMES),
            "help": "Layout: format of keys and values; repeatable. Default: jupiter [GRPC_ETCD_LAYOUTS].",
        },
    ),
    (("--user",), {"help": "etcd user [GRPC_ETCD_USER]."}),
    (("--password-file",), {"type": _FILE, "help": "File with the etcd user's password [GRPC_ETCD_PASSWORD_FILE]."}),
    (("--ca",), {"type": _FILE, "help": "File with the CA of etcd's certificate [GRPC_ETCD_CA]."}),
    (("--cert",), {"type": _FILE, "help": "File with the client certificate [GRPC_ETCD_CERT]."}),
    (("--key",), {"type": _FILE, "help": "File with the client certificate's private key [GRPC_ETCD_KEY]."}),
    (
        ("--server-name",),
        {"help": "Name in etcd's certificates. Default: the host of each endpoint [GRPC_ETCD_SERVER_NAME]."},
    ),
    (
        ("--config",),
        {
            "type": _FILE,
            "envvar": "GRPC_ETCD_OPERATOR_CONFIG",
            "help": "The operator's settings file; options and variables override it [GRPC_ETCD_OPERATOR_CONFIG].",
        },
    ),
    (
        ("--registry",),
        {"help": "Registry in the operator's settings; if set, variables for etcd are ignored. Default: `default`."},
    ),
)
DEFAULT_REGISTRY = "default"
context_option = click.option("--context", metavar="NAME", help="Context of the kubeconfig. Default: its current one.")
namespace_option = click.option(
    "-n",
    "--namespace",
    metavar="NAME",
    help="Namespace in which the chart's ConfigMap for clients is looked for, too. Default: that of the context.",
)
operator_namespace_option = click.option(
    "--operator-namespace",
    metavar="NAME",
    help="Namespace of the operator, for etcd through kubectl. Default: wherever there is one.",
)
# How the options are called in ClientSettings.
NAMES = ("endpoints", "prefix", "layouts", "user", "password_file", "ca", "cert", "key", "server_name")


def _before_the_command(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Take what stood before the command where nothing stands behind it, as etcdctl and kubectl do."""
    name = parameter.name or ""
    is_typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    before = context.find_root().params.get(name)
    return value if is_typed or not before else before


def valid_name(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse what can be no service's name in any registry; `etcd:///name` is the name."""
    if value is not None and value.startswith("etcd:///"):
        try:
            value = service_name(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    if value is not None and (fault := name_fault(value)):
        raise click.BadParameter(fault)
    return value


_OUTPUT: dict[str, Any] = {"type": click.Choice(OUTPUTS), "help": "Output format. Default: table."}
output_option = click.option(
    "-o",
    "--output",
    callback=lambda *given: _before_the_command(*given) or "table",
    **_OUTPUT,
)


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a command works; `reach` is the way through kubectl, where etcd is reached by one."""

    settings: ClientSettings
    registry: Registry
    reach: Reach | None = None

    @property
    def etcd(self) -> Etcd:
        """The etcd client."""
        client: Etcd = self.registry.etcd
        return client

    @property
    def layouts(self) -> Sequence[Layout]:
        """The formats that were asked for."""
        return self.registry.layouts


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """What a command line says of etcd."""

    config: str | None
    registry: str | None
    chosen: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Return how the operator's settings call this etcd."""
        return self.registry or DEFAULT_REGISTRY

    @property
    def is_named(self) -> bool:
        """Return whether any setting says where etcd is; whatever else is wrong with them is found later."""
        if self.config or self.chosen.get("endpoints"):
            return True
        try:
            return bool(_settings(None, None, self.chosen).endpoints)
        except SettingsError as error:
            return ENDPOINTS_FAULT not in error.faults

    def connect(self) -> AbstractContextManager[Connection]:
        """Open the registry that is named."""
        return connect(self.config, self.registry, **self.chosen)

    @contextmanager
    def reach(self, kubernetes: Kubernetes, search: Search) -> Iterator[Connection]:
        """Open the registry of the operator of a cluster, through kubectl; raises UnreachedError."""
        # As with the settings file: what the environment says of another registry is not for this one.
        nothing = dict.fromkeys(OPERATORS_KEYS.values(), "") if self.registry else {}
        given = nothing | {name: value for name, value in self.chosen.items() if value} | {"endpoints": LOOPBACK}
        with _refusing():
            settings = _settings(None, None, given)
        with reaching(kubernetes, search, self.label, settings) as (learned, reach):
            with _refusing():
                connection = Connection(learned, Registry.from_settings(learned), reach)
                _ = connection.etcd
            with _explaining(connection):
                yield connection


def _take_options(options: dict[str, Any]) -> EtcdOptions:
    chosen = {name: options.pop(name) or None for name in NAMES}
    return EtcdOptions(options.pop("config"), options.pop("registry"), chosen)


def connected(command: Command) -> Command:
    """Provide a command the shared options; it gets a `Connection` in their place."""

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        with _take_options(options).connect() as connection:
            return command(connection, **options)

    return _with_options(run, callback=_before_the_command)


def connected_to_read(command: Command) -> Command:
    """Provide a command that only reads as `connected` does; where no etcd is named, through kubectl."""

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        etcd = _take_options(options)
        search = Search(*(options.pop(name) for name in Search._fields))
        with _connect_anyhow(etcd, search) as connection:
            return command(connection, **options)

    for option in (operator_namespace_option, namespace_option, context_option):
        run = option(run)
    return _with_options(run, callback=_before_the_command)


def _connect_anyhow(etcd: EtcdOptions, search: Search) -> AbstractContextManager[Connection]:
    kubernetes = None if etcd.is_named else _find_kubernetes(search.context)
    return etcd.connect() if kubernetes is None else _reach_or_fail(etcd, kubernetes, search)


def _find_kubernetes(context: str | None) -> Kubernetes | None:
    """Return the cluster of the kubeconfig; None in a Pod, which needs no kubectl to reach etcd."""
    try:
        access = find_access(context)
    except AccessError as error:
        raise BadUsage(ENDPOINTS_FAULT, f"Nor can etcd be reached through kubectl: {error}") from error
    return Kubernetes(access) if access and not access.is_in_cluster else None


@contextmanager
def _reach_or_fail(etcd: EtcdOptions, kubernetes: Kubernetes, search: Search) -> Iterator[Connection]:
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(etcd.reach(kubernetes, search))
        except UnreachedError as error:
            raise BadUsage(ENDPOINTS_FAULT, f"Nor is it reached through kubectl: {error}", error.remedy) from error
        yield connection


def connecting_later(command: Command) -> Command:
    """Provide a command the shared options; it gets `EtcdOptions` in their place, and connects as far as it can."""

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        return command(_take_options(options), **options)

    return _with_options(operator_namespace_option(run), callback=_before_the_command)


def before_commands(group: Command) -> Command:
    """Return the program itself the shared options: what exists before the command counts for it."""

    @functools.wraps(group)
    def run(**_: Any) -> Any:
        return group()

    return click.option("-o", "--output", **_OUTPUT)(_with_options(run, envvar=None))


def _with_options(command: Command, **more: Any) -> Command:
    for names, attributes in reversed(OPTIONS):
        command = click.option(*names, **attributes | more)(command)
    return command


def read_operators_file(path: str, name: str) -> dict[str, Any]:
    """Read what the operator's settings file says of one registry."""
    return parse_operators_file(Path(path).read_text(encoding="utf-8"), name, path)


def _settings(config: str | None, registry: str | None, options: Mapping[str, Any]) -> ClientSettings:
    """Read the options, the environment, the operator's variables and its file; the first that names a setting wins.

    A registry that is named is read from the file alone, except for the prefix, which the operator has one of.
    """
    if registry and not config:
        raise ValueError("--registry names a registry in the operator's settings file: set the file with --config")
    if registry and config:
        given = {key: value for key, value in options.items() if value is not None}
        nothing = dict.fromkeys(OPERATORS_KEYS.values(), "")  # nor is what the environment says of another registry
        common = read_operators_variables(("prefix",))
        return read_settings(**nothing | common | read_operators_file(config, registry) | given)
    file = read_operators_file(config, "default") if config else {}
    return read_settings(**options, defaults=file | read_operators_variables((*OPERATORS_KEYS.values(), "prefix")))


def _with_etcd(settings: ClientSettings) -> ClientSettings:
    """Refuse settings that are enough for a program, and not for a command."""
    if not settings.endpoints:
        raise ValueError("GRPC_ETCD_ENDPOINTS is not set: commands need an etcd and ignore GRPC_ETCD_STATIC")
    return settings


@contextmanager
def connect(config: str | None = None, name: str | None = None, **overrides: Any) -> Iterator[Connection]:
    """Open a registry; whatever goes wrong is one sentence and a remedy on standard error."""
    with _refusing():  # nothing is sent yet, so what fails is a setting
        settings = _with_etcd(_settings(config, name, overrides))
        connection = Connection(settings, Registry.from_settings(settings))
        _ = connection.etcd
    with _explaining(connection):
        yield connection


@contextmanager
def _explaining(connection: Connection) -> Iterator[None]:
    """Make errors sentences, and close the registry."""
    way = [connection.reach] if connection.reach else []
    with connection.registry:
        try:
            yield
        except EtcdError as error:
            raise Failure(*explain(error, connection.settings), *(each.describe() for each in way)) from error
        except OSError as error:
            if is_of_output(error):
                raise  # see `printing`
            raise Failure(str(error)) from error


@contextmanager
def _refusing() -> Iterator[None]:
    """Make what is wrong with settings sentences."""
    try:
        yield
    except SettingsError as error:
        raise BadUsage(*error.faults) from error
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise BadUsage(str(error)) from error

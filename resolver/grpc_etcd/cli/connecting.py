"""The options that every command shares, and how errors become one sentence and an exit code.

0: done. 1: it failed, or `check` found an error. 2: the command line or a setting is wrong. 3: `check` saw nothing.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml
from click.core import ParameterSource

from grpc_etcd.cli.printing import OUTPUTS, BadUsage, Failure
from grpc_etcd.client.registry import Registry
from grpc_etcd.client.targets import service_name
from grpc_etcd.etcd import Etcd, EtcdError
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
    (("--registry",), {"help": "Registry in that file; if set, variables for etcd are ignored. Default: `default`."}),
)
DEFAULT_REGISTRY = "default"
# What the operator's settings file says of a registry, and how it is called here.
OPERATORS_KEYS = {
    "endpoints": "endpoints",
    "ca": "ca",
    "cert": "cert",
    "key": "key",
    "serverName": "server_name",
    "user": "user",
    "passwordFile": "password_file",
}

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
    """Where a command works."""

    settings: ClientSettings
    registry: Registry

    @property
    def etcd(self) -> Etcd:
        """The etcd client."""
        client: Etcd = self.registry.etcd
        return client

    @property
    def layouts(self) -> Sequence[Layout]:
        """The formats that were asked for."""
        return self.registry.layouts


def connected(command: Command) -> Command:
    """Provide a command the shared options; it gets a `Connection` in their place."""

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        chosen = {name: options.pop(name) or None for name in NAMES}
        with connect(options.pop("config"), options.pop("registry"), **chosen) as connection:
            return command(connection, **options)

    return _with_options(run, callback=_before_the_command)


def connected_if_set(command: Command) -> Command:
    """Provide a command the shared options; it gets a `Connection`, or None where no etcd is named anywhere."""

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        chosen = {name: options.pop(name) or None for name in NAMES}
        config, registry = options.pop("config"), options.pop("registry")
        label = registry or DEFAULT_REGISTRY
        if not _is_etcd_named(config, registry, chosen):
            return command(None, registry=label, **options)
        with connect(config, registry, **chosen) as connection:
            return command(connection, registry=label, **options)

    return _with_options(run, callback=_before_the_command)


def _is_etcd_named(config: str | None, registry: str | None, chosen: dict[str, Any]) -> bool:
    """Return whether any setting says which etcd is meant; whatever else is wrong with them is found later."""
    if config or registry or any(value for name, value in chosen.items() if name not in {"prefix", "layouts"}):
        return True
    try:
        return bool(_settings(None, None, chosen).endpoints)
    except SettingsError as error:
        return error.faults != (ENDPOINTS_FAULT,)


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
    document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    registries = document.get("registries") if isinstance(document, dict) else None
    if not isinstance(registries, dict) or not isinstance(registries.get(name), dict):
        raise ValueError(f"{path} has no registry {name!r}: it is not in the mapping `registries`")  # noqa: TRY004
    named = {OPERATORS_KEYS[key]: value for key, value in registries[name].items() if key in OPERATORS_KEYS}
    found = named | {"prefix": document.get("prefix")}
    return {key: _text(value) for key, value in found.items() if value}


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _settings(config: str | None, registry: str | None, options: dict[str, Any]) -> ClientSettings:
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
    connection = _open(config, name, overrides)
    with connection.registry:
        try:
            yield connection
        except EtcdError as error:
            raise Failure(*explain(error, connection.settings)) from error
        except BrokenPipeError:
            raise  # nobody reads the output any more: no fault, see `printing`
        except OSError as error:
            raise Failure(str(error)) from error


def _open(config: str | None, name: str | None, overrides: dict[str, Any]) -> Connection:
    """Make the clients; nothing is sent yet, so what fails is a setting."""
    try:
        settings = _with_etcd(_settings(config, name, overrides))
        connection = Connection(settings, Registry.from_settings(settings))
        _ = connection.etcd
    except SettingsError as error:
        raise BadUsage(*error.faults) from error
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise BadUsage(str(error)) from error
    return connection

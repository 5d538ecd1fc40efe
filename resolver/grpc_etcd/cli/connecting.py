"""The options that every command shares, and how errors become one sentence and an exit code.

0: done. 1: it failed, or `check` found a fault. 2: the command line or a setting is wrong.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from grpc_etcd.cli.printing import OUTPUTS
from grpc_etcd.client import Registry
from grpc_etcd.etcd import Etcd, EtcdError
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.layouts import LAYOUT_NAMES
from grpc_etcd.settings import ClientSettings, SettingsError, read_settings

Command = Callable[..., Any]

OPTIONS = (
    click.option("--endpoints", metavar="HOST:PORT,...", help="etcd's addresses [GRPC_ETCD_ENDPOINTS]."),
    click.option("--prefix", help="Key prefix of the layout; default is the layout's own [GRPC_ETCD_PREFIX]."),
    click.option(
        "--layout",
        "layouts",
        multiple=True,
        type=click.Choice(LAYOUT_NAMES),
        help="Registry format; may be repeated. Default: jupiter [GRPC_ETCD_LAYOUTS].",
    ),
    click.option("--user", help="etcd user [GRPC_ETCD_USER]."),
    click.option(
        "--password-file", type=click.Path(exists=True, dir_okay=False), help="Its password [GRPC_ETCD_PASSWORD_FILE]."
    ),
    click.option("--ca", type=click.Path(exists=True, dir_okay=False), help="CA certificate [GRPC_ETCD_CA]."),
    click.option("--cert", type=click.Path(exists=True, dir_okay=False), help="Client certificate [GRPC_ETCD_CERT]."),
    click.option("--key", type=click.Path(exists=True, dir_okay=False), help="Its private key [GRPC_ETCD_KEY]."),
)

output_option = click.option(
    "-o", "--output", type=click.Choice(OUTPUTS), default="table", show_default=True, help="How to print."
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
    """Give a command the shared options; it gets a `Connection` in their place."""

    @functools.wraps(command)
    def run(**options: Any) -> Any:
        names = ("endpoints", "prefix", "layouts", "user", "password_file", "ca", "cert", "key")
        chosen = {name: options.pop(name) or None for name in names}
        with connect(**chosen) as connection:
            return command(connection, **options)

    for option in reversed(OPTIONS):
        run = option(run)
    return run


@contextmanager
def connect(**overrides: Any) -> Iterator[Connection]:
    """Open a registry; whatever goes wrong is one sentence and a remedy on standard error."""
    try:
        settings = read_settings(**overrides)
        with Registry.from_settings(settings) as registry:
            yield Connection(settings, registry)
    except SettingsError as error:
        raise click.UsageError("\n".join(error.faults)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except EtcdError as error:
        raise click.ClickException(f"{error}\n{error.remedy}") from error
    except OSError as error:
        raise click.ClickException(str(error)) from error

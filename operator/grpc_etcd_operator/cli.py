"""The command line: turns flags into settings and hands them to the composition root.

Exit codes: 0 ended as asked, 1 failed while running, 2 the settings or the cluster must be fixed first.
"""

import sys
from collections.abc import Callable
from typing import Any

import click

from grpc_etcd.registry.escaping import escape
from grpc_etcd_operator.settings import SETTINGS, VARIABLE_PREFIX, Setting, Settings, SettingsError, load_settings

EXIT_UNUSABLE = 2
PLAN_HELP = (
    "Print once what `run` would write, and exit without writing anything. If it makes no progress for a minute, it "
    "reports what it waits for and exits with code 2."
)
VERIFY_HELP = (
    "Wait for a minute at most until every registry has a leader of this cluster id and is synced, and exit, with code "
    "2 and what is missing if one is not. It writes nothing; `helm test` runs it."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="grpc-etcd", prog_name="grpc-etcd-operator")
def main() -> None:
    """Keep a gRPC service registry in etcd in sync with Pod readiness."""


def _option(setting: Setting) -> click.Option:
    parameter = setting.field
    help_text = f"{setting.help}  [{setting.variable}]"
    if setting.is_flag:
        return click.Option([setting.flag, parameter], is_flag=True, default=None, help=help_text)
    shown = f"  [default: {setting.default}]" if setting.default else ""
    return click.Option([setting.flag, parameter], multiple=setting.is_many, help=help_text + shown, metavar="TEXT")


def _given(values: dict[str, Any]) -> dict[str, list[str]]:
    """Collect what the command line gave, by setting name, as text."""
    given: dict[str, list[str]] = {}
    for setting in SETTINGS:
        value = values.get(setting.field)
        if value is True:
            given[setting.name] = ["true"]
        elif value:
            given[setting.name] = list(value) if setting.is_many else [value]
    return given


def _command(name: str, help_text: str, entry: Callable[[Settings], int]) -> click.Command:
    def callback(config: str | None, **values: Any) -> None:
        try:
            settings = load_settings(_given(values), config=config or "")
        except SettingsError as error:
            for fault in error.faults:
                click.echo(f"grpc-etcd-operator: {escape(fault)}", err=True)
            sys.exit(EXIT_UNUSABLE)
        sys.exit(entry(settings))

    help_of_config = f"YAML file with settings; needed for several registries.  [{VARIABLE_PREFIX}CONFIG]"
    config = click.Option(["--config"], metavar="FILE", help=help_of_config)
    options: list[click.Parameter] = [_option(setting) for setting in SETTINGS]
    return click.Command(name, params=[*options, config], callback=callback, help=help_text)


def _run(settings: Settings) -> int:
    from grpc_etcd_operator import app  # noqa: PLC0415  --help and faulty settings need not wait for Kubernetes' client

    return app.run(settings)


def _plan(settings: Settings) -> int:
    from grpc_etcd_operator import app  # noqa: PLC0415  as in _run

    return app.plan(settings)


def _cleanup(settings: Settings) -> int:
    from grpc_etcd_operator import app  # noqa: PLC0415  as in _run

    return app.cleanup(settings)


def _verify(settings: Settings) -> int:
    from grpc_etcd_operator import app  # noqa: PLC0415  as in _run

    return app.verify(settings)


main.add_command(_command("run", "Watch Pods and GrpcServices, and keep the registries in sync.", _run))
main.add_command(_command("plan", PLAN_HELP, _plan))
main.add_command(_command("cleanup", "Delete all keys of this cluster id from the registries.", _cleanup))
main.add_command(_command("verify", VERIFY_HELP, _verify))

"""Write the reference pages below docs/reference/ from what they describe, so that they cannot be wrong for long.

The CRD's page comes from the schema that the API server enforces, the settings' from the operator's table, the metrics'
from a registry that the operator's own code fills, the commands' from the parsers, the chart's from values.yaml.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

import grpc_etcd.cli.commands
import grpc_etcd_operator.cli
from grpc_etcd_operator import settings
from grpc_etcd_operator.core import reasons
from grpc_etcd_operator.telemetry.samples import reference as metrics_reference
from testbed import chart

PAGES = chart.ROOT / "docs/reference"
SCHEMA = chart.ROOT / "resolver/grpc_etcd/inspect/grpcservice.schema.json"
BANNER = "<!-- Made by `make gen`; edit the source that the first sentence names. -->\n"


def outputs() -> Mapping[Path, str]:
    """Give every reference page, and the schema by which `grpc-etcd check -f` judges manifests."""
    pages = {PAGES / f"{name}.md": BANNER + text for name, text in _pages()}
    return {**pages, SCHEMA: json.dumps(_without_words(_schema()), indent=1) + "\n"}


def _schema() -> Mapping[str, Any]:
    schema: Mapping[str, Any] = yaml.safe_load(chart.CRD.read_text())["spec"]["versions"][0]["schema"]
    return dict(schema["openAPIV3Schema"])


def _without_words(schema: Any) -> Any:
    """Leave out what no manifest is compared with: descriptions, and of rules the CEL."""
    if isinstance(schema, list):
        return [_without_words(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    left = {"description", "rule"}
    kept = {name: each for name, each in schema.items() if name not in left or not isinstance(each, str)}
    return {name: _without_words(each) for name, each in kept.items()}


def _pages() -> Iterator[tuple[str, str]]:
    yield "grpcservice", "# GrpcService\n\nFrom `crds/grpcservices.yaml`.\n\n" + "".join(_crd_rows())
    yield "settings", f"# Settings of the operator\n\nFrom `operator/grpc_etcd_operator/settings.py`.\n\n{_settings()}"
    yield (
        "metrics",
        "# Metrics of the operator\n\nFrom `operator/grpc_etcd_operator/telemetry/samples.py`.\n\n"
        + metrics_reference(),
    )
    yield (
        "reasons",
        "# Reasons of conditions, Events and readiness gates\n\nFrom `operator/grpc_etcd_operator/core/reasons.py`.\n\n"
        + reasons.reference(),
    )
    yield "chart", "# Values of the chart\n\nFrom `charts/grpc-etcd-operator/values.yaml`.\n\n" + "".join(_chart_rows())
    yield "cli", "# Commands\n\nFrom the programs' own `--help`.\n" + "".join(_commands())


def _settings() -> str:
    return (
        "A flag overrides its variable, and a variable overrides the file that `--config` names.\n"
        "Flags and variables apply to the registry `default`; only the file can define more registries.\n\n"
        + settings.reference()
    )


def _crd_rows() -> Iterator[str]:
    schema = _schema()
    yield "| field | type | what it is |\n| --- | --- | --- |\n"
    for part in ("spec", "status"):
        yield from _fields(part, schema["properties"][part])


def _fields(path: str, schema: Mapping[str, Any]) -> Iterator[str]:
    if description := schema.get("description"):
        facts = [_bounds(schema), f"Default: `{_shown(schema['default'])}`." if "default" in schema else ""]
        text = " ".join([_cell(description), *filter(None, facts)])
        yield f"| `{path}` | {_type(schema)} | {text} |\n"
    for name, field in schema.get("properties", {}).items():
        yield from _fields(f"{path}.{name}", field)
    items = schema.get("items", {})
    for name, field in items.get("properties", {}).items():
        yield from _fields(f"{path}[].{name}", field)


def _type(schema: Mapping[str, Any]) -> str:
    kind = str(schema.get("type", "integer or string"))
    return f"{kind} of {schema['items'].get('type')}" if kind == "array" else kind


def _bounds(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return f"One of {', '.join(f'`{_shown(value)}`' for value in schema['enum'])}."
    if "minimum" in schema and "maximum" in schema:
        return f"From {schema['minimum']} to {schema['maximum']}."
    return ""


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _chart_rows() -> Iterator[str]:
    yield "".join(line + "\n" for line in chart.outputs()[chart.CHART / "README.md"].splitlines() if line[:1] == "|")


def _commands() -> Iterator[str]:
    yield from _help("grpc-etcd", grpc_etcd.cli.commands.cli, None)
    yield from _help("grpc-etcd-operator", grpc_etcd_operator.cli.main, None)


def _help(name: str, command: click.Command, parent: click.Context | None) -> Iterator[str]:
    word = name.rsplit(maxsplit=1)[-1]
    context = click.Context(command, info_name=word, parent=parent, terminal_width=84, **command.context_settings)
    yield f"\n## {name}\n\n```\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            if found := command.get_command(context, child):
                yield from _help(f"{name} {child}", found, context)

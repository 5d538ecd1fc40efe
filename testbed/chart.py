"""Write what the chart repeats from elsewhere: version, CRD, Artifact Hub's annotations, the README's table of values.

The version stands in pyproject.toml, the CRD in crds/, each value's comment in values.yaml; nothing is kept twice by
hand. The comments are read as lines, since YAML parsers drop them: a comment stands right above its value.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts/grpc-etcd-operator"
CRD = ROOT / "crds/grpcservices.yaml"
EXAMPLE = ROOT / "examples/greeter/grpcservice.yaml"
_VALUE = re.compile(r"( *)([A-Za-z]+):(?: |$)")

HEAD = """<!-- Made by `make gen` from values.yaml; edit that. -->
# grpc-etcd-operator

Installs an operator that keeps a gRPC service registry in etcd in sync with Pod readiness.

```
helm install grpc-etcd-operator charts/grpc-etcd-operator \\
  --namespace grpc-etcd --create-namespace \\
  --set image.repository=REGISTRY/grpc-etcd-operator \\
  --set 'etcd.endpoints={etcd.infra.svc.cluster.local:2379}'
```

If you have no etcd, `--set etcd.bundled.enabled=true` starts a single-member etcd for a trial.
A schema validates the values below and rejects unknown names.
[docs/operations.md](../../docs/operations.md) covers sizing, security, upgrades and monitoring.

| value | default | what it is |
| --- | --- | --- |
"""


def version() -> str:
    """Give the project's version."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def outputs() -> Mapping[Path, str]:
    """Give the chart's generated files."""
    chart = (CHART / "Chart.yaml").read_text()
    chart = re.sub(r"^version: .*$", f"version: {version()}", chart, flags=re.MULTILINE)
    chart = re.sub(r"^appVersion: .*$", f'appVersion: "{version()}"', chart, flags=re.MULTILINE)
    chart = chart.partition("annotations:\n")[0] + write_yaml({"annotations": annotations()})
    return {
        CHART / "Chart.yaml": chart,
        CHART / "files/grpcservices.yaml": CRD.read_text(),
        CHART / "README.md": HEAD + "".join(_rows()),
    }


def annotations() -> dict[str, str]:
    """Give what Artifact Hub shows of the chart beside its README; a release adds its changes (testbed.release)."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    crd = yaml.safe_load(CRD.read_text())
    kind, (served,) = crd["spec"]["names"]["kind"], crd["spec"]["versions"]
    shown = {"kind": kind, "version": served["name"], "name": crd["metadata"]["name"], "displayName": kind}
    etcd = values["etcd"]["bundled"]["image"]
    images = [
        {"name": "operator", "image": f"{values['image']['repository']}:{version()}"},
        {"name": "etcd", "image": f"{etcd['repository']}:{etcd['tag']}"},
    ]
    return {
        "artifacthub.io/category": "networking",
        "artifacthub.io/crds": write_yaml(
            [{**shown, "description": served["schema"]["openAPIV3Schema"]["description"]}]
        ),
        "artifacthub.io/crdsExamples": write_yaml([yaml.safe_load(EXAMPLE.read_text())]),
        "artifacthub.io/images": write_yaml(images),
        "artifacthub.io/license": "Apache-2.0",
        "artifacthub.io/operator": "true",
    }


class _Blocks(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Blocks.add_representer(str, _write_text)


def write_yaml(document: Any) -> str:
    """Write YAML in the order that is given, with texts of several lines as blocks."""
    return yaml.dump(document, Dumper=_Blocks, sort_keys=False, width=1000)


def documented_values() -> Iterator[tuple[str, str]]:
    """Yield each value that has a comment of its own, in the file's order: its dotted path and the comment."""
    path: list[str] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip().removeprefix("#").strip())
        elif not line.strip():
            comment = []
        elif found := _VALUE.match(line):
            path = [*path[: len(found[1]) // 2], found[2]]
            if comment:
                yield ".".join(path), " ".join(comment)
            comment = []


def _rows() -> Iterator[str]:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for path, comment in documented_values():
        default = _at(values, path)
        is_section = isinstance(default, dict) and any(other.startswith(f"{path}.") for other, _ in documented_values())
        shown = "" if is_section else f"`{json.dumps(default)}`"
        yield f"| `{path}` | {shown} | {comment.replace('|', chr(92) + '|')} |\n"


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values

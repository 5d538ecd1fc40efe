"""Nothing in a GrpcService is without a bound: each field of it is kept, and written for each Pod and layout."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpc_etcd_operator.core.services import parse_service
from tests.unit.operator_core.conftest import make_raw_service

CRD = Path(__file__).resolve().parents[3] / "crds" / "grpcservices.yaml"
BOUNDS = {"string": {"maxLength", "enum"}, "array": {"maxItems"}, "integer": {"maximum"}}


def is_bounded(schema: dict[str, Any]) -> bool:
    if "additionalProperties" in schema:
        rules = [each["rule"] for each in schema.get("x-kubernetes-validations", ())]
        return "maxProperties" in schema and any(rule.startswith("self.all(key, size(key) <= ") for rule in rules)
    return schema.get("type") not in BOUNDS or bool(BOUNDS[schema["type"]] & schema.keys())


def walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    parts = {**schema.get("properties", {}), "*": schema.get("additionalProperties"), "[]": schema.get("items")}
    for name, part in parts.items():
        if part:
            yield from walk(part, f"{path}.{name}")


def test_every_field_of_a_spec_has_a_bound() -> None:
    version = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert [path for path, schema in walk(spec, "spec") if not is_bounded(schema)] == []


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"metadata": {"k" * 318: "v"}}, "spec.metadata"),
        ({"policy": {"matchMetadata": {"k" * 318: "v"}}}, "spec.policy.matchMetadata"),
        ({"routes": [{"id": "r", "method": "/a/b", "groups": {"g" * 254: 1}}]}, "spec.routes: groups of route 'r'"),
        ({"routes": [{"id": "r", "method": "/a/b", "addresses": {"a" * 260: 1}}]}, "spec.routes: addresses of route"),
    ],
)
def test_a_key_that_an_older_crd_has_let_in_is_refused_by_name(spec: dict[str, Any], named: str) -> None:
    service = parse_service(make_raw_service(**spec))
    assert service.spec is None
    assert [fault.startswith(named) for fault in service.faults] == [True]
    assert len(service.faults[0]) < 200

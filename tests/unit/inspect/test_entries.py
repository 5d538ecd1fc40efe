"""What programs get of an endpoint: `-o json` has every field."""

import dataclasses
import json
import math
from types import MappingProxyType

from grpc_etcd import Endpoint
from grpc_etcd.inspect.entries import endpoint_json
from grpc_etcd.registry.endpoint import Kind, ServiceDescription

FULL = Endpoint(
    name="greeter",
    address="10.0.0.1:9000",
    scheme="grpcs",
    weight=math.pi,
    enable=False,
    healthy=False,
    metadata={"team": "shop"},
    region="eu",
    zone="eu-1a",
    kind=Kind.GOVERNOR,
    deployment="canary",
    group="blue",
    app_id="7",
    services=MappingProxyType(
        {"shop.Greeter": ServiceDescription(namespace="shop", name="Greeter", labels={"a": "b"}, methods=("Greet",))}
    ),
    instance="pod-1",
)
UNNAMED = {"name"}  # the service is told beside its endpoints


def test_every_field_of_an_endpoint_is_told() -> None:
    plain, written = Endpoint(name="greeter", address="10.0.0.1:9000"), json.loads(json.dumps(endpoint_json(FULL)))
    for field in dataclasses.fields(Endpoint):
        if field.name not in UNNAMED:
            alone = dataclasses.replace(FULL, **{field.name: getattr(plain, field.name)})
            changed = endpoint_json(alone) != endpoint_json(FULL)
            assert changed or field.name == "address", f"{field.name} is not told"
    assert written["address"] == "10.0.0.1:9000"
    assert written["kind"] == "governor"
    assert written["appId"] == "7"
    assert written["services"]["shop.Greeter"]["methods"] == ["Greet"]

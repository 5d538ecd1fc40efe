"""Every layout against bytes that the formats' own Go writers put into an etcd (golden.json: module, version, case)."""

import json
from pathlib import Path

import pytest

from grpc_etcd.registry.endpoint import Endpoint, Kind
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.layouts import make_layout

RECORDS = json.loads((Path(__file__).parent / "golden.json").read_text())
ENDPOINTS = [record for record in RECORDS if not record["key"].startswith("/prometheus/")]
GREETER = "greeter"


def _id(record):
    return f"{record['layout']}-{record['version']}-{record['case']}"


def _layout(record):
    return make_layout(record["layout"], "wsd-reg" if record["case"] == "prefix" else None)


JUPITER = [record for record in ENDPOINTS if record["layout"] == "jupiter"]


@pytest.mark.parametrize("record", JUPITER, ids=_id)
def test_what_a_go_writer_put_is_read_and_written_back_byte_for_byte(record):
    layout = _layout(record)
    stored = KeyValue(record["key"].encode(), record["value"].encode())
    endpoint = layout.decode(GREETER, *stored)
    assert isinstance(endpoint, Endpoint)
    assert layout.encode(GREETER, endpoint) == stored


@pytest.mark.parametrize("record", JUPITER, ids=_id)
def test_jupiters_fields_are_read(record):
    endpoint = _layout(record).decode(GREETER, record["key"].encode(), record["value"].encode())
    value = json.loads(record["value"])
    assert endpoint.name == GREETER
    assert endpoint.address == value["address"]
    assert endpoint.scheme == value["scheme"]
    assert endpoint.weight == value["weight"]
    assert endpoint.enable is value["enable"]
    assert endpoint.healthy is True
    assert endpoint.metadata == value["metadata"]
    assert (endpoint.region, endpoint.zone) == (value["region"], value["zone"])
    assert endpoint.kind is (Kind.GOVERNOR if record["case"] == "governor" else Kind.PROVIDER)

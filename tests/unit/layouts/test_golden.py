"""Every layout against bytes that the formats' own Go writers put into an etcd (golden.json: module, version, case)."""

import json
from pathlib import Path
from typing import Any

import pytest

from grpc_etcd.layouts.configurators import metric_target
from grpc_etcd.layouts.index import LAYOUT_NAMES, make_layout
from grpc_etcd.registry.endpoint import Endpoint, Kind
from grpc_etcd.registry.layout import KeyValue, Layout, Rejected

Record = dict[str, Any]

RECORDS: list[Record] = json.loads((Path(__file__).parent / "golden.json").read_text())
TARGETS = [record for record in RECORDS if record["key"].startswith("/prometheus/")]
# kitex writes IPv6 without brackets; nobody can read that.
UNREADABLE = [record for record in RECORDS if (record["layout"], record["case"]) == ("kitex", "ipv6")]
ENDPOINTS = [record for record in RECORDS if record not in TARGETS and record not in UNREADABLE]
# go-micro 4 and 5 order a node's fields differently; we write as 5 does.
WRITTEN = [record for record in ENDPOINTS if record["module"] != "github.com/go-micro/plugins/v4/registry/etcd"]
GREETER = "greeter"


def _id(record: Record) -> str:
    return f"{record['layout']}-{record['version']}-{record['case']}"


def _layout(record: Record) -> Layout:
    return make_layout(record["layout"], "wsd-reg" if record["case"] == "prefix" else None)


def _stored(record: Record) -> KeyValue:
    return KeyValue(record["key"].encode(), record["value"].encode())


def _read(record: Record) -> Endpoint:
    endpoint = _layout(record).decode(GREETER, *_stored(record))
    assert isinstance(endpoint, Endpoint)
    return endpoint


def test_all_layouts_have_bytes_of_their_own_writers() -> None:
    assert {record["layout"] for record in ENDPOINTS} == set(LAYOUT_NAMES)


@pytest.mark.parametrize("record", WRITTEN, ids=_id)
def test_what_a_go_writer_put_is_read_and_written_back_byte_for_byte(record: Record) -> None:
    assert _layout(record).encode(GREETER, _read(record)) == _stored(record)


@pytest.mark.parametrize("record", ENDPOINTS, ids=_id)
def test_name_and_address_are_read(record: Record) -> None:
    endpoint = _read(record)
    assert endpoint.name == GREETER
    assert endpoint.address == ("[2001:db8::5]:9000" if record["case"] == "ipv6" else "127.0.1.5:9000")
    assert endpoint.enable is (record["case"] != "disabled")
    assert endpoint.kind is (Kind.GOVERNOR if record["case"] == "governor" else Kind.PROVIDER)


@pytest.mark.parametrize("record", [each for each in ENDPOINTS if each["case"] == "meta"], ids=_id)
def test_metadata_are_read(record: Record) -> None:
    endpoint = _read(record)
    assert {"team": "shop", "version": "v2"}.items() <= endpoint.metadata.items()
    if record["layout"].startswith("jupiter"):
        assert (endpoint.region, endpoint.zone) == ("r1", "z1")
    if record["layout"] in {"jupiter", "jupiter-v2", "kitex"}:
        assert endpoint.weight == 7


@pytest.mark.parametrize("record", ENDPOINTS, ids=_id)
def test_a_key_is_found_under_the_prefix_that_readers_watch(record: Record) -> None:
    if record["case"] != "governor":
        assert record["key"].encode().startswith(_layout(record).prefix(GREETER))


def test_go_micro_4_and_5_are_read_alike() -> None:
    both = [record for record in ENDPOINTS if record["layout"] == "go-micro" and record["case"] == "meta"]
    assert len(both) == 2
    assert _read(both[0]) == _read(both[1])


@pytest.mark.parametrize("record", UNREADABLE, ids=_id)
def test_an_address_without_brackets_is_rejected_with_a_reason(record: Record) -> None:
    rejected = _layout(record).decode(GREETER, *_stored(record))
    assert isinstance(rejected, Rejected)
    assert "2001:db8::5:9000" in rejected.reason


@pytest.mark.parametrize("record", [each for each in TARGETS if each["layout"] == "jupiter"], ids=_id)
def test_metric_targets_are_written_as_jupiter_does(record: Record) -> None:
    assert metric_target(GREETER, "vm", "127.0.1.5:9000") == _stored(record)

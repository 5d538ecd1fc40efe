"""Values that are read from a registry can be copied, sent to another process and written as JSON, and not changed."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from grpc_etcd import Endpoint, Snapshot
from grpc_etcd.layouts.index import LAYOUT_NAMES, make_layout
from grpc_etcd.registry.endpoint import ServiceDescription
from grpc_etcd.registry.frozen import FrozenDict
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.snapshot import SnapshotBuilder

WRITTEN = Endpoint(
    name="greeter",
    address="10.0.0.1:9000",
    metadata={"version": "v2"},
    services={"greeter": ServiceDescription(name="greeter", methods=("SayHello",))},
)


@pytest.fixture(params=LAYOUT_NAMES)
def snapshot(request: pytest.FixtureRequest) -> Snapshot:
    layout = make_layout(request.param)
    record = layout.encode("greeter", WRITTEN)
    assert isinstance(record, KeyValue)
    builder = SnapshotBuilder("greeter", [layout], schemes=None)
    builder.replace([(record.key, record.value), (layout.prefix("greeter") + b"broken", b"broken")], 7)
    return builder.snapshot()


def pickled(value: object) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - what was just made


@pytest.mark.parametrize("copied", [pickled, copy.copy, copy.deepcopy])
def test_what_is_read_can_be_copied(snapshot: Snapshot, copied: Callable[[object], object]) -> None:
    assert len(snapshot.endpoints) == 1
    assert copied(snapshot) == snapshot


def test_an_endpoint_can_be_written_as_json(snapshot: Snapshot) -> None:
    (endpoint,) = snapshot.endpoints
    written = json.loads(json.dumps(dataclasses.asdict(endpoint)))
    assert (written["address"], written["metadata"]) == (endpoint.address, dict(endpoint.metadata))
    assert dataclasses.asdict(Endpoint(name="greeter", address=""))["metadata"] == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda frozen: frozen.__setitem__("a", "b"),
        lambda frozen: frozen.__delitem__("version"),
        lambda frozen: frozen.__ior__({"a": "b"}),
        lambda frozen: frozen.clear(),
        lambda frozen: frozen.pop("version"),
        lambda frozen: frozen.popitem(),
        lambda frozen: frozen.setdefault("a", "b"),
        lambda frozen: frozen.update(a="b"),
    ],
)
def test_nobody_changes_it(change: Callable[[FrozenDict[str, str]], object]) -> None:
    frozen = FrozenDict(version="v2")
    with pytest.raises(TypeError, match="immutable"):
        change(frozen)
    assert frozen == {"version": "v2"}
    assert type(frozen | {"a": "b"}) is dict
